"""Joint augmentation in Pillow's own functions, image by image, with draws that were made before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from amkd_fast import philox
from amkd_fast.ops.images.augment_reference import OPERATIONS, STREAM

Draw = list[tuple[str, float]]  # operations in their order, each with its magnitude


def draws(seed: int, rows: Sequence[int], probability: float, side: tuple[int, int]) -> list[Draw]:
    """What every row draws, with Python's own integers; ``side`` is (height, width)."""
    found: list[Draw] = [[] for _ in rows]
    for number, name in enumerate(OPERATIONS):
        words = philox.words(seed, torch.tensor(rows, dtype=torch.int64), stream=STREAM + number // 2)
        choices, sizes = (word.tolist() for word in words[2 * (number % 2) :][:2])
        for draw, choice, word in zip(found, choices, sizes, strict=True):
            if choice < round(probability * 2**32):
                draw.append((name, magnitude(name, word, side)))
    return found


def magnitude(name: str, word: int, side: tuple[int, int]) -> float:
    """In Pillow's units, from a word of 32 bits."""

    def between(least: int, most: int) -> int:
        return least + (word * (most - least + 1) >> 32)

    if name.startswith("shear"):
        return between(-19660, 19660) / 65536
    if name.startswith("translate"):
        most = 29699 * side[name == "translate_x"]
        return between(-most, most) / 65536
    if name == "rotate":
        return between(-30 * 65536, 30 * 65536) / 65536
    if name == "solarize":
        return between(0, 256)
    if name == "posterize":
        return between(4, 8)
    return between(410, 7782) / 4096


def augmented(image: Image.Image, draw: Draw, fill: int) -> Image.Image:
    colour = fill if image.mode == "L" else (fill,) * 3

    def affine(*numbers: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, numbers, Image.Resampling.NEAREST, fillcolor=colour)

    steps: dict[str, Callable[[float], Image.Image]] = {
        "shear_x": lambda m: affine(1, m, 0, 0, 1, 0),
        "shear_y": lambda m: affine(1, 0, 0, m, 1, 0),
        "translate_x": lambda m: affine(1, 0, m, 0, 1, 0),
        "translate_y": lambda m: affine(1, 0, 0, 0, 1, m),
        "rotate": lambda m: image.rotate(m, Image.Resampling.NEAREST, fillcolor=colour),
        "autocontrast": lambda _: ImageOps.autocontrast(image),
        "invert": lambda _: ImageOps.invert(image),
        "equalize": lambda _: ImageOps.equalize(image),
        "solarize": lambda m: ImageOps.solarize(image, int(m)),
        "posterize": lambda m: ImageOps.posterize(image, int(m)),
        "contrast": lambda m: ImageEnhance.Contrast(image).enhance(m),
        "color": lambda m: ImageEnhance.Color(image).enhance(m),
        "brightness": lambda m: ImageEnhance.Brightness(image).enhance(m),
        "sharpness": lambda m: ImageEnhance.Sharpness(image).enhance(m),
    }
    for name, size in draw:
        image = steps[name](size)
    return image


def to_image(pixels: Tensor) -> Image.Image:
    """An image from uint8 [C, H, W]."""
    return Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).contiguous().numpy())


def to_pixels(image: Image.Image, channels: int) -> Tensor:
    levels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return levels.view(image.height, image.width, channels).permute(2, 0, 1)


def batch(pixels: Tensor, found: Sequence[Draw], fill: int, pool: Executor | None = None) -> Tensor:
    """uint8 [B, C, H, W], by the threads of a pool where there is one."""

    def one(image: Tensor, draw: Draw) -> Tensor:
        return to_pixels(augmented(to_image(image), draw, fill), pixels.shape[1])

    return torch.stack(list((map if pool is None else pool.map)(one, pixels, found)))
