"""Whole attacks on a trained network: what they are run on, and how a user calls them.

Boundary attacks see normalised images, as in distillation. PGD sees pixels in [0, 1] and a network that normalises
them itself, because that is all that the attack libraries know.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import amkd_fast as af
from amkd_fast.attacks import PGD, PRESETS, BoundaryAttack, frozen, loop
from amkd_fast.distill.networks import build
from amkd_fast.ops.attack import draw_targets
from benchmarks import cifar_teacher
from benchmarks.cifar_teacher import LOWER, MEAN, RESNET26, STD, UPPER

EPS, STEP_SIZE, STEPS = 8 / 255, 2 / 255, 10
BATCH = 64
CIFAR, FILE = "AMKD_BENCH_CIFAR", "AMKD_BENCH_TEACHER"  # paths, for everybody who takes no options


class Setting(NamedTuple):
    """A trained network in eval mode, and images that it was not trained on."""

    network: nn.Module
    pixels: Tensor  # uint8 [N, 3, 32, 32]
    labels: Tensor  # [N]
    about: dict[str, Any]
    real: bool = False  # False: statistics mean nothing, so a batch will do

    def images(self, first: int, count: int) -> Tensor:
        """Normalised images [count, 3, 32, 32]."""
        return cifar_teacher.normalise(self.pixels[first : first + count])

    def to(self, device: str) -> Setting:
        return Setting(self.network.to(device), self.pixels.to(device), self.labels.to(device), self.about, self.real)


class InPixels(nn.Module):
    """The network behind its normalisation, for images in [0, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", MEAN.view(3, 1, 1).clone())
        self.register_buffer("std", STD.view(3, 1, 1).clone())

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)


def setting(cifar: Path | None, teacher: Path | None) -> Setting:
    """CIFAR-10's test images and the network of a file; without either, patterns and a network trained on them now."""
    if (cifar is None) != (teacher is None):
        raise ValueError(f"cifar={cifar}, teacher={teacher}: must be given together")
    if cifar is not None:
        network = cifar_teacher.load(teacher)
        pixels, labels = cifar_teacher.read(cifar, "test")
        kind = "CIFAR-10 (JPEG re-encoding), test images"
    else:
        network = trained_on_patterns()
        pixels, labels = patterns(1024, 2)
        kind = "synthetic patterns: the statistics of the attacks mean nothing"
    network.eval()
    some = slice(0, 1000)
    about = {"images": kind, "accuracy": cifar_teacher.accuracy(network, pixels[some], labels[some])}
    return Setting(network, pixels, labels, about, real=cifar is not None)


@cache
def of_environment(device: str) -> Setting:
    """What :data:`CIFAR` and :data:`FILE` name, on a device; a network of its own on each."""
    if device != "cpu":
        found = of_environment("cpu")
        return found._replace(network=copy.deepcopy(found.network)).to(device)
    return setting(*(Path(path) if path else None for path in map(os.environ.get, (CIFAR, FILE))))


def trained_on_patterns() -> nn.Module:
    """Trained for seconds."""
    network, (pixels, labels) = build(RESNET26, 0), patterns(1024, 1)
    cifar_teacher.train(network, pixels, labels, epochs=1, batch=32)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # so few steps leave the running statistics behind the weights
    with torch.no_grad():
        network.train()(cifar_teacher.normalise(pixels[:256]))
    return network


def patterns(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ten classes, each a smooth pattern of its own under noise: uint8 [N, 3, 32, 32] and labels [N]."""
    coarse = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(coarse, size=32, mode="bilinear")
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=draws)
    noisy = 0.5 + 0.1 * smooth[labels] + 0.15 * torch.randn(count, 3, 32, 32, generator=draws)
    return (noisy.clamp(0, 1) * 255).to(torch.uint8), labels


class Chase(NamedTuple):
    """A batch with the network's predictions as bases, and a target drawn for each."""

    images: Tensor
    base: Tensor
    target: Tensor


@torch.no_grad()
def chase(network: nn.Module, images: Tensor, seed: int = 0) -> Chase:
    logits = network(images)
    base = logits.argmax(1)
    return Chase(images, base, draw_targets(logits, base, seed=seed))


def boundary_attack(network: nn.Module, preset: str) -> BoundaryAttack:
    """As a user calls it: normalised images, the pixels' range as bounds where the preset has none."""
    bounds = {} if PRESETS[preset].lower is not None else {"lower": LOWER, "upper": UPPER}
    return BoundaryAttack(network, preset=preset, **bounds)


def pgd(network: nn.Module) -> PGD:
    """``network`` takes pixels in [0, 1]."""
    return PGD(network, eps=EPS, step_size=STEP_SIZE, steps=STEPS, lower=0.0, upper=1.0)


def plain(network: nn.Module) -> af.attacks.FrozenModel:
    """A view with the arithmetic of the network itself."""
    return frozen(network, fold_batchnorm=False, channels_last=False)


@contextmanager
def network_passes(around: Callable[[Callable, tuple, dict], Any]) -> Iterator[None]:
    """Send every forward and backward pass that the attacks make through ``around(function, arguments, options)``."""

    def wrap(function: Callable) -> Callable:
        return lambda *arguments, **options: around(function, arguments, options)

    names = ("evaluate", "input_gradient")
    with mock.patch.multiple(loop, **{name: wrap(getattr(loop, name)) for name in names}):
        yield
