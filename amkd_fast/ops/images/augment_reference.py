"""Joint augmentation in plain PyTorch: the specification that every other backend is tested against.

The five geometric operations are maps of positions, the next five tables of levels, the last four blends.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from amkd_fast import philox
from amkd_fast.typing import AugmentOperation

OPERATIONS: tuple[AugmentOperation, ...] = get_args(AugmentOperation)  # in the order in which they are applied
STREAM = 0x6A6461 << 8  # of the draws: operations 2 j and 2 j + 1 take the words of stream STREAM + j
SHEAR = 19660  # 0.3, in 1/65536
TRANSLATE = 29699  # 150/331 of the side, in 1/65536
ROTATE = 30 << 16  # degrees, in 1/65536
SOLARIZE = 256
LEAST_BITS, MOST_BITS = 4, 8
# 0.1 and 1.9, in 1/4096: so few bits that a blend in fp32, as Pillow has it, is exact and whole numbers compute it.
LEAST_FACTOR, MOST_FACTOR = 410, 7782


class Draws:
    """What the images of ``rows`` [B] draw."""

    def __init__(self, rows: Tensor, seed: int | Tensor, threshold: int, operations: int) -> None:
        self.chosen: dict[str, Tensor] = {}
        self.words: dict[str, Tensor] = {}
        for j in range(len(OPERATIONS) // 2):
            w0, w1, w2, w3 = philox.words(seed, rows, stream=STREAM + j)
            for i, choice, word in ((2 * j, w0, w1), (2 * j + 1, w2, w3)):
                self.chosen[OPERATIONS[i]] = (choice < threshold) & bool(operations >> i & 1)  # [B]
                self.words[OPERATIONS[i]] = word

    def between(self, name: str, least: int, most: int) -> Tensor:
        """A whole number for each image, ``least`` and ``most`` included, [B]."""
        return least + (self.words[name] * (most - least + 1) >> 32)

    def around(self, name: str, most: int) -> Tensor:
        """A whole number from -``most`` to ``most``, 0 where the operation is not chosen, [B]."""
        return torch.where(self.chosen[name], self.between(name, -most, most), 0)

    def factor(self, name: str) -> Tensor:
        """1/4096 times this is how much of the image a blend keeps, [B]."""
        return torch.where(self.chosen[name], self.between(name, LEAST_FACTOR, MOST_FACTOR), 4096)


def joint_augment(
    pixels: Tensor, rows: Tensor | None, seed: int | Tensor, threshold: int, operations: int, fill: int
) -> Tensor:
    """The augmented images, uint8 [B, C, H, W]; an operation is chosen where 32 bits are below ``threshold``."""
    rows = torch.arange(len(pixels), device=pixels.device) if rows is None else rows
    draws = Draws(rows, seed, threshold, operations)
    images = move(pixels, draws, fill).long()
    return enhance(map_levels(images, draws), draws).to(torch.uint8)


def move(pixels: Tensor, draws: Draws, fill: int) -> Tensor:
    """Shear, translate and rotate: where each position's level comes from, the last operation's step first."""
    height, width = pixels.shape[2:]
    x = torch.arange(width, device=pixels.device).expand(len(pixels), height, width)
    y = torch.arange(height, device=pixels.device)[:, None].expand(len(pixels), height, width)
    inside = torch.ones_like(x, dtype=torch.bool)

    def step(to_x: Tensor, to_y: Tensor) -> None:
        nonlocal x, y, inside
        x, y = to_x, to_y
        inside = inside & (x >= 0) & (x < width) & (y >= 0) & (y < height)

    rotation = [part[:, None, None] for part in rotate(draws.around("rotate", ROTATE), width, height)]
    a, b, c, d, e, f = rotation
    step(a * x + b * y + c >> 16, d * x + e * y + f >> 16)
    step(x, y + (draws.around("translate_y", height * TRANSLATE) + 32768 >> 16)[:, None, None])
    step(x + (draws.around("translate_x", width * TRANSLATE) + 32768 >> 16)[:, None, None], y)
    shear = draws.around("shear_y", SHEAR)[:, None, None]
    step(x, y + (shear * x + 32768 + (shear + 1 >> 1) >> 16))
    shear = draws.around("shear_x", SHEAR)[:, None, None]
    step(x + (shear * y + 32768 + (shear + 1 >> 1) >> 16), y)

    place = torch.where(inside, y * width + x, 0).flatten(1)[:, None].expand(-1, pixels.shape[1], -1)
    levels = pixels.flatten(2).gather(2, place).view_as(pixels)
    return torch.where(inside[:, None], levels, fill)


def rotate(angle: Tensor, width: int, height: int) -> tuple[Tensor, ...]:
    """The six numbers, in 1/65536, of the map round the middle that takes centres of positions to where they were."""
    turn = torch.deg2rad(-angle.double() / 65536)
    cos, sin = turn.cos(), turn.sin()
    x = (1 - width) / 2 * cos + (1 - height) / 2 * sin + width / 2
    y = (width - 1) / 2 * sin + (1 - height) / 2 * cos + height / 2
    return tuple((number * 65536 + 0.5).floor().long() for number in (cos, sin, x, -sin, cos, y))


def map_levels(images: Tensor, draws: Draws) -> Tensor:
    """Autocontrast, invert, equalize, solarize and posterize: a table of 256 levels for each channel."""
    places = images.flatten(2)  # [B, C, H · W]
    level = torch.arange(256, device=images.device).expand(*images.shape[:2], 256)
    histogram = torch.zeros_like(level).scatter_add_(2, places, torch.ones_like(places))
    table = level

    def step(name: str, made: Tensor) -> None:
        nonlocal table, histogram
        made = torch.where(draws.chosen[name][:, None, None], made, level)
        table = made.gather(2, table)
        histogram = torch.zeros_like(level).scatter_add_(2, made, histogram)

    step("autocontrast", autocontrast(histogram))
    step("invert", 255 - level)
    step("equalize", equalize(histogram))
    threshold = draws.between("solarize", 0, SOLARIZE)[:, None, None]
    step("solarize", torch.where(level < threshold, level, 255 - level))
    bits = draws.between("posterize", LEAST_BITS, MOST_BITS)[:, None, None]
    step("posterize", level >> MOST_BITS - bits << MOST_BITS - bits)
    return table.gather(2, places).view_as(images)


def autocontrast(histogram: Tensor) -> Tensor:
    """The table that spreads the levels from the lowest to the highest one there is to 0 ... 255."""
    level = torch.arange(256, device=histogram.device)
    lowest = torch.where(histogram > 0, level, 255).amin(2, keepdim=True)
    highest = torch.where(histogram > 0, level, 0).amax(2, keepdim=True)
    span = (highest - lowest).clamp(min=1).double()
    scale = torch.full_like(span, 255) / span  # a number over a tensor would be a product with its reciprocal
    product = level * scale
    spread = (product + -lowest * scale).long().clamp(0, 255)
    return torch.where(highest > lowest, spread, level)


def equalize(histogram: Tensor) -> Tensor:
    """The table that makes the sums of the histogram grow evenly."""
    level = torch.arange(256, device=histogram.device)
    highest = torch.where(histogram > 0, level, 0).amax(2, keepdim=True)
    size = histogram.sum(2, keepdim=True)
    step = (size - histogram.gather(2, highest)) // 255
    below = histogram.cumsum(2) - histogram
    spread = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, spread, level)


def enhance(images: Tensor, draws: Draws) -> Tensor:
    """Contrast, color, brightness and sharpness: blends with the mean, the grey image, black and the smoothed image."""

    def blend(name: str, other: Tensor | int, images: Tensor) -> Tensor:
        kept = draws.factor(name)[:, None, None, None]
        return (other + ((images - other) * kept >> 12)).clamp(0, 255)

    total, count = grey(images).sum((1, 2, 3), keepdim=True), images.shape[2] * images.shape[3]
    images = blend("contrast", (2 * total + count) // max(2 * count, 1), images)
    images = blend("color", grey(images), images)
    images = blend("brightness", 0, images)
    return blend("sharpness", smooth(images), images)


def grey(images: Tensor) -> Tensor:
    """ITU-R 601-2 luma, [B, 1, H, W]."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768 >> 16)[:, None]


def smooth(images: Tensor) -> Tensor:
    """The mean of 3 x 3 levels with a weight of 5 for the one in the middle, inside the border."""
    height, width = images.shape[2:]
    if height < 3 or width < 3:
        return images
    total = sum(images[:, :, y : height - 2 + y, x : width - 2 + x] for y in range(3) for x in range(3))
    inner = images[:, :, 1:-1, 1:-1]
    smoothed = images.clone()
    smoothed[:, :, 1:-1, 1:-1] = (total + 4 * inner + 6) // 13
    return smoothed
