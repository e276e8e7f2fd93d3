"""``amkd-distill evaluate --attack pgd``: accuracy under PGD for one radius or several."""

from __future__ import annotations

from typing import Any

from torch import nn

from amkd_fast.attacks import PGD, frozen, robust_accuracy
from amkd_fast.distill.bar import bar
from amkd_fast.distill.data import Data, InOrder
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.plan import Plan

USUAL = ("loss ce", "keep last")  # goes without saying


def measure(network: nn.Module, data: Data, plan: Plan, progress: bool) -> list[dict[str, Any]]:
    """For each radius of the plan the robust accuracy, as plain values.

    Raises:
        UserError: The loss needs more classes than there are.
    """
    if plan.loss == "dlr" and len(data.classes) < 3:
        raise UserError(f"--loss dlr: needs at least 3 classes, the data has {len(data.classes)}")
    lower, upper = data.bounds()
    view = frozen(network)
    batches = InOrder(data.test, plan.batch_size)
    rows = []
    for eps in plan.eps:
        attack = PGD(
            view,
            eps=eps / data.std,
            step_size=None if plan.step_size is None else plan.step_size / data.std,
            steps=plan.steps,
            norm=plan.norm,
            random_start=True,
            restarts=plan.restarts,
            lower=lower,
            upper=upper,
            loss=plan.loss,
            keep=plan.keep,
            compact=True,  # pays on a GPU, too, where wrong images and broken ones are many
        )
        with bar(f"PGD, eps {eps:g}", progress) as report:
            result = robust_accuracy(view, batches, attack, seed=plan.seed, progress=report)
        rows.append(
            {
                "eps": eps,
                "accuracy": result.robust,
                "right": int(result.survived.sum()),
                "images": result.count,
                "interval95": result.robust_interval,
            }
        )
    return rows


def show(rows: list[dict[str, Any]], plan: Plan) -> None:
    """One line for one radius, a table for several."""
    how = f"{plan.steps} steps" + (f", {plan.restarts} restarts" if plan.restarts > 1 else "")
    how += "".join(f", {name}" for name in (f"loss {plan.loss}", f"keep {plan.keep}") if name not in USUAL)
    if len(rows) == 1:
        print(f"under PGD ({plan.norm}, eps {rows[0]['eps']:g}, {how}): {100.0 * rows[0]['accuracy']:.2f} %")
        return
    from rich.console import Console
    from rich.table import Table

    view = Table(title=f"Accuracy under PGD in % ({plan.norm}, {how})")
    for heading in ("eps", "accuracy", "95 % interval"):
        view.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        low, high = (100.0 * end for end in row["interval95"])
        view.add_row(f"{row['eps']:g}", f"{100.0 * row['accuracy']:.2f}", f"{low:.1f} – {high:.1f}")
    Console().print(view)
