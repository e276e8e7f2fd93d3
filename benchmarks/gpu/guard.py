"""Where a call waits for the device, and parts of a run that may fail alone."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from benchmarks.tape import NoWaiting


@contextmanager
def no_synchronisation(device: str) -> Iterator[None]:
    """Whatever waits for the GPU inside the block raises."""
    if device != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def waits(call: Callable[[], object], device: str) -> str:
    """What waited, and the place in amkd_fast that it was called from; empty where nothing did."""
    try:
        with ExitStack() as stack:
            stack.enter_context(no_synchronisation(device))
            if device == "cpu":
                stack.enter_context(NoWaiting())
            call()
    except RuntimeError as error:
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/amkd_fast/" in frame.filename]
        where = f" at {Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].line}" if ours else ""
        return str(error).splitlines()[0] + where
    return ""


@contextmanager
def caught(what: str, faults: list[str]) -> Iterator[None]:
    """One part that breaks must not take the rest of the run with it: a GPU is there for minutes."""
    try:
        yield
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        told = " ".join(str(error).split())[:240]
        faults.append(f"{what}: {type(error).__name__}: {told} ({Path(place.filename).name}:{place.lineno})")
