"""The images family in plain PyTorch: the specification that every other backend is tested against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from amkd_fast import philox

STREAM = 0x6372  # of the draws, apart from those of the attack


def crop_flip(
    pixels: Tensor,
    index: Tensor | None,
    scale: float,
    shift: Tensor,
    pad: int,
    flip: bool,
    seed: int | Tensor,
    rows: Tensor | None = None,
) -> Tensor:
    """The batch [B, C, H, W] in the dtype of ``shift``.

    ``rows`` [B]: by which images are drawn for, where their places in ``pixels`` are not what they are in their set.
    """
    count, _, height, width = pixels.shape
    place = torch.arange(count, device=pixels.device) if index is None else index.clamp(0, count - 1)
    images, rows = pixels[place], place if rows is None else rows
    if pad or flip:
        w0, w1, w2, _ = philox.words(seed, rows, stream=STREAM)  # [B]
        x = torch.arange(width, device=pixels.device)  # [W]
        x = torch.where((w2 >> 31 == 1)[:, None] & flip, width - 1 - x, x)  # [B, W]
        x = x + (w1 * (2 * pad + 1) >> 32)[:, None]
        y = torch.arange(height, device=pixels.device) + (w0 * (2 * pad + 1) >> 32)[:, None]  # [B, H]
        sample = torch.arange(len(rows), device=pixels.device)
        images = F.pad(images, (pad, pad, pad, pad)).movedim(1, -1)  # [B, H + 2 pad, W + 2 pad, C]
        images = images[sample[:, None, None], y[:, :, None], x[:, None, :]].movedim(-1, 1)
    return images.to(shift.dtype) * scale + shift[:, None, None]
