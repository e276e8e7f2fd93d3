"""KL on a GPU: eager PyTorch, torch.compile, Liger-Kernel and our backends, interleaved in one run.

    python -m benchmarks.gpu_kl [--out FILE] [--seconds 90] [--dry-run]

A contestant is timed only after its loss and gradient were held against fp64. Times are medians over the rounds, with
the quartiles as spread; inputs rotate through more memory than the L2 cache has, except where `cached` says otherwise.
`passes` is the time of forward + backward over the time in which a copy moves one tensor once: 3 is the floor of any
method, 5 that of one which recomputes in the backward pass. --dry-run goes through it all on a CPU with small sizes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import amkd_fast as af

SIZES = ((128, 10), (128, 100), (256, 1000), (512, 32000), (8192, 32768))
DTYPES = (torch.float32, torch.bfloat16)
MODES = ("forward", "backward", "both")
TEMPERATURE = 2.0
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
ROUNDS = 15

Loss = Callable[[Tensor, Tensor], Tensor]


class Case(NamedTuple):
    """Inputs of one size and dtype, and the rotation over them."""

    shape: tuple[int, int]
    dtype: torch.dtype
    students: list[Tensor]
    teachers: list[Tensor]
    calls: int  # in one timed sample
    cached: bool  # all inputs together fit in the L2 cache

    @property
    def label(self) -> str:
        return f"[{self.shape[0]}, {self.shape[1]}] {str(self.dtype)[6:]}"


def eager(student: Tensor, teacher: Tensor) -> Tensor:
    """PyTorch's own functions with fp32 log-probabilities; dividing by 2 is exact in every dtype."""
    log_q = F.log_softmax(student / TEMPERATURE, -1, dtype=torch.float32)
    log_p = F.log_softmax(teacher / TEMPERATURE, -1, dtype=torch.float32)
    return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean") * TEMPERATURE**2


def ours(name: str) -> Loss:
    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        with af.backends.backend(name):
            return af.kl_div(student, teacher, TEMPERATURE)

    return loss


def contestants(device: str) -> tuple[dict[str, Loss], dict[str, str]]:
    """(those that run here, the reasons of those that do not)."""
    running: dict[str, Loss] = {"eager": eager}
    missing = {}
    if device == "cuda":
        running["compile"] = torch.compile(eager, dynamic=False)
    try:
        from liger_kernel.transformers import LigerKLDIVLoss

        liger = LigerKLDIVLoss(reduction="batchmean", log_target=True)

        def liger_loss(student: Tensor, teacher: Tensor) -> Tensor:
            log_q = F.log_softmax(student / TEMPERATURE, -1, dtype=torch.float32)
            log_p = F.log_softmax(teacher / TEMPERATURE, -1, dtype=torch.float32)
            return liger(log_q, log_p) * TEMPERATURE**2

        running["liger"] = liger_loss
    except ImportError as error:
        missing["liger"] = str(error)
    for name in ("cuda", "triton") if device == "cuda" else ("cpu", "reference"):
        reason = af.backends.available()["kl"][name]
        if reason:
            missing[name] = reason
        else:
            running[name] = ours(name)
    return running, missing


def make_case(shape: tuple[int, int], dtype: torch.dtype, device: str) -> Case:
    size = 2 * shape[0] * shape[1] * dtype.itemsize
    l2 = torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else 1 << 20
    sets = min(max(1, math.ceil(3 * l2 / size)), 32)
    generator = torch.Generator(device).manual_seed(0)

    def draw(scale: float) -> Tensor:
        return (scale * torch.randn(shape, device=device, generator=generator)).to(dtype)

    students = [draw(3.0).requires_grad_() for _ in range(sets)]
    teachers = [draw(3.0) for _ in range(sets)]
    calls = 20 if size < 1 << 24 else 4 if size < 1 << 28 else 1
    return Case(shape, dtype, students, teachers, calls, sets * size < l2)


def errors(loss: Loss, case: Case) -> tuple[float, float]:
    """Relative errors of loss and gradient against fp64, some rows at a time."""
    student, teacher = case.students[0], case.teachers[0]
    value = loss(student, teacher)
    (grad,) = torch.autograd.grad(value, student)
    rows = case.shape[0]
    total = wrong = size = 0.0
    for part in torch.arange(rows, device=student.device).split(512):
        s = student.detach()[part].double().requires_grad_()
        log_q, log_p = F.log_softmax(s / TEMPERATURE, -1), F.log_softmax(teacher[part].double() / TEMPERATURE, -1)
        exact = F.kl_div(log_q, log_p, log_target=True, reduction="sum") * TEMPERATURE**2 / rows
        (exact_grad,) = torch.autograd.grad(exact, s)
        total += exact.item()
        wrong += (grad[part].double() - exact_grad).square().sum().item()
        size += exact_grad.square().sum().item()
    return abs(value.item() - total) / abs(total), math.sqrt(wrong / size)


def timed(run: Callable[[], None], device: str) -> float:
    """Seconds of the work that `run` puts on the device."""
    if device != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def sample(loss: Loss, case: Case, mode: str, first: int, one: Tensor, device: str) -> float:
    """Seconds of one call, averaged over the case's calls, on inputs from number `first` on."""
    order = [(first + i) % len(case.students) for i in range(case.calls)]

    def forward() -> list[Tensor]:
        return [loss(case.students[i], case.teachers[i]) for i in order]

    def backward(losses: list[Tensor]) -> None:
        for i, value in zip(order, losses, strict=True):
            torch.autograd.grad(value, case.students[i], one)

    def both() -> None:
        for i in order:
            torch.autograd.grad(loss(case.students[i], case.teachers[i]), case.students[i], one)

    if mode == "backward":
        losses = forward()
        seconds = timed(lambda: backward(losses), device)
    else:
        seconds = timed(forward if mode == "forward" else both, device)
    return seconds / case.calls


