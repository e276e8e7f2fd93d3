"""Kill trainings (SIGKILL) at random moments, resume them, compare the ends: python tests/kills.py --kills 20"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import signal
import time
from pathlib import Path

import processes
import torch
import yaml

RUN = [
    *("--method", "amkd", "--teacher-network", "small-2-1", "--student-network", "small-2-1", "--memory", "64"),
    *("--teacher-images", "256", "--student-images", "128", "--teacher-epochs", "40", "--epochs", "30"),
    *("--batch-size", "32", "--boundary-samples", "4"),
]


def start(output: Path, *words: str) -> processes.Command:
    return processes.start(["train", *words, "--output", str(output)], output.with_name(output.name + ".errors"))


def wait_for(partial: Path, command: processes.Command) -> None:
    """Until the training has a folder, or has ended."""
    waiting = time.perf_counter()
    while not partial.exists() and command.process.is_alive():
        if time.perf_counter() > waiting + 300:
            command.process.kill()
            raise AssertionError("the training has not begun after 300 s")
        time.sleep(0.002)


def finish(command: processes.Command) -> None:
    code, errors = command.wait()
    if code != 0:
        raise AssertionError(f"exit code {code}: {errors}")


def check_whole(folder: Path) -> int:
    """Every file that bears a name of ours can be read to its end; return how many there are."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tmp"]
    for path in paths:
        if path.suffix == ".ckpt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".yaml":
            assert yaml.safe_load(path.read_text())
        elif path.suffix == ".csv":
            with path.open() as file:
                rows = list(csv.DictReader(file))
            assert [int(row["epoch"]) for row in rows] == list(range(len(rows)))
        elif path.suffix == ".md":
            assert path.read_text().endswith("\n")
        else:
            raise AssertionError(f"{path} is no file of ours")
    return len(paths)


def outcome(folder: Path) -> dict:
    """What must not depend on interruptions: weights, optimiser, memory, log."""
    found = {}
    for name in ("last", "best", "teacher"):
        state = torch.load(folder / f"{name}.ckpt", weights_only=True)
        found[name] = state["state_dict"]
    found["optimizer"] = torch.load(folder / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    with (folder / "log.csv").open() as file:
        found["log"] = [{k: v for k, v in row.items() if k != "ms_per_step"} for row in csv.DictReader(file)]
    return found


def same(one: object, other: object) -> bool:
    """Bit by bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def run(folder: Path, kills: int, chain: int, seed: int, *changed: str) -> list[str]:
    """Kill ``kills`` times in all, ``chain`` times before a training may end; return what was interrupted.

    The words ``changed`` come after those of :data:`RUN`.
    """
    draws, told = random.Random(seed), []
    command = start(folder / "straight", *RUN, *changed)
    wait_for(folder / "straight.partial", command)
    begun = time.perf_counter()
    finish(command)
    whole = time.perf_counter() - begun
    expected, done = outcome(folder / "straight"), 0
    while done < kills:
        output = folder / f"killed-{done}"
        partial = output.with_name(output.name + ".partial")
        command, ended = start(output, *RUN, *changed), False
        for _ in range(min(chain, kills - done)):
            wait_for(partial, command)
            time.sleep(draws.uniform(0.0, whole / 2))
            command.process.kill()
            code, errors = command.wait()
            if code != -signal.SIGKILL:  # it had ended already
                ended = code == 0
                if not ended:
                    raise AssertionError(f"exit code {code}: {errors}")
                break
            done += 1
            stage = "teacher" if (partial / "teacher").exists() else "student"
            told.append(f"{stage}, {check_whole(partial)} whole files" if partial.exists() else "at the end")
            if not partial.exists() and not output.exists():
                raise AssertionError("nothing is left to resume")
            command = start(output, "--resume")
        if not ended:
            finish(command)
        check_whole(output)
        if partial.exists() or not same(outcome(output), expected):
            raise AssertionError(f"{output} differs from an uninterrupted run")
        shutil.rmtree(output)
    return told


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--chain", type=int, default=4, help="kills before a training may end")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for number, what in enumerate(run(Path(folder), options.kills, options.chain, options.seed), 1):
            print(f"kill {number}: {what}")
    print("every resumed training ended in the weights, optimiser state and log of the uninterrupted one")


if __name__ == "__main__":
    main()
