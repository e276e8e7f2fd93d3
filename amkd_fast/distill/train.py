"""``amkd-distill train``: one network, with checkpoints, log and resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from amkd_fast.distill import data as datasets
from amkd_fast.distill import experiment, report
from amkd_fast.distill.compare import the_teacher
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.files import MARKER, result_folder, write_atomic
from amkd_fast.distill.settings import Settings

RUN = "run.json"  # what the run was started with


def train(
    settings: Settings,
    given: dict[str, Any],
    *,
    output: str,
    method: str,
    seed: int,
    teacher_path: str | None,
    overwrite: bool,
    resume: bool,
    device: Any,
    progress: bool,
) -> None:
    """Train a student by ``method``.

    Args:
        settings: Of a fresh run.
        given: The settings, method and seed that the user named; a resumed run must not contradict them.
        output: Result folder: teacher.ckpt, last.ckpt, best.ckpt, log.csv, run.json, results.json.
        method: One of :data:`amkd_fast.distill.settings.METHODS`.
        seed: Of initial weights, batches and draws.
        teacher_path: Checkpoint of a teacher; None trains one.
        overwrite: Replace an earlier result once this one is complete.
        resume: Go on with the run in ``output``.
        device: Where to train.
        progress: Show progress bars.
    """
    with result_folder(output, overwrite=overwrite, resume=resume, keep_partial=True) as folder:
        if resume:
            settings, method, seed = _stored(folder, given)
        else:
            start = {"method": method, "seed": seed, "settings": settings.as_dict()}
            write_atomic(folder / RUN, report.to_json(start))
        data = datasets.load(settings).to(device)
        teacher, accuracy = None, None
        if method != "student":
            kept = folder / "teacher.ckpt"
            path = kept if resume and kept.is_file() else teacher_path
            network, accuracy = the_teacher(path, data, settings, folder, progress)
            teacher = experiment.freeze(network, data)
        run = experiment.train_student(
            method,
            seed,
            teacher,
            data,
            settings,
            about=experiment.describe(method, seed, data, settings),
            folder=folder,
            progress=progress,
            resume=resume,
        )
        result = {
            "kind": "train",
            "environment": report.environment(),
            "method": method,
            "seed": seed,
            "settings": settings.as_dict(),
            "teacher_accuracy": accuracy,
            "last": run.last,
            "best": run.best,
            "epochs": run.rows,
        }
        write_atomic(folder / MARKER, report.to_json(result))
    print(f"{method}: last epoch {run.last:.1f} %, best {run.best:.1f} % (chosen on the test set)")
    print(f"Results: {output}/last.ckpt, best.ckpt, log.csv, results.json")


def _stored(folder: Path, given: dict[str, Any]) -> tuple[Settings, str, int]:
    try:
        start = json.loads((folder / RUN).read_text())
        settings, method, seed = Settings.from_dict(start["settings"]), start["method"], start["seed"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--resume: {folder / RUN} is missing or damaged") from error
    stored = {**settings.as_dict(), "method": method, "seed": seed}
    for name, value in given.items():
        if stored[name] != value:
            option = "--" + name.replace("_", "-")
            raise UserError(f"--resume: the run was started with {option} {stored[name]}, not {value}")
    return settings, method, seed
