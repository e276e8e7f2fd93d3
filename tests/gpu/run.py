"""Everything that needs a GPU, without a network: `make gpu`, again and again until nothing is left.

A call lasts under LIMIT seconds (540): what its steps may take together does not exceed that, and what was left comes
with the next call. A step that went well is not repeated while the sources stay what they are; FORCE=1 repeats it.
PART=bench, or PART=checks,bench, runs some of the parts, each of which fits into one call, the build included:

    build     the extension in place, with the CUDA kernels; whenever it is not there, whatever the part
    tests     the suite without the gates
    emulated  the emulated kernels of tests/emulator against the device's, on every plan
    sanitize  compute-sanitizer's memcheck and racecheck over every kernel plan
    bench     launches and waiting of every operation; the families of operations, interleaved
    train     amkd-distill train, also of recorded steps; whole attacks and training steps, interleaved

A step that fails or runs out of its time does not stop the next; the exit code says whether all succeeded. Results go
to benchmarks/results, logs to build/gpu, and where OUT names a folder, all of them into OUT/gpu.tar.gz: unpacked over
the checkout, they are what the next call goes on from. --dry-run rehearses every step on a CPU in small.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
RESULTS, LOGS = ROOT / "benchmarks" / "results", ROOT / "build" / "gpu"
RECORD = RESULTS / "gpu_run.json"
PARTS = ("build", "tests", "emulated", "sanitize", "bench", "train")
LIMIT, TAIL = 540, 60  # seconds of a call; lines of a log that are shown
SOURCES = ("amkd_fast", "benchmarks", "csrc", "tests", "setup.py")
KINDS = {".py", ".cpp", ".cu", ".cuh", ".h"}


class Step(NamedTuple):
    """One command of a part, and the seconds it may take; ``table`` where its log ends in one."""

    part: str
    name: str
    command: list[str]
    budget: int
    table: bool = True


def steps(dry_run: bool = False) -> list[Step]:
    python = [sys.executable]
    device, dry = ("cpu", ["--dry-run"]) if dry_run else ("cuda", [])

    def check(part: str, name: str, budget: int) -> Step:
        out = ["--out", str((LOGS if dry_run else RESULTS) / f"gpu_{name}.json")]
        return Step(part, name, [*python, "-m", "benchmarks.gpu_checks", *out, *dry], budget)

    def times(part: str, family: str, budget: int, small: str) -> Step:
        command = [*python, "-m", "benchmarks.compare", "--device", device, family, "--seconds", str(0.75 * budget)]
        return Step(part, family, [*command, *(["--quick", "--only", small] if dry_run else [])], budget)

    def sanitized(tool: str, chosen: str) -> Step:
        """Every plan of the table; one allocation a tensor, as inside a cached block nothing is out of bounds."""
        sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        checked = [sanitizer, "--error-exitcode", "9", "--print-limit", "20", "--tool", tool]
        pytest = [*python, "-m", "pytest", "tests/test_contract.py", "-q", "-p", "no:cacheprovider", "-k", chosen]
        command = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", *checked, *pytest, "--backend", "cuda"]
        command = [*pytest, "--backend", "cpu", "--collect-only"] if dry_run else command
        return Step("sanitize", tool, command, 150, table=False)

    def trained(name: str, *more: str) -> Step:
        """`amkd-distill train` on the digits, in few epochs."""
        words = ["--method", "amkd", "--memory", "64", "--device", device, "--epochs", "4", "--teacher-epochs", "4"]
        words += ["--boundary-schedule", "constant", "--no-progress", "--overwrite", "--output", str(LOGS / name)]
        return Step("train", name, [*python, "-m", "amkd_fast.distill", "train", *words, *more], 50)

    held = ["--backend", "cpu", "--only", "kl_div"] if dry_run else []
    # The gates need no GPU. Triton compiles some hundred kernels for the tests: side by side where pytest-xdist is.
    tests = ["tests", "-q", "--maxfail=10", "-p", "no:cacheprovider", *(["--collect-only"] if dry_run else [])]
    tests += [f"--ignore=tests/test_{name}.py" for name in ("gates", "triplet_ranks")]  # gloo's
    tests += ["-n", str(min(8, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") and not dry_run else []
    return [
        Step("build", "build", [*python, "setup.py", "build_ext", "--inplace"], 160, table=False),
        Step("tests", "tests", [*python, "-m", "pytest", *tests], 380, table=False),
        Step("emulated", "emulated", [*python, "-m", "tests.emulator.compare", *held], 360),
        sanitized("memcheck", "test_value_and_gradient"),
        sanitized("racecheck", "test_value_and_gradient and (float32 or bfloat16)"),  # which have every barrier
        check("bench", "checks", 60),
        times("bench", "kl", 100, "K = 10,"),
        times("bench", "triplet", 80, "N = 128,"),
        times("bench", "attack", 50, "K = 10,"),
        times("bench", "images", 30, "B = 128,"),
        times("bench", "segments", 30, "B = 64,"),
        times("bench", "relations", 30, "B = 64,"),
        trained("train", "--precision", "32" if dry_run else "fp16"),
        trained("train_recorded", *([] if dry_run else ["--whole-step", "--precision", "bf16"])),
        times("train", "whole_attack", 110, "PGD"),
        times("train", "training", 170, "step KD"),
    ]


def plan(
    every: list[Step], parts: tuple[str, ...], done: set[str], failed: set[str], built: bool, limit: float
) -> dict[str, str]:
    """By the name of each step that is wanted: ``"run"``, ``"done"`` before, or ``"later"`` for want of time.

    The build comes first wherever the extension is not there. Steps that have failed before come last, so that they do
    not keep the others from their turn.
    """
    wanted = [step for step in every if step.part in parts or (step.part == "build" and not built)]
    found: dict[str, str] = {}
    for step in sorted(wanted, key=lambda step: (step.part != "build", step.name in failed)):
        if step.name in done and (built or step.part != "build"):
            found[step.name] = "done"
        elif step.budget <= limit:
            found[step.name] = "run"
            limit -= step.budget
        else:
            found[step.name] = "later"
    return {step.name: found[step.name] for step in wanted}


def run(step: Step, dry_run: bool) -> dict[str, Any]:
    """Run a step into its log: its seconds, what went wrong (empty when nothing did) and the end of the log."""
    log = LOGS / f"gpu_{step.name}.log"
    build = "cpu" if dry_run else "cuda"
    environment = {**os.environ, "AMKD_FAST_BUILD": build, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    environment |= {"TORCHDYNAMO_DISABLE": "1"} if dry_run else {}  # compiling takes longer than all else
    environment.setdefault("AMKD_BENCH_THREADS", "2" if dry_run else "8")  # what prepares inputs is not timed
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
    seconds = round(time.monotonic() - start, 1)
    return {"part": step.part, "seconds": seconds, "fault": fault, "tail": tail(log, TAIL)}


def tail(log: Path, lines: int) -> list[str]:
    """Without the profiler's own messages."""
    return [line for line in log.read_text(errors="replace").splitlines() if not line.startswith("USDT:")][-lines:]


