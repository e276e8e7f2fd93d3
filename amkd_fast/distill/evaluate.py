"""``amkd-distill evaluate``: accuracy of a checkpoint on clean and on attacked images, and where its boundaries lie."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import nn

from amkd_fast.attacks import wilson_interval
from amkd_fast.distill import boundaries, report, robustness
from amkd_fast.distill.checkpoint import load_network
from amkd_fast.distill.data import Split
from amkd_fast.distill.files import write_atomic
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
        UserError: A checkpoint or the data cannot be used.
    """
    network, spec, about = load_network(plan.checkpoint, plan.network or "")
    settings, data = images_for(plan, spec, about)
    data, network = data.to(device), network.to(device)
    clean = _clean(network, data.test)
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


def _clean(network: nn.Module, test: Split) -> dict[str, Any]:
    right, count = int((predict(network, test).argmax(1) == test.labels).sum()), len(test)
    return {"accuracy": right / count, "right": right, "images": count, "interval95": wilson_interval(right, count)}
