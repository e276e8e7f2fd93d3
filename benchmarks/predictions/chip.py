"""What an H200 can do at most, and how long work takes there that does nothing but what it has to.

``MEASURED`` and ``DOCUMENTED`` are facts of the chip; what is ``ASSUMED`` was read in no measurement of ours and is to
be replaced by one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from tests.gates.loops import Way

NAME = "H200"
# By PyTorch on an H200: copies of 8.6 GB, read and written bytes together; torch.mm of 8192 rows in bf16, two
# operations a multiply-add; the clock that nvidia-smi showed right after it.
BYTES_A_SECOND = 4.3e12
OPERATIONS_A_SECOND = 788e12
CLOCK = 1.98e9
# Of compute capability 9.0: the programming guide's table of throughputs, a multiprocessor and cycle.
MULTIPROCESSORS = 132
LANES = {"instructions": 128, "fma": 128, "alu": 64, "special": 16, "fp64": 64, "memory": 32}
REGISTERS, WARPS, BLOCKS, SHARED = 65536, 64, 32, 233472
RESERVED = 1024  # bytes of shared memory that the driver takes for each block
# Assumed.
LAUNCH_SECONDS = 2e-6  # of a kernel behind another one
LATENCY = 0.7e-6  # from asking the memory for something until it is there, while many others ask

WARP = 32


class Occupancy(NamedTuple):
    blocks: int  # on a multiprocessor at once
    warps: int
    waves: float  # how often the grid fills the chip


def occupancy(threads: int, registers: int, shared: int, blocks: int) -> Occupancy:
    """Of a launch of ``blocks`` blocks; ``shared`` in bytes a block."""
    warps = math.ceil(threads / WARP)
    of_a_warp = math.ceil(registers * WARP / 256) * 256
    fit = min(
        BLOCKS,
        WARPS // warps,
        REGISTERS // of_a_warp // 4 * 4 // warps,  # each quarter of a multiprocessor has its own registers
        SHARED // (shared + RESERVED),
    )
    return Occupancy(fit, fit * warps, blocks / (fit * MULTIPROCESSORS))


class Time(NamedTuple):
    """Seconds that a launch needs at least of each thing, by its name."""

    parts: dict[str, float]

    @property
    def seconds(self) -> float:
        return max(self.parts.values())

    @property
    def order(self) -> list[str]:
        """What binds first."""
        return sorted(self.parts, key=self.parts.get, reverse=True)


def time(
    ways: list[tuple[Way, float]], *, bytes_moved: float, operations: float, resident: int, blocks: int, asked: float
) -> Time:
    """Of one launch.

    Args:
        ways: What a thread does, and how often that is done by all threads together.
        bytes_moved: To and from device memory.
        operations: Of the tensor cores, two a multiply-add.
        resident: Threads on the chip at once.
        blocks: Of the grid.
        asked: Bytes that a thread has asked for at a time.
    """
    busy = min(blocks, MULTIPROCESSORS)
    parts = {"bytes": bytes_moved / BYTES_A_SECOND, "launch": LAUNCH_SECONDS}
    for unit, lanes in LANES.items():
        done = sum(getattr(way, unit) * trips for way, trips in ways)
        parts["issue" if unit == "instructions" else unit] = done / (busy * lanes * CLOCK)
    parts["tensor cores"] = operations / OPERATIONS_A_SECOND
    read = sum(way.loaded * trips for way, trips in ways)
    if asked and read:
        parts["latency"] = read * LATENCY / (resident * asked)
    return Time(parts)
