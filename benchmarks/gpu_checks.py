"""Launches and waiting of small calls on a GPU: ``python -m benchmarks.gpu_checks [--out FILE]``.

Times are compared, and results checked, by ``python -m benchmarks.compare --device cuda``. ``--dry-run`` goes through
it all on a CPU, where launches cannot be counted. The exit code is 1 when a check failed.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from amkd_fast import backends
from benchmarks import contest, machine
from benchmarks.group import Group
from benchmarks.groups import attack, images, kl, relations, segments, triplet

WARM_UP = 3


class Call(NamedTuple):
    """Ours, the public function of a group, in one direction."""

    group: Group
    way: str = "forward"
    launches: dict[str, int] = {}  # noqa: RUF012 - the most that is promised, by backend

    def __str__(self) -> str:
        return f"{self.group}, {self.way}"

    def make(self, device: str) -> Callable[[], object]:
        """Draw the inputs. A backward pass is that of one graph, again and again."""
        inputs = self.group.inputs(device)
        if self.way == "forward":
            return lambda: self.group.ours(*inputs)
        value, one = self.group.ours(*inputs), torch.ones((), device=device)
        return lambda: torch.autograd.grad(value, contest.leaves(inputs), one, retain_graph=True)


def small() -> list[Call]:
    """One launch each, but two for forward passes of triplets and segments, which sum up at the end."""

    def both(group: Group, forward: int, backward: int = 1) -> list[Call]:
        return [Call(group, "forward", {"cuda": forward}), Call(group, "backward", {"cuda": backward})]

    once = [attack.step(rule, 64) for rule in ("linf", "boundary", "newton")]
    once += [attack.boundary_objective(64, 10), attack.bases(256, 10), images.crop_flip(128), images.joint_augment(128)]
    return [
        *both(kl.loss("kl_div", 128, 100, torch.float32), 1),
        *(call for count in (128, 256, 512) for call in both(triplet.hard(count), 2)),
        *both(segments.segment_mse(64, torch.float32), 2),
        *(Call(group, launches={"cuda": 1, "triton": 1}) for group in once),
        Call(relations.angle(64, 64)),
    ]


def looked_at(device: str, faults: list[str]) -> list[dict[str, Any]]:
    """Launches of every small call by every backend that runs here, and where it waits for the device."""
    rows = []
    for call in small():
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_checks", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU")
    options = parser.parse_args(arguments)
    device, faults = "cpu" if options.dry_run else "cuda", []
    found = {"kind": "gpu checks", "device": device, "machine": machine.describe()}
    rows = looked_at(device, faults)
    if options.out:
        machine.write(options.out, {**found, "calls": rows, "faults": faults})
    print(f"{'call':72}{'backend':9}{'launches':>9}{'promised':>9}  waits")
    for row in rows:
        counts = "".join(f"{'-' if row[key] is None else row[key]:>9}" for key in ("launches", "promised"))
        print(f"{row['call']:72}{row['backend']:9}{counts}  {row['waits'] or 'no'}")
    for fault in faults:
        print("FAULT", fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
