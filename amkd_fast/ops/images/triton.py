"""The operator `amkd_fast::images_crop_flip_triton`: one launch, in which a program writes N numbers of one image."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from amkd_fast import backends
from amkd_fast.ops.images.reference import STREAM
from amkd_fast.ops.triton_common import on, philox_words

TILE = 4096  # numbers of a program at most
MOST_VALUES = 2**30  # of an image

# Batches and data sets of any size, every pad and seed share one kernel; the size of the images is compiled in, so that
# a position's divisions are multiplications.
_jit = triton.jit(do_not_specialize=["images", "pad", "seed"])


@_jit
def images_crop_flip_kernel(
    out, pixels, index, shift, seeds, images, scale: tl.float64, pad, seed: tl.int64,
    FLIP: tl.constexpr, DRAWS: tl.constexpr, LAST: tl.constexpr, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    N: tl.constexpr, STREAM: tl.constexpr,
):  # fmt: skip
    """N numbers of one image of C · H · W, whose channels vary fastest where LAST."""
    ACC: tl.constexpr = shift.dtype.element_ty
    SIZE: tl.constexpr = C * H * W
    TILES: tl.constexpr = (SIZE + N - 1) // N
    sample = tl.program_id(0) // TILES
    row = sample.to(tl.int64)
    if index is not None:
        row = tl.load(index + sample)
        row = tl.minimum(tl.maximum(row, 0), images - 1)  # a GPU cannot raise
    e = tl.program_id(0) % TILES * N + tl.arange(0, N)  # [N]
    there = e < SIZE
    if LAST:
        c, position = e % C, e // C
    else:
        c, position = e // (H * W), e % (H * W)
    y, x = position // W, position % W
    inside = there
    if DRAWS:
        w0, w1, w2, _ = philox_words(seeds, seed, row, STREAM)
        offsets = 2 * pad.to(tl.uint64) + 1
        if FLIP:
            x = tl.where((w2 >> 31) == 1, W - 1 - x, x)
        y += ((w0.to(tl.uint64) * offsets) >> 32).to(tl.int32) - pad
        x += ((w1.to(tl.uint64) * offsets) >> 32).to(tl.int32) - pad
        inside &= (y >= 0) & (y < H) & (x >= 0) & (x < W)
    level = tl.load(pixels + row * SIZE + (c * H + y) * W + x, mask=inside, other=0)
    offset = tl.load(shift + c, mask=there, other=0.0)
    # Without the annotation a Python float would come as fp32, without `full` it would lift everything to fp64.
    value = level.to(ACC) * tl.full([], scale, ACC) + offset
    tl.store(out + sample.to(tl.int64) * SIZE + e, value.to(out.dtype.element_ty), mask=there)


def launch_crop_flip(
    out: Tensor, pixels: Tensor, index: Tensor | None, shift: Tensor, seeds: Tensor | None, scale: float,
    pad: int, flip: bool, seed: int,
) -> None:  # fmt: skip
    """Write the batch into ``out``, as amkd_fast/ops/schemas.py describes it."""
    images, channels, height, width = pixels.shape
    size = channels * height * width
    if size >= MOST_VALUES:
        raise ValueError(f"pixels.shape={tuple(pixels.shape)}: the Triton kernel takes less than 2^30 values an image")
    if out.numel() == 0:
        return
    n = min(triton.next_power_of_2(size), TILE)
    # The interpreter truncates where a GPU rounds to bf16, so there the kernel stores fp32 and torch rounds.
    truncates = backends.INTERPRETING and out.dtype == torch.bfloat16
    into = torch.empty_like(out, dtype=torch.float32) if truncates else out
    with on(out):
        images_crop_flip_kernel[(out.shape[0] * triton.cdiv(size, n),)](
            into, pixels, index, shift, seeds, images, scale, pad, seed,
            FLIP=flip, DRAWS=flip or pad > 0, LAST=not out.is_contiguous(), C=channels, H=height, W=width, N=n,
            STREAM=STREAM, num_warps=min(max(n // 512, 1), 8),
            enable_fp_fusion=False,  # the product is rounded before the sum, as it is everywhere else
        )  # fmt: skip
    if truncates:
        out.copy_(into)
