"""``amkd-distill train``: one network, with checkpoints, log and resume, in one process or under torchrun."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amkd_fast.distill import build, metrics, report, training_runs
from amkd_fast.distill import data as datasets
from amkd_fast.distill.checkpoint import load_network
from amkd_fast.distill.data import Data
from amkd_fast.distill.distributed import World, process_group
from amkd_fast.distill.errors import Diverged, UserError
from amkd_fast.distill.files import write_atomic
from amkd_fast.distill.fit import Run, best_epoch
from amkd_fast.distill.networks.normalised import Normalised
from amkd_fast.distill.report.card import NAME as CARD
from amkd_fast.distill.report.card import card
from amkd_fast.distill.report.experiment import experiment
from amkd_fast.distill.result_folder import MARKER, result_folder
from amkd_fast.distill.settings import TrainSettings
from amkd_fast.distill.teacher import Teacher


def train(
    settings: TrainSettings,
    given: dict[str, Any],
    *,
    output: str,
    overwrite: bool,
    resume: bool,
    device: Any,
    progress: bool,
) -> None:
    """Train a student.

    Args:
        settings: Of a fresh run.
        given: The settings that the user stated; a resumed run must not contradict them.
        output: Result folder: teacher.ckpt, last.ckpt, best.ckpt, card.md, log.csv, config.yaml, run.json,
            results.json.
        overwrite: Replace an earlier result once this one is complete.
        resume: Go on with the run in ``output``.
        device: Where to train.
        progress: Show progress bars.

    Raises:
        Diverged: The teacher's or the student's training did.
        UserError: Something only the user can put right.
    """
    with (
        process_group(device) as world,
        _folder(settings, given, output, overwrite, resume, world) as (folder, settings),
    ):
        if folder is None:
            if world.first:
                print(f"{output} is complete: there is nothing left to do")
            return
        build.check(settings, device)
        data = datasets.load(settings, device).to(device)
        training_runs.prepare([settings.method], data, settings, world.size > 1)
        teacher: Teacher | None = None
        network: Normalised | None = None  # the teacher's
        accuracy: float | None = None
        common: dict[str, Any] = {"progress": progress, "resume": resume, "world": world}
        if settings.method != "student":
            network, accuracy = training_runs.obtain_teacher(settings, data, folder, **common)
            teacher = Teacher(network, data, settings.precision)
        about = training_runs.describe(settings.method, settings.seed, data, settings)
        try:
            run = training_runs.train_student(
                settings.method, settings.seed, teacher, data, settings, about=about, folder=folder, **common
            )
        except Diverged as error:
            raise training_runs.told(settings.method, error, folder, settings.epochs) from error
        assert run.network is not None, "fit returns it"
        accuracies = metrics.class_accuracies(run.network, data)
        result: dict[str, Any] = {
            "kind": "train",
            "environment": {**report.environment(), "device": str(device), "processes": world.size},
            "method": settings.method,
            "seed": settings.seed,
            "settings": settings.as_dict(),
            "teacher_accuracy": accuracy,
            "last": run.last,
            "best": run.best,
            "best_epoch": best_epoch(run.rows)["epoch"],
            "chosen_on": data.chosen_on,
            "classes": dict(zip(data.classes, accuracies, strict=True)),
            "epochs": run.rows,
        }
        if world.first:
            result |= _findings(folder, run, network, data, settings)
            measured = {f"{name}.ckpt": result["qualities"][name] for name in ("best", "last")}
            if accuracy is not None:
                measured["teacher"] = {"accuracy": accuracy}
            write_atomic(folder / CARD, card(settings.method, settings.seed, measured, result, settings))
            write_atomic(folder / MARKER, report.to_json(result))
    if world.first:
        print(f"{settings.method}: last epoch {run.last:.1f} %, best {run.best:.1f} % (chosen on {data.chosen_on})")
        print(f"Results: {output}/last.ckpt, best.ckpt, card.md, log.csv, config.yaml, results.json")


def _findings(
    folder: Path, run: Run, teacher: Normalised | None, data: Data, settings: TrainSettings
) -> dict[str, Any]:
    """What the checkpoints are worth by themselves, and what the experiment was made with."""
    student: Normalised | None = None
    found: dict[str, dict[str, float | None]] = {}
    for name in ("last", "best"):
        if name == "best" and best_epoch(run.rows) is run.rows[-1]:
            found[name] = found["last"]  # the same network
            continue
        student, _, _ = load_network(folder / f"{name}.ckpt", settings.network("student"), "--student-network")
        found[name] = metrics.measure(student.to(data.test.labels.device), None, data, settings)
    assert student is not None, "the last one is always measured"
    described = {"student": student} if teacher is None else {"student": student, "teacher": teacher}
    return {
        **experiment(described, data, settings),
        "qualities": {**found, "protocol": metrics.protocol(data, settings)},
    }


@contextlib.contextmanager
def _folder(
    settings: TrainSettings, given: dict[str, Any], output: str, overwrite: bool, resume: bool, world: World
) -> Iterator[tuple[Path | None, TrainSettings]]:
    """The working folder, which the first process looks after, and the run's settings; it tells the others."""
    if not world.first:
        found = world.share(None)
        if found is None:
            raise UserError(f"--output {output}: see what process 0 says")
        folder, values = found
        yield folder and Path(folder), TrainSettings(**values)
        return
    shared = False
    try:
        with result_folder(output, "train", settings, given, overwrite=overwrite, resume=resume) as (folder, settings):
            world.share((folder and str(folder), settings.as_dict()))
            shared = True
            yield folder, settings
    except BaseException:
        if not shared:
            world.share(None)
        raise
