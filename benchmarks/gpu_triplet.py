"""Triplets on a GPU: selection against the machine's own matrix product, batch-hard against what people write, memory.

    python -m benchmarks.gpu_triplet [--out FILE] [--seconds 60] [--dry-run]

Contestants are interleaved in one run and timed only after their loss and gradient were held against fp64; times are
medians over the rounds, with the quartiles as spread. `selection` also gives the rate of a bf16 `torch.mm` of the same
operations, measured in the same rounds: the ratio of the two is what fusing has left of the machine. --dry-run goes
through it all on a CPU with small sizes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import amkd_fast as af
from amkd_fast.ops.triplet.distances import pairwise
from benchmarks import peers
from benchmarks.contest import Contestant
from benchmarks.gpu_kl import quartiles, timed

ROUNDS = 15
MARGIN = 1.0
CLASSES = 64
TOLERANCE = 1e-4  # of loss and gradient: some peers take their distances from products


def draw(count: int, width: int, dtype: torch.dtype, device: str, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    rows = torch.randn(count, width, device=device, generator=generator).to(dtype)
    return rows, torch.arange(count, device=device) % classes  # the peers need a positive for every anchor


def interleaved(calls: dict[str, Callable[[], object]], device: str, repeats: int, deadline: float) -> dict[str, dict]:
    """Quartiles of the seconds of one call, for each contestant."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-2, ROUNDS):  # the first two warm up
        if turn >= 5 and time.monotonic() > deadline:
            break
        for name, call in calls.items():

            def several(call: Callable[[], object] = call) -> None:
                for _ in range(repeats):
                    call()

            seconds = timed(several, device) / repeats
            if turn >= 0:
                samples[name].append(seconds)
    return {name: quartiles(values) for name, values in samples.items()}