def quartiles(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "low": low, "high": high, "samples": len(values)}


def copy_rate(device: str) -> float:
    """Bytes per second of a large copy, counting those read and those written."""
    size = 1 << 30 if device == "cuda" else 1 << 24
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * size / statistics.median(timed(lambda: target.copy_(source), device) for _ in range(15))


def launches(loss: Loss, shape: tuple[int, int]) -> dict[str, int]:
    """Kernels, copies and fills that the device runs for one forward and one backward pass."""
    from torch.profiler import ProfilerActivity, profile

    student = torch.randn(shape, device="cuda", requires_grad=True)
    teacher = torch.randn(shape, device="cuda")
    one = torch.ones((), device="cuda")
    for _ in range(3):
        torch.autograd.grad(loss(student, teacher), student, one)
    counts = {}
    values: list[Tensor] = []
    passes = {
        "forward": lambda: values.append(loss(student, teacher)),
        "backward": lambda: torch.autograd.grad(values[-1], student, one),
    }
    for name, run in passes.items():
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            run()
            torch.cuda.synchronize()
        counts[name] = sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiler.events())
    return counts


def measure(case: Case, running: dict[str, Loss], rate: float, device: str, deadline: float) -> list[dict]:
    """The rows of one size and dtype: checks, then rounds in which every contestant has its turn."""
    one = torch.ones((), device=device)
    rows, alive = {}, {}
    for name, loss in running.items():
        row = rows[name] = {"case": case.label, "name": name, "cached": case.cached, "fault": ""}
        try:
            row["loss_error"], row["grad_error"] = errors(loss, case)
            bound = TOLERANCE[case.dtype]
            if not (row["loss_error"] <= bound and row["grad_error"] <= bound):
                row["fault"] = "wrong"
                continue
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                torch.autograd.grad(loss(case.students[0], case.teachers[0]), case.students[0], one)
                row["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
            alive[name] = loss
        except Exception as error:  # a contestant that cannot run is a result, not the end of the run
            row["fault"] = f"{type(error).__name__}: {error}".splitlines()[0][:120]

    for mode in MODES:
        samples: dict[str, list[float]] = {name: [] for name in alive}
        for turn in range(-2, ROUNDS):  # the first two warm up
            if turn >= 5 and time.monotonic() > deadline:
                break
            for name, loss in alive.items():
                seconds = sample(loss, case, mode, turn * case.calls, one, device)
                if turn >= 0:
                    samples[name].append(seconds)
        for name in alive:
            rows[name][mode] = quartiles(samples[name])
    one_pass = case.shape[0] * case.shape[1] * case.dtype.itemsize / rate
    for name in alive:
        rows[name]["passes"] = rows[name]["both"]["median"] / one_pass
    return list(rows.values())


def table(rows: list[dict]) -> str:
    lines = [
        f"{'case':24}{'contestant':11}{'forward µs':>12}{'backward µs':>13}{'both µs':>12}{'spread':>8}"
        f"{'× eager':>9}{'passes':>8}{'error':>10}{'grad':>10}{'MiB':>8}"
    ]
    base = {row["case"]: row for row in rows if row["name"] == "eager"}
    for row in rows:
        head = f"{row['case']:24}{row['name']:11}"
        if row["fault"]:
            lines.append(head + row["fault"])
            continue
        times = [row[mode]["median"] * 1e6 for mode in MODES]
        both, eager_row = row["both"], base[row["case"]]
        spread = (both["high"] - both["low"]) / both["median"]
        ratio = eager_row["both"]["median"] / both["median"] if "both" in eager_row else math.nan
        lines.append(
            f"{head}{times[0]:12.1f}{times[1]:13.1f}{times[2]:12.1f}{spread:8.0%}{ratio:9.2f}{row['passes']:8.1f}"
            f"{row['loss_error']:10.1e}{row['grad_error']:10.1e}{row.get('peak_mib', math.nan):8.0f}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--seconds", type=float, default=90.0, help="from then on fewer rounds")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with small sizes")
    options = parser.parse_args()
    device = "cpu" if options.dry_run else "cuda"
    deadline = time.monotonic() + options.seconds
    sizes = SIZES[:3] if options.dry_run else SIZES

    running, missing = contestants(device)
    rate = copy_rate(device)
    report: dict = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "copy_bytes_per_second": rate,
        "missing": missing,
        "launches": {},
        "rows": [],
    }
    faults = []
    if device == "cuda":
        for name in ("cuda", "triton"):
            if name in running:
                report["launches"][name] = launches(running[name], (128, 100))
        if report["launches"].get("cuda") != {"forward": 1, "backward": 1}:
            faults.append(f"[128, 100] should be one launch each way: {report['launches'].get('cuda')}")
    for shape in sizes:
        for dtype in DTYPES:
            report["rows"] += measure(make_case(shape, dtype, device), running, rate, device, deadline)
            if options.out:  # whatever happens next, this much is kept
                options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report["rows"]))
    faults += [f"{r['case']} {r['name']}: {r['fault']}" for r in report["rows"] if r["fault"] and r["name"] != "liger"]
    print(f"copy {rate / 1e9:.0f} GB/s; launches at [128, 100]: {report['launches']}; missing: {missing or 'nobody'}")
    for fault in faults:
        print("FAULT", fault)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
