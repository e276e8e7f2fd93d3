"""Nsight Compute's counters: how it is called, and what its table says of our kernels."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Name of ours, name of Nsight Compute's.
METRICS = {
    "ns": "gpu__time_duration.sum",
    "read": "dram__bytes_read.sum",
    "written": "dram__bytes_write.sum",
    "dram": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "tensor": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "occupancy": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
}
OPTIONAL = ("tensor",)  # left out where this version of the tool does not know it
SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
SECONDS = {"ns": 1.0, "nsecond": 1.0, "us": 1e3, "usecond": 1e3, "ms": 1e6, "msecond": 1e6, "s": 1e9, "second": 1e9}
SEPARATOR = "spin_kernel"  # of torch.cuda._sleep: one stands before every call
PERMISSION = "ERR_NVGPUCTRPERM"


class Refused(Exception):
    """Why there are no counters."""


def find() -> str | None:
    """The tool, where it is installed."""
    usual = [Path("/usr/local/cuda/bin/ncu"), *sorted(Path("/opt/nvidia/nsight-compute").glob("*/ncu"), reverse=True)]
    return shutil.which("ncu") or next((str(path) for path in usual if path.exists()), None)


def collect(program: list[str], log: Path, seconds: float) -> list[dict[str, Any]]:
    """The counters of the kernels that ``program`` runs between cudaProfilerStart and cudaProfilerStop.

    Clocks stay as they are. Caches are emptied before each kernel, so that what is read is read from memory.

    Raises:
        Refused: The tool is missing, may not read the counters, failed, or took too long.
    """
    tool = find()
    if tool is None:
        raise Refused("ncu is not installed")
    for names in (METRICS, {name: metric for name, metric in METRICS.items() if name not in OPTIONAL}):
        log.unlink(missing_ok=True)
        command = [tool, "--csv", "--page", "raw", "--print-units", "base", "--log-file", str(log)]
        command += ["--clock-control", "none", "--profile-from-start", "off", "--target-processes", "all"]
        command += ["--metrics", ",".join(names.values()), *program]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise Refused(f"ncu was stopped after {seconds:.0f} s") from None
        told = (log.read_text(errors="replace") if log.exists() else "") + done.stdout + done.stderr
        if PERMISSION in told:
            raise Refused(f"{PERMISSION}: this machine lets ncu read no counters")
        rows = parse(told.splitlines())
        if rows:
            return rows
        if "metric" not in told.lower():  # that it does not know one is cured by leaving it out
            break
    errors = [line for line in told.splitlines() if "ERROR" in line] or told.splitlines()[-1:] or ["it said nothing"]
    raise Refused(f"ncu gave no table, exit code {done.returncode}: {errors[0].strip()[:200]}")


def parse(lines: Iterable[str]) -> list[dict[str, Any]]:
    """One row a kernel, in the order of the launches: its name and the figures of :data:`METRICS` that are there.

    Both tables of the tool are read: one line a kernel with a line of units below the head, and one line a metric.
    """
    table = list(csv.reader(line for line in lines if line.startswith('"')))
    heads = [number for number, row in enumerate(table) if row[0] == "ID" and "Kernel Name" in row]
    if not heads:
        return []
    head, body = table[heads[0]], [row for row in table[heads[0] + 1 :] if len(row) == len(table[heads[0]])]
    return _long(head, body) if "Metric Name" in head else _wide(head, body)


def _wide(head: list[str], body: list[list[str]]) -> list[dict[str, Any]]:
    place = {name: head.index(metric) for name, metric in METRICS.items() if metric in head}
    units = body[0] if body and not body[0][0] else [""] * len(head)
    rows = []
    for row in body:
        if not row[0]:  # the units
            continue
        figures = {name: _figure(row[at], units[at]) for name, at in place.items()}
        rows.append({"kernel": short(row[head.index("Kernel Name")]), **figures})
    return rows


def _long(head: list[str], body: list[list[str]]) -> list[dict[str, Any]]:
    names = {metric: name for name, metric in METRICS.items()}
    columns = [head.index(title) for title in ("ID", "Kernel Name", "Metric Name", "Metric Unit", "Metric Value")]
    rows: dict[str, dict[str, Any]] = {}
    for row in body:
        number, kernel, metric, unit, value = (row[at] for at in columns)
        found = rows.setdefault(number, {"kernel": short(kernel)})
        if metric in names:
            found[names[metric]] = _figure(value, unit)
    return list(rows.values())


def _figure(text: str, unit: str) -> float | None:
    """In bytes, nanoseconds, per cent or as it stands; None where there is no number."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    unit = unit.strip().lower()
    if unit in SECONDS:
        return value * SECONDS[unit]
    scale = unit.removesuffix("s").removesuffix("byte")
    return value * SCALES[scale] if unit.endswith(("byte", "bytes")) and scale in SCALES else value


def short(kernel: str) -> str:
    """A kernel's own name, without what it returns, its namespaces and its arguments."""
    plain = re.sub(r"\((anonymous namespace|unnamed)\)::", "", kernel.removeprefix("void "))
    return re.split(r"[<(]", plain, maxsplit=1)[0].split("::")[-1].strip()


def by_call(rows: list[dict[str, Any]], count: int) -> list[list[dict[str, Any]]]:
    """The kernels of each of ``count`` calls, by the separators between them.

    Raises:
        Refused: There are not as many separators.
    """
    found: list[list[dict[str, Any]]] = []
    for row in rows:
        if SEPARATOR in row["kernel"]:
            found.append([])
        elif found:
            found[-1].append(row)
    if len(found) != count:
        raise Refused(f"{len(found)} calls in the table, should be {count}")
    return found
