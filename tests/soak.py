"""Strike trainings and comparisons down in every way, resume them, compare the ends: python tests/soak.py --kills 60

A strike is one of: SIGINT, SIGTERM or SIGKILL to the command, a full disk, a dead worker of ``compare --jobs 2``, a
dead rank of a ``train`` on two processes. Afterwards the result is that of an uninterrupted run, bit by bit, and no
process is left.
"""

from __future__ import annotations

import argparse
import csv
import errno
import json
import multiprocessing.forkserver
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import kills
import processes

SMALL = [
    *("--teacher-network", "small-2-1", "--student-network", "small-2-1", "--teacher-images", "128"),
    *("--student-images", "64", "--batch-size", "32", "--boundary-samples", "4", "--quality-images", "20"),
]
WORDS = {
    "train": ["train", "--method", "amkd", "--memory", "32", "--teacher-epochs", "20", "--epochs", "20", *SMALL],
    "compare": [
        *("compare", "--methods", "kd,amkd", "--seeds", "2", "--jobs", "2"),
        *("--teacher-epochs", "20", "--epochs", "10", *SMALL),
    ],
    "ranks": ["train", "--method", "kd", "--teacher-epochs", "10", "--epochs", "10", *SMALL],
}
RESUMED = {"train": ["train"], "compare": ["compare", "--jobs", "2"], "ranks": ["train"]}
WAYS = {
    "train": ("SIGINT", "SIGTERM", "SIGKILL", "full disk"),
    "compare": ("SIGINT", "SIGTERM", "SIGKILL", "full disk", "dead worker"),
    "ranks": ("dead rank",),
}
CODES = {"SIGINT": 130, "SIGTERM": 130, "SIGKILL": -signal.SIGKILL, "full disk": 2, "dead worker": 2}
PATIENCE = 60.0  # seconds in which processes must have ended


