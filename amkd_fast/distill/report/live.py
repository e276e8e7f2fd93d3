"""The page of a comparison while it runs: rewritten with what there is."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from amkd_fast.distill.files import finite, write_atomic
from amkd_fast.distill.progress import Progress, duration
from amkd_fast.distill.report.page import Running, page
from amkd_fast.distill.report.summary import Runs

RELOAD = 15  # seconds
SHARE = 0.02  # of the time goes to the page at most


class LivePage:
    """Writes the page after epochs and trainings, as often as :data:`RELOAD` and :data:`SHARE` allow.

    Args:
        path: Of the page.
        final: Where the finished one is going to be, from this one.
        progress: Knows the trainings that run.
        done: Gives the runs that are done.
        result: Makes of them, by method and seed, what goes to results.json as far as it is known.
    """

    def __init__(
        self,
        path: Path,
        final: str,
        progress: Progress,
        done: Callable[[], Runs],
        result: Callable[[Runs], dict[str, Any]],
    ) -> None:
        self.path, self.final, self.progress, self.done, self.result = path, final, progress, done, result
        self._next = -float("inf")

    def update(self) -> None:
        """Write the page, unless that was done a moment ago."""
        start = time.monotonic()
        if start >= self._next:
            self.write()
            self._next = start + max(RELOAD, (time.monotonic() - start) / SHARE)

    def write(self) -> None:
        """Write the page."""
        runs, forecast = self.done(), self.progress.forecast
        rows = self.progress.rows
        unfinished = [
            {"method": method, "seed": seed, "last": None, "best": None, "diverged": None, "epochs": epochs}
            for (method, seed), epochs in rows.items()
        ]
        result = self.result(runs)
        left = forecast.left()
        running = Running(
            done=len(runs),
            of=len(runs)
            + sum(method != "teacher" and (method, seed) not in runs for method, seed in forecast.expected),
            left="" if left is None else duration(left),
            at=datetime.now().strftime("%H:%M:%S"),
            final=self.final,
            reload=RELOAD,
            now=[
                {
                    "name": "teacher" if method == "teacher" else f"{method}, seed {seed}",
                    "epoch": int(epochs[-1]["epoch"]) + 1,
                    "epochs": forecast.expected[method, seed].epochs,
                    "accuracy": next(row["accuracy"] for row in reversed(epochs) if "accuracy" in row),
                }
                for (method, seed), epochs in rows.items()
            ],
        )
        result = {**result, "tests": [], "runs": [*result["runs"], *unfinished]}
        write_atomic(self.path, page(finite(result), {}, running))
