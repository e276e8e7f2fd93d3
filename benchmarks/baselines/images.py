"""Crops and flips in PyTorch's own functions, joint augmentation in Pillow's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from benchmarks.baselines import there
from benchmarks.contest import Contestant

SCALE = 1 / 255 / 0.2471
FILL = 128  # a level


def gather(pixels: Tensor, index: Tensor, shift: Tensor, padded: Tensor, draws: tuple[Tensor, ...]) -> Tensor:
    """Crops and flips out of padded images, by draws that were made before: one gather of every position in a plane."""
    (height, width), (y, x, mirrored) = pixels.shape[2:], draws
    column = torch.arange(width, device=y.device)
    column = torch.where(mirrored[:, None], width - 1 - column, column) + x[:, None]  # [B, W]
    line = torch.arange(height, device=y.device) + y[:, None]  # [B, H]
    place = (line[:, :, None] * padded.shape[3] + column[:, None, :]).flatten(1)  # [B, H · W]
    images = padded.flatten(2)[index]
    levels = images.gather(2, place[:, None].expand(-1, images.shape[1], -1)).unflatten(2, (height, width))
    return levels.float().mul_(SCALE).add_(shift[:, None, None])


def windows(pixels: Tensor, index: Tensor, shift: Tensor, padded: Tensor, draws: tuple[Tensor, ...]) -> Tensor:
    """The same by an index into the view of all windows."""
    (height, width), (y, x, mirrored) = pixels.shape[2:], draws
    every = padded.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)  # [N, 2p+1, 2p+1, C, H, W]
    levels = every[index, y, x]
    levels = torch.where(mirrored[:, None, None, None], levels.flip(-1), levels)
    return levels.float().mul_(SCALE).add_(shift[:, None, None])


def joint_augment() -> list[Contestant]:
    """Pillow's functions one after another on every image, as a data loader calls them; once more with two threads.

    torchvision's transforms of an image are these functions; it cannot be imported beside the torch that was measured.
    """
    if not there("pillow"):
        return []
    from benchmarks.baselines import pillow

    return [
        Contestant("pillow", lambda pixels, draws: pillow.batch(pixels, draws, FILL)),
        Contestant("pillow, two threads", lambda pixels, draws: pillow.batch(pixels, draws, FILL, two_threads())),
    ]


@cache
def two_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2)