def apart(words: list[str], errors: Path, server: str, fill: float | None) -> None:
    """The command in a process of its own, whose workers come from the same forkserver as itself.

    Args:
        words: Of the command line.
        errors: File for complaints.
        server: The forkserver's address.
        fill: Seconds after which the disk is full; None: never.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # Figures are made, but not painted, which takes longer than the trainings.
    FigureCanvasAgg.print_figure = lambda self, file, **_: file.write(b"\x89PNG")
    multiprocessing.forkserver._forkserver._forkserver_address = server
    multiprocessing.forkserver._forkserver.ensure_running = lambda: None
    if fill is not None:
        until, sync = time.monotonic() + fill, os.fsync

        def full(handle: int) -> None:
            if time.monotonic() > until:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(handle)

        os.fsync = full
    processes._apart(words, errors)


def children() -> set[int]:
    """Living processes that came from the forkserver."""
    server, found = multiprocessing.forkserver._forkserver._forkserver_pid, set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            if int(parent) == server and state not in "ZX":
                found.add(int(entry.name))
    return found


def left() -> set[int]:
    """Processes that have not ended when they should have."""
    until = time.monotonic() + PATIENCE
    while (found := children()) and time.monotonic() < until:
        time.sleep(0.02)
    return found


class Command:
    """One command, or one on two ranks."""

    def __init__(self, kind: str, words: list[str], output: Path, fill: float | None = None) -> None:
        self.kind, self.errors = kind, output.with_name(output.name + ".errors")
        words = [*words, "--output", str(output)]
        self.errors.touch()
        if kind == "ranks":
            folder = output.with_name(output.name + ".told")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            self.thread = threading.Thread(target=self._ranks, args=(words, folder))
            self.thread.start()
            return
        multiprocessing.forkserver.ensure_running()
        server = multiprocessing.forkserver._forkserver._forkserver_address
        self.process = processes.FORKING.Process(target=apart, args=(words, self.errors, server, fill))
        self.process.start()

    def _ranks(self, words: list[str], folder: Path) -> None:
        self.code = 1
        well, _, errors = processes.torchrun(words, folder)
        self.code = 0 if well else 1
        self.errors.write_text("\n".join(errors))

    @property
    def lives(self) -> bool:
        return (self.thread if self.kind == "ranks" else self.process).is_alive()

    def wait(self) -> tuple[int, str]:
        """Exit code, and what was complained of."""
        if self.kind == "ranks":
            self.thread.join()
            return self.code, self.errors.read_text()
        self.process.join()
        return self.process.exitcode, self.errors.read_text()

    def finish(self) -> None:
        code, errors = self.wait()
        if code != 0:
            raise AssertionError(f"{self.kind}: exit code {code}: {errors}")

    def strike(self, way: str, draws: random.Random) -> None:
        """Do it, unless it has ended, or there is nothing to strike at yet."""
        if way == "dead worker":
            victims = sorted(children() - {self.process.pid})
        elif way == "dead rank":
            victims = sorted(children())
        else:
            victims = [self.process.pid] if self.process.is_alive() else []
        if victims and self.lives:
            os.kill(draws.choice(victims), getattr(signal, way, signal.SIGKILL))


def outcome(kind: str, folder: Path) -> object:
    """What must not depend on interruptions."""
    if kind != "compare":
        return kills.outcome(folder)
    result = json.loads((folder / "results.json").read_text())
    for run in result["runs"]:
        for row in run["epochs"]:
            del row["ms_per_step"]
    with (folder / "results.csv").open() as file:
        rows = [{k: v for k, v in row.items() if k != "ms_per_step"} for row in csv.DictReader(file)]
    return [result["runs"], result["qualities"], result["tests"], result["teacher_accuracy"], rows]


def wait_for(partial: Path, command: Command) -> float:
    """The time when the command has a folder, or has ended."""
    while not partial.exists() and command.lives:
        time.sleep(0.002)
    return time.monotonic()


def run(folder: Path, count: int, seed: int, kinds: tuple[str, ...] = tuple(WAYS)) -> list[str]:
    """Strike ``count`` times; return how, and what was said."""
    draws, told, expected, length = random.Random(seed), [], {}, {}
    for kind in kinds:
        output = folder / f"straight-{kind}"
        command = Command(kind, WORDS[kind], output)
        begun = wait_for(output.with_name(output.name + ".partial"), command)
        command.finish()
        length[kind] = time.monotonic() - begun
        expected[kind] = outcome(kind, output)
    plan, tries = [(kind, way) for kind in kinds for way in WAYS[kind]], 0
    draws.shuffle(plan)
    while len(told) < count:
        kind, way = plan[len(told) % len(plan)]
        output, tries = folder / f"{kind}-{tries}", tries + 1
        partial = output.with_name(output.name + ".partial")
        after = draws.uniform(0.0, length[kind])
        command = Command(kind, WORDS[kind], output, after if way == "full disk" else None)
        wait_for(partial, command)
        if way != "full disk":
            time.sleep(after)
            command.strike(way, draws)
        code, errors = command.wait()
        if stray := left():
            raise AssertionError(f"{kind}, {way}: processes {stray} are left")
        if code != 0:
            if code != CODES.get(way, code) or "Traceback" in errors:
                raise AssertionError(f"{kind}, {way} after {after:.1f} s: exit code {code}: {errors}")
            said = [line for line in errors.splitlines() if line.startswith("amkd-distill: ")]
            told.append(f"{kind}, {way} after {after:.1f} s: exit code {code}, {said[0][:120] if said else 'silence'}")
            print(f"{len(told)}: {told[-1]}", flush=True)
            there = partial.exists() or output.exists()
            Command(kind, [*RESUMED[kind], "--resume"] if there else WORDS[kind], output).finish()
        if stray := left():
            raise AssertionError(f"{kind}: processes {stray} are left after the end")
        if partial.exists() or not kills.same(outcome(kind, output), expected[kind]):
            raise AssertionError(f"{kind}, {way}: {output} differs from an uninterrupted run")
        shutil.rmtree(output)
    return told


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(WAYS), help="with commas between")
    options = parser.parse_args()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background, and so in all that starts here
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder:
        told = run(Path(folder), options.kills, options.seed, tuple(options.kinds.split(",")))
    print(f"{len(told)} of {options.kills}: the bits of an uninterrupted run each time; processes left: 0")


if __name__ == "__main__":
    sys.exit(main())
