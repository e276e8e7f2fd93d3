"""The small calls whose launches and waiting are looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.group import Group
from benchmarks.groups import attack, images, kl, relations, segments, triplet

FP32 = torch.float32


class Call(NamedTuple):
    """Ours, the public function of a group, in one direction."""

    group: Group
    way: str = "forward"
    launches: dict[str, int] = {}  # noqa: RUF012 - the most that is promised, by backend

    def __str__(self) -> str:
        return f"{self.group}, {self.way}"

    def make(self, device: str) -> Callable[[], object]:
        """Draw the inputs. A backward pass is that of one graph, again and again."""
        inputs = self.group.inputs(device)
        if self.way == "forward":
            return lambda: self.group.ours(*inputs)
        leaves = [part for part in inputs if isinstance(part, Tensor) and part.requires_grad]
        value, one = self.group.ours(*inputs), torch.ones((), device=device)
        return lambda: torch.autograd.grad(value, leaves, one, retain_graph=True)


def small() -> list[Call]:
    """One launch each, but two for forward passes of triplets and segments, which sum up at the end."""

    def both(group: Group, forward: int, backward: int = 1) -> list[Call]:
        return [Call(group, "forward", {"cuda": forward}), Call(group, "backward", {"cuda": backward})]

    one = {"cuda": 1, "triton": 1}
    return [
        *both(kl.loss("kl_div", 128, 100, FP32), 1),
        *(call for count in (128, 256, 512) for call in both(triplet.hard(count), 2)),
        *(Call(attack.step(rule, 64), launches=one) for rule in ("linf", "boundary", "newton")),
        Call(attack.boundary_objective(64, 10), launches=one),
        Call(attack.bases(256, 10), launches=one),
        Call(images.crop_flip(128), launches=one),
        *both(segments.segment_mse(64, FP32), 2),
        Call(relations.angle(64, 64)),
        Call(images.joint_augment(128), launches=one),
    ]
