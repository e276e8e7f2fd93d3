"""What only a GPU is given: sizes that fill one, with what issues asked of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.contest import Contestant
from benchmarks.gpu import steps
from benchmarks.group import Group, Target

FP32, BF16 = torch.float32, torch.bfloat16
OF_THE_PRODUCT = 0.6  # least share of the rate of torch.mm in bf16
OUTSIDE = 0.03  # most of the device's time outside of the network


def groups(family: str, module: ModuleType) -> list[Group]:
    """The large sizes first, as a run may end early; then the family's own."""
    large = _LARGE[family](module)
    names = {str(group) for group in large}
    return [*large, *(_briefly(group) for group in module.groups() if str(group) not in names)]


def _briefly(group: Group) -> Group:
    """Without the rivals' second compilation, which takes longest of all here, and without what was asked of a CPU."""

    def rivals() -> list[Contestant]:
        return [entry for entry in group.rivals() if not entry.name.startswith("max-autotune")]

    return replace(group, rivals=rivals, targets=())


def _kl(kl: ModuleType) -> list[Group]:
    return [kl.kl_div(8192, 32768, BF16), kl.kl_div(512, 32000, FP32), kl.kl_div(128, 100, FP32)]


def _triplet(triplet: ModuleType) -> list[Group]:
    product = Target(3, "time", 1 / OF_THE_PRODUCT, "torch.mm", "forward")
    library = Target(3, "speed-up", 10.0, "pytorch-metric-learning")
    return [
        replace(triplet.select(16384, 512, 64, BF16), targets=(product,)),
        triplet.hard(4096, 128, 16, FP32, targets=(library,)),
    ]


def _attack(attack: ModuleType) -> list[Group]:
    return [
        attack.step(rule, count, side=side)
        for count, side in ((64, 224), (256, 224), (256, 32))
        for rule in ("linf", "boundary")
    ]


def _images(images: ModuleType) -> list[Group]:
    """Enough of them that the launch is not what is measured."""
    return [images.crop_flip(8192), images.joint_augment(8192)]


def _segments(segments: ModuleType) -> list[Group]:
    """Enough of them that the launches are not what is measured."""
    return [segments.segment_mse(4096, FP32), segments.segment_mse(4096, BF16)]


def _relations(relations: ModuleType) -> list[Group]:
    return [relations.angle(512, 512, FP32), relations.distance(1024, 128, FP32)]


def _whole_attack(whole: ModuleType) -> list[Group]:
    outside = Target(4, whole.OUTSIDE, OUTSIDE, direction="forward")
    asked = {"official": 4.0, "near_boundary": 2.5}
    return [
        replace(
            whole.boundary(preset, batch=batch),
            targets=(Target(4, "speed-up", bound, whole.PUBLIC, "forward"), outside),
        )
        for batch in (64, 256)
        for preset, bound in asked.items()
    ]


def _training(training: ModuleType) -> list[Group]:
    """Also padded, and recorded as one CUDA graph; KD has nothing to pad."""

    def way(name: str, kind: str) -> Callable[[Tensor, Tensor], Tensor]:
        @cache  # a recording keeps the arithmetic that was allowed when it was made
        def made(device: str, tf32: bool) -> Callable[[], Any]:
            case = training.training_case.of_environment(device)
            return steps.step(case, name, kind, training.clean(case), training.NOW)

        return lambda images, labels: made(images.device.type, torch.backends.cudnn.allow_tf32)().total

    def forms(name: str) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
        return {kind: way(name, kind) for kind in ("fixed_shape", "recorded")[name == "KD" :]}

    return [
        replace(training.step(name, ()), forms=partial(forms, name))
        for name in ("KD", "BSS official", "BSS near_boundary", "AMKD")
    ]


_LARGE: dict[str, Callable[[ModuleType], list[Group]]] = {
    "kl": _kl,
    "triplet": _triplet,
    "attack": _attack,
    "images": _images,
    "segments": _segments,
    "relations": _relations,
    "whole_attack": _whole_attack,
    "training": _training,
}
