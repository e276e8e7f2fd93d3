"""What only a GPU is given: sizes that fill one, and what they should reach there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.group import Goal, Group
from benchmarks.training_case import method_step

FP32, BF16 = torch.float32, torch.bfloat16
OF_THE_PRODUCT = 0.6  # least share of the rate of torch.mm in bf16
BYTES_A_ROW = 1024  # of a selection: far more than indices and candidates take, far less than a row of an N×N matrix
OUTSIDE = 0.03  # most of the device's time outside of the network


def groups(family: str, module: ModuleType) -> list[Group]:
    """The large sizes first, as a run may end early; then the family's own."""
    large = _LARGE[family](module)
    names = {str(group) for group in large}
    return [*large, *(_briefly(group) for group in module.groups() if str(group) not in names)]


def _briefly(group: Group) -> Group:
    """Without the rivals' second compilation, which takes longest of all here, and without a CPU's goals."""
    return replace(group, absent=lambda title: title.startswith("max-autotune"), goals=())


def _triplet(triplet: ModuleType) -> list[Group]:
    count = 16384
    memory = Goal("memory", BYTES_A_ROW * count, direction="forward")
    product = Goal("time", 1 / OF_THE_PRODUCT, "torch.mm", "forward")
    library = Goal("speed-up", 10.0, "pytorch-metric-learning")
    select = replace(triplet.select(count, 512, 64, BF16), goals=(product, memory))
    return [select, triplet.hard(4096, goals=(library,))]


def _attack(attack: ModuleType) -> list[Group]:
    sizes = ((64, 224), (256, 224), (256, 32))
    return [attack.step(rule, count, side=side) for count, side in sizes for rule in ("linf", "boundary")]


def _whole_attack(whole: ModuleType) -> list[Group]:
    def asked(preset: str, batch: int, bound: float) -> Group:
        goals = Goal("speed-up", bound, whole.PUBLIC, "forward"), Goal(whole.OUTSIDE, OUTSIDE, direction="forward")
        return replace(whole.boundary(preset, batch=batch), goals=goals)

    return [asked(preset, n, bound) for n in (64, 256) for preset, bound in (("official", 4.0), ("near_boundary", 2.5))]


def _training(training: ModuleType) -> list[Group]:
    """Also padded, and recorded as one CUDA graph; KD has nothing to pad."""

    def way(name: str, kind: str) -> Callable[[Tensor, Tensor], Tensor]:
        @cache  # a recording keeps the arithmetic that was allowed when it was made
        def made(device: str, tf32: bool) -> Callable[[], Any]:
            return method_step(name, device, kind)

        return lambda images, labels: made(images.device.type, torch.backends.cudnn.allow_tf32)()

    def forms(name: str) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
        return {kind: way(name, kind) for kind in ("fixed_shape", "recorded")[name == "KD" :]}

    names = ("KD", "BSS official", "BSS near_boundary", "AMKD")
    return [replace(training.step(name), forms=forms(name)) for name in names]


# Elsewhere enough at a time that launches are not what is measured.
_LARGE: dict[str, Callable[[ModuleType], list[Group]]] = {
    "kl": lambda kl: [kl.loss("kl_div", *call) for call in ((8192, 32768, BF16), (512, 32000, FP32), (128, 100, FP32))],
    "triplet": _triplet,
    "attack": _attack,
    "images": lambda images: [images.crop_flip(8192), images.joint_augment(8192)],
    "segments": lambda segments: [segments.segment_mse(4096, FP32), segments.segment_mse(4096, BF16)],
    "relations": lambda relations: [relations.angle(512, 512), relations.distance(1024, 128)],
    "whole_attack": _whole_attack,
    "training": _training,
}
