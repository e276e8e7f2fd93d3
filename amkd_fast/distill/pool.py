"""The runs of a comparison, one after the other or several at once in processes of their own."""

from __future__ import annotations

import json
import multiprocessing.context
import shutil
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from amkd_fast.distill import data as datasets
from amkd_fast.distill import experiment, qualities
from amkd_fast.distill.data import Data
from amkd_fast.distill.experiment import Run
from amkd_fast.distill.files import write_atomic
from amkd_fast.distill.settings import Settings
from amkd_fast.distill.teacher import Teacher

Task = tuple[str, int]  # method, seed

_worker: tuple[Settings, Data, Teacher] | None = None


class Finished:
    """Runs that are done, each in a file of its own, so that an interrupted comparison does not run them again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def __contains__(self, task: Task) -> bool:
        return self._path(task).is_file()

    def __getitem__(self, task: Task) -> Run:
        return Run(None, **json.loads(self._path(task).read_text()))

    def keep(self, task: Task, run: Run, seconds: float) -> None:
        """Put a run into its file and say what came out."""
        write_atomic(self._path(task), json.dumps({"rows": run.rows, "qualities": run.qualities}))
        method, seed = task
        print(f"seed {seed} {method:18} last {run.last:5.1f} %  best {run.best:5.1f} %  {seconds:5.1f} s", flush=True)

    def clear(self) -> None:
        """Delete the files, once everything that is in them has been written elsewhere."""
        shutil.rmtree(self._folder)

    def _path(self, task: Task) -> Path:
        method, seed = task
        return self._folder / f"{method}-{seed}.json"


def run_here(
    tasks: list[Task], finished: Finished, settings: Settings, data: Data, teacher: Teacher, progress: bool
) -> None:
    """Train and measure one student after the other."""
    for task in tasks:
        finished.keep(task, *_one(task, settings, data, teacher, progress))


def run_apart(tasks: list[Task], finished: Finished, settings: Settings, teacher: Path, device: Any, jobs: int) -> None:
    """Train ``jobs`` students at a time: the numbers of :func:`run_here`, the times of a shared CPU.

    Args:
        tasks: Method and seed of each run.
        finished: Where they go.
        settings: Of all of them.
        teacher: Its checkpoint.
        device: Where to train.
        jobs: Number of processes.
    """
    context = _starting()
    arguments = (settings, teacher, device, torch.get_num_threads())
    pool = ProcessPoolExecutor(jobs, context, _prepare, arguments)
    try:
        futures = {pool.submit(_train, task): task for task in tasks}
        for future in as_completed(futures):
            finished.keep(futures[future], *future.result())
    finally:
        pool.shutdown(cancel_futures=True)


def _starting() -> multiprocessing.context.BaseContext:
    """Processes are forked from one that has imported all and run nothing: torch's threads would not survive it."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _prepare(settings: Settings, teacher: Path, device: Any, threads: int) -> None:
    global _worker
    torch.set_num_threads(threads)
    data = datasets.load(settings).to(device)
    network, _ = experiment.load_teacher(teacher, data, settings)
    _worker = (settings, data, Teacher(network, data, settings.precision))


def _train(task: Task) -> tuple[Run, float]:
    return _one(task, *_worker, False)


def _one(task: Task, settings: Settings, data: Data, teacher: Teacher, progress: bool) -> tuple[Run, float]:
    """What came out of a run, and its seconds; the network is measured and let go."""
    start = time.perf_counter()
    run = experiment.train_student(*task, teacher, data, settings, progress=progress)
    found = qualities.measure(run.network, teacher.network, data, settings)
    return run._replace(network=None, qualities=found), time.perf_counter() - start
