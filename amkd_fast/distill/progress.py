"""A progress bar on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
