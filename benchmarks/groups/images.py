"""The image family: augmented batches [B, C, H, W] out of a data set in memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import amkd_fast as af
from amkd_fast import philox
from amkd_fast.ops.images.reference import STREAM
from benchmarks import contest
from benchmarks.baselines import images as baselines
from benchmarks.baselines import there
from benchmarks.baselines.images import FILL, SCALE
from benchmarks.contest import Answer, Contestant, Errors
from benchmarks.group import Goal, Group
from benchmarks.roofline import Work

ROWS = 20_000  # of the data set: more than a cache holds
SHIFT, PAD, SEED, SIDE = (-1.989, -1.984, -1.709), 4, 3, 32
LIMIT = 1e-6  # relative to the largest number


def groups() -> list[Group]:
    return [*(crop_flip(batch) for batch in (128, 512)), *(joint_augment(batch) for batch in (64, 256))]


def truth(call: Any, given: tuple[Any, ...]) -> Answer:
    """Levels are whole numbers, and the result has one dtype whatever comes in: the specification as it is."""
    return contest.answer(contest.reference(call), given)


def crop_flip(batch: int) -> Group:
    def draw() -> tuple[Any, ...]:
        """Data set, rows and shift; what the others would have prepared: padded images, the same draws."""
        draws = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (ROWS, len(SHIFT), SIDE, SIDE), dtype=torch.uint8, generator=draws)
        index = torch.randint(ROWS, (batch,), generator=draws)
        w0, w1, w2, _ = philox.words(SEED, index, stream=STREAM)
        y, x = (word * (2 * PAD + 1) >> 32 for word in (w0, w1))
        return pixels, index, torch.tensor(SHIFT), F.pad(pixels, (PAD,) * 4), (y, x, w2 >> 31 == 1)

    def ours(pixels: Tensor, index: Tensor, shift: Tensor, *_) -> Tensor:
        return af.crop_flip(pixels, index, scale=SCALE, shift=shift, pad=PAD, flip=True, seed=SEED)

    work = {"forward": Work(batch * len(SHIFT) * SIDE**2 * (1 + 4))}  # a byte in, four out
    more = {"verify": partial(contest.verify, limit=LIMIT), "truth": truth}
    rivals = {"gather": baselines.gather, "windows": baselines.windows}
    return Group("images", "crop_flip", _sizes(batch), torch.float32, draw, ours, rivals, work, **more)


def joint_augment(batch: int) -> Group:
    """Half of the fourteen operations on every image; the others get the same draws, made before."""

    def draw() -> tuple[Any, ...]:
        draws = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (batch, 3, SIDE, SIDE), dtype=torch.uint8, generator=draws)
        if not there("pillow"):
            return pixels, None
        from benchmarks.baselines import pillow

        return pixels, pillow.draws(SEED, range(batch), 0.5, (SIDE, SIDE))

    def ours(pixels: Tensor, *_) -> Tensor:
        return af.joint_augment(pixels, seed=SEED, fill=FILL)

    def verify(entry: Contestant, given: tuple[Any, ...], expected: Answer) -> Errors:
        levels = (contest.answer(entry, given).value.int() - expected.value.int()).abs().max().item()
        return contest.within(entry, levels / 255, 1 / 255, "of the levels from the specification")

    goals = (Goal("speed-up", 10.0, "pillow", direction="forward"),) if batch == 256 else ()
    more = {"verify": verify, "truth": truth, "goals": goals, "others": baselines.joint_augment}
    work = {"forward": Work(2 * batch * 3 * SIDE**2)}
    return Group("images", "joint_augment", _sizes(batch), torch.uint8, draw, ours, work=work, **more)


def _sizes(batch: int) -> dict[str, int]:
    return {"B": batch, "C": 3, "H": SIDE, "W": SIDE}
