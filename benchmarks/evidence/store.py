"""Finished runs as lines of JSON, which are committed: whoever has them goes on where they end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amkd_fast.distill import resume
from amkd_fast.distill.checkpoint import load_network, save_network
from amkd_fast.distill.files import write_atomic
from amkd_fast.distill.result_folder import partial_of
from amkd_fast.distill.settings import CompareSettings

DIGITS = 5  # of a number


def lines(path: Path) -> list[dict[str, Any]]:
    """What a file of JSON lines holds; nothing where there is none."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add(path: Path, found: dict[str, Any]) -> None:
    """Another line, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text() if path.exists() else ""
    write_atomic(path, before + json.dumps(rounded(found)) + "\n")


def collect(output: Path, path: Path) -> int:
    """Write the runs that the unfinished comparison of ``output`` has and the file has not; how many they were."""
    known = {(run["method"], run["seed"]) for run in lines(path)}
    new = [(key, found) for key, found in _kept(partial_of(output) / "runs") if key not in known]
    for (method, seed), found in new:
        add(path, {"method": method, "seed": seed, **found})
    return len(new)


def restore(output: Path, path: Path, settings: CompareSettings) -> bool:
    """Make the folder of an unfinished comparison out of the lines; whether there is anything to ``--resume``.

    Runs of other methods or seeds than those of ``settings`` stay where they are.
    """
    work = partial_of(output)
    if work.is_dir() or output.is_dir():
        return True
    found = [run for run in lines(path) if run["method"] in settings.names() and run["seed"] < settings.seeds]
    if not found:
        return False
    (work / "runs").mkdir(parents=True)
    for run in found:
        about = {name: value for name, value in run.items() if name not in ("method", "seed")}
        write_atomic(work / "runs" / f"{run['method']}-{run['seed']}.json", json.dumps(about))
    for name, content in resume.start("compare", settings).items():
        write_atomic(work / name, content)
    return True


def keep_network(checkpoint: Path, path: Path) -> None:
    """Write the network of a training's checkpoint alone; of the place of its data the name."""
    network, spec, about = load_network(checkpoint)
    settings = {**about["settings"], "data": Path(about["settings"]["data"]).name, "cache": None}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_network(path, network, spec, {**about, "settings": settings})


def rounded(found: Any) -> Any:
    """The same with numbers of :data:`DIGITS` digits."""
    if isinstance(found, float):
        return float(f"{found:.{DIGITS}g}")
    if isinstance(found, dict):
        return {name: rounded(value) for name, value in found.items()}
    return [rounded(value) for value in found] if isinstance(found, list) else found


def _kept(folder: Path) -> Iterator[tuple[tuple[str, int], dict[str, Any]]]:
    for file in sorted(folder.glob("*.json")):
        method, _, seed = file.stem.rpartition("-")
        yield (method, int(seed)), json.loads(file.read_text())