def digest() -> str:
    """Of the sources, so that results of others are not taken for theirs, with or without a repository around them."""
    found = hashlib.sha256()
    for place in SOURCES:
        paths = sorted((ROOT / place).rglob("*")) if (ROOT / place).is_dir() else [ROOT / place]
        for path in paths:
            if path.suffix in KINDS:
                found.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return found.hexdigest()[:16]


def recorded(path: Path, sources: str) -> dict[str, Any]:
    """What earlier calls found with these sources, by step."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record.get("steps", {}) if record.get("sources") == sources else {}


def machine() -> dict[str, str]:
    """Device, driver, versions and commit; a question that cannot be answered gives an empty string."""

    def ask(*command: str) -> str:
        try:
            return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60).stdout.strip()
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


def pack(record: dict[str, Any], path: Path, out: str) -> None:
    """Write the record; with all results and logs into one file in ``out``, as a folder there may be limited."""
    path.write_text(json.dumps(record, indent=1) + "\n")
    if not out:
        return
    Path(out).mkdir(parents=True, exist_ok=True)
    with tarfile.open(Path(out, "gpu.tar.gz"), "w:gz") as archive:
        for found in (*RESULTS.glob("gpu_*.json"), *RESULTS.glob("*-cuda.json"), *LOGS.iterdir()):
            archive.add(found, found.relative_to(ROOT))


def report(record: dict[str, Any], planned: dict[str, str], say: Callable[[str], None] = print) -> None:
    """What went wrong, the tables of this call's steps, and one line a step."""
    tables = {step.name for step in steps() if step.table}
    for name, fate in planned.items():
        result = record["steps"].get(name)
        if fate == "run" and result["fault"]:
            say(f"\n--- {name}: the end of its log\n" + "\n".join(result["tail"][-25:]))
        elif fate == "run" and name in tables:
            say(f"\n--- {name}\n" + "\n".join(result["tail"]))
    say("\n" + "  ".join(f"{key}: {value}" for key, value in record["machine"].items()))
    for name, fate in planned.items():
        if fate == "later":
            say(f"{name:16} left for the next call")
            continue
        result = record["steps"][name]
        outcome = result["fault"] or ("ok" if fate == "run" else "ok before")
        last = "" if name in tables else "".join(result["tail"][-1:])[:80]
        say(f"{name:16}{result['seconds']:7.1f} s  {outcome:24} {last}")


def main() -> int:
    dry_run = "--dry-run" in sys.argv[1:]
    parts = tuple(filter(None, os.environ.get("PART", "").split(","))) or PARTS
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        print(f"PART={unknown[0]!r}: must be one of {', '.join(PARTS)}, or empty for all", file=sys.stderr)
        return 2
    for folder in (RESULTS, LOGS):
        folder.mkdir(parents=True, exist_ok=True)
    every, sources, path = steps(dry_run), digest(), LOGS / RECORD.name if dry_run else RECORD
    known = recorded(path, sources)
    failed = {name for name, result in known.items() if result["fault"]}
    done = set() if os.environ.get("FORCE") else set(known) - failed
    built = (ROOT / "amkd_fast" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").exists()
    planned = plan(every, parts, done, failed, built, float(os.environ.get("LIMIT", LIMIT)))
    record = {"sources": sources, "machine": machine(), "steps": known}
    for step in every:
        if planned.get(step.name) == "run":
            print(f"{step.name} ...", flush=True)
            record["steps"][step.name] = run(step, dry_run)
            pack(record, path, os.environ.get("OUT", ""))
    report(record, planned)
    good = all(fate != "later" and not record["steps"][name]["fault"] for name, fate in planned.items())
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
