"""A trained network, and images that it has not seen: what whole attacks and training steps are measured on.

``AMKD_BENCH_TEACHER`` names the ``teacher.ckpt`` of an ``amkd-distill train``, which says where its images are. Without
it, patterns and a network that learns them in seconds show that everything runs.
"""

from __future__ import annotations

import copy
import os
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast.distill.networks import Spec, build

BATCH = 64
FILE = "AMKD_BENCH_TEACHER"


class Setting(NamedTuple):
    """A network in eval mode whose weights want no gradient, and normalised images."""

    network: nn.Module
    images: Tensor  # [N, C, H, W]
    labels: Tensor  # [N]
    lower: Tensor  # [C], of black
    upper: Tensor  # [C], of white
    about: dict[str, Any]
    real: bool = False  # False: statistics mean nothing, so a batch will do

    @property
    def bounds(self) -> dict[str, Tensor]:
        return {"lower": self.lower, "upper": self.upper}

    def to(self, device: str) -> Setting:
        network = copy.deepcopy(self.network).to(device)
        moved = {name: getattr(self, name).to(device) for name in ("images", "labels", "lower", "upper")}
        return self._replace(network=network, **moved)


@cache
def of_environment(device: str) -> Setting:
    """What :data:`FILE` names, on a device; a network of its own on each."""
    if device != "cpu":
        return of_environment("cpu").to(device)
    path = os.environ.get(FILE)
    return load(path) if path else synthetic()


def load(path: str) -> Setting:
    """The teacher of a checkpoint, and the test images of its data in an order that mixes the classes."""
    from amkd_fast.attacks import pixel_bounds
    from amkd_fast.distill import data as datasets
    from amkd_fast.distill import schemas
    from amkd_fast.distill.checkpoint import load_network
    from amkd_fast.distill.settings import Settings

    network, _, about = load_network(path)
    data = datasets.load(schemas.settings(Settings, about["settings"], path))
    order = torch.randperm(len(data.test.labels), generator=torch.Generator().manual_seed(0))
    images, labels = network.normalise(data.test.images[order]), data.test.labels[order]
    lower, upper, _ = pixel_bounds(*network.normalisation)
    network = network.network
    found = {
        "images": f"{Path(about['settings']['data']).name}, test images",
        "accuracy": accuracy(network, images, labels),
    }
    return Setting(network.eval().requires_grad_(False), images, labels, lower, upper, found, real=True)


def synthetic() -> Setting:
    """A network that has learnt patterns, and others of them."""
    network, images, labels = build(Spec("small-16-4", 3, 10), 0), *patterns(1)
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, nesterov=True)
    draws = torch.Generator().manual_seed(0)
    for rows in torch.randperm(len(labels), generator=draws).split(32):
        optimizer.zero_grad()
        F.cross_entropy(network(images[rows]), labels[rows]).backward()
        optimizer.step()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # so few steps leave the running statistics behind the weights
    with torch.no_grad():
        network(images[:256])
    images, labels = patterns(2)
    about = {"images": "synthetic patterns: the statistics of the attacks mean nothing"}
    about["accuracy"] = accuracy(network, images, labels)
    network.requires_grad_(False)
    return Setting(network, images, labels, torch.full((3,), -2.0), torch.full((3,), 2.0), about)


def patterns(seed: int, count: int = 1024, side: int = 32) -> tuple[Tensor, Tensor]:
    """Ten classes, each a smooth pattern of its own under noise: images [N, 3, H, W] and labels [N]."""
    coarse = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(coarse, size=side, mode="bilinear")
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=draws)
    noisy = 0.4 * smooth[labels] + 0.6 * torch.randn(count, 3, side, side, generator=draws)
    return noisy.clamp(-2, 2), labels


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor, count: int = 1000) -> float:
    found = [network.eval()(part).argmax(1) for part in images[:count].split(500)]
    return (torch.cat(found) == labels[:count]).float().mean().item()
