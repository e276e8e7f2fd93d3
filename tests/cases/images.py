"""The images family: a loop over samples with F.pad and slices, Pillow's own functions, and its cases."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import amkd_fast as af
from amkd_fast import philox
from amkd_fast.ops.images import augment_reference, reference
from cases.operation import Operation, Plan, Refusal, generator

# ---- crop_flip ------------------------------------------------------------------------------------------------------

LAST = torch.channels_last


class DataSet(NamedTuple):
    """Images of a shape; a batch of `rows` that are drawn, or all of them in their order."""

    images: int
    shape: tuple[int, int, int]
    rows: int | None = None
    seed: int | None = 7  # None: a number among the options


def seeded(own: int | None, seed: int) -> dict[str, Tensor]:
    return {} if own is None else {"seed": torch.tensor(own - seed)}


def draw_pixels(data: DataSet, dtype=torch.float32, seed=0) -> dict[str, Tensor]:
    pixels = torch.randint(0, 256, (data.images, *data.shape), dtype=torch.uint8, generator=generator(seed))
    shift = torch.tensor([-1.99, -1.98, -1.71, 0.3, 1e-3][: data.shape[0]]).to(dtype)
    drawn = {"pixels": pixels, "shift": shift} | seeded(data.seed, seed)
    if data.rows is not None:
        drawn["index"] = torch.randint(max(data.images, 1), (data.rows,), generator=generator(seed + 1))
    return drawn


def crop_flip(pixels: Tensor, index: Tensor | None = None, *, shift: Tensor, **given) -> Tensor:
    """Into the dtype of the shift."""
    return af.crop_flip(pixels, index, shift=shift, dtype=shift.dtype, **given)


def cropped_one_by_one(
    pixels: Tensor, index: Tensor | None = None, *, scale: float, shift: Tensor, pad=0, flip=False, seed=0,
    memory_format=None,
) -> Tensor:  # fmt: skip
    """What the docstring says, sample by sample, with Python's own integers for the draws."""
    work = torch.promote_types(shift.dtype, torch.float32)
    height, width = pixels.shape[2:]
    samples = []
    for row in range(len(pixels)) if index is None else index.tolist():
        words = [int(word) for word in philox.words(seed, torch.tensor(row), stream=reference.STREAM)]
        dy, dx = (word * (2 * pad + 1) >> 32 for word in words[:2])
        window = F.pad(pixels[row], (pad, pad, pad, pad))[:, dy : dy + height, dx : dx + width]
        if flip and words[2] >> 31:
            window = window.flip(-1)
        samples.append((window.to(work) * scale + shift.to(work)[:, None, None]).to(shift.dtype))
    return torch.stack(samples) if samples else shift.new_empty(0, *pixels.shape[1:])


AS_USUAL = {"pad": 4, "flip": True}
# One block and several, in whole vectors and number by number; windows inside of their images, and far out of them.
CROPS = (
    Plan("one block", DataSet(6, (3, 32, 32), 9, None), {**AS_USUAL, "seed": -3}),
    Plan("one block, channels last", DataSet(6, (3, 32, 32), 9), {**AS_USUAL, "memory_format": LAST}),
    Plan("one block, as they are", DataSet(6, (3, 32, 32))),
    Plan("number by number", DataSet(23, (3, 7, 5), 9, -1), {"pad": 3}, offset=1),
    Plan("number by number, channels last", DataSet(23, (3, 7, 5)), {**AS_USUAL, "memory_format": LAST}),
    Plan("several blocks", DataSet(4, (3, 64, 72), 6, 2**40 + 3), AS_USUAL),
    Plan("several blocks, channels last", DataSet(4, (3, 64, 72)), {"flip": True, "memory_format": LAST}),
    Plan("several blocks, number by number", DataSet(4, (1, 61, 61), 5), AS_USUAL),
    Plan("a vector and a rest", DataSet(7, (5, 9, 33), 9), {"pad": 2, "flip": True, "memory_format": LAST}),
    Plan("more than a tile", DataSet(5, (3, 40, 41), 9), {"pad": 50, "flip": True}),
    Plan("grey", DataSet(9, (1, 28, 28), 4), AS_USUAL),
    Plan("grey, odd, far out", DataSet(9, (1, 31, 17), 9), {"pad": 100}),
    Plan("a pixel", DataSet(9, (2, 1, 1), 9, 2**63 - 1), {"pad": 1, "flip": True}),
    Plan("a few pixels", DataSet(9, (1, 3, 8), 9), {"flip": True}),
    Plan("a row", DataSet(9, (3, 1, 40), 9), AS_USUAL),
)


