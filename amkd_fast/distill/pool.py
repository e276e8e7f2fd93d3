"""The runs of a comparison, one after the other or several at once in processes of their own."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from amkd_fast.distill import data as datasets
from amkd_fast.distill import experiment
from amkd_fast.distill.data import Data
from amkd_fast.distill.experiment import Run
from amkd_fast.distill.methods import Teacher
from amkd_fast.distill.settings import Settings

Task = tuple[str, int]  # method, seed

_worker: tuple[Settings, Data, Teacher] | None = None


def run_here(tasks: list[Task], settings: Settings, data: Data, teacher: Teacher, progress: bool) -> dict[Task, Run]:
    """Train one student after the other."""
    runs = {}
    for method, seed in tasks:
        start = time.perf_counter()
        runs[method, seed] = experiment.train_student(method, seed, teacher, data, settings, progress=progress)
        _say(method, seed, runs[method, seed], time.perf_counter() - start)
    return runs


def run_apart(tasks: list[Task], settings: Settings, teacher: Path, device: Any, jobs: int) -> dict[Task, Run]:
    """Train ``jobs`` students at a time: the numbers of :func:`run_here`, the times of a shared CPU.

    Args:
        tasks: Method and seed of each run.
        settings: Of all of them.
        teacher: Its checkpoint.
        device: Where to train.
        jobs: Number of processes.
    """
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    arguments = (settings, teacher, device, torch.get_num_threads())
    runs = {}
    pool = ProcessPoolExecutor(jobs, context, _prepare, arguments)
    try:
        futures = {pool.submit(_train, task): task for task in tasks}
        for future in as_completed(futures):
            rows, seconds = future.result()
            method, seed = futures[future]
            runs[method, seed] = Run(None, rows)
            _say(method, seed, runs[method, seed], seconds)
    finally:
        pool.shutdown(cancel_futures=True)
    return runs


def _prepare(settings: Settings, teacher: Path, device: Any, threads: int) -> None:
    global _worker
    torch.set_num_threads(threads)
    data = datasets.load(settings).to(device)
    _worker = (settings, data, experiment.freeze(experiment.load_teacher(teacher, data), data))


def _train(task: Task) -> tuple[list[dict[str, float]], float]:
    settings, data, teacher = _worker
    start = time.perf_counter()
    rows = experiment.train_student(*task, teacher, data, settings).rows
    return rows, time.perf_counter() - start


def _say(method: str, seed: int, run: Run, seconds: float) -> None:
    print(f"seed {seed} {method:18} last {run.last:5.1f} %  best {run.best:5.1f} %  {seconds:5.1f} s", flush=True)
