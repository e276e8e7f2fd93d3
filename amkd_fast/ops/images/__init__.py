"""Batches of augmented images straight from the bytes of a data set that stays on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amkd_fast import backends, checks, philox
from amkd_fast.ops import schemas
from amkd_fast.ops.images import reference
from amkd_fast.ops.images.augment import joint_augment

__all__ = ["crop_flip", "joint_augment"]

_FORMATS = (torch.contiguous_format, torch.channels_last)
_MOST_PAD = 2**30 - 1  # positions in a padded image fit into 32 bits
_MOST_FLOAT = torch.finfo(torch.float32).max


def _fake_crop_flip(*_) -> None:
    """Returns nothing: the result is in ``out``."""


schemas.register("images_crop_flip", _fake_crop_flip, "amkd_fast.ops.images.triton:launch_crop_flip")
_OPERATORS = {name: schemas.operator("images_crop_flip", name) for name in ("cpu", "cuda", "triton")}


def crop_flip(
    pixels: Tensor,
    index: Tensor | None = None,
    *,
    scale: float,
    shift: Tensor | Sequence[float],
    pad: int = 0,
    flip: bool = False,
    seed: int | Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    r"""Make a batch of randomly cropped and mirrored, normalised images from the bytes of a data set, in one pass.

    Level v of channel c becomes v · ``scale`` + ``shift``\[c]. With ``pad`` = p, p black pixels (level 0) are put on
    every side of an image and a window of its size is taken out at an offset drawn uniformly from {0 … 2p}²; with
    ``flip`` it is mirrored left to right with probability ½: the usual augmentation of CIFAR (He et al. 2016).

    An image's draw depends on ``seed`` and its row in ``pixels`` alone, not on the batch, its order or the process;
    take another seed for every epoch. Four words of one Philox block are drawn for a row (:mod:`amkd_fast.philox`).
    Nothing waits for the device.

    Args:
        pixels: uint8 [N, C, H, W], contiguous, on the device where the result is wanted.
        index: int64 or int32 [B], rows of ``pixels``, on its device; None for all of them in their order.
        scale: Number that levels (0 to 255) are multiplied with, such as 1 / 255.
        shift: Number added for each channel: floating tensor [C] on the device of ``pixels``, or C floats. Floats are
            copied to a GPU in every call, so that the capture of a CUDA graph needs a tensor.
        pad: p ≥ 0, in pixels; 0 for no crop.
        flip: Whether to mirror half of the images.
        seed: Seed of the draws, an int, or an int64 tensor of no dimensions on the device of ``pixels``, which a CUDA
            graph can change between replays; None draws one from torch's generator of that device
            (``torch.manual_seed``). Without ``pad`` and ``flip`` nothing is drawn.
        dtype: Of the result: float32, float64, float16 or bfloat16. The arithmetic is float32 (float64 for float64),
            the product and the sum each rounded.
        memory_format: ``torch.contiguous_format`` or ``torch.channels_last``.

    Returns:
        [B, C, H, W] of ``dtype``, without a graph.

    Raises:
        TypeError: A dtype or a type differs from the above.
        ValueError: A shape, a device or a value breaks a rule above. A row out of range is found on a CPU only, as
            looking at it on a GPU would wait for it; there the nearest row takes its place.

    Example:
        >>> import torch, amkd_fast as af
        >>> pixels = torch.arange(0, 240, 20, dtype=torch.uint8).view(2, 1, 2, 3)
        >>> af.crop_flip(pixels, torch.tensor([1]), scale=0.1, shift=[-10.0])
        tensor([[[[ 2.,  4.,  6.],
                  [ 8., 10., 12.]]]])
        >>> batch = af.crop_flip(pixels, scale=1 / 255, shift=[0.0], pad=1, flip=True, seed=3)
        >>> torch.equal(batch[1:], af.crop_flip(pixels, torch.tensor([1]), scale=1 / 255, shift=[0.0], pad=1,
        ...                                     flip=True, seed=3))
        True
    """
    _check_pixels(pixels)
    count, channels, height, width = pixels.shape
    device = pixels.device
    if index is not None:
        _check_index(index, count, device)
    if dtype not in checks.FLOATING or memory_format not in _FORMATS:  # the error's words take time
        checks.choice("dtype", dtype, checks.FLOATING)
        checks.choice("memory_format", memory_format, _FORMATS)
    work = torch.float64 if dtype == torch.float64 else torch.float32
    scale = checks.finite("scale", scale)
    if abs(scale) > _MOST_FLOAT and work == torch.float32:
        raise ValueError(f"scale={scale!r}: must be a number that {work} holds")
    shift = _on_device(shift, channels, work, device)
    if isinstance(pad, bool) or not isinstance(pad, int):
        raise TypeError(f"pad is a {type(pad).__name__}: must be an int")
    if not 0 <= pad <= _MOST_PAD:
        raise ValueError(f"pad={pad}: must be from 0 to {_MOST_PAD}")
    if not isinstance(flip, bool):
        raise TypeError(f"flip is a {type(flip).__name__}: must be a bool")
    if seed is not None or not (pad or flip):
        seed = philox.check_seed(0 if seed is None else seed, device)

    size = (count if index is None else index.shape[0], channels, height, width)
    operator = _OPERATORS.get(backends.select("images", pixels.device.type))
    if operator is None and index is not None:
        _check_range(index, count)
    out = torch.empty(size, dtype=dtype, device=device, memory_format=memory_format)
    if out.numel() == 0:
        return out
    index = None if index is None else index.long()
    seed = philox.chosen_seed(seed, device)
    if operator is None:
        return out.copy_(reference.crop_flip(pixels, index, scale, shift, pad, flip, seed))
    seeds, seed = philox.operator_seed(seed)
    index = None if index is None else index.contiguous()
    try:
        operator(out, pixels, index, shift, seeds, scale, pad, flip, seed)
    except RuntimeError as error:
        raise checks.refused(error, "rows: ") from None
    return out


def _check_pixels(pixels: object) -> None:
    checks.tensor("pixels", pixels)
    if pixels.dtype != torch.uint8:
        raise TypeError(f"pixels.dtype={pixels.dtype}: must be uint8")
    if pixels.dim() != 4:
        raise ValueError(f"pixels.shape={tuple(pixels.shape)}: must be [N, C, H, W]")
    if not pixels.is_contiguous():
        # A copy in every call would take longer than the batch.
        raise ValueError(f"pixels.stride()={pixels.stride()}: must be contiguous")


def _check_index(index: object, count: int, device: torch.device) -> None:
    checks.integer("index", index)
    if index.dim() != 1:
        raise ValueError(f"index.shape={tuple(index.shape)}: must be [B]")
    if index.device != device:
        raise ValueError(f"index.device={index.device}: must be {device}, the device of pixels")
    if count == 0 and index.shape[0] > 0:
        raise ValueError(f"index.shape={tuple(index.shape)}: must be empty, pixels holds no image")


def _check_range(index: Tensor, count: int) -> None:
    """The rows must lie in [0, N), where looking costs no device synchronisation."""
    if index.device.type == "cpu" and index.numel() and not torch.compiler.is_compiling():
        low, high = (int(bound) for bound in torch.aminmax(index))
        if low < 0 or high >= count:
            raise ValueError(f"index holds {low if low < 0 else high}: must lie in [0, {count})")


def _on_device(shift: object, channels: int, work: torch.dtype, device: torch.device) -> Tensor:
    """``shift`` [C] in ``work`` on ``device``."""
    if isinstance(shift, Tensor):
        checks.floating("shift", shift)
        checks.shape("shift", shift, (channels,), "one number per channel of pixels")
        if shift.device != device:
            raise ValueError(f"shift.device={shift.device}: must be {device}, the device of pixels")
        if shift.dtype == work and not shift.requires_grad and shift.is_contiguous():
            return shift
        return shift.detach().to(work).contiguous()
    if isinstance(shift, (str, bytes)) or not isinstance(shift, Sequence):
        raise TypeError(f"shift is a {type(shift).__name__}: must be a tensor [C] or a sequence of floats")
    numbers = [checks.finite("shift", number) for number in shift]
    if len(numbers) != channels:
        raise ValueError(f"shift={shift!r}: must have {channels} numbers, one per channel of pixels")
    # The driver takes so few bytes along at once, so nobody has to wait. A graph would read them again at every replay,
    # when they are gone: PyTorch's waiting copy refuses to be captured.
    waits = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    return torch.tensor(numbers, dtype=work).to(device, non_blocking=not waits)
