"""Adversarial attacks on a GPU: the steps against what people write, whole attacks against the public loop.

    python -m benchmarks.gpu_attack [--out FILE] [--cifar PATH --teacher FILE] [--seconds 90] [--dry-run]

Counts the launches of one call, finds host synchronisations inside the operations, gives the steps' bandwidth next to
that of a copy, and runs whole attacks on a ResNet26. Contestants are interleaved in one run and timed only after they
were held against fp64 (the operations) or were found to agree with the loop (the attacks, without TF32, which is
allowed to everybody while the clock runs). Without --teacher the network is trained on synthetic patterns in seconds.
--dry-run goes through it all on a CPU with small sizes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import contest, whole_attack
from benchmarks.contest import Contestant
from benchmarks.gpu_kl import copy_rate
from benchmarks.gpu_triplet import interleaved
from benchmarks.group import Group
from benchmarks.groups import attack as groups
from benchmarks.outside import kernel_share
from benchmarks.peers import attack_loops
from benchmarks.precision import tf32

SHAPES = ((256, 3, 32), (64, 3, 224))
# The public loop's time over ours, and the least share of 64 samples that end alike (0.999 is for larger numbers).
TARGETS = {"official": 4.0, "near_boundary": 2.5}
SAME_STATUS = 0.98
OUTSIDE_LIMIT = 0.03
SINGLE = (
    groups.step("linf", 64),
    groups.step("boundary", 64),
    groups.step("newton", 64),
    groups.boundary_objective(64, 10),
    groups.bases(256, 10, 10.0),
)


def backends(device: str) -> list[str]:
    """Those that run here; the reference stands in for all in a dry run."""
    return contest.backend_names("attack", device) or ["reference"] * (device == "cpu")


def launches(case: Group, backend: str) -> int:
    """Kernels, copies and fills that the device runs for one call."""
    entry = Contestant(backend, case.ours, backend)
    inputs = case.inputs("cuda")
    with entry.chosen():
        for _ in range(3):
            entry.call(*inputs)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            entry.call(*inputs)
            torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiler.events())


def synchronises(case: Group, backend: str, device: str) -> str:
    """Where a call waits for the device; empty where it does not."""
    entry = Contestant(backend, case.ours, backend)
    inputs = case.inputs(device)
    with entry.chosen():
        entry.call(*inputs)
        try:
            with no_synchronisation(device):
                entry.call(*inputs)
        except RuntimeError as error:
            return str(error).splitlines()[0]
    return ""


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


def measure_step(case: Group, device: str, rate: float, deadline: float) -> dict[str, Any]:
    """Time and bandwidth of one step by every backend, eager and compiled."""
    torch._dynamo.reset()
    call, inputs = case.ours, case.inputs(device)
    expected = case.truth(call, inputs)
    row: dict[str, Any] = {"case": str(case), "faults": {}, "errors": {}}
    alive: dict[str, Callable[[], object]] = {}
    for entry in [*(Contestant(name, call, name) for name in backends(device)), *case.rivals()]:
        try:
            row["errors"][entry.name] = case.verify(entry, inputs, expected).value
        except Exception as error:  # a contestant that cannot run is a result, not the end of the run
            row["faults"][entry.name] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        else:
            alive[entry.name] = on_backend(entry, inputs)
    row["times"] = interleaved(alive, device, 20 if device == "cuda" else 2, deadline)
    moved = case.work["forward"].bytes
    row["gb_per_s"] = {name: moved / times["median"] / 1e9 for name, times in row["times"].items()}
    row["of_copy"] = {name: 1e9 * value / rate for name, value in row["gb_per_s"].items()}
    return row


def on_backend(entry: Contestant, inputs: tuple[Any, ...]) -> Callable[[], object]:
    def run() -> object:
        with entry.chosen():
            return entry.call(*inputs)

    return run


def measure_attack(setting: whole_attack.Setting, batch: int, device: str, deadline: float) -> dict[str, Any]:
    """Our presets against the public loop and the lean one, on the same images and targets."""
    network, quiet = setting.network, attack_loops.quiet(setting.network)
    inputs = whole_attack.chase(network, setting.images(0, batch))
    contestants = {
        "public loop": lambda: attack_loops.bss_loop(network, *inputs),
        "lean loop": lambda: attack_loops.bss_loop_lean(quiet, *inputs),
    }
    for preset in TARGETS:
        attack = whole_attack.boundary_attack(network, preset)
        contestants[preset] = on_backend(Contestant(preset, attack, "auto"), inputs)
    with tf32(False):
        same = (contestants["official"]().status == contestants["lean loop"]().status).float().mean().item()
    row: dict[str, Any] = {"case": f"boundary attack, B = {batch}", "same_status": same, "faults": {}}
    if same < SAME_STATUS:
        row["faults"]["official"] = f"only {same:.1%} of the samples end as in the loop"
    with tf32(True):
        row["times"] = interleaved(contestants, device, 1, deadline)
        row["outside"] = {name: kernel_share(contestants[name]) for name in TARGETS} if device == "cuda" else {}
    network.zero_grad()
    loop = row["times"]["public loop"]["median"]
    row["ratios"] = {name: loop / times["median"] for name, times in row["times"].items()}
    row["targets"] = TARGETS
    return row


def table(report: dict[str, Any]) -> str:
    lines = []
    for row in report["rows"]:
        for name, times in row["times"].items():
            spread = (times["high"] - times["low"]) / times["median"]
            rest = ""
            if "gb_per_s" in row:
                rest = f"{row['gb_per_s'][name]:8.0f} GB/s {row['of_copy'][name]:5.0%} of copy"
            elif name not in ("public loop", "lean loop"):
                rest = f"{row['ratios'][name]:6.2f}× the public loop's speed, target {row['targets'][name]:g}"
            if name in row.get("outside", {}):
                rest += f", {row['outside'][name]['share']:.1%} outside the network, limit {OUTSIDE_LIMIT:.0%}"
            lines.append(f"{row['case']:34}{name:24}{times['median'] * 1e6:12.1f} µs{spread:7.0%} {rest}")
        for name, fault in row["faults"].items():
            lines.append(f"{row['case']:34}{name:24}{fault}")
    return "\n".join(lines)


def operations(device: str) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Launches of one call by backend and case, and what is wrong with them."""
    counts: dict[str, dict[str, int]] = {}
    faults = []
    for backend in backends(device):
        for case in SINGLE:
            waits = synchronises(case, backend, device)
            if waits:
                faults.append(f"{backend} {case} synchronises: {waits}")
            if device == "cuda":
                count = counts.setdefault(backend, {})[str(case)] = launches(case, backend)
                if count != 1:
                    faults.append(f"{backend} {case}: {count} launches, should be one")
    return counts, faults


