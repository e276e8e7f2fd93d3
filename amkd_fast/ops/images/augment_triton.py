"""The operator `amkd_fast::images_joint_augment_triton`: one launch, in which a program augments one image.

Between its stages the image and its tables lie in scratch of the program's own, which its caches hold.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from amkd_fast.ops.images import augment_reference as reference
from amkd_fast.ops.triton_common import on

LEAST_TILE, TILE = 256, 1024  # positions at a time

SHEAR, TRANSLATE, ROTATE = (tl.constexpr(most) for most in (reference.SHEAR, reference.TRANSLATE, reference.ROTATE))
LEAST_FACTOR, MOST_FACTOR = tl.constexpr(reference.LEAST_FACTOR), tl.constexpr(reference.MOST_FACTOR)
LEAST_BITS, MOST_BITS = tl.constexpr(reference.LEAST_BITS), tl.constexpr(reference.MOST_BITS)
WHOLE = tl.constexpr(4096)  # the factor of a blend that changes nothing
STREAM = tl.constexpr(reference.STREAM)
RADIANS = tl.constexpr(3.14159265358979323846 / 180 / 65536)

# Batches of any size share one kernel; the size of the images is compiled in.
_jit = triton.jit(do_not_specialize=["seed", "threshold", "operations", "fill"])


@triton.jit
def draw(seeds, seed, row, threshold, operations):
    """The bits of the chosen operations, and the words [8] of the magnitudes of operations 2 j and of 2 j + 1."""
    if seeds is not None:
        seed = tl.load(seeds)
    pair = tl.arange(0, 8)
    stream = pair.to(tl.uint32) + (STREAM & 0xFFFFFFFF)
    none = tl.zeros_like(stream)
    w0, w1, w2, w3 = tl.philox(seed, none + row.to(tl.uint32), none + (row >> 32).to(tl.uint32), stream, none)
    first = (w0.to(tl.int64) < threshold).to(tl.int32) << (2 * pair)
    second = (w2.to(tl.int64) < threshold).to(tl.int32) << (2 * pair + 1)
    return tl.sum(first + second, 0) & operations, w1, w3


@triton.jit
def has(chosen, OPERATION: tl.constexpr):
    return (chosen >> OPERATION & 1) == 1


@triton.jit
def drawn(chosen, even, odd, OPERATION: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr, NOTHING: tl.constexpr):
    """A whole number from LEAST to MOST where an operation is chosen, else NOTHING."""
    words = even if OPERATION % 2 == 0 else odd
    word = tl.sum(tl.where(tl.arange(0, 8) == OPERATION // 2, words, 0).to(tl.uint64), 0)
    return tl.where(has(chosen, OPERATION), (word * (MOST - LEAST + 1) >> 32).to(tl.int32) + LEAST, NOTHING)


@triton.jit
def fixed(value):
    """1/65536, to nearest."""
    return tl.floor(value * 65536 + 0.5).to(tl.int32)


@triton.jit
def turned(angle, H: tl.constexpr, W: tl.constexpr):
    """The map of positions, in 1/65536, that rotates by degrees / 65536; Taylor's series are exact to the last bit."""
    turn = angle.to(tl.float64) * -RADIANS
    square = turn * turn
    sine, cosine = square * 0 + 1, square * 0 + 1
    for k in tl.static_range(16, 0, -2):
        cosine = 1 - cosine * square * (1 / (k * (k - 1)))
        if k < 16:
            sine = 1 - sine * square * (1 / (k * (k + 1)))
    sine *= turn
    x = cosine * ((1 - W) / 2) + sine * ((1 - H) / 2) + W / 2
    y = sine * ((W - 1) / 2) + cosine * ((1 - H) / 2) + H / 2
    return fixed(cosine), fixed(sine), fixed(x), fixed(-sine), fixed(y)


@triton.jit
def is_inside(x, y, H: tl.constexpr, W: tl.constexpr):
    return (x >= 0) & (x < W) & (y >= 0) & (y < H)


@triton.jit
def blend(level, other, factor):
    return tl.minimum(tl.maximum(other + ((level - other) * factor >> 12), 0), 255)