def select(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The operator itself, which takes bf16 rows as they are."""
    from amkd_fast.ops.triplet import native

    return native.operators.select(rows, None, labels, None, None, 0, 0, 1, True)


def selection_faults(rows: Tensor, labels: Tensor, sample: int = 64) -> int:
    """How many of some anchors have a worse positive or negative than fp64 finds."""
    positive, negative = select(rows, labels)
    some = torch.arange(0, len(rows), max(1, len(rows) // sample), device=rows.device)
    d = pairwise(rows[some].double(), rows.double(), "euclidean")
    same = labels[some, None] == labels
    itself = some[:, None] == torch.arange(len(rows), device=rows.device)
    farthest = d.masked_fill(~same | itself, -torch.inf).amax(1)
    nearest = d.masked_fill(same, torch.inf).amin(1)
    at = torch.arange(len(some), device=rows.device)
    wrong = (d[at, positive[some]] - farthest).abs() > 1e-6 * farthest
    wrong |= (d[at, negative[some, 0]] - nearest).abs() > 1e-6 * nearest
    return int(wrong.sum())


def measure_selection(count: int, width: int, device: str, deadline: float) -> dict:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    rows, labels = draw(count, width, dtype, device)
    wrong = selection_faults(rows, labels)
    times = interleaved({"select": lambda: select(rows, labels), "mm": lambda: rows @ rows.mT}, device, 3, deadline)
    operations = 2.0 * count * count * width
    rates = {name: operations / row["median"] / 1e12 for name, row in times.items()}
    return {"case": f"selection [{count}, {width}] {str(dtype)[6:]}", "wrong": wrong, "times": times, "tflops": rates}


def batch_hard(rows: Tensor, labels: Tensor) -> Tensor:
    return af.triplet_margin_loss(rows, labels, margin=MARGIN)


def ours(name: str) -> Contestant:
    def loss(rows: Tensor, labels: Tensor) -> Tensor:
        with af.backends.backend(name):
            return batch_hard(rows, labels)

    return Contestant(name, loss)


def measure_hard(count: int, width: int, device: str, deadline: float) -> dict:
    rows, labels = draw(count, width, torch.float32, device)
    rows.requires_grad_()
    available = af.backends.available()["triplet"]
    names = ("cuda", "triton") if device == "cuda" else ("cpu",)
    contestants = [ours(name) for name in names if not available[name]] + peers.batch_hard(MARGIN)
    exact_rows = rows.detach().double().requires_grad_()
    with af.backends.backend("reference"):
        expected = batch_hard(exact_rows, labels)
    (expected_grad,) = torch.autograd.grad(expected, exact_rows)
    report: dict = {"case": f"batch hard [{count}, {width}] fp32", "faults": {}, "peak_mib": {}}
    alive = {}
    for entry in contestants:
        try:
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            loss = entry.call(rows, labels)
            (grad,) = torch.autograd.grad(loss, rows)
            if device == "cuda":
                report["peak_mib"][entry.name] = (torch.cuda.max_memory_allocated() - before) / 2**20
            errors = (loss.double() - expected).abs() / expected, (grad - expected_grad).norm() / expected_grad.norm()
            if not max(errors) <= TOLERANCE:
                report["faults"][entry.name] = f"wrong: {errors[0].item():.1e}, {errors[1].item():.1e}"
                continue

            def both(entry: Contestant = entry) -> None:
                torch.autograd.grad(entry.call(rows, labels), rows)

            alive[entry.name] = both
        except Exception as error:  # a contestant that cannot run is a result, not the end of the run
            report["faults"][entry.name] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
    report["times"] = interleaved(alive, device, 5, deadline)
    return report


def measure_memory(count: int, width: int) -> dict:
    """Bytes that a selection takes beyond its inputs, and its time."""
    rows, labels = draw(count, width, torch.bfloat16, "cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    select(rows, labels)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    seconds = min(timed(lambda: select(rows, labels), "cuda") for _ in range(3))
    return {"case": f"memory [{count}, {width}] bfloat16", "peak_mib": peak / 2**20, "seconds": seconds}


def launches(count: int, width: int) -> dict[str, int]:
    """Kernels, copies and fills that the device runs for one forward and one backward pass."""
    from torch.profiler import ProfilerActivity, profile

    rows, labels = draw(count, width, torch.float32, "cuda", 16)
    rows.requires_grad_()
    one = torch.ones((), device="cuda")
    loss = ours("cuda").call
    values: list[Tensor] = []
    passes = {
        "forward": lambda: values.append(loss(rows, labels)),
        "backward": lambda: torch.autograd.grad(values[-1], rows, one),
    }
    for _ in range(3):
        torch.autograd.grad(loss(rows, labels), rows, one)
    counts = {}
    for name, run in passes.items():
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            run()
            torch.cuda.synchronize()
        counts[name] = sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiler.events())
    return counts


def table(report: dict) -> str:
    lines = []
    for row in report["rows"]:
        for name, times in row.get("times", {}).items():
            spread = (times["high"] - times["low"]) / times["median"]
            rate = f"{row['tflops'][name]:9.1f} TFLOP/s" if "tflops" in row else ""
            lines.append(f"{row['case']:36}{name:26}{times['median'] * 1e6:12.1f} µs{spread:7.0%}{rate}")
        for name, fault in row.get("faults", {}).items():
            lines.append(f"{row['case']:36}{name:26}{fault}")
        if "seconds" in row:
            lines.append(f"{row['case']:36}{row['peak_mib']:.0f} MiB beyond the inputs, {row['seconds'] * 1e3:.1f} ms")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--seconds", type=float, default=60.0, help="from then on fewer rounds")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with small sizes")
    options = parser.parse_args()
    device = "cpu" if options.dry_run else "cuda"
    deadline = time.monotonic() + options.seconds
    report: dict = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "launches": {},
        "rows": [],
    }
    faults = []
    if device == "cuda":
        for count in (128, 256, 512):
            found = report["launches"][str(count)] = launches(count, 128)
            if found["forward"] > 2 or found["backward"] > 1:
                faults.append(f"[{count}, 128] should be two launches and one: {found}")
    steps = [
        lambda: measure_selection(*((16384, 512) if device == "cuda" else (512, 64)), device, deadline),
        lambda: measure_hard(*((4096, 128) if device == "cuda" else (256, 32)), device, deadline),
    ]
    if device == "cuda":
        steps.append(lambda: measure_memory(65536, 512))
    for step in steps:
        report["rows"].append(step())
        if options.out:  # whatever happens next, this much is kept
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    faults += [f"{row['case']}: {row['wrong']} anchors wrong" for row in report["rows"] if row.get("wrong")]
    mine = ("cuda", "triton", "cpu")
    faults += [
        f"{row['case']} {n}: {f}" for row in report["rows"] for n, f in row.get("faults", {}).items() if n in mine
    ]
    print(f"launches: {report['launches']}")
    for fault in faults:
        print("FAULT", fault)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
