"""What the programs for a GPU have in common: options, parts that may fail alone, one JSON file, a table at the end."""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine

Part = Callable[[str, list[str]], Any]


def run(about: str, arguments: list[str] | None, parts: dict[str, Part], table: Callable[[dict[str, Any]], str]) -> int:
    """Run ``part(device, faults)`` one after the other; 1 when something was wrong.

    The file has what every file here has (``device``, ``machine``), each part's result by its name, the seconds that it
    took, and ``faults``. It is written after each part: whatever happens next, this much is kept.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with small sizes")
    options = parser.parse_args(arguments)
    device = "cpu" if options.dry_run else "cuda"
    if options.dry_run:
        torch.set_num_threads(1)  # sizes that two threads would only wait for each other in
    faults: list[str] = []
    report = {"kind": about.split(":")[0], "device": device, "machine": machine.describe(), "seconds": {}}
    report["faults"] = faults
    for name, part in parts.items():
        start = time.monotonic()
        with caught(name, faults):
            report[name] = part(device, faults)
        report["seconds"][name] = round(time.monotonic() - start, 1)
        print(f"{name}: {report['seconds'][name]} s, faults so far: {len(faults)}", flush=True)
        if options.out:
            machine.write(options.out, report)
    print(table(report))
    for fault in faults:
        print("FAULT", fault)
    return 1 if faults else 0


@contextmanager
def caught(what: str, faults: list[str]) -> Iterator[None]:
    """One part that breaks must not take the rest of the run with it: a GPU is there for minutes."""
    try:
        yield
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        told = " ".join(str(error).split())[:240]
        faults.append(f"{what}: {type(error).__name__}: {told} ({Path(place.filename).name}:{place.lineno})")


def waits(call: Callable[[], object], device: str) -> str:
    """What waited for the device, and the place in amkd_fast that it was called from; empty where nothing did."""
    if device != "cuda":  # tests/traps.py looks for it on a CPU
        call()
        return ""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/amkd_fast/" in frame.filename]
        where = f" at {Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].line}" if ours else ""
        return str(error).splitlines()[0] + where
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""
