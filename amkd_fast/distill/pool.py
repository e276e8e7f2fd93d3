"""The runs of a comparison, one after the other or several at once in processes of their own."""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing.context
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from amkd_fast.distill import data as datasets
from amkd_fast.distill import kept_students, metrics, schemas, training_runs
from amkd_fast.distill.data import Data
from amkd_fast.distill.errors import Diverged, UserError
from amkd_fast.distill.files import read_json, write_atomic
from amkd_fast.distill.fit import Run
from amkd_fast.distill.forecast import Task
from amkd_fast.distill.progress import Progress, Tell, receive, send
from amkd_fast.distill.settings import Settings, file_name
from amkd_fast.distill.teacher import Teacher

LATEST = 0.5  # seconds until an epoch of another process is heard of

_about: tuple[Any, ...] = ()  # of a worker: what its runs share
_told: dict[str, Any] = {}  # of a worker: who hears of its epochs, and where they are logged


class Finished:
    """Runs that are done, each in a file of its own, so that an interrupted comparison does not run them again."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self._folder, self._progress = folder, progress
        folder.mkdir(exist_ok=True)

    def __contains__(self, task: Task) -> bool:
        return self._path(task).is_file() and bool(self[task])

    def __getitem__(self, task: Task) -> Run:
        path = self._path(task)
        found = schemas.check(schemas.FinishedRun, read_json(path, "--resume"), f"--resume: {path}")
        if not found.diverged and not (found.rows and "accuracy" in found.rows[-1]):
            raise UserError(f"--resume: {path}: the last row has no accuracy")
        return Run(None, found.rows, found.qualities, found.diverged, found.classes)

    def keep(self, task: Task, run: Run, seconds: float) -> None:
        """Put a run into its file and say what came out."""
        found = {"rows": run.rows, "qualities": run.qualities, "diverged": run.diverged, "classes": run.classes}
        write_atomic(self._path(task), json.dumps(found))
        method, seed = task
        if run.diverged:
            said = f"diverged in epoch {run.diverged['epoch']}: {run.diverged['what']}"
        else:
            said = f"last {run.last:5.1f} %  best {run.best:5.1f} %"
        if not self._progress.quiet:
            print(f"seed {seed} {method:18} {said}  {seconds:5.1f} s", flush=True)
        self._progress.end(task, seconds)

    def clear(self) -> None:
        """Delete the files, once everything that is in them has been written elsewhere."""
        shutil.rmtree(self._folder)

    def _path(self, task: Task) -> Path:
        method, seed = task
        return self._folder / f"{file_name(method)}-{seed}.json"


def run_here(
    tasks: list[Task],
    finished: Finished,
    settings: Settings,
    data: Data,
    teacher: Teacher,
    students: Path | None,
    **options: Any,
) -> None:
    """Train and measure one student after the other; keep it in ``students``, if that is a folder.

    The options are those of :func:`.fit.fit`.
    """
    for task in tasks:
        finished.keep(task, *_one(task, settings, data, teacher, students, **options))


def run_apart(
    tasks: list[Task],
    finished: Finished,
    settings: Settings,
    teacher: Path,
    students: Path | None,
    device: Any,
    jobs: int,
    tell: Tell,
    logs: Path,
) -> None:
    """Train ``jobs`` students at a time: the numbers of :func:`run_here`, the times of a shared CPU.

    Args:
        tasks: Method and seed of each run.
        finished: Where they go.
        settings: Of all of them.
        teacher: Its checkpoint.
        students: Folder for the trained students; None: they are let go.
        device: Where to train.
        jobs: Number of processes, which end with this one.
        tell: Called here after every epoch of any of them.
        logs: Folder for the files of loggers.

    Raises:
        UserError: A process was killed; what the others finished is kept.
    """
    context = _starting()
    # The workers hold the other end: when this one closes, by us or by our death, they end.
    theirs, leash = context.Pipe(duplex=False)
    heard, telling = context.Pipe(duplex=False)
    arguments = (theirs, telling, logs, settings, teacher, students, device, torch.get_num_threads())
    pool = ProcessPoolExecutor(jobs, context, _prepare, arguments)
    try:
        dead, futures = None, {}
        try:
            with _deaf_children():
                for task in tasks:
                    futures[pool.submit(_train, task)] = task
        except BrokenProcessPool as error:
            dead = error
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, LATEST, FIRST_COMPLETED)
            for epoch in receive(heard):
                tell(epoch)
            for future in sorted(done, key=lambda future: tasks.index(futures[future])):
                try:
                    finished.keep(futures[future], *future.result())
                except BrokenProcessPool as error:  # of all that were not done; the others' results still come
                    dead = error
        if dead is not None:
            raise UserError(
                "a process of --jobs was killed, as the system does for want of memory; the finished runs are kept and "
                "--resume goes on, with fewer --jobs perhaps"
            ) from dead
    finally:
        # All that will be kept is: they are ended rather than asked to end, as one that was killed while it waited
        # for work has taken the queue's lock with it, and the others would never hear of it.
        leash.close()
        pool.shutdown(cancel_futures=True)
        heard.close()
        telling.close()


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Ctrl-C reaches a whole group of processes: those that start here leave it to their parent."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _starting() -> multiprocessing.context.BaseContext:
    """Processes are forked from one that has imported all and run nothing: torch's threads would not survive it."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _prepare(leash: Connection, telling: Connection, logs: Path, *about: Any) -> None:
    global _about, _told
    _about, _told = about, {"tell": functools.partial(send, to=telling), "logs": logs}
    threading.Thread(target=_end_with, args=(leash,), daemon=True).start()


def _end_with(leash: Connection) -> None:
    """End this process with the one that holds the other end."""
    with contextlib.suppress(OSError):
        leash.poll(None)
    os._exit(1)


def _train(task: Task) -> tuple[Run, float]:
    settings, teacher, students, *machine = _about
    return _one(task, *_subject(settings, teacher, *machine), students, **_told)


@functools.cache
def _subject(settings: Settings, teacher: Path, device: Any, threads: int) -> tuple[Settings, Data, Teacher]:
    """What all runs of a process share."""
    torch.set_num_threads(threads)
    data = datasets.load(settings, device).to(device)
    network, _ = training_runs.load_teacher(teacher, data, settings)
    return settings, data, Teacher(network, data, settings.precision)


def _one(
    task: Task, settings: Settings, data: Data, teacher: Teacher, students: Path | None, **options: Any
) -> tuple[Run, float]:
    """What came out of a run, and its seconds; the network is measured, kept and let go."""
    start = time.perf_counter()
    try:
        keep = students is not None
        run = training_runs.train_student(*task, teacher, data, settings, best_weights=keep, **options)
    except Diverged as error:
        diverged = {"epoch": error.epoch, "what": error.what}
        return Run(None, error.rows, None, diverged), time.perf_counter() - start
    assert run.network is not None, "fit returns it"
    found = metrics.measure(run.network, teacher.network, data, settings, teacher.tested)
    classes = metrics.class_accuracies(run.network, data)
    if students is not None:
        kept_students.keep(students, *task, run, data, settings)
    run = run._replace(network=None, best_weights=None, qualities=found, classes=classes)
    return run, time.perf_counter() - start
