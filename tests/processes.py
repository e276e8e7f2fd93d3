"""Processes for the tests: forked from one that has imported everything already, so that a start takes no seconds."""

from __future__ import annotations

import multiprocessing
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

METHOD = "forkserver"
FORKING = multiprocessing.get_context(METHOD)
# What cannot be imported is left out: then the test that needs it is skipped.
FORKING.set_forkserver_preload(
    ["pytest", "torch.distributed.run", "amkd_fast", "amkd_fast.distill.train", "amkd_fast.distill.compare"]
)


class Command(NamedTuple):
    """``amkd-distill`` in a process of its own."""

    process: multiprocessing.process.BaseProcess
    errors: Path

    def wait(self) -> tuple[int, str]:
        """Exit code, and what was complained of."""
        self.process.join()
        return self.process.exitcode, self.errors.read_text()


def start(words: list[str], errors: Path) -> Command:
    """Run ``amkd-distill WORDS``, its complaints in the file ``errors``."""
    errors.touch()  # a kill may come before the process has written anything
    process = FORKING.Process(target=_apart, args=(words, errors))
    process.start()
    return Command(process, errors)


def torchrun(words: list[str], folder: Path, processes: int = 2) -> tuple[bool, list[str], list[str]]:
    """What ``torchrun`` does, but for the start of interpreters.

    Args:
        words: Of ``amkd-distill``.
        folder: An empty one, for what is printed.
        processes: Their number.

    Returns:
        Whether all went well, and what each process printed and complained of.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        start_method=METHOD,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder), redirects=Std.ALL),
    )
    # In a thread, where it leaves the signals of this process alone.
    with ThreadPoolExecutor(1) as thread:
        failure = thread.submit(elastic_launch(config, command), *words).exception()
    if failure is not None and not isinstance(failure, ChildFailedError):
        raise failure
    (attempt,) = folder.glob("*/attempt_0")
    printed, errors = (
        [(attempt / str(rank) / f"{stream}.log").read_text() for rank in range(processes)]
        for stream in ("stdout", "stderr")
    )
    return failure is None, printed, errors


def command(*words: str) -> None:
    """As ``python -m amkd_fast.distill`` does."""
    from amkd_fast.distill.cli import main

    if code := main(list(words)):
        sys.exit(code)


def _apart(words: list[str], errors: Path) -> None:
    for stream, path in ((1, os.devnull), (2, errors)):
        with open(path, "w") as file:
            os.dup2(file.fileno(), stream)
    command(*words)
