"""``amkd-distill evaluate``: accuracy of a checkpoint on clean and on attacked images, and where its boundaries lie."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from amkd_fast.attacks import wilson_interval
from amkd_fast.distill import boundaries, report, robustness
from amkd_fast.distill.checkpoint import load_network, read
from amkd_fast.distill.claim import claimed
from amkd_fast.distill.data import Split
from amkd_fast.distill.errors import Diverged
from amkd_fast.distill.experiment import rehearse
from amkd_fast.distill.files import write_atomic
from amkd_fast.distill.models import Evaluable
from amkd_fast.distill.plan import Plan
from amkd_fast.distill.subject import images_for
from amkd_fast.distill.teacher import predict


def evaluate(plan: Plan, *, device: Any, progress: bool) -> None:
    """Print what the plan asks for of a checkpoint's network, and write it to the plan's output.

    Args:
        plan: What to measure.
        device: Where to compute.
        progress: Show progress bars.

    Raises:
        Diverged: The network's logits are not finite.
        UserError: A checkpoint or the data cannot be used.
    """
    with nullcontext() if plan.output is None else claimed(Path(plan.output).resolve(), plan.output):
        plan.check_output()  # again: another process may have been there
        _evaluate(plan, device, progress)


def _evaluate(plan: Plan, device: Any, progress: bool) -> None:
    network, spec, about = load_network(plan.checkpoint, plan.network or "", about=Evaluable)
    settings, data = images_for(plan, spec, about)
    data, network = data.to(device), network.to(device)
    if plan.compare is not None:
        read(plan.compare)
    rehearse(network, f"checkpoint {plan.checkpoint}", spec, data)
    clean = _clean(network, data.test, plan.checkpoint)
    print(f"{about['method']}: {100.0 * clean['accuracy']:.2f} % on {clean['images']} clean test images", flush=True)
    found = {"clean": clean}
    if plan.attack == "pgd":
        found["pgd"] = robustness.measure(network, data, plan, progress)
        robustness.show(found["pgd"], plan)
    elif plan.attack == "boundary":
        found["boundary"] = boundaries.measure(network, data, settings, plan, progress)
        boundaries.show(found["boundary"], settings.bounds)
    if plan.compare is not None:
        found["similarity"] = boundaries.compare(network, data, settings, plan, progress)
        boundaries.show_similarity(found["similarity"], plan)
    if plan.output is not None:
        about_run = {
            "kind": "evaluate",
            "environment": {**report.environment(), "device": str(device)},
            "method": about["method"],
            "plan": asdict(plan),
            "settings": settings.as_dict(),
        }
        write_atomic(plan.output, report.to_json({**about_run, **found}))
        print(f"Results: {plan.output}")


def _clean(network: nn.Module, test: Split, path: str) -> dict[str, Any]:
    logits = predict(network, test)
    if not bool(logits.isfinite().all()):
        message = f"checkpoint {path}: its network's logits are not finite: the training has diverged"
        raise Diverged(0, "logits are", [], message)
    right, count = int((logits.argmax(1) == test.labels).sum()), len(test)
    return {"accuracy": right / count, "right": right, "images": count, "interval95": wilson_interval(right, count)}
