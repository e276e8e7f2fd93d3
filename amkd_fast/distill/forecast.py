"""How long a command's trainings still take, by what their epochs have taken so far."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import NamedTuple

Task = tuple[str, int]  # method (or "teacher") and seed


class Expected(NamedTuple):
    """A training to come."""

    epochs: int
    images: int  # in an epoch


class Forecast:
    """Seconds left of several trainings.

    An epoch is expected to take what those of its method took; of a method not yet seen, what an image took on average
    in the other students' epochs (before any student's, in the teacher's). A training's end, where its network is
    measured, is expected to take what the other ends took.

    Example:
        >>> from amkd_fast.distill.forecast import Expected, Forecast
        >>> forecast = Forecast({("kd", 0): Expected(10, 100), ("amkd", 0): Expected(10, 100)})
        >>> forecast.left() is None  # nothing has been seen
        True
        >>> forecast.epoch(("kd", 0), 4, 2.0)  # its fourth epoch took 2 s
        >>> forecast.left()  # 6 of kd, and 10 of amkd that may take as long
        32.0
    """

    def __init__(self, expected: dict[Task, Expected], jobs: int = 1) -> None:
        self.expected, self.jobs = dict(expected), jobs
        self._done: dict[Task, int] = {}  # epochs
        self._seconds: dict[Task, list[float]] = {}  # of the epochs that were seen
        self._ends: list[float] = []
        self._ended: set[Task] = set()

    def epoch(self, task: Task, number: int, seconds: float) -> None:
        """The epoch of this number, from 1, is done."""
        self._done[task] = number
        self._seconds.setdefault(task, []).append(seconds)

    def end(self, task: Task, seconds: float | None = None) -> None:
        """A training is done, and measured; with its seconds, unless it was done before."""
        self._ended.add(task)
        if seconds is not None:
            self._ends.append(max(0.0, seconds - sum(self._seconds.get(task, ()))))

    def left(self) -> float | None:
        """Seconds until all are done; None as long as no epoch has been."""
        if not self._seconds:
            return None
        end = statistics.fmean(self._ends) if self._ends else 0.0
        each = [
            (expected.epochs - self._done.get(task, 0)) * expected.images * self._per_image(task[0])
            + (0.0 if task[0] == "teacher" else end)
            for task, expected in self.expected.items()
            if task not in self._ended
        ]
        return max(sum(each) / self.jobs, max(each, default=0.0))

    def _per_image(self, method: str) -> float:
        students = [task for task in self._seconds if task[0] != "teacher"]
        alike = [task for task in self._seconds if task[0] == method] or students or list(self._seconds)
        return statistics.fmean(self._rates(alike))

    def _rates(self, tasks: Iterable[Task]) -> list[float]:
        return [seconds / self.expected[task].images for task in tasks for seconds in self._seconds[task]]
