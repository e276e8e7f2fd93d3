"""The one owner of a result folder: it is created, locked, resumed and replaced here, and nowhere else."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from amkd_fast.distill.errors import UserError
from amkd_fast.distill.files import write_atomic
from amkd_fast.distill.lock import locked
from amkd_fast.distill.resume import start, stored
from amkd_fast.distill.settings import Settings

MARKER = "results.json"  # written last; a folder without it is no result of ours and is never replaced

S = TypeVar("S", bound=Settings)


def partial_of(output: Path | str) -> Path:
    """The folder beside ``output`` in which a result grows until it is complete."""
    return _beside(Path(output).resolve(), ".partial")


@contextlib.contextmanager
def result_folder(
    output: str, command: str, settings: S, given: dict[str, Any], *, overwrite: bool, resume: bool
) -> Iterator[tuple[Path | None, S]]:
    """Yield a working folder that becomes ``output`` when the block ends without an error, and the run's settings.

    A process that is killed at any moment leaves the earlier result, or the new one, or a working folder to resume. An
    error leaves the working folder too, if a run has written anything there; else what was there before comes back.

    Args:
        output: The result folder. One that holds a result is refused unless ``overwrite`` or ``resume``; one that holds
            anything else is always refused.
        command: ``train`` or ``compare``; only its own results are resumed.
        settings: Of a new run.
        given: Those that the user stated: a resumed run must not contradict them.
        overwrite: Replace an earlier result, after the new one is complete; discard an unfinished one, after the new
            one has written something.
        resume: Continue in the unfinished folder. Where the result is complete, no folder is yielded: there is nothing
            left to do.

    Raises:
        UserError: The folder cannot be had, or not so.
    """
    final = Path(output).resolve()
    work, discarded = partial_of(output), _beside(final, ".discarded")
    if final.exists() and not final.is_dir():
        raise UserError(f"--output {output}: is a file, not a folder")
    _make(final.parent, output)
    with locked(final, output):
        _recover(final, work, discarded)
        if final.is_dir() and any(final.iterdir()) and not (final / MARKER).is_file():
            raise UserError(f"--output {output}: holds files that are no result of amkd-distill; choose another folder")
        first: Mapping[str, str] = {}
        if resume:
            if not work.is_dir() and not (final / MARKER).is_file():
                raise UserError(f"--resume: there is no run to continue in {output}")
            settings = stored(work if work.is_dir() else final, command, settings, given)
            if not work.is_dir():
                yield None, settings
                return
            for left in work.rglob(".*.tmp"):  # of a file that was being written
                left.unlink()
        else:
            first = start(command, settings)
            _start_in(final, work, discarded, output, overwrite, first)
        try:
            yield work, settings
            _swap(work, final)
            shutil.rmtree(discarded, ignore_errors=True)
        except BaseException as error:
            if {path.name for path in work.rglob("*") if path.is_file()} <= set(first):
                shutil.rmtree(work, ignore_errors=True)
                if discarded.exists():
                    os.rename(discarded, work)
            else:
                error.resumable = True
                shutil.rmtree(discarded, ignore_errors=True)
            raise


def _beside(final: Path, suffix: str) -> Path:
    return final.with_name(final.name + suffix)


def _make(folder: Path, output: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be made ({folder}: {error.strerror})") from error


def _recover(final: Path, work: Path, discarded: Path) -> None:
    """Finish what a kill has left between two renames."""
    earlier = _beside(final, ".earlier")
    if earlier.exists() and not final.exists():
        os.rename(earlier, final)
    if discarded.exists() and not work.exists():
        os.rename(discarded, work)
    shutil.rmtree(earlier, ignore_errors=True)
    shutil.rmtree(discarded, ignore_errors=True)
    shutil.rmtree(_beside(work, ".new"), ignore_errors=True)


def _start_in(final: Path, work: Path, discarded: Path, output: str, overwrite: bool, first: Mapping[str, str]) -> None:
    if (final / MARKER).is_file() and not overwrite:
        raise UserError(f"--output {output}: holds an earlier result; choose another folder or give --overwrite")
    if work.exists() and not overwrite:
        raise UserError(
            f"--output {output}: an unfinished run is in {work}; --resume goes on with it, --overwrite discards it"
        )
    new = _beside(work, ".new")
    try:
        new.mkdir()
        for name, content in first.items():
            write_atomic(new / name, content)
        if work.exists():
            os.rename(work, discarded)
        os.rename(new, work)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _swap(work: Path, final: Path) -> None:
    """Put ``work`` in the place of ``final``; the earlier result is deleted after the new one stands."""
    earlier = _beside(final, ".earlier")
    if final.exists():
        os.rename(final, earlier)
    try:
        os.rename(work, final)
    except OSError:
        if earlier.exists():
            os.rename(earlier, final)
        raise
    shutil.rmtree(earlier, ignore_errors=True)
