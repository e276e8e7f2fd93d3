"""``amkd-distill compare``: every method, several seeds, one teacher."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from amkd_fast.distill import data as datasets
from amkd_fast.distill import experiment, methods, plots, pool, report
from amkd_fast.distill.checkpoint import save_network
from amkd_fast.distill.data import Data
from amkd_fast.distill.experiment import Run
from amkd_fast.distill.files import MARKER, result_folder, write_atomic
from amkd_fast.distill.networks import ResNet
from amkd_fast.distill.probe import probe
from amkd_fast.distill.settings import Settings


def compare(
    settings: Settings,
    *,
    output: str,
    names: list[str],
    seeds: int,
    jobs: int,
    teacher_path: str | None,
    overwrite: bool,
    device: Any,
    progress: bool,
) -> None:
    """Train all methods from the same teacher and initial students; print and write what came out."""
    start = time.perf_counter()
    with result_folder(output, overwrite=overwrite) as folder:
        data = datasets.load(settings).to(device)
        network, accuracy = the_teacher(teacher_path, data, settings, folder, progress)
        # Seed by seed, so that a drift of the machine's speed meets all methods alike.
        tasks = [(method, seed) for seed in range(seeds) for method in names]
        jobs = min(jobs, len(tasks))
        if jobs == 1:
            runs = pool.run_here(tasks, settings, data, experiment.freeze(network, data), progress)
        else:
            runs = pool.run_apart(tasks, settings, folder / "teacher.ckpt", device, jobs)
        runs = {(method, seed): runs[method, seed] for method in names for seed in range(seeds)}
        summary = report.summarise(runs)
        seconds = time.perf_counter() - start
        _write(folder, runs, summary, network, accuracy, data, settings, jobs, seconds)
    report.print_table(summary, accuracy, seeds)
    print(
        f"{seconds:.0f} s; results in {output}: results.json, results.csv, teacher.ckpt, "
        "accuracy.png, loss_curves.png, gaps.png, samples.png"
    )


def the_teacher(
    path: str | Path | None, data: Data, settings: Settings, folder: Path, progress: bool
) -> tuple[ResNet, float]:
    """Load or train the teacher, keep a copy in the result folder, and say how good it is (per cent)."""
    if path is not None:
        network = experiment.load_teacher(path, data)
        print(f"teacher from {path}", end="", flush=True)
    else:
        start = time.perf_counter()
        network = experiment.train_teacher(data, settings, progress=progress).network
        print(f"teacher trained in {time.perf_counter() - start:.0f} s", end="", flush=True)
    accuracy = methods.accuracy(network, data.test)
    print(f": {accuracy:.1f} % on {len(data.test.labels)} test images", flush=True)
    save_network(
        folder / "teacher.ckpt", network, experiment.describe("teacher", experiment.TEACHER_SEED, data, settings)
    )
    return network, accuracy


def _write(
    folder: Path,
    runs: dict[tuple[str, int], Run],
    summary: dict[str, Any],
    teacher: ResNet,
    accuracy: float,
    data: Data,
    settings: Settings,
    jobs: int,
    seconds: float,
) -> None:
    look = probe(teacher, data, settings)
    quartiles = look.quartiles()
    write_atomic(folder / "results.csv", report.to_csv(runs))
    write_atomic(folder / "accuracy.png", plots.accuracy(runs, summary, accuracy))
    write_atomic(folder / "loss_curves.png", plots.loss_curves(runs))
    write_atomic(folder / "gaps.png", plots.gaps(quartiles))
    write_atomic(folder / "samples.png", plots.samples(look, data))
    result = {
        "kind": "compare",
        "environment": report.environment(),
        "settings": settings.as_dict(),
        "seconds": seconds,
        "jobs": jobs,
        "images": {
            "teacher": len(data.teacher.labels),
            "student": len(data.student.labels),
            "test": len(data.test.labels),
        },
        "teacher_accuracy": accuracy,
        "methods": summary,
        "attack_gaps": quartiles,
        "runs": [
            {"method": method, "seed": seed, "last": run.last, "best": run.best, "epochs": run.rows}
            for (method, seed), run in runs.items()
        ],
    }
    write_atomic(folder / MARKER, report.to_json(result))