def crop_refusals() -> tuple[Refusal, ...]:
    pixels = torch.zeros(4, 3, 5, 5, dtype=torch.uint8)

    def refusal(message: str, error: type[Exception], **change) -> Refusal:
        usual = {"pixels": pixels, "index": torch.zeros(2).long(), "scale": 1.0, "shift": [0.0] * 3, "pad": 1}
        return Refusal(message, error, lambda: af.crop_flip(**{**usual, "flip": True, **change}))

    return (
        refusal("pixels is a list", TypeError, pixels=[1]),
        refusal("pixels.dtype", TypeError, pixels=pixels.float()),
        refusal("pixels.shape", ValueError, pixels=pixels[0]),
        refusal("pixels.stride", ValueError, pixels=pixels[..., ::2]),
        refusal("index.dtype", TypeError, index=torch.zeros(2)),
        refusal("index.shape", ValueError, index=torch.zeros(2, 1).long()),
        refusal("index.shape=(2,): must be empty, pixels holds no image", ValueError, pixels=pixels[:0]),
        refusal("scale=inf", ValueError, scale=math.inf),
        refusal("scale=1e+39", ValueError, scale=1e39),
        refusal("scale is a str", TypeError, scale="1"),
        refusal("shift is a float", TypeError, shift=0.5),
        refusal("shift=[0.0, 1.0]: must have 3 numbers", ValueError, shift=[0.0, 1.0]),
        refusal("shift=nan", ValueError, shift=[0.0, 1.0, math.nan]),
        refusal("shift.shape", ValueError, shift=torch.zeros(2)),
        refusal("shift.dtype", TypeError, shift=torch.zeros(3).long()),
        refusal("pad=-1", ValueError, pad=-1),
        refusal("pad=1073741824", ValueError, pad=2**30),
        refusal("pad is a float", TypeError, pad=1.0),
        refusal("pad is a bool", TypeError, pad=True),
        refusal("flip is a int", TypeError, flip=1),
        refusal("seed is a float", TypeError, seed=0.5),
        refusal("seed.shape", ValueError, seed=torch.zeros(1).long()),
        refusal("dtype=torch.int32", ValueError, dtype=torch.int32),
        refusal("memory_format=torch.preserve_format", ValueError, memory_format=torch.preserve_format),
    )


# ---- joint_augment --------------------------------------------------------------------------------------------------


class Pictures(NamedTuple):
    """Images of a shape, and whether they have names of their own in the draws."""

    count: int
    shape: tuple[int, int, int]
    rows: bool = False
    seed: int | None = 7  # None: a number among the options


def draw_pictures(pictures: Pictures, dtype=torch.uint8, seed=0) -> dict[str, Tensor]:
    """Noise, a slope of few levels with noise of its own, and one level: tables and means of other kinds."""
    count, shape = pictures.count, pictures.shape
    noise = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator(seed))
    slope = noise // 4 + 20 + 3 * (torch.arange(shape[2]) % 40).to(torch.uint8)
    place = torch.arange(count)[:, None, None, None]
    pixels = torch.where(place % 2 == 0, noise, slope)
    pixels = torch.where(place % 12 == 5, (77 * place % 256).to(torch.uint8), pixels)
    drawn = {"pixels": pixels} | seeded(pictures.seed, seed)
    rows = torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator(seed + 1))
    return drawn | ({"rows": rows} if pictures.rows else {})


def by_pillow(
    pixels: Tensor, seed: int | Tensor, rows: Tensor | None = None, *, probability=0.5, fill=0, operations=None
) -> Tensor:
    """Pillow's functions one after another; the reference's words where Pillow is missing."""
    if pixels.numel() == 0:
        return pixels
    try:
        from benchmarks.baselines import pillow
    except ImportError:
        every = 2 ** len(augment_reference.OPERATIONS) - 1
        return augment_reference.joint_augment(pixels, rows, seed, int(probability * 2**32 + 0.5), every, fill)
    names = range(len(pixels)) if rows is None else rows.tolist()
    drawn = pillow.draws(int(seed), list(names), probability, pixels.shape[2:])
    if operations is not None:
        drawn = [[(name, size) for name, size in draw if name in operations] for draw in drawn]
    return pillow.batch(pixels, drawn, fill)


