"""Where and when numbers were made, and the JSON files that they are written to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from amkd_fast import backends
from amkd_fast.distill.report import provenance

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
WRITTEN = ("benchmarks/results", "docs/benchmarks")  # by a run of the suite


def use_threads() -> int:
    """Compute with two threads, or as many as AMKD_BENCH_THREADS says; never with more than there are cores."""
    threads = min(int(os.environ.get("AMKD_BENCH_THREADS", "2")), cores())
    torch.set_num_threads(threads)
    return threads


def describe() -> dict[str, Any]:
    """Machine, versions, commit, date and the load when this was called; of the commit see :func:`short`."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    more = {"cores": cores(), "load": load, "build": backends.build_info()}
    return {**provenance.environment(), "commit": short(provenance.commit(ROOT, WRITTEN)), **more}


def short(commit: str | None) -> str | None:
    """Seven digits, with ``+`` behind them where files differ, but for results and reports; None outside of git."""
    return commit and commit[:7] + "+" * commit.endswith("-dirty")


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

    def one(value: Any) -> str:
        rounded = json.loads(json.dumps(value), parse_float=lambda digits: float(f"{float(digits):.7g}"))
        return json.dumps(rounded, ensure_ascii=False)

    def lines(value: Any) -> str:
        return "[\n  " + ",\n  ".join(map(one, value)) + "\n ]" if isinstance(value, list) and value else one(value)

    path.parent.mkdir(parents=True, exist_ok=True)
    text = ",\n ".join(f"{json.dumps(name)}: {lines(value)}" for name, value in found.items())
    path.write_text(f"{{\n {text}\n}}\n")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
