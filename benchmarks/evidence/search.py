"""The trainings that choose weights, by the validation images; each process reads data and teacher once."""

from __future__ import annotations

import functools
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from amkd_fast.distill import data as datasets
from amkd_fast.distill import training_runs
from amkd_fast.distill.data import Data
from amkd_fast.distill.errors import Diverged
from amkd_fast.distill.lightning_module import CHOOSES
from amkd_fast.distill.settings import TrainSettings
from amkd_fast.distill.teacher import Teacher
from benchmarks.evidence import store
from benchmarks.evidence.protocol import Point


def run(points: Sequence[Point], path: Path, jobs: int) -> None:
    """Train the points that have no line in ``path``, ``jobs`` at a time, and write one for each that has ended.

    A line has ``validation``, the accuracy after the last epoch in per cent, or None where the training diverged.
    """
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(_train, point, threads): point for point in missing(points, path)}
        for future in as_completed(futures):
            point, found = futures[future], future.result()
            store.add(path, {**point.key, "method": point.settings.method, **found})
            print(*point.key.values(), found, flush=True)


def missing(points: Sequence[Point], path: Path) -> list[Point]:
    """Those that have no line."""
    known = [{name: line[name] for name in Point.KEY} for line in store.lines(path)]
    return [point for point in points if point.key not in known]


def _train(point: Point, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    data, teacher = _subject(point.group_settings)
    begun = time.perf_counter()
    try:
        settings = point.settings
        rows = training_runs.train_student(settings.method, settings.seed, teacher, data, settings).rows
        validation: float | None = rows[-1][CHOOSES]
    except Diverged:
        validation = None
    return {"validation": validation, "minutes": (time.perf_counter() - begun) / 60}


@functools.cache
def _subject(settings: TrainSettings) -> tuple[Data, Teacher]:
    """What all trainings of a group share."""
    assert settings.teacher is not None, "the protocol names one"
    data = datasets.load(settings, torch.device("cpu"))
    network, _ = training_runs.load_teacher(settings.teacher, data, settings)
    return data, Teacher(network, data, settings.precision)
