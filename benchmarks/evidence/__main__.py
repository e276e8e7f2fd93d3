"""Run what is missing: ``python -m benchmarks.evidence --data FOLDER [PART …]`` (``make evidence``)."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from amkd_fast.distill.files import write_atomic
from amkd_fast.distill.options import to_yaml
from amkd_fast.distill.report import provenance
from amkd_fast.distill.result_folder import MARKER
from amkd_fast.distill.settings import Settings
from benchmarks import machine
from benchmarks.evidence import margins, protocol, search, store
from benchmarks.report.load import EVIDENCE, MARGINS, shortened

LINES = machine.RESULTS / "cifar10"  # <part>.jsonl of finished runs, search.jsonl
TEACHER = LINES / "teacher.ckpt"  # of all of them
PLACES = ("data", "cache", "teacher")  # on this machine, and of no use on another
LOOK = 20.0  # seconds between two looks for runs that have finished


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="teacher, search or a comparison; default: all")
    parser.add_argument("--data", required=True, help="folder of CIFAR-10 with train/<class>/ and test/<class>/")
    parser.add_argument("--output", type=Path, default=Path("runs/evidence"), help="folder for checkpoints and reports")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--seeds", type=int, help="fewer than the protocol's, to be gone on with later")
    parser.add_argument("--list", action="store_true", help="say what is missing, and how long that takes")
    options = parser.parse_args(arguments)
    found = protocol.read(options.data, str(TEACHER), cache=str(options.output / "pixels"))
    names = ["teacher", "search", *(part.name for part in found.parts)]
    if unknown := set(options.parts) - set(names):
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(names)}")
    wanted = options.parts or names
    parts = [part if options.seeds is None else part.of_seeds(options.seeds) for part in found.parts]
    _tell("teacher", 1, [found.teacher_minutes] * (not TEACHER.exists()))
    untried = search.missing(found.search, LINES / "search.jsonl")
    _tell("search", len(found.search), [point.minutes for point in untried])
    for part in parts:
        _tell(part.name, len(part.runs()), [part.minutes[method] for method, _ in _missing(part)])
    if options.list:
        return 0
    if not TEACHER.exists():
        if LINES.exists():
            parser.error(f"{LINES} has students, but not {TEACHER.name}: bring it back, or remove them to begin anew")
        _distill("train", found.teacher, options.output / "teacher")
        store.keep_network(options.output / "teacher" / "last.ckpt", TEACHER)
    if "search" in wanted:
        search.run(found.search, LINES / "search.jsonl", options.jobs)
    for part in parts:
        if part.name in wanted:
            # A folder for each number of seeds: a comparison that is complete takes no more of them.
            _compare(part, options.output / f"{part.name}-{part.settings.seeds}", options.jobs)
    return 0


def _tell(name: str, total: int, missing: Sequence[float]) -> None:
    """How many of the runs are there, and how long those that are not will take."""
    left = f"; the others take {sum(missing) / 60:.1f} hours of a core" if missing else ""
    print(f"{name}: {total - len(missing)} of {total} runs are there{left}", flush=True)


def _missing(part: protocol.Part) -> list[tuple[str, int]]:
    known = {(run["method"], run["seed"]) for run in store.lines(LINES / f"{part.name}.jsonl")}
    return [run for run in part.runs() if run not in known]


def _compare(part: protocol.Part, output: Path, jobs: int) -> None:
    """Run what is missing of a part, each run's line written when it has finished; then its shortened result."""
    path, done = LINES / f"{part.name}.jsonl", threading.Event()
    commit = provenance.commit(machine.ROOT, machine.WRITTEN)  # the lines of the part before are not committed yet
    resumed = store.restore(output, path, part.settings)

    def watch() -> None:
        while not done.wait(LOOK):
            store.collect(output, path)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        words = ["--jobs", str(jobs), "--threads", str(max(1, torch.get_num_threads() // jobs))]
        _distill("compare", part.settings, output, *words, resume=resumed)
    finally:
        done.set()
        watcher.join()
        store.collect(output, path)
    result = json.loads((output / MARKER).read_text())
    known = {(run["method"], run["seed"]) for run in store.lines(path)}
    for run in result["runs"]:  # those that ended after the last look
        if (run["method"], run["seed"]) not in known:
            about = {"rows": run["epochs"], **{name: run.get(name) for name in ("qualities", "diverged", "classes")}}
            store.add(path, {"method": run["method"], "seed": run["seed"], **about})
    result["environment"]["commit"] = commit
    result["settings"] = {name: value for name, value in result["settings"].items() if name not in PLACES}
    write_atomic(machine.RESULTS / EVIDENCE.format(part.name), json.dumps(store.rounded(shortened(result))) + "\n")
    if "margins" not in part.tables:
        return
    path = LINES / f"{MARGINS}-{part.name}.jsonl"
    known = {(line["method"], line["seed"]) for line in store.lines(path)}
    for line in margins.measure(output, part.settings, known):
        store.add(path, line)


def _distill(command: str, settings: Settings, output: Path, *words: str, **flags: bool) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    config = output.with_name(output.name + ".yaml")
    write_atomic(config, to_yaml(settings))
    switches = [f"--{name}" for name, on in flags.items() if on]
    call = [sys.executable, "-m", "amkd_fast.distill", command, "--config", str(config), "--output", str(output)]
    subprocess.run([*call, *words, *switches], check=True)


if __name__ == "__main__":
    sys.exit(main())
