"""Puts one fault after the other into a copy of the project and tells which test catches it.

    python -m tests.mutations [--only NAME] [--tree PATH] [--json FILE]

A test that caught a fault is run once more without it. Where it fails then, too, the catch is void: the test is set
aside, which the outcomes name, and the fault meets the others.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from . import trial
from .mutants import MUTANTS, Mutant
from .selection import STAGES, Run, Stage, runs_of, stages_of
from .tree import Tree, Unbuildable

CAUGHT = ("caught", "crash", "timeout")


def main() -> int:
    options = _options()
    chosen = [mutant for mutant in MUTANTS if not options.only or mutant.name in options.only]
    if missing := set(options.only or ()) - {mutant.name for mutant in chosen}:
        raise SystemExit(f"--only: there is no {', '.join(sorted(missing))}")
    found, unsound = _read(options.json) if options.resume else ({}, [])
    through = shlex.split(options.through)
    with tempfile.TemporaryDirectory() as scratch:
        tree = Tree(options.tree.resolve(), options.work or Path(scratch) / "tree", through)
        runs = runs_of(tree.root, options.targets)
        kinds = {mutant.kind for mutant in chosen if mutant.name not in found}
        modes = sorted({run.emulated for run in runs if run.emulated}) if "cuda" in kinds else []
        if "cpu" in kinds:
            tree.build()
        tree.emulate(modes)
        if kinds & {"cpu", "cuda"}:
            tree.keep()
        end = time.monotonic() + options.seconds
        wanted = [mutant for mutant in chosen if mutant.name not in found]
        while wanted:
            for mutant in wanted:
                if time.monotonic() < end:
                    found[mutant.name] = _try(tree, runs, mutant, unsound, through, options)
                    _write(options.json, found, unsound)
                    print(_line(found[mutant.name]), flush=True)
            void = _verify(tree, runs, found, unsound, through, options.limit)
            wanted = [mutant for mutant in chosen if mutant.name in void]
            _write(options.json, found, unsound)
    _tell(found)
    return 0 if all(entry["outcome"] in CAUGHT for entry in found.values()) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", help="try this mutant alone; may be repeated")
    parser.add_argument("--tree", type=Path, default=Path(), metavar="PATH", help="the project; it is not changed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the outcomes go, mutant by mutant")
    parser.add_argument("--resume", action="store_true", help="leave out the mutants that FILE has")
    parser.add_argument("--targets", nargs="+", default=["test"], metavar="NAME", help="of make, which CI runs")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="leave tests out, to be quick")
    parser.add_argument("--for", type=float, default=math.inf, metavar="S", dest="seconds", help="begin none later")
    parser.add_argument("--work", type=Path, metavar="PATH", help="keep the copy, and what it is built into, for later")
    parser.add_argument("--limit", type=float, default=300.0, metavar="S", help="a test that takes longer hangs")
    parser.add_argument("--through", default="", metavar="COMMAND", help='what runs builds and tests, as "nice -n 5"')
    options = parser.parse_args()
    if options.resume and options.json is None:
        parser.error("--resume: needs --json")
    return options


def _try(
    tree: Tree, runs: list[Run], mutant: Mutant, unsound: list[str], through: list[str], options: argparse.Namespace
) -> dict:
    start = time.monotonic()
    entry = {**mutant._asdict(), "kind": mutant.kind, "outcome": "missed", "test": "", "stages": [], "passed": 0}
    try:
        with tree.mutated(mutant):
            for stage in stages_of(tree.root, runs, mutant.family, mutant.kind):
                if stage.name not in options.stages:
                    continue
                entry["stages"].append(stage.name)
                aside = tuple(f"--deselect={test}" for test in unsound)
                outcome = trial.run(tree, stage._replace(options=stage.options + aside), through, options.limit)
                entry["passed"] += outcome.passed
                if outcome.verdict != "passed":
                    entry |= {"outcome": outcome.verdict, "test": outcome.test}
                    entry |= {"level": stage.level, "emulated": stage.emulated}
                    entry |= {"words": outcome.words} if outcome.words else {}
                    break
            else:
                if entry["passed"] == 0:  # skipped or deselected: then nothing can be said
                    entry["outcome"] = "error"
    except Unbuildable as error:
        entry |= {"outcome": "error", "words": str(error)}
    return {**entry, "seconds": round(time.monotonic() - start, 1)}


def _verify(
    tree: Tree, runs: list[Run], found: dict[str, dict], unsound: list[str], through: list[str], limit: float
) -> set[str]:
    """Take back the catches of tests that fail on the pristine tree as well; the names of their mutants."""
    void, caught = set(), [entry for entry in found.values() if entry["outcome"] in CAUGHT]
    for where in {_where(entry) for entry in caught}:
        entries = [entry for entry in caught if not entry.get("verified") and _where(entry) == where]
        options = next((run.options for run in runs if (run.interpreted, run.emulated) == (where[0], where[2])), ())
        pending = {entry["test"] for entry in entries} - set(unsound)
        while pending:
            stage = Stage("pristine", tuple(sorted(pending)), "", options, *where)
            outcome = trial.run(tree, stage, through, limit, stop=False)
            if outcome.verdict == "error":
                raise SystemExit(outcome.words)
            unsound += sorted({*outcome.failed, outcome.test} & pending)
            pending = pending - set(unsound) if outcome.verdict in ("crash", "timeout") else set()
        for entry in entries:
            entry["verified"] = entry["test"] not in unsound
            if not entry["verified"]:
                void.add(entry["name"])
                del found[entry["name"]]
    return void


def _where(entry: dict) -> tuple[bool, str, str]:
    """What the last fields of a stage are."""
    return entry["kind"] == "triton", entry.get("level", ""), entry.get("emulated", "")


def _read(path: Path) -> tuple[dict[str, dict], list[str]]:
    kept = json.loads(path.read_text()) if path.is_file() else {"mutants": [], "unsound": []}
    return {entry["name"]: entry for entry in kept["mutants"]}, kept.get("unsound", [])


def _write(path: Path | None, found: dict[str, dict], unsound: list[str]) -> None:
    if path is not None:
        counts = dict(Counter(entry["outcome"] for entry in found.values()))
        kept = {"counts": counts, "unsound": unsound, "mutants": list(found.values())}
        path.write_text(json.dumps(kept, indent=1) + "\n")


def _line(entry: dict) -> str:
    seconds, said = f"{entry['seconds']:.1f} s", entry["test"] or entry["harm"]
    return f"{entry['outcome'].upper():8} {seconds:>8}  {entry['name']:36} {said}"


def _tell(found: dict[str, dict]) -> None:
    print()
    for entry in sorted(found.values(), key=lambda entry: entry["outcome"] in CAUGHT):
        print(_line(entry))
        if entry["outcome"] == "error":
            print(entry.get("words", "no test ran"))
    caught = sum(entry["outcome"] in CAUGHT for entry in found.values())
    print(f"\n{caught} of {len(found)} caught")


if __name__ == "__main__":
    sys.exit(main())
