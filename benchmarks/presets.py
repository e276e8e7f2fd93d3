"""What the presets of BoundaryAttack make of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from amkd_fast.attacks import PRESETS, BoundaryAttack, BoundarySamples, Status
from benchmarks.whole_attack import BATCH, network_passes


def presets_on(
    model: nn.Module, images: Tensor, lower: float | Tensor, upper: float | Tensor
) -> dict[str, dict[str, float]]:
    """What every preset makes of the images: how the samples end, how near to the boundary, and at what cost.

    Bases are the network's predictions, targets are drawn. ``lower`` and ``upper`` are the pixels' range in the units
    of the images, for the presets that bring no bounds.
    """
    found = {}
    for preset, settings in PRESETS.items():
        bounds = {} if settings.lower is not None else {"lower": lower, "upper": upper}
        forwards = 0

        def count(function: Callable, arguments: tuple, options: dict) -> Any:
            nonlocal forwards
            forwards += arguments[2].shape[0] if "grad" in options else 0  # x of evaluate()
            return function(*arguments, **options)

        attack = BoundaryAttack(model, preset=preset, compact=True, **bounds)
        attack(images[:1])  # builds the view, which evaluates the network as well
        with network_passes(count):
            parts = [attack(part, seed=number, record_gaps=True) for number, part in enumerate(images.split(BATCH))]
        found[preset] = {**_statistics(parts, images), "forwards": forwards / len(images)}
    return found


def print_presets(presets: dict[str, dict[str, float]]) -> None:
    """The table of :func:`presets_on`."""
    print("preset          crossed  third accepted |gap|/start gradients forwards     L2")
    for name, row in presets.items():
        print(
            f"{name:15}{row['crossed']:8.1%}{row['third']:7.1%}{row['accepted']:9.1%}{row['gap_over_start']:12.4f}"
            f"{row['gradients']:10.2f}{row['forwards']:9.2f}{row['distance']:7.2f}"
        )


def _statistics(parts: list[BoundarySamples], images: Tensor) -> dict[str, float]:
    status, accepted, steps, gap = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("status", "accepted", "steps", "gap")
    )
    moved = torch.cat([part.images for part in parts]) - images
    start = torch.cat([part.gaps[0] for part in parts])
    searched = status <= Status.THIRD
    return {
        "crossed": (status == Status.CROSSED).float().mean().item(),
        "third": (status == Status.THIRD).float().mean().item(),
        "uncrossed": (status == Status.UNCROSSED).float().mean().item(),
        "accepted": accepted.float().mean().item(),
        "gap_over_start": (gap.abs() / start)[searched].median().item(),
        "gap": gap[searched].median().item(),
        "start": start[searched].median().item(),
        "gradients": steps.float().mean().item(),
        "distance": moved.flatten(1).norm(dim=1).median().item(),
    }
