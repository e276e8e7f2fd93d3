"""Batches of a resident set: shuffled and augmented to learn from, in order to be tested on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amkd_fast import checks, philox
from amkd_fast.distill.data.erasing import erase
from amkd_fast.distill.data.sampling import balanced, shuffled
from amkd_fast.distill.data.split import TESTED, Split
from amkd_fast.distill.data.streamed import Streamed, ahead
from amkd_fast.distill.data.torchvision_transforms import Mixing, RandAugment
from amkd_fast.methods.base import Batch
from amkd_fast.ops.images import crop_flip, reference

AUGMENTS = ("none", "crop", "crop+flip")
_STREAM = 0x6570  # of the draws that turn seed and epoch into the key of an epoch's augmentation


class Labelled(NamedTuple):
    """Some images of a test set."""

    images: Tensor  # [B, C, H, W] in [0, 1]
    labels: Tensor  # int64 [B]


class Batches:
    """Shuffled batches of a resident set; order and augmentation depend on ``seed`` and epoch alone.

    Each of ``world`` ranks gets its contiguous share of every batch, so that the shares of a step, one after the other
    by rank, are the batch of a single process. Shares differ by one image at most; only of an epoch's last batch can
    one be empty. Lightning calls ``sampler.set_epoch`` before each epoch, after a resume too.

    Args:
        split: What to learn from, on its device. A streamed set gives the same batches, bit by bit, as a resident one.
        batch_size: Images of all ranks together.
        seed: Of order and augmentation.
        augment: ``crop`` shifts each image by up to an eighth of its height and fills the border with level 0 (black);
            ``crop+flip`` also mirrors every other one; ``none``.
        rank: Which share.
        world: How many shares.
        erase: Probability of a black rectangle in an image (:func:`.erasing.erase`).
        balance: Show all classes equally often (:func:`.sampling.balanced`). An image that comes again in an epoch is
            augmented in another way, unless the same batch has it twice.
        rand_augment: Of every image, before a rectangle is erased.
        mixing: Last of all. The labels of a batch are then the shares of the classes, float32 [B, K].
        classes: K, for ``mixing``.

    Raises:
        ValueError: ``augment`` is another one, ``rank`` is not below ``world``, or a batch has fewer images than there
            are ranks.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int,
        augment: str,
        *,
        rank: int = 0,
        world: int = 1,
        erase: float = 0.0,
        balance: bool = False,
        rand_augment: RandAugment | None = None,
        mixing: Mixing | None = None,
        classes: int = 0,
    ) -> None:
        checks.choice("augment", augment, AUGMENTS)
        _check_share(batch_size, rank, world)
        self.split, self.batch_size, self.seed, self.augment = split, batch_size, seed, augment
        self.rank, self.world, self.erase, self.balance = rank, world, checks.unit("erase", erase), balance
        self.rand_augment, self.mixing, self.classes = rand_augment, mixing, classes
        self.epoch = 0
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Shuffle and augment as in this epoch from the next iteration on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.split) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        split, pad = self.split, 0
        if self.augment != "none":
            pad = max(1, split.pixels.shape[2] // 8)
        draws = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order = balanced(split.labels.cpu(), draws) if self.balance else shuffled(len(split), draws)
        key, no_shift = _key(self.seed, self.epoch), torch.zeros(split.pixels.shape[1], device=split.pixels.device)
        pixels, parts = split.pixels, order.to(split.pixels.device).split(self.batch_size)
        shares = [self._rows(rows) for rows in parts]
        decoded = ahead(pixels[index] for index in shares) if isinstance(pixels, Streamed) else iter(())
        options: Any = {"scale": split.level, "shift": no_shift, "pad": pad, "flip": self.augment == "crop+flip"}
        for number, index in enumerate(shares):
            seed = _key(key, number) if self.balance else key
            if isinstance(pixels, Streamed):
                images = reference.crop_flip(next(decoded), None, **options, seed=seed, rows=index).contiguous()
            else:
                images = crop_flip(pixels, index, **options, seed=seed)
            if self.rand_augment is not None:
                images = self.rand_augment(images, index, seed)
            if self.erase > 0.0:
                images = erase(images, index, self.erase, seed)
            labels = split.labels[index]
            if self.mixing is not None:
                images, labels = self.mixing(images, labels, self.classes, _key(key, number))
                index = index[1:]
            yield Batch(images, labels, index)

    def _rows(self, rows: Tensor) -> Tensor:
        """This rank's of a batch, after the one that the first of them is mixed with."""
        share = _share(len(rows), self.rank, self.world)
        if self.mixing is None:
            return rows[share]
        return torch.cat([rows[[share.start - 1]], rows[share]])


class InOrder:
    """Batches of a resident set, unchanged and in order, brought to [0, 1] one by one: for the evaluation.

    Args:
        split: The set, on its device.
        batch_size: Images of all ranks together.
        rank: Which contiguous share of every batch, as in :class:`Batches`.
        world: How many shares.

    Raises:
        ValueError: ``rank`` is not below ``world``, or a batch has fewer images than there are ranks.
    """

    def __init__(self, split: Split, batch_size: int = TESTED, *, rank: int = 0, world: int = 1) -> None:
        _check_share(batch_size, rank, world)
        self.split, self.batch_size, self.rank, self.world = split, batch_size, rank, world

    def __len__(self) -> int:
        return -(-len(self.split) // self.batch_size)

    def __iter__(self) -> Iterator[Labelled]:
        for start in range(0, len(self.split), self.batch_size):
            share = _share(min(self.batch_size, len(self.split) - start), self.rank, self.world)
            part = self.split.take(slice(start + share.start, start + share.stop))
            yield Labelled(part.images, part.labels)


def _share(count: int, rank: int, world: int) -> slice:
    return slice(count * rank // world, count * (rank + 1) // world)


def _check_share(batch_size: int, rank: int, world: int) -> None:
    if not 0 <= rank < world:
        raise ValueError(f"rank={rank}: must be from 0 to world - 1 = {world - 1}")
    if batch_size < world:
        raise ValueError(f"batch_size={batch_size}: must be at least world={world}, one image a rank")


def _key(seed: int, epoch: int) -> int:
    """63 random bits of two numbers: they fit an operator's int64."""
    high, low, _, _ = philox.words(seed, torch.tensor(epoch), stream=_STREAM)
    return (int(high) << 32 | int(low)) >> 1
