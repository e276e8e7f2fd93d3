"""Pixels that are decoded when they are asked for, as a set too large to stay in memory needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

AHEAD = 2  # batches that are decoded while another one is learnt from


@dataclass(frozen=True, eq=False)
class Streamed:
    """What stands in the place of pixels [N, C, H, W] of a :class:`.split.Split`.

    Attributes:
        read: Makes uint8 [n, C, H, W] on the CPU of rows, int64 [n] on the CPU. Several threads call it at a time.
        rows: int64 [N] on the CPU, what ``read`` is given for each picture.
        image: C, H, W.
        device: Where pixels are wanted.
    """

    read: Callable[[Tensor], Tensor]
    rows: Tensor
    image: tuple[int, int, int]
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.rows), *self.image))

    def to(self, device: torch.device | str) -> Streamed:
        """The same, wanted on ``device``."""
        return replace(self, device=torch.device(device))

    def __getitem__(self, rows: Tensor | slice) -> Streamed:
        """These pictures, in their order; none is decoded."""
        return replace(self, rows=self.rows[rows.cpu() if isinstance(rows, Tensor) else rows])

    def levels(self) -> Tensor:
        """All of it, decoded: uint8 [N, C, H, W]."""
        return self.read(self.rows).to(self.device)


def ahead(parts: Iterable[Streamed]) -> Iterator[Tensor]:
    """The levels of one part after the other, the next :data:`AHEAD` being decoded meanwhile by other threads."""
    waiting: list[Future[Tensor]] = []
    with ThreadPoolExecutor(AHEAD) as pool:
        try:
            for part in parts:
                waiting.append(pool.submit(part.levels))
                if len(waiting) > AHEAD:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:  # whoever takes them may have had enough
            for future in waiting:
                future.cancel()
