"""One call of each headline kernel by each backend, for a profiler: ``ncu ... python -m benchmarks.gpu.headline``."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from amkd_fast import backends
from benchmarks import contest
from benchmarks.gpu import calls
from benchmarks.gpu.calls import Call

WARM_UP = 2


def entries(device: str) -> list[tuple[Call, str]]:
    """Every call with every backend that runs here, in the order in which they are run."""
    found = calls.headline() if device == "cuda" else calls.rehearsal()
    return [(call, name) for call in found for name in contest.backend_names(call.family, device)]


def run(device: str, around: Callable[[Callable[[], object]], None]) -> None:
    """Warm each call up and hand it to ``around``; its inputs are gone before the next one's come."""
    for call, name in entries(device):
        with backends.backend(name):
            once = call.make(device)
            for _ in range(WARM_UP):
                once()
            around(once)
        del once
        if device == "cuda":
            torch.cuda.empty_cache()


def counted(once: Callable[[], object]) -> None:
    """Between cudaProfilerStart and cudaProfilerStop; a kernel that waits marks where a call begins."""
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStart()
    torch.cuda._sleep(1)
    once()
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStop()


if __name__ == "__main__":
    run("cuda", counted)
    sys.exit(0)
