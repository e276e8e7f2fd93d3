"""``amkd-distill evaluate``: accuracy of a checkpoint on clean and on attacked images, and where its boundaries lie."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from amkd_fast.attacks import wilson_interval
from amkd_fast.distill import boundaries, report, robustness
from amkd_fast.distill.checkpoint import read
from amkd_fast.distill.data import Split
from amkd_fast.distill.errors import Diverged
from amkd_fast.distill.evaluate_settings import EvaluateSettings
from amkd_fast.distill.evaluation_data import subject
from amkd_fast.distill.files import write_atomic
from amkd_fast.distill.lock import locked
from amkd_fast.distill.teacher import predict
from amkd_fast.distill.training_runs import rehearse


def evaluate(options: EvaluateSettings, *, device: Any, progress: bool) -> None:
    """Print what the options ask for of a checkpoint's network, and write it to their output.

    Args:
        options: What to measure.
        device: Where to compute.
        progress: Show progress bars.

    Raises:
        Diverged: The network's logits are not finite.
        UserError: A checkpoint or the data cannot be used.
    """
    with nullcontext() if options.output is None else locked(Path(options.output).resolve(), options.output):
        options.check_output()  # again: another process may have been there
        _evaluate(options, device, progress)


def _evaluate(options: EvaluateSettings, device: Any, progress: bool) -> None:
    network, spec, name, settings, data = subject(options, device)
    data, network = data.to(device), network.to(device)
    if options.compare is not None:
        read(options.compare)
    rehearse(network, f"checkpoint {options.checkpoint}", spec, data)
    clean = _clean(network, data.test, options.checkpoint)
    print(f"{name}: {100.0 * clean['accuracy']:.2f} % on {clean['images']} clean test images", flush=True)
    found: dict[str, Any] = {"clean": clean}
    if options.attack == "pgd":
        found["pgd"] = robustness.measure(network, data, options, progress)
        robustness.show(found["pgd"], options)
    elif options.attack == "boundary":
        found["boundary"] = boundaries.measure(network, data, settings, options, progress)
        boundaries.show(found["boundary"], settings.bounds)
    if options.compare is not None:
        found["similarity"] = boundaries.compare(network, data, settings, options, progress)
        boundaries.show_similarity(found["similarity"], options)
    if options.output is not None:
        about_run = {
            "kind": "evaluate",
            "environment": {**report.environment(), "device": str(device)},
            "method": name,
            "plan": asdict(options),
            "settings": settings.as_dict(),
        }
        write_atomic(options.output, report.to_json({**about_run, **found}))
        print(f"Results: {options.output}")


def _clean(network: nn.Module, test: Split, path: str) -> dict[str, Any]:
    logits = predict(network, test)
    if not bool(logits.isfinite().all()):
        message = f"checkpoint {path}: its network's logits are not finite: the training has diverged"
        raise Diverged(0, "logits are", [], message)
    right, count = int((logits.argmax(1) == test.labels).sum()), len(test)
    return {"accuracy": right / count, "right": right, "images": count, "interval95": wilson_interval(right, count)}
