"""Where and when numbers were made, and the JSON files that they are written to."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from amkd_fast import backends
from amkd_fast.version import __version__

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
WRITTEN = ("benchmarks/results", "docs/benchmarks")  # by a run of the suite


def use_threads() -> int:
    """Compute with two threads, or as many as AMKD_BENCH_THREADS says; never with more than there are cores."""
    threads = min(int(os.environ.get("AMKD_BENCH_THREADS", "2")), cores())
    torch.set_num_threads(threads)
    return threads


def describe() -> dict[str, Any]:
    """Machine, versions, commit, date and the load when this was called."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "cpu": cpu_model(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "amkd_fast": __version__,
        "build": backends.build_info(),
    }


def in_words(about: dict[str, Any]) -> str:
    """What every table says of where its numbers were made."""
    chip = about["gpu"] or f"{about['cpu']}, {about['threads']} thread{'s' * (about['threads'] != 1)}"
    load = "" if about["load"] is None else f", load {about['load']:.1f}"
    return (
        f"{chip}; torch {about['torch']}, Python {about['python']}, "
        f"amkd_fast {about['amkd_fast']} at {about['commit']}, {about['date'][:10]}{load}"
    )


def write(path: Path, found: dict[str, Any]) -> None:
    """A file of results: an entry of a list a line, numbers to seven digits."""

    def lines(value: Any) -> str:
        if not (isinstance(value, list) and value):
            return json.dumps(rounded(value), ensure_ascii=False)
        return "[\n  " + ",\n  ".join(json.dumps(rounded(part), ensure_ascii=False) for part in value) + "\n ]"

    path.parent.mkdir(parents=True, exist_ok=True)
    text = ",\n ".join(f"{json.dumps(name)}: {lines(value)}" for name, value in found.items())
    path.write_text(f"{{\n {text}\n}}\n")


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(part) for part in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str | None:
    """Short hash, with ``+`` behind it where tracked files differ but for results and reports; None outside of git."""
    code = ("--untracked-files=no", "--", ".", *(f":!{path}" for path in WRITTEN))
    short, changes = _git("rev-parse", "--short", "HEAD"), _git("status", "--porcelain", *code)
    return None if short is None else short + ("+" if changes else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
