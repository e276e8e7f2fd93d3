"""The processes that train together, as torchrun starts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from amkd_fast.distill.errors import UserError
from amkd_fast.distill.launch import launched


class World(NamedTuple):
    """This process among all of them."""

    rank: int = 0
    size: int = 1
    local: int = 1  # of them on this machine

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def share(self, value: Any) -> Any:
        """What the first process has, on all of them."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Meet the other processes for the length of the block, where torchrun has started several.

    Raises:
        UserError: One of them is gone.
    """
    found = launched()
    if found.WORLD_SIZE == 1:
        yield World()
        return
    if device.type == "cuda":
        torch.cuda.set_device(found.LOCAL_RANK or 0)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        try:
            yield World(dist.get_rank(), found.WORLD_SIZE, found.LOCAL_WORLD_SIZE or found.WORLD_SIZE)
        finally:
            dist.destroy_process_group()
    except RuntimeError as error:
        if not _lost(error):
            raise
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"another process of the training is gone ({reason}); --resume goes on") from error


def _lost(error: RuntimeError) -> bool:
    """Whether the error is that of a talk with processes that are not there."""
    return isinstance(error, dist.DistError) or any(mark in str(error) for mark in ("gloo", "onnection closed"))
