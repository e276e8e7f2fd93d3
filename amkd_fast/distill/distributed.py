"""The processes that train together, as torchrun starts them: its variables, and their process group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from amkd_fast.distill import schemas
from amkd_fast.distill.errors import UserError


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


def torchrun_variables() -> schemas.Torchrun:
    """What torchrun's variables say.

    Raises:
        UserError: They are nonsense, or some are missing.
    """
    names = schemas.Torchrun.model_fields
    found = schemas.check(
        schemas.Torchrun, {name: os.environ[name] for name in names if name in os.environ}, "environment"
    )
    if found.WORLD_SIZE > 1:
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if getattr(found, name) is None]
        if missing:
            raise UserError(
                f"environment: WORLD_SIZE={found.WORLD_SIZE}, but {', '.join(missing)} not set: start with torchrun, "
                "or unset WORLD_SIZE"
            )
        if found.RANK >= found.WORLD_SIZE:
            raise UserError(f"environment: RANK={found.RANK}: must be below WORLD_SIZE={found.WORLD_SIZE}")
    return found


@contextmanager
def process_group(device: torch.device) -> Iterator[World]:
    """Meet the other processes for the length of the block, where torchrun has started several.

    Raises:
        UserError: One of them is gone.
    """
    found = torchrun_variables()
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