# In shared memory and in scratch; odd and even sides, one and three channels; no inside; a row, a column, a pixel.
SHAPES = {
    "in shared memory": (3, 32, 32),
    "in shared memory, odd": (3, 33, 17),
    "small": (3, 8, 8),
    "grey": (1, 32, 32),
    "grey, odd": (1, 33, 17),
    "no inside": (3, 2, 5),
    "grey, no inside": (1, 2, 9),
    "a row": (1, 1, 9),
    "a column": (1, 9, 1),
    "a pixel": (3, 1, 1),
    "several tiles": (3, 40, 41),
    "in scratch": (3, 120, 121),
}
SEEDS = (7, -1, 2**40 + 3)
PICTURES = tuple(
    Plan(f"{name}, {probability}", Pictures(6 if shape[1] > 99 else 24, shape, probability < 1, SEEDS[i % 3]),
         {"probability": probability, "fill": 128})
    for i, (name, shape) in enumerate(SHAPES.items()) for probability in (0.5, 1.0)
)  # fmt: skip


def augment_refusals() -> tuple[Refusal, ...]:
    pixels = torch.zeros(4, 3, 5, 5, dtype=torch.uint8)

    def refusal(message: str, error: type[Exception], **change) -> Refusal:
        return Refusal(message, error, lambda: af.joint_augment(**{"pixels": pixels, "seed": 0, **change}))

    return (
        refusal("pixels is a list", TypeError, pixels=[1]),
        refusal("pixels.dtype", TypeError, pixels=pixels.float()),
        refusal("pixels.shape", ValueError, pixels=pixels[0]),
        refusal("pixels.shape=(4, 2, 5, 5)", ValueError, pixels=pixels[:, :2]),
        refusal("pixels.shape=(0, 1, 1, 16385): sides", ValueError, pixels=pixels.new_zeros(0, 1, 1, 2**14 + 1)),
        refusal("pixels.stride", ValueError, pixels=pixels[..., ::2]),
        refusal("rows.dtype", TypeError, rows=torch.zeros(4)),
        refusal("rows.shape", ValueError, rows=torch.zeros(3).long()),
        refusal("probability=1.1", ValueError, probability=1.1),
        refusal("probability=-0.1", ValueError, probability=-0.1),
        refusal("probability=nan", ValueError, probability=math.nan),
        refusal("probability is a str", TypeError, probability="1"),
        refusal("fill=256", ValueError, fill=256),
        refusal("fill is a float", TypeError, fill=0.5),
        refusal("operations is a str", TypeError, operations="rotate"),
        refusal("operations='cutout'", ValueError, operations=["cutout"]),
        refusal("seed is a float", TypeError, seed=0.5),
        refusal("seed.shape", ValueError, seed=torch.zeros(1).long()),
    )


# ---- the table ------------------------------------------------------------------------------------------------------

OPERATIONS = (
    Operation(
        name="crop_flip",
        family="images",
        call=crop_flip,
        truth=cropped_one_by_one,
        exact=True,
        draw=draw_pixels,
        options={"scale": 1 / 255 / 0.2471},
        plans=CROPS,
        small=Plan("small", DataSet(9, (3, 6, 7), 4), {"pad": 2, "flip": True, "memory_format": LAST}),
        interpreted=(
            Plan("a tile", DataSet(5, (3, 5, 7), 4), {"pad": 2, "flip": True, "memory_format": LAST}),
            Plan("two tiles", DataSet(2, (1, 65, 65), None, None), {"pad": 3, "seed": 5}),
            Plan("as they are", DataSet(2, (2, 3, 3))),
        ),
        empty=(DataSet(4, (3, 6, 6), 0), DataSet(0, (3, 6, 6)), DataSet(0, (3, 6, 6), 0), DataSet(4, (3, 0, 6))),
        looks=("reference",),
        refusals=crop_refusals(),
    ),
    Operation(
        name="joint_augment",
        family="images",
        call=af.joint_augment,
        truth=by_pillow,
        exact=True,
        dtypes=(torch.uint8,),
        draw=draw_pictures,
        plans=PICTURES,
        small=Plan("small", Pictures(1, (3, 6, 7), rows=True)),
        interpreted=(
            Plan("grey, two tiles", Pictures(1, (1, 32, 33)), {"probability": 1.0, "fill": 99}),
            Plan("a pixel", Pictures(1, (3, 1, 1), True, None), {"probability": 1.0, "seed": 3}),
            Plan("colours, some", Pictures(1, (3, 16, 18), rows=True, seed=4)),
        ),
        empty=(Pictures(0, (3, 6, 6)), Pictures(4, (3, 0, 6)), Pictures(4, (1, 6, 0))),
        refusals=augment_refusals(),
    ),
)