@triton.jit
def grey_of(plane, e, there, C: tl.constexpr, SIZE: tl.constexpr):
    """The grey levels [N] of positions e [N]."""
    level = tl.load(plane + e, mask=there, other=0).to(tl.int32)
    if C == 3:
        green = tl.load(plane + SIZE + e, mask=there, other=0).to(tl.int32)
        blue = tl.load(plane + 2 * SIZE + e, mask=there, other=0).to(tl.int32)
        level = (19595 * level + 38470 * green + 7471 * blue + 32768) >> 16
    return tl.where(there, level, 0)


@_jit
def images_joint_augment_kernel(
    out, work, tables, pixels, rows, seeds, seed: tl.int64, threshold: tl.int64, operations, fill,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """One image, in tiles of N positions. work uint8 [B, C, H, W]; tables uint8 [B, C, 3, 256]."""
    SIZE: tl.constexpr = H * W
    image = tl.program_id(0).to(tl.int64)
    row = image
    if rows is not None:
        row = tl.load(rows + image)
    out += image * C * SIZE
    work += image * C * SIZE
    pixels += image * C * SIZE
    tables += image * C * 3 * 256
    tile = tl.arange(0, N)
    level = tl.arange(0, 256)

    # Where positions come from.
    chosen, even, odd = draw(seeds, seed, row, threshold, operations)
    shear_x = drawn(chosen, even, odd, 0, -SHEAR, SHEAR, 0)
    shear_y = drawn(chosen, even, odd, 1, -SHEAR, SHEAR, 0)
    translate_x = (drawn(chosen, even, odd, 2, -TRANSLATE * W, TRANSLATE * W, 0) + 32768) >> 16
    translate_y = (drawn(chosen, even, odd, 3, -TRANSLATE * H, TRANSLATE * H, 0) + 32768) >> 16
    a, b, c, d, f = turned(drawn(chosen, even, odd, 4, -ROTATE, ROTATE, 0), H, W)
    for first in range(0, SIZE, N):
        e = first + tile  # [N]
        x, y = e % W, e // W
        x, y = (a * x + b * y + c) >> 16, (d * x + a * y + f) >> 16
        inside = is_inside(x, y, H, W) & (e < SIZE)
        y += translate_y
        inside &= is_inside(x, y, H, W)
        x += translate_x
        inside &= is_inside(x, y, H, W)
        y += (shear_y * x + 32768 + ((shear_y + 1) >> 1)) >> 16
        inside &= is_inside(x, y, H, W)
        x += (shear_x * y + 32768 + ((shear_x + 1) >> 1)) >> 16
        inside &= is_inside(x, y, H, W)
        for channel in tl.static_range(C):
            moved = tl.load(pixels + channel * SIZE + y * W + x, mask=inside, other=0).to(tl.int32)
            tl.store(work + channel * SIZE + e, tl.where(inside, moved, fill).to(tl.uint8), mask=e < SIZE)
    tl.debug_barrier()

    # A table of levels for each channel.
    solarize = drawn(chosen, even, odd, 8, 0, 256, 256)
    spare = MOST_BITS - drawn(chosen, even, odd, 9, LEAST_BITS, MOST_BITS, MOST_BITS)
    for channel in tl.static_range(C):
        plane = work + channel * SIZE
        home = tables + channel * 3 * 256
        table = level
        if has(chosen, 5):
            lowest, highest = tl.full([N], 255, tl.int32), tl.zeros([N], tl.int32)
            for first in range(0, SIZE, N):
                e = first + tile
                lowest = tl.minimum(lowest, tl.load(plane + e, mask=e < SIZE, other=255).to(tl.int32))
                highest = tl.maximum(highest, tl.load(plane + e, mask=e < SIZE, other=0).to(tl.int32))
            low, high = tl.min(lowest, 0), tl.max(highest, 0)
            if high > low:
                scale = tl.full([], 255, tl.float64) / (high - low).to(tl.float64)
                spread = (level.to(tl.float64) * scale + (-low).to(tl.float64) * scale).to(tl.int32)
                table = tl.minimum(tl.maximum(spread, 0), 255)
        if has(chosen, 6):
            table = 255 - table
        if has(chosen, 7):
            tl.store(home + level, table.to(tl.uint8))
            tl.debug_barrier()
            histogram = tl.zeros([256], tl.int32)
            for first in range(0, SIZE, N):
                e = first + tile
                there = e < SIZE
                at = tl.load(plane + e, mask=there, other=0).to(tl.int32)
                moved = tl.load(home + at, mask=there, other=0).to(tl.int32)
                histogram += tl.histogram(moved, 256, mask=there)
            most = tl.max(tl.where(histogram > 0, level, 0), 0)
            step = (SIZE - tl.sum(tl.where(level == most, histogram, 0), 0)) // 255
            if step > 0:
                below = tl.cumsum(histogram, 0) - histogram
                equal = tl.minimum((step // 2 + below) // step, 255)
                tl.store(home + 256 + level, equal.to(tl.uint8))
                tl.debug_barrier()
                table = tl.load(home + 256 + table).to(tl.int32)
        table = tl.where(table < solarize, table, 255 - table) >> spare << spare
        tl.store(home + 512 + level, table.to(tl.uint8))
    tl.debug_barrier()
    for channel in tl.static_range(C):
        for first in range(0, SIZE, N):
            e = first + tile
            place = work + channel * SIZE + e
            at = tl.load(place, mask=e < SIZE, other=0).to(tl.int32)
            tl.store(place, tl.load(tables + (channel * 3 + 2) * 256 + at, mask=e < SIZE), mask=e < SIZE)
    tl.debug_barrier()

    # Blends.
    contrast = drawn(chosen, even, odd, 10, LEAST_FACTOR, MOST_FACTOR, WHOLE)
    color = drawn(chosen, even, odd, 11, LEAST_FACTOR, MOST_FACTOR, WHOLE)
    brightness = drawn(chosen, even, odd, 12, LEAST_FACTOR, MOST_FACTOR, WHOLE)
    sharpness = drawn(chosen, even, odd, 13, LEAST_FACTOR, MOST_FACTOR, WHOLE)
    total = tl.zeros([N], tl.int64)
    for first in range(0, SIZE, N):
        total += grey_of(work, first + tile, first + tile < SIZE, C, SIZE)
    mean = ((2 * tl.sum(total, 0) + SIZE) // (2 * SIZE)).to(tl.int32)
    for channel in tl.static_range(C):
        for first in range(0, SIZE, N):
            e = first + tile
            place = work + channel * SIZE + e
            value = blend(tl.load(place, mask=e < SIZE, other=0).to(tl.int32), mean, contrast)
            tl.store(place, value.to(tl.uint8), mask=e < SIZE)
    tl.debug_barrier()
    for first in range(0, SIZE, N):
        e = first + tile
        grey = grey_of(work, e, e < SIZE, C, SIZE)
        for channel in tl.static_range(C):
            place = work + channel * SIZE + e
            value = blend(tl.load(place, mask=e < SIZE, other=0).to(tl.int32), grey, color)
            tl.store(place, blend(value, 0, brightness).to(tl.uint8), mask=e < SIZE)
    tl.debug_barrier()
    for channel in tl.static_range(C):
        for first in range(0, SIZE, N):
            e = first + tile
            x, y = e % W, e // W
            inner = (x > 0) & (x < W - 1) & (y > 0) & (y < H - 1)
            place = work + channel * SIZE + e
            value = tl.load(place, mask=e < SIZE, other=0).to(tl.int32)
            near = 4 * value + 6
            for dy in tl.static_range(-1, 2):
                for dx in tl.static_range(-1, 2):
                    near += tl.load(place + dy * W + dx, mask=inner, other=0).to(tl.int32)
            value = blend(value, tl.where(inner, near // 13, value), sharpness)
            tl.store(out + channel * SIZE + e, value.to(tl.uint8), mask=e < SIZE)


def launch_joint_augment(
    pixels: Tensor, rows: Tensor | None, seeds: Tensor | None, threshold: int, operations: int, fill: int, seed: int
) -> Tensor:
    """The augmented images, as amkd_fast/ops/schemas.py describes them."""
    images, channels, height, width = pixels.shape
    out = torch.empty_like(pixels)
    if out.numel() == 0:
        return out
    work, tables = torch.empty_like(pixels), pixels.new_empty(images, channels, 3, 256)
    n = min(max(triton.next_power_of_2(height * width), LEAST_TILE), TILE)
    with on(pixels):
        images_joint_augment_kernel[(images,)](
            out, work, tables, pixels, rows, seeds, seed, threshold, operations, fill,
            C=channels, H=height, W=width, N=n, num_warps=n // 128,
            enable_fp_fusion=False,  # product and sum are each rounded, as they are everywhere else
        )  # fmt: skip
    return out
