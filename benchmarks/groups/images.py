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
from benchmarks.contest import Answer, Contestant, Errors, WrongResult
from benchmarks.group import Goal, Group
from benchmarks.roofline import Work

ROWS = 20_000  # of the data set: more than a cache holds
SCALE, SHIFT, PAD, SEED = 1 / 255 / 0.2471, (-1.989, -1.984, -1.709), 4, 3
LIMIT = 1e-6  # relative to the largest number
FILL = 128  # a level


def groups() -> list[Group]:
    return [*(crop_flip(batch) for batch in (128, 512)), *(joint_augment(batch) for batch in (64, 256))]


def crop_flip(batch: int, rows: int = ROWS, side: int = 32) -> Group:
    size = (len(SHIFT), side, side)

    def inputs(device: str) -> tuple[Any, ...]:
        """Data set, rows and shift; what the others would have prepared: padded images, the same draws."""
        draws = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (rows, *size), dtype=torch.uint8, generator=draws).to(device)
        index = torch.randint(rows, (batch,), generator=draws).to(device)
        w0, w1, w2, _ = philox.words(SEED, index, stream=STREAM)
        y, x = (word * (2 * PAD + 1) >> 32 for word in (w0, w1))
        return pixels, index, torch.tensor(SHIFT, device=device), F.pad(pixels, (PAD,) * 4), (y, x, w2 >> 31 == 1)

    def ours(pixels: Tensor, index: Tensor, shift: Tensor, *_) -> Tensor:
        return af.crop_flip(pixels, index, scale=SCALE, shift=shift, pad=PAD, flip=True, seed=SEED)

    numbers = batch * len(SHIFT) * side**2
    work, sizes = Work(numbers * (1 + 4)), {"B": batch, "C": len(SHIFT), "H": side, "W": side}  # a byte in, four out
    rivals, verify = partial(baselines.crop_flip, SCALE), partial(contest.verify, limit=LIMIT)
    return _group("crop_flip", sizes, torch.float32, inputs, ours, rivals, work, verify)


def joint_augment(batch: int, side: int = 32) -> Group:
    """Half of the fourteen operations on every image; the others get the same draws, made before."""

    def inputs(device: str) -> tuple[Any, ...]:
        pixels = torch.randint(
            256, (batch, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        if not there("pillow"):
            return pixels.to(device), None
        from benchmarks.baselines import pillow

        return pixels.to(device), pillow.draws(SEED, range(batch), 0.5, (side, side))

    def ours(pixels: Tensor, *_) -> Tensor:
        return af.joint_augment(pixels, seed=SEED, fill=FILL)

    def verify(entry: Contestant, given: tuple[Any, ...], expected: Answer) -> Errors:
        difference = (contest.answer(entry, given).value.int() - expected.value.int()).abs().max().item()
        if difference > 1:
            raise WrongResult(f"{entry.name}: {difference} levels from the specification")
        return Errors(difference / 255, None)

    rivals, work = partial(baselines.joint_augment, FILL), Work(2 * batch * 3 * side**2)
    goals = (Goal("speed-up", 10.0, "pillow", direction="forward"),) if batch == 256 else ()
    sizes = {"B": batch, "C": 3, "H": side, "W": side}
    return _group("joint_augment", sizes, torch.uint8, inputs, ours, rivals, work, verify, goals)


def _group(name, sizes, dtype, inputs, ours, rivals, work, verify, goals=()) -> Group:
    def truth(call: Any, given: tuple[Any, ...]) -> Answer:
        """Levels are whole numbers, and the result has one dtype whatever comes in: the specification as it is."""
        return contest.answer(contest.reference(call), given)

    more = {"verify": verify, "truth": truth, "goals": goals}
    return Group("images", name, sizes, dtype, inputs, ours, rivals, {"forward": work}, **more)
