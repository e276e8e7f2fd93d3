"""``amkd-distill train``: one network, with checkpoints, log and resume, in one process or under torchrun."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amkd_fast.distill import build, report, training_runs
from amkd_fast.distill import data as datasets
from amkd_fast.distill.distributed import World, process_group
from amkd_fast.distill.errors import Diverged, UserError
from amkd_fast.distill.files import write_atomic
from amkd_fast.distill.progress import Progress
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
    log_every: float | None = None,
    quiet: bool = False,
) -> None:
    """Train a student.

    Args:
        settings: Of a fresh run.
        given: The settings that the user stated; a resumed run must not contradict them.
        output: Result folder: teacher.ckpt, last.ckpt, best.ckpt, log.csv, config.yaml, run.json, results.json.
        overwrite: Replace an earlier result once this one is complete.
        resume: Go on with the run in ``output``.
        device: Where to train.
        progress: Show progress bars.
        log_every: Seconds between lines of epochs; None: :data:`.progress.EVERY`, and none beside bars.
        quiet: No lines.

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
        data = datasets.load(settings).to(device)
        training_runs.prepare([settings.method], data, settings, world.size > 1)
        teacher: Teacher | None = None
        accuracy: float | None = None
        lines = Progress(log_every, quiet=quiet, bar=progress)
        task = settings.method, settings.seed
        lines.expect(training_runs.expected(settings, data, [task], folder))
        common: dict[str, Any] = {"progress": progress, "resume": resume, "world": world}
        common |= {"tell": lines.epoch, "logs": folder}
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
        result = {
            "kind": "train",
            "environment": {**report.environment(), "device": str(device), "processes": world.size},
            "method": settings.method,
            "seed": settings.seed,
            "settings": settings.as_dict(),
            "teacher_accuracy": accuracy,
            "last": run.last,
            "best": run.best,
            "epochs": run.rows,
        }
        if world.first:
            write_atomic(folder / MARKER, report.to_json(result))
    if world.first:
        print(f"{settings.method}: last epoch {run.last:.1f} %, best {run.best:.1f} % (chosen on the test set)")
        print(f"Results: {output}/last.ckpt, best.ckpt, log.csv, config.yaml, results.json")


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
