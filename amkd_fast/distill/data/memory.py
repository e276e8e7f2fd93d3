"""How many bytes of pixels may stay in memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch

from amkd_fast.distill.distributed import torchrun_variables

GIB = 2**30
_MEMINFO = Path("/proc/meminfo")
_GROUPS = (  # what a container may have, and has: of version 2, of version 1
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


class Room(NamedTuple):
    """What of a set may stay in memory."""

    bytes: float = math.inf
    test_alone: bool = False  # and nothing else

    def residents(self, sizes: dict[str, int]) -> set[str]:
        """The parts, of these bytes by name, that stay: the smallest ones, as long as they fit."""
        found, left = set(), self.bytes
        for name in sorted(sizes, key=sizes.__getitem__):
            if sizes[name] <= left and (name == "test" or not self.test_alone):
                found.add(name)
                left -= sizes[name]
        return found


def limit(resident: float | None, device: torch.device) -> float:
    """Bytes for the pixels of one set.

    Args:
        resident: In GiB; None: half of what is free, shared among the processes that torchrun has started here.
        device: Where the set will lie; it passes the CPU's memory on its way.

    Returns:
        Infinite where the system does not tell.
    """
    if resident is not None:
        return resident * GIB
    free = available() / (torchrun_variables().LOCAL_WORLD_SIZE or 1)
    if device.type == "cuda":
        free = min(free, float(torch.cuda.mem_get_info(device)[0]))
    return free / 2.0


def available() -> float:
    """Bytes that this process can still have."""
    free = math.inf
    for line in _text(_MEMINFO).splitlines():
        if line.startswith("MemAvailable:"):
            free = 1024.0 * int(line.split()[1])
    for most, used in _GROUPS:
        if (bound := _text(most).strip()).isdigit() and (taken := _text(used).strip()).isdigit():
            free = min(free, max(0.0, float(bound) - float(taken)))
    return free


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
