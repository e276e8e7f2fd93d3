"""What is told while a command works: a bar on a terminal, lines of epochs on any stream."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from select import PIPE_BUF
from typing import Any, NamedTuple

from amkd_fast.distill.forecast import Expected, Forecast, Task
from amkd_fast.methods import COUNTS

EVERY = 10.0  # seconds between lines, where nothing else is said
FIRST = ("total", "ce", "kl")  # of the losses in a row of the log
NO_LOSSES = ("epoch", "lr", "accuracy", "validation", *COUNTS, "ms_per_step")
MOST = PIPE_BUF - 4  # bytes of a message, before which a Connection writes their number


class Epoch(NamedTuple):
    """An epoch that is done."""

    method: str  # "teacher": of its training
    seed: int
    epochs: int  # of the whole training
    row: dict[str, float]  # of the log
    images_per_second: float  # in the training steps
    seconds: float  # with the test


Tell = Callable[[Epoch], None]


class Progress:
    """Prints lines of epochs, keeps their rows, and has others know of them.

    Args:
        every: Seconds between two lines at least; the last epoch of a training always has one. None: :data:`EVERY`,
            or no line where there are bars.
        quiet: No line.
        bar: Whether there are bars.

    Attributes:
        changed: Called after every epoch and end of a training; None: nobody is.
        rows: Of trainings that run, by method and seed.
    """

    def __init__(self, every: float | None = None, *, quiet: bool = False, bar: bool = False) -> None:
        self._every, self.quiet, self.bar = every, quiet, bar
        self.changed: Callable[[], None] | None = None
        self.rows: dict[Task, list[dict[str, float]]] = {}
        self.forecast = Forecast({})
        self._last = -float("inf")

    @property
    def every(self) -> float | None:
        """Seconds between two lines; None: there are none."""
        if self.quiet or (self._every is None and self.bar):
            return None
        return EVERY if self._every is None else self._every

    def expect(self, trainings: dict[Task, Expected], jobs: int = 1) -> None:
        """Say which trainings the command consists of, and how many of them run at a time."""
        self.forecast = Forecast(trainings, jobs)

    def epoch(self, epoch: Epoch) -> None:
        """An epoch is done."""
        task = epoch.method, epoch.seed
        number = int(epoch.row["epoch"]) + 1
        self.forecast.epoch(task, number, epoch.seconds)
        self.rows.setdefault(task, []).append(epoch.row)
        now = time.monotonic()
        if self.every is not None and (number == epoch.epochs or now >= self._last + self.every):
            self._last = now
            print(line(epoch, self.forecast.left()), flush=True)
        self._tell()

    def end(self, task: Task, seconds: float | None = None) -> None:
        """A training is done, and its network measured; see :meth:`Forecast.end`."""
        self.rows.pop(task, None)
        self.forecast.end(task, seconds)
        self._tell()

    def _tell(self) -> None:
        if self.changed is not None:
            self.changed()


def line(epoch: Epoch, left: float | None) -> str:
    """``seed 0 kd  epoch 3/60  accuracy 91.2 %  total 0.812  …  5312 images/s  4 min left``."""
    name = "teacher" if epoch.method == "teacher" else f"seed {epoch.seed} {epoch.method}"
    count = f"{int(epoch.row['epoch']) + 1:>{len(str(epoch.epochs))}}/{epoch.epochs}"
    losses = [f"{part} {epoch.row[part]:.3g}" for part in loss_parts(epoch.row)]
    tested = [f"accuracy {epoch.row['accuracy']:.1f} %"] if "accuracy" in epoch.row else []
    words = [f"{name:25} epoch {count}", *tested, *losses]
    words.append(f"{epoch.images_per_second:.0f} images/s")
    return "  ".join(words + ([] if left is None else [f"{duration(left)} left"]))


def loss_parts(row: dict[str, float]) -> list[str]:
    """Names of the losses in a row of the log, the sum first."""
    return sorted((name for name in row if name not in NO_LOSSES), key=lambda name: (*FIRST, name).index(name))


def duration(seconds: float) -> str:
    """Seconds as people say them.

    Example:
        >>> from amkd_fast.distill.progress import duration
        >>> duration(7.4), duration(610.0), duration(7500.0), duration(200000.0)
        ('7 s', '10 min', '2 h 05 min', '2 d 8 h')
    """
    minutes, hours = round(seconds / 60.0), round(seconds / 3600.0)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{hours // 24} d {hours % 24} h"


def send(epoch: Epoch, to: Connection) -> None:
    """Tell another process, from one of several that write to the same pipe.

    A pipe takes PIPE_BUF bytes at once (512 on every system): what several processes write is not mixed up without a
    lock, which one that is killed would take with it. Losses that do not fit are left out.
    """
    names = [*(name for name in ("epoch", "accuracy") if name in epoch.row), *loss_parts(epoch.row)]
    speed, seconds = _short(epoch.images_per_second), _short(epoch.seconds)
    while True:
        row = {name: _short(epoch.row[name]) for name in names}
        message = json.dumps(epoch._replace(row=row, images_per_second=speed, seconds=seconds)).encode()
        if len(message) <= MOST:
            break
        names.pop()
    to.send_bytes(message)


def receive(connection: Connection) -> Iterator[Epoch]:
    """What has been sent so far."""
    while connection.poll():
        yield Epoch(*json.loads(connection.recv_bytes()))


def _short(value: Any) -> Any:
    return value if isinstance(value, int) else float(f"{value:.5g}")


@contextmanager
def progress_bar(title: str, shown: bool) -> Iterator[Callable[[int, int | None], None] | None]:
    """Yield what a measurement calls with the number of finished batches and that of all; None where nothing is shown.

    Args:
        title: Left of the bar.
        shown: Show it, on stderr, until the block ends.
    """
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
