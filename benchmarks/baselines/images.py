"""Crops and flips in PyTorch's own functions, joint augmentation in Pillow's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from benchmarks.baselines import there, written
from benchmarks.contest import Contestant


def crop_flip(scale: float) -> list[Contestant]:
    """Crops and flips out of images that were padded before, with draws that were made before.

    By one gather of every position in a plane, and by an index into the view of all windows.
    """

    def gather(pixels: Tensor, index: Tensor, shift: Tensor, padded: Tensor, draws: tuple[Tensor, ...]) -> Tensor:
        (height, width), (y, x, mirrored) = pixels.shape[2:], draws
        column = torch.arange(width, device=y.device)
        column = torch.where(mirrored[:, None], width - 1 - column, column) + x[:, None]  # [B, W]
        line = torch.arange(height, device=y.device) + y[:, None]  # [B, H]
        place = (line[:, :, None] * padded.shape[3] + column[:, None, :]).flatten(1)  # [B, H · W]
        images = padded.flatten(2)[index]
        levels = images.gather(2, place[:, None].expand(-1, images.shape[1], -1)).unflatten(2, (height, width))
        return levels.float().mul_(scale).add_(shift[:, None, None])

    def windows(pixels: Tensor, index: Tensor, shift: Tensor, padded: Tensor, draws: tuple[Tensor, ...]) -> Tensor:
        (height, width), (y, x, mirrored) = pixels.shape[2:], draws
        every = padded.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)  # [N, 2p+1, 2p+1, C, H, W]
        levels = every[index, y, x]
        levels = torch.where(mirrored[:, None, None, None], levels.flip(-1), levels)
        return levels.float().mul_(scale).add_(shift[:, None, None])

    return [*written("gather", gather), *written("windows", windows)]


def joint_augment(fill: int) -> list[Contestant]:
    """Pillow's functions one after another on every image, as a data loader calls them; once more with two threads.

    torchvision's transforms of an image are these functions; it cannot be imported beside the torch that was measured.
    """
    if not there("pillow"):
        return []
    from benchmarks.baselines import pillow

    calls = {"pillow": lambda: None, "pillow, two threads": two_threads}
    return [
        Contestant(name, lambda pixels, draws, pool=pool: pillow.batch(pixels, draws, fill, pool()))
        for name, pool in calls.items()
    ]


@cache
def two_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2)
