"""``amkd-distill evaluate --attack pgd``: accuracy under PGD for one radius or several."""

from __future__ import annotations

from typing import Any

from torch import nn

from amkd_fast.attacks import PGD, frozen, robust_accuracy
from amkd_fast.distill.data import Data, InOrder
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.evaluate_settings import EvaluateSettings
from amkd_fast.distill.progress import progress_bar

USUAL = ("loss ce", "keep last")  # goes without saying


def measure(network: nn.Module, data: Data, options: EvaluateSettings, progress: bool) -> list[dict[str, Any]]:
    """For each radius of the options the robust accuracy, as plain values.

    Raises:
        UserError: The loss needs more classes than there are.
    """
    if options.loss == "dlr" and len(data.classes) < 3:
        raise UserError(f"--loss dlr: needs at least 3 classes, the data has {len(data.classes)}")
    view = frozen(network)
    batches = InOrder(data.test, options.batch_size)
    rows = []
    for eps in options.eps:
        attack = PGD(
            view,
            eps=eps,
            step_size=options.step_size,
            steps=options.steps,
            norm=options.norm,
            random_start=True,
            restarts=options.restarts,
            lower=0.0,
            upper=1.0,
            loss=options.loss,
            keep=options.keep,
            compact=True,  # pays on a GPU, too, where wrong images and broken ones are many
        )
        with progress_bar(f"PGD, eps {eps:g}", progress) as report:
            result = robust_accuracy(view, batches, attack, seed=options.seed, progress=report)
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


def show(rows: list[dict[str, Any]], options: EvaluateSettings) -> None:
    """One line for one radius, a table for several."""
    how = f"{options.steps} steps" + (f", {options.restarts} restarts" if options.restarts > 1 else "")
    how += "".join(f", {name}" for name in (f"loss {options.loss}", f"keep {options.keep}") if name not in USUAL)
    if len(rows) == 1:
        print(f"under PGD ({options.norm}, eps {rows[0]['eps']:g}, {how}): {100.0 * rows[0]['accuracy']:.2f} %")
        return
    from rich.console import Console
    from rich.table import Table

    view = Table(title=f"Accuracy under PGD in % ({options.norm}, {how})")
    for heading in ("eps", "accuracy", "95 % interval"):
        view.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        low, high = (100.0 * end for end in row["interval95"])
        view.add_row(f"{row['eps']:g}", f"{100.0 * row['accuracy']:.2f}", f"{low:.1f} – {high:.1f}")
    Console().print(view)
