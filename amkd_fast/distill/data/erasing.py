"""Random erasing of a batch of images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from amkd_fast import philox

AREA = (0.02, 0.33)  # of an image, drawn evenly
RATIO = (0.3, 3.3)  # of height to width, its logarithm drawn evenly
_SHAPE, _PLACE = 0x6573, 0x6574  # streams of the draws


def erase(images: Tensor, rows: Tensor, probability: float, seed: int) -> Tensor:
    """The images, some of them with a rectangle painted black.

    A rectangle that would be higher or wider than the image is cut to it. What is drawn depends on ``seed`` and the
    row alone. Nothing waits for the device.

    Args:
        images: Floating [B, C, H, W] in [0, 1]; changed in place.
        rows: int64 [B], which images of their set they are.
        probability: Of each image, in [0, 1].
        seed: Of the draws.

    Returns:
        ``images``.

    Source:
        Zhong, Zheng, Kang, Li and Yang, Random Erasing Data Augmentation, AAAI 2020: its limits of area and shape.

    Example:
        >>> import torch
        >>> from amkd_fast.distill.data.erasing import erase
        >>> images = erase(torch.ones(100, 1, 32, 32), torch.arange(100), 0.5, seed=0)
        >>> 30 < int((images == 0).any((1, 2, 3)).sum()) < 70
        True
    """
    height, width = images.shape[-2:]
    area, shape, chosen, _ = (word.double() * 2.0**-32 for word in philox.words(seed, rows, stream=_SHAPE))  # [B]
    top, left, _, _ = (word.double() * 2.0**-32 for word in philox.words(seed, rows, stream=_PLACE))
    area = (AREA[0] + (AREA[1] - AREA[0]) * area) * height * width
    low, high = (math.log(ratio) for ratio in RATIO)
    ratio = torch.exp(low + (high - low) * shape)
    inside = []
    for side, place, size in ((height, top, area * ratio), (width, left, area / ratio)):
        length = size.sqrt().round().clamp(1, side)
        start = (place * (side - length + 1)).floor()[:, None]
        at = torch.arange(side, device=images.device)
        inside.append((at >= start) & (at < start + length[:, None]))  # [B, H], [B, W]
    erased = inside[0][:, :, None] & inside[1][:, None, :] & (chosen < probability)[:, None, None]
    return images.masked_fill_(erased[:, None], 0.0)
