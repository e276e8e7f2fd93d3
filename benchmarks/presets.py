"""What the presets of BoundaryAttack make of images: ``python -m benchmarks.presets TEACHER``.

Of the test images that the ``teacher.ckpt`` of ``make demo`` has right; whole attacks say the same of their network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amkd_fast.attacks import PRESETS, BoundaryAttack, BoundarySamples, Status
from benchmarks import machine, setting
from benchmarks.outside import network_passes


def boundary_attack(network: nn.Module, preset: str, bounds: dict[str, Tensor], **options: Any) -> BoundaryAttack:
    """As a user calls it: the pixels' range as bounds where the preset has none."""
    return BoundaryAttack(network, preset=preset, **({} if PRESETS[preset].lower is not None else bounds), **options)


def presets_on(network: nn.Module, images: Tensor, bounds: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """What every preset makes of the images: how the samples end, how near to the boundary, and at what cost.

    Bases are the network's predictions, targets are drawn.
    """
    found = {}
    for preset in PRESETS:
        forwards = 0

        def count(function: Callable, arguments: tuple, options: dict) -> Any:
            nonlocal forwards
            forwards += arguments[2].shape[0] if "grad" in options else 0  # x of evaluate()
            return function(*arguments, **options)

        attack = boundary_attack(network, preset, bounds, compact=True)
        attack(images[:1])  # builds the view, which evaluates the network as well
        with network_passes(count):
            batches = enumerate(images.split(setting.BATCH))
            parts = [attack(part, seed=number, record_gaps=True) for number, part in batches]
        found[preset] = {**_statistics(parts, images), "forwards": forwards / len(images)}
    return found


def _statistics(parts: list[BoundarySamples], images: Tensor) -> dict[str, float]:
    status, accepted, steps, gap = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("status", "accepted", "steps", "gap")
    )
    moved = torch.cat([part.images for part in parts]) - images
    start = torch.cat([part.gaps[0] for part in parts])
    searched = status <= Status.THIRD
    ends = {"crossed": Status.CROSSED, "third": Status.THIRD, "uncrossed": Status.UNCROSSED}
    return {
        **{name: (status == end).float().mean().item() for name, end in ends.items()},
        "accepted": accepted.float().mean().item(),
        "gap_over_start": (gap.abs() / start)[searched].median().item(),
        "gap": gap[searched].median().item(),
        "start": start[searched].median().item(),
        "gradients": steps.float().mean().item(),
        "distance": moved.flatten(1).norm(dim=1).median().item(),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.presets", description=__doc__.splitlines()[0])
    parser.add_argument("teacher", help="the teacher.ckpt of `make demo`")
    parser.add_argument("--output", type=Path, default=machine.RESULTS / "presets-digits.json", help="JSON file")
    options = parser.parse_args(arguments)
    machine.use_threads()
    found = setting.load(options.teacher)
    images = found.images[found.network(found.images).argmax(1) == found.labels]
    table = presets_on(found.network, images, found.bounds)
    machine.write(options.output, {"kind": "presets", "machine": machine.describe(), "presets": table})
    for preset, row in table.items():
        print(preset, ", ".join(f"{name} {value:.4g}" for name, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