def shortfalls(row: dict[str, Any]) -> list[str]:
    """What is wrong with ours in a row; a missed target is in the table and no fault."""
    ours = (*TARGETS, "cuda", "triton", "cpu", "reference")
    found = [f"{row['case']} {name}: {fault}" for name, fault in row["faults"].items() if name in ours]
    for name, share in row.get("outside", {}).items():
        if share["unknown"] > 0.05:
            found.append(f"{row['case']} {name}: {share['unknown']:.0%} of the kernels' time has no launch")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--cifar", type=Path, help="CIFAR-10 as JPEG files, an archive or a folder")
    parser.add_argument("--teacher", type=Path, help="what benchmarks.cifar_teacher saved")
    parser.add_argument("--seconds", type=float, default=90.0, help="from then on fewer rounds")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with small sizes")
    options = parser.parse_args()
    device = "cpu" if options.dry_run else "cuda"
    deadline = time.monotonic() + options.seconds
    rate = copy_rate(device)
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "copy_bytes_per_second": rate,
        "missing": contest.missing("attack", device),
        "rows": [],
    }
    report["launches"], faults = operations(device)
    shapes = SHAPES if device == "cuda" else ((4, 3, 8),)
    steps = [
        lambda rule=rule, shape=shape: measure_step(groups.step(rule, *shape), device, rate, deadline)
        for shape in shapes
        for rule in ("linf", "boundary")
    ]
    setting = whole_attack.setting(options.cifar, options.teacher).to(device)
    report["setting"] = setting.about
    steps += [
        lambda batch=batch: measure_attack(setting, batch, device, deadline)
        for batch in ((64, 256) if device == "cuda" else (8,))
    ]
    for step in steps:
        report["rows"].append(step())
        faults += shortfalls(report["rows"][-1])
        if options.out:  # whatever happens next, this much is kept
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    print(f"copy {rate / 1e9:.0f} GB/s; launches: {report['launches']}; images: {setting.about['images']}")
    for name, reason in report["missing"].items():
        print(f"missing: {name}: {reason}")
    for fault in faults:
        print("FAULT", fault)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
