"""Augmentations of ``torchvision.transforms.v2``, drawn by our own seeds: RandAugment, mixup and CutMix."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from amkd_fast import philox
from amkd_fast.distill import broken_torchvision
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.settings import Settings

LEVELS = 255  # the largest of the bytes that RandAugment works on
_OPERATIONS, _MIXTURE = 0x7261, 0x6D78  # streams of the draws


def check(settings: Settings, names: tuple[str, ...]) -> None:
    """Raise :class:`UserError` unless the augmentations wished for can be had, for the methods of these names."""
    if settings.rand_augment is not None:
        _transforms(f"--rand-augment {settings.rand_augment}")
    elif settings.rand_augment_magnitude is not None:
        raise UserError(f"--rand-augment-magnitude {settings.rand_augment_magnitude}: is for --rand-augment")
    for option, alpha in (("--mixup", settings.mixup), ("--cutmix", settings.cutmix)):
        if alpha is None:
            continue
        for name in names:
            if name != "student":
                raise UserError(
                    f"{option} {alpha:g}: mixes labels, which the cross-entropy of the method student and of teachers "
                    f"takes, not the losses of {name}; mkd is a method that mixes images"
                )
        _transforms(f"{option} {alpha:g}")


@dataclass(frozen=True)
class RandAugment:
    """torchvision's ``RandAugment``, each image with draws of its own.

    Attributes:
        operations: How many an image gets.
        magnitude: Of all of them; None: torchvision's own.
    """

    operations: int
    magnitude: int | None = None

    @cached_property
    def _transform(self) -> Any:
        more = {} if self.magnitude is None else {"magnitude": self.magnitude}
        return _transforms("--rand-augment").RandAugment(num_ops=self.operations, **more)

    def __call__(self, images: Tensor, rows: Tensor, seed: int) -> Tensor:
        """The images, augmented as bytes: what is drawn depends on ``seed`` and the row alone.

        Args:
            images: Floating [B, C, H, W] in [0, 1].
            rows: int64 [B], which images of their set they are.
            seed: Of the draws.

        Returns:
            As ``images``; every pixel is a multiple of 1/255.
        """
        levels = (images * LEVELS).round_().to(torch.uint8)
        with _drawing() as draws:
            for image, key in zip(levels, _keys(seed, rows, _OPERATIONS), strict=True):
                draws.manual_seed(key)
                image.copy_(self._transform(image))
        return levels.to(images.dtype).mul_(1.0 / LEVELS)


@dataclass(frozen=True)
class Mixing:
    """torchvision's ``MixUp`` or ``CutMix``, or one of them by chance where both have an alpha.

    An image is mixed with the one before it in the batch, the first one with the last.

    Attributes:
        mixup: Alpha of the beta distribution of the shares; None: no mixup.
        cutmix: Likewise.
    """

    mixup: float | None
    cutmix: float | None

    def _transform(self, classes: int) -> Any:
        both = _transforms("--mixup or --cutmix")
        found = [
            kind(alpha=alpha, num_classes=classes)
            for kind, alpha in ((both.MixUp, self.mixup), (both.CutMix, self.cutmix))
            if alpha is not None
        ]
        return found[0] if len(found) == 1 else both.RandomChoice(found)

    def __call__(self, images: Tensor, labels: Tensor, classes: int, seed: int) -> tuple[Tensor, Tensor]:
        """Mixtures of a share of a batch; what is drawn depends on ``seed`` alone, and so is the same for all shares.

        Args:
            images: Floating [1 + B, C, H, W]: the image before the share's first one, then the share's.
            labels: int64 [1 + B], theirs.
            classes: K.
            seed: Of the batch.

        Returns:
            The share's images [B, C, H, W]; the shares of every class in them, float32 [B, K].
        """
        with _drawing() as draws:
            draws.manual_seed(*_keys(seed, torch.zeros(1, dtype=torch.int64), _MIXTURE))
            images, mixed = self._transform(classes)(images, labels)
        return images[1:], mixed[1:]


def rand_augment(settings: Settings) -> RandAugment | None:
    """The one that the settings wish for."""
    if settings.rand_augment is None:
        return None
    return RandAugment(settings.rand_augment, settings.rand_augment_magnitude)


def mixing(settings: Settings) -> Mixing | None:
    """Likewise."""
    if settings.mixup is None and settings.cutmix is None:
        return None
    return Mixing(settings.mixup, settings.cutmix)


def _keys(seed: int, numbers: Tensor, stream: int) -> list[int]:
    """Seeds for torch's generator."""
    return philox.words(seed, numbers.cpu(), stream=stream)[0].tolist()


@contextmanager
def _drawing() -> Iterator[torch.Generator]:
    """torch's generator on the CPU, of which torchvision draws; afterwards it is as it was."""
    with torch.random.fork_rng(devices=[]):
        yield torch.default_generator


def _transforms(what: str) -> ModuleType:
    if broken_torchvision.is_aside():
        raise UserError(f"{what}: needs a torchvision that matches your torch; the one installed does not")
    try:
        return importlib.import_module("torchvision.transforms.v2")
    except ModuleNotFoundError as error:
        raise UserError(
            f"{what}: torchvision is not installed: run `pip install torchvision`, the version for your torch"
        ) from error
    except Exception as error:  # one that was built for another torch raises what it likes
        raise UserError(
            f"{what}: torchvision cannot be imported ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
        ) from error
