"""Joint augmentation: fourteen operations on every image, drawn and computed where the images are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amkd_fast import backends, checks, philox
from amkd_fast.ops import schemas
from amkd_fast.ops.images import augment_reference as reference

_EVERY = (1 << len(reference.OPERATIONS)) - 1
_MOST_SIDE = 2**14  # positions in 1/65536 fit into 32 bits
_MOST_VALUES = 2**30  # of an image


def _fake_joint_augment(pixels: Tensor, *_) -> Tensor:
    return torch.empty_like(pixels)


schemas.register(
    "images_joint_augment", _fake_joint_augment, "amkd_fast.ops.images.augment_triton:launch_joint_augment"
)
_OPERATORS = {name: schemas.operator("images_joint_augment", name) for name in ("cpu", "cuda", "triton")}


def joint_augment(
    pixels: Tensor,
    *,
    probability: float = 0.5,
    seed: int | Tensor | None = None,
    rows: Tensor | None = None,
    fill: int = 0,
    operations: Sequence[str] | None = None,
) -> Tensor:
    r"""Augment every image with some of fourteen operations, each of them with the same probability, in one pass.

    They follow one another in a fixed order:

    | operation                      | magnitude, uniform                                    |
    |--------------------------------|-------------------------------------------------------|
    | ``shear_x``, ``shear_y``       | -0.3 to 0.3, about the corner                         |
    | ``translate_x``, ``translate_y`` | -150/331 to 150/331 of the side                     |
    | ``rotate``                     | -30 to 30 degrees about the middle                    |
    | ``autocontrast``               | each channel's levels spread to 0 … 255               |
    | ``invert``                     | 255 - v                                               |
    | ``equalize``                   | each channel's histogram made flat                    |
    | ``solarize``                   | levels from a threshold on inverted; 0 to 256         |
    | ``posterize``                  | the upper 4 to 8 bits kept                            |
    | ``contrast``                   | 0.1 to 1.9 of the image, the rest its mean grey       |
    | ``color``                      | 0.1 to 1.9 of the image, the rest itself in grey      |
    | ``brightness``                 | 0.1 to 1.9 of the image, the rest black               |
    | ``sharpness``                  | 0.1 to 1.9 of the image, the rest itself smoothed     |

    Levels are those that Pillow's functions of these names compute, bit for bit, positions the nearest ones. Shears,
    translations and angles are drawn in steps of 2⁻¹⁶ (of a pixel, of a degree), the last four in steps of 2⁻¹².

    An image's draws depend on ``seed`` and its row alone, not on the batch, its order, the process or the backend; take
    another seed for every epoch. Seven Philox blocks are drawn for an image (:mod:`amkd_fast.philox`). Nothing waits
    for the device. Source: JDA, the joint data augmentation of Li et al. 2022, a reconstruction: the order and the
    ranges are those of the first fourteen operations in the table of AutoAugment (Cubuk et al. 2019).

    Args:
        pixels: uint8 [B, C, H, W], contiguous, C = 1 (grey) or 3 (red, green, blue), sides of at most 16384 pixels and
            less than 2³⁰ levels an image.
        probability: Of each operation, from 0 to 1.
        seed: Seed of the draws, an int, or an int64 tensor of no dimensions on the device of ``pixels``, which a CUDA
            graph can change between replays; None draws one from torch's generator of that device
            (``torch.manual_seed``).
        rows: int64 [B] on the device of ``pixels``, what the images are called in the draws, such as their rows in a
            data set; None for 0 … B - 1.
        fill: Level, 0 to 255, of positions that come from outside of the image.
        operations: Names out of the table above; the others are left out, without a change in what these draw. None
            for all of them.

    Returns:
        uint8 [B, C, H, W], contiguous.

    Raises:
        TypeError: A dtype or a type differs from the above.
        ValueError: A shape, a device or a value breaks a rule above.

    Example:
        >>> import torch, amkd_fast as af
        >>> pixels = torch.arange(0, 240, 20, dtype=torch.uint8).view(2, 1, 2, 3)
        >>> af.joint_augment(pixels, probability=1.0, seed=0, operations=["invert"])[1]
        tensor([[[135, 115,  95],
                 [ 75,  55,  35]]], dtype=torch.uint8)
        >>> batch = af.joint_augment(pixels, seed=3)
        >>> torch.equal(batch[1:], af.joint_augment(pixels[1:], seed=3, rows=torch.tensor([1])))
        True
    """
    _check_pixels(pixels)
    threshold = _threshold(probability)
    if seed is not None:
        seed = philox.check_seed(seed, pixels.device)
    if rows is not None:
        _check_rows(rows, pixels)
    if isinstance(fill, bool) or not isinstance(fill, int):
        raise TypeError(f"fill is a {type(fill).__name__}: must be an int")
    if not 0 <= fill <= 255:
        raise ValueError(f"fill={fill}: must be from 0 to 255")
    chosen = _EVERY if operations is None else _chosen(operations)

    operator = _OPERATORS.get(backends.select("images", pixels.device.type))
    if pixels.numel() == 0:
        return torch.empty_like(pixels)
    seed = philox.chosen_seed(seed, pixels.device)
    if operator is None:
        return reference.joint_augment(pixels, rows, seed, threshold, chosen, fill)
    seeds, seed = philox.operator_seed(seed)
    return operator(pixels, None if rows is None else rows.contiguous(), seeds, threshold, chosen, fill, seed)


def _check_pixels(pixels: object) -> None:
    checks.tensor("pixels", pixels)
    if pixels.dtype != torch.uint8:
        raise TypeError(f"pixels.dtype={pixels.dtype}: must be uint8")
    if pixels.dim() != 4 or pixels.shape[1] not in (1, 3):
        raise ValueError(f"pixels.shape={tuple(pixels.shape)}: must be [B, 1, H, W] or [B, 3, H, W]")
    _, channels, height, width = pixels.shape
    if height > _MOST_SIDE or width > _MOST_SIDE or channels * height * width >= _MOST_VALUES:
        raise ValueError(f"pixels.shape={tuple(pixels.shape)}: sides must be at most 2^14, an image less than 2^30")
    if not pixels.is_contiguous():
        raise ValueError(f"pixels.stride()={pixels.stride()}: must be contiguous")


def _threshold(probability: object) -> int:
    """So many of the 2^32 words choose an operation."""
    probability = checks.finite("probability", probability)
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"probability={probability!r}: must be from 0 to 1")
    return int(probability * 2**32 + 0.5)


def _check_rows(rows: object, pixels: Tensor) -> None:
    checks.tensor("rows", rows)
    if rows.dtype != torch.int64:
        raise TypeError(f"rows.dtype={rows.dtype}: must be int64")
    checks.shape("rows", rows, (pixels.shape[0],), "one number per image")
    if rows.device != pixels.device:
        raise ValueError(f"rows.device={rows.device}: must be {pixels.device}, the device of pixels")


def _chosen(operations: object) -> int:
    """A bit for each of :data:`reference.OPERATIONS`."""
    if isinstance(operations, str) or not isinstance(operations, Sequence):
        raise TypeError(f"operations is a {type(operations).__name__}: must be a sequence of names")
    for name in operations:
        checks.choice("operations", name, reference.OPERATIONS)
    return sum(1 << reference.OPERATIONS.index(name) for name in set(operations))
