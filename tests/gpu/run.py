"""Everything that needs a GPU, in one call of under nine minutes and without a network: `make gpu`.

Parts: build (the extension in place, with the CUDA kernels), tests (the suite without the gates), sanitize
(compute-sanitizer's memcheck and racecheck over every kernel plan), bench (the benchmarks of the three families), train
(whole training steps: checks and times). PART=tests runs one of them. A part that fails or runs out of its time does
not stop the next; the exit code says whether all succeeded. Logs and JSON go to $OUT, else to benchmarks/results.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
BENCHES = ("bench", "triplet", "attack", "train")  # their logs end in a table
OUT = Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results").resolve()


class Step(NamedTuple):
    """One command of a part, and the seconds it may take."""

    part: str
    name: str
    command: list[str]
    budget: int


def steps() -> list[Step]:
    python = sys.executable
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    checked = [sanitizer, "--error-exitcode", "9", "--print-limit", "20", "--tool"]
    script = [python, "-m", "tests.gpu.sanitize"]
    # The gates need no GPU. Triton compiles some hundred kernels for the tests: side by side where pytest-xdist is.
    tests = ["tests", "-q", "--maxfail=10", "-p", "no:cacheprovider"]
    tests += [f"--ignore=tests/test_{name}.py" for name in ("gates_cuda", "gates_triton", "triplet_ranks")]  # gloo's
    tests += ["-n", str(min(8, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    return [
        Step("build", "build", [python, "setup.py", "build_ext", "--inplace"], 120),
        Step("tests", "tests", [python, "-m", "pytest", *tests], 180),
        Step("sanitize", "memcheck", [*checked, "memcheck", *script], 60),
        Step("sanitize", "racecheck", [*checked, "racecheck", *script, "--short"], 60),
        Step("bench", "bench", [python, "-m", "benchmarks.gpu_kl", "--out", str(OUT / "gpu_kl.json")], 90),
        Step("bench", "triplet", [python, "-m", "benchmarks.gpu_triplet", "--out", str(OUT / "gpu_triplet.json")], 90),
        Step("bench", "attack", [python, "-m", "benchmarks.gpu_attack", "--out", str(OUT / "gpu_attack.json")], 90),
        Step("train", "train", [python, "-m", "benchmarks.gpu_training", "--out", str(OUT / "gpu_training.json")], 90),
    ]


def run(step: Step) -> dict:
    """Run a step into its log; its seconds, and what went wrong, empty when nothing did."""
    log = OUT / f"gpu_{step.name}.log"
    environment = {**os.environ, "AMKD_FAST_BUILD": "cuda", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    start = time.monotonic()
    with log.open("w") as sink:
        try:
            done = subprocess.run(
                step.command, cwd=ROOT, env=environment, stdout=sink, stderr=subprocess.STDOUT, timeout=step.budget
            )
            fault = f"exit code {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            fault = f"stopped after its {step.budget} s"
        except OSError as error:
            fault = f"could not start: {error}"
    return {"step": step.name, "seconds": round(time.monotonic() - start, 1), "fault": fault, "log": str(log)}


def machine() -> dict:
    """Device, driver, versions and commit; a question that cannot be answered gives an empty string."""

    def ask(*command: str) -> str:
        try:
            return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30).stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            return ""

    versions = ask(sys.executable, "-c", "import torch, triton; print(torch.__version__, triton.__version__)").split()
    return {
        "gpu": ask("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"),
        "python": platform.python_version(),
        "torch": versions[0] if versions else "",
        "triton": versions[1] if len(versions) > 1 else "",
        "nvcc": ask("nvcc", "--version").rsplit("\n", 1)[-1],
        "commit": ask("git", "rev-parse", "HEAD"),
    }


def tail(path: str, lines: int) -> str:
    return "\n".join(Path(path).read_text(errors="replace").splitlines()[-lines:])


def main() -> int:
    wanted = os.environ.get("PART", "")
    parts = list(dict.fromkeys(step.part for step in steps()))
    if wanted and wanted not in parts:
        print(f"PART={wanted!r}: must be one of {', '.join(parts)}, or empty for all", file=sys.stderr)
        return 2
    OUT.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine(), "steps": []}
    for step in steps():
        if wanted in ("", step.part):
            print(f"{step.name} ...", flush=True)
            report["steps"].append(run(step))
    (OUT / "gpu_run.json").write_text(json.dumps(report, indent=1) + "\n")

    for result in report["steps"]:
        if result["fault"]:
            print(f"\n--- {result['step']}: the last lines of {result['log']}\n{tail(result['log'], 25)}")
        elif result["step"] in BENCHES:
            print(f"\n{tail(result['log'], 60)}")
    print("\n" + "  ".join(f"{key}: {value}" for key, value in report["machine"].items()))
    for result in report["steps"]:
        summary = "" if result["step"] in BENCHES else tail(result["log"], 1)[:90]
        print(f"{result['step']:10} {result['seconds']:6.1f} s  {result['fault'] or 'ok':24} {summary}")
    return 1 if any(result["fault"] for result in report["steps"]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
