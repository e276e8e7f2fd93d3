"""Launches, waiting, and the selection at its largest, on a GPU: ``python -m benchmarks.gpu.checks [--out FILE]``.

Times are compared by ``python -m benchmarks.compare --device cuda``. ``--dry-run`` goes through it all on a CPU, where
launches cannot be counted and sizes are small. The exit code is 1 when a check failed.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from amkd_fast import backends
from amkd_fast.ops.triplet.distances import pairwise
from benchmarks import contest, machine, memory
from benchmarks.gpu import calls
from benchmarks.groups import triplet

WARM_UP = 3
SAMPLE = 64  # anchors that are held against fp64
BYTES_A_ROW = 1024  # far more than indices and candidates take, far less than a row of an N×N matrix
CLOSE = 1e-6


def operations(device: str, faults: list[str]) -> list[dict[str, Any]]:
    """Launches of every small call by every backend that runs here, and where it waits for the device."""
    rows = []
    for call in calls.small():
        for name in contest.backend_names(call.group.family, device):
            try:
                with backends.backend(name):
                    run, promised = call.make(device), call.launches.get(name)
                    run()
                    waited = waits(run) if device == "cuda" else ""  # tests/traps.py looks for it on a CPU
                    count = launches(run) if device == "cuda" else None
            except Exception as error:  # one that breaks must not take the rest with it: a GPU is there for minutes
                faults.append(f"{name} {call}: {type(error).__name__}: {' '.join(str(error).split())[:240]}")
                continue
            if waited:
                faults.append(f"{name} {call} waits for the device: {waited}")
            if None not in (count, promised) and count > promised:
                faults.append(f"{name} {call}: {count} launches, promised are {promised}")
            row = {"call": str(call), "backend": name, "launches": count, "promised": promised, "waits": waited}
            rows.append(row)
    return rows


def waits(call: Callable[[], object]) -> str:
    """What waited for the device, and the place in amkd_fast that it was called from; empty where nothing did."""
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


def launches(call: Callable[[], object]) -> int:
    """Kernels, copies and fills of one call on a GPU, warmed up."""
    for _ in range(WARM_UP):
        call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    events = profiler.profiler.kineto_results.events()
    return sum(e.device_type() == torch.autograd.DeviceType.CUDA and not e.is_user_annotation() for e in events)


def selection(device: str, faults: list[str]) -> list[dict[str, Any]]:
    """Whether triplets of many rows are those that fp64 finds, and what the search holds meanwhile."""
    cuda, dtype = device == "cuda", torch.bfloat16 if device == "cuda" else torch.float32
    searched, largest, width = (16384, 65536, 512) if cuda else (512, 1024, 64)
    rows = []
    for name in contest.backend_names("triplet", device):
        with backends.backend(name):
            wrong = worse(*labelled(searched, width, dtype, device))
            inputs, search = labelled(largest, width, dtype, device), triplet.selector(device)
            search(*inputs)
            peak = memory.peak_bytes(lambda inputs=inputs, search=search: search(*inputs), device)
        rows.append({"backend": name, "wrong": wrong, "held": f"[{largest}, {width}]", "peak_bytes": peak})
        if wrong:
            faults.append(f"{name}: {wrong} of {SAMPLE} anchors among {searched} have a worse pair than fp64 finds")
        if cuda and peak > BYTES_A_ROW * largest:
            allowed = BYTES_A_ROW * largest / 2**20
            faults.append(f"{name} selection of {largest}: holds {peak / 2**20:.0f} MiB, allowed is {allowed:.0f}")
    return rows


def labelled(count: int, width: int, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.randn(count, width, device=device, generator=torch.Generator(device).manual_seed(0))
    return rows.to(dtype), torch.arange(count, device=device) % 64


def worse(rows: torch.Tensor, labels: torch.Tensor) -> int:
    """How many of some anchors have a worse positive or negative than fp64 finds."""
    count = len(rows)
    positive, negative = triplet.selector(rows.device.type)(rows, labels)
    some = torch.arange(0, count, max(1, count // SAMPLE), device=rows.device)
    d = pairwise(rows[some].double(), rows.double(), "euclidean")
    same = labels[some, None] == labels
    itself = some[:, None] == torch.arange(count, device=rows.device)
    farthest = d.masked_fill(~same | itself, -torch.inf).amax(1)
    nearest = d.masked_fill(same, torch.inf).amin(1)
    at = torch.arange(len(some), device=rows.device)
    wrong = (d[at, positive[some]] - farthest).abs() > CLOSE * farthest
    wrong |= (d[at, negative[some, 0]] - nearest).abs() > CLOSE * nearest
    return int(wrong.sum())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.checks", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with small sizes")
    options = parser.parse_args(arguments)
    device, faults = "cpu" if options.dry_run else "cuda", []
    found = {"kind": "gpu checks", "device": device, "machine": machine.describe()}
    for part in (operations, selection):
        found[part.__name__] = part(device, faults)
        if options.out:
            machine.write(options.out, {**found, "faults": faults})
    print(f"{'call':72}{'backend':9}{'launches':>9}{'promised':>9}  waits")
    for row in found["operations"]:
        counts = "".join(f"{'-' if row[key] is None else row[key]:>9}" for key in ("launches", "promised"))
        print(f"{row['call']:72}{row['backend']:9}{counts}  {row['waits'] or 'no'}")
    for row in found["selection"]:
        held = f"of {row['held']} holds {row['peak_bytes'] / 2**20:.1f} MiB beyond its inputs"
        print(f"{row['backend']:9}{row['wrong']} anchors with a worse pair than fp64 finds; {held}")
    for fault in faults:
        print("FAULT", fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
