"""``amkd-distill evaluate --attack boundary``: how the searches end, and whether two networks' boundaries agree."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from amkd_fast.attacks import PRESETS, BoundaryAttack, Status, boundary_similarity
from amkd_fast.distill.build import attack_options, boundary_attack
from amkd_fast.distill.checkpoint import load_network
from amkd_fast.distill.data import Data, InOrder
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.evaluate_settings import EvaluateSettings
from amkd_fast.distill.evaluation_data import check_network
from amkd_fast.distill.networks.normalised import normalisation_of
from amkd_fast.distill.progress import progress_bar
from amkd_fast.distill.settings import Settings
from amkd_fast.distill.teacher import predict
from amkd_fast.ops.attack import draw_targets


def measure(
    network: nn.Module, data: Data, settings: Settings, options: EvaluateSettings, progress: bool
) -> dict[str, dict[str, Any]]:
    """By preset how the attacks on the rightly classified test images end: the same images and targets for all.

    Distances are L2 in pixel units, over the samples that left their class.

    Raises:
        UserError: No image is classified rightly.
    """
    logits = predict(network, data.test)
    right = (logits.argmax(1) == data.test.labels).nonzero()[:, 0]
    if right.numel() == 0:
        raise UserError("--attack boundary: no test image is classified rightly, so there is nothing to attack")
    base = data.test.labels[right]
    target = draw_targets(logits[right], base, seed=options.seed)
    images = data.test.take(right).images
    summary: dict[str, dict[str, Any]] = {}
    for preset in PRESETS:
        attack = boundary_attack(settings, network, preset, steps=options.steps)
        with progress_bar(f"boundary, {preset}", progress) as report:
            summary[preset] = _endings(attack, images, base, target, options.batch_size, report)
    return summary


def show(summary: dict[str, dict[str, Any]], bounds: str) -> None:
    """The table of the presets; ``bounds`` are the settings'."""
    from rich.console import Console
    from rich.table import Table

    images = next(iter(summary.values()))["images"]
    view = Table(title=f"Boundary samples of {images} rightly classified test images")
    view.add_column("preset", no_wrap=True)
    for heading in ("crossed", "third", "uncrossed", "steps", "distance*"):
        view.add_column(heading, justify="right", no_wrap=True)
    for preset, found in summary.items():
        shares = (f"{100.0 * found['shares'][name]:.1f} %" for name in ("crossed", "third", "uncrossed"))
        distance = found["distance"]
        view.add_row(preset, *shares, f"{found['steps']:.1f}", "–" if distance is None else f"{distance[1]:.3f}")
    view.caption = f"targets drawn, {bounds} bounds. * median L2 in pixel units of those that left their class"
    Console().print(view)


def compare(
    network: nn.Module, data: Data, settings: Settings, options: EvaluateSettings, progress: bool
) -> dict[str, Any]:
    """MagSim and AngSim of the network as the student and the other checkpoint as the teacher.

    Raises:
        UserError: The other checkpoint cannot be read, or is not for these images.
    """
    if options.compare is None:
        raise ValueError("options.compare=None: must name a checkpoint")
    name = f"--compare {options.compare}"
    teacher, spec, about = load_network(options.compare, options.network or "")
    check_network(name, spec, data)
    wanted = attack_options(settings, normalisation_of(network))
    with progress_bar("similarity", progress) as report:
        result = boundary_similarity(
            network,
            teacher.to(data.test.labels.device),
            InOrder(data.test, options.batch_size),
            preset=options.preset,
            targets=options.targets,
            seed=options.seed,
            pairs_at_once=options.batch_size,
            progress=report,
            **{**wanted, "steps": options.steps},
        )
    found = result._asdict()
    del found["pairs"]
    return {"method": about["method"], **found}


def show_similarity(found: dict[str, Any], options: EvaluateSettings) -> None:
    """MagSim and AngSim with their standard errors, and what they rest on."""
    print(f"boundaries against {found['method']} of {options.compare} ({options.preset}, {options.targets} target):")
    if found["count"] == 0:
        print("no pair of boundary samples to compare")
        return
    for name, key in (("MagSim", "magnitude"), ("AngSim", "angle")):
        error = found[f"{key}_error"]
        print(f"{name} {found[key]:.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}"))
    print(
        f"{found['count']} of {found['attempted']} pairs crossed in both, "
        f"from {found['bases']} of {found['images']} images right in both"
    )


def _endings(
    attack: BoundaryAttack, images: Tensor, base: Tensor, target: Tensor, size: int, report: Any
) -> dict[str, Any]:
    parts = list(zip(*(x.split(size) for x in (images, base, target)), strict=True))
    columns = []
    for done, (clean, *classes) in enumerate(parts, 1):
        samples = attack(clean, *classes)
        moved = (samples.images.double() - clean.double()).flatten(1)
        columns.append((samples.status, samples.steps, torch.linalg.vector_norm(moved, dim=1)))
        if report is not None:
            report(done, len(parts))
    status, steps, distance = (torch.cat(column).cpu() for column in zip(*columns, strict=True))
    distance = distance[(status == Status.CROSSED) | (status == Status.THIRD)]
    levels = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    return {
        "images": len(status),
        "shares": {name.lower(): float((status == code).double().mean()) for name, code in Status.__members__.items()},
        "steps": float(steps.double().mean()),
        "distance": torch.quantile(distance, levels).tolist() if distance.numel() else None,
    }
