"""Files that are either whole or not there, and result folders that replace an earlier result only when complete."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from amkd_fast.distill.errors import UserError

MARKER = "results.json"  # written last; a folder without it is no result of ours and is never replaced


def write_atomic(path: Path | str, content: bytes | str) -> None:
    """Write a file so that a reader, a crash or a full disk sees the old content or the new, never half of one."""
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # name the file, not its temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def partial_of(output: Path | str) -> Path:
    """The folder beside ``output`` in which a result grows until it is complete."""
    output = Path(output).resolve()
    return output.with_name(output.name + ".partial")


@contextlib.contextmanager
def result_folder(
    output: str,
    *,
    overwrite: bool,
    resume: bool = False,
    keep_partial: bool = False,
    first: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Path]:
    """Yield a working folder that becomes ``output`` when the block ends without an error.

    A process that is killed at any moment leaves the earlier result, or the new one, or a working folder to resume.

    Args:
        output: The result folder. One that holds a result is refused unless ``overwrite`` or ``resume``; one that holds
            anything else is always refused.
        overwrite: Replace an earlier result, after the new one is complete; discard an unfinished one.
        resume: Continue in the unfinished folder, or in a copy of the finished result.
        keep_partial: Leave the working folder behind after an error, if there is anything in it beyond ``first``, so
            that the run can be resumed.
        first: Files, by name, that a new working folder never is without.
    """
    final, work = Path(output).resolve(), partial_of(output)
    _refuse_foreign(final, output)
    if resume:
        _continue_in(final, work, output)
    else:
        _start_in(final, work, output, overwrite, first)
    try:
        yield work
        _swap(work, final)
    except BaseException:
        if not keep_partial or {path.name for path in work.iterdir()} <= set(first):
            shutil.rmtree(work, ignore_errors=True)
        raise


def _refuse_foreign(final: Path, output: str) -> None:
    if final.exists() and not final.is_dir():
        raise UserError(f"--output {output}: is a file, not a folder")
    if final.is_dir() and any(final.iterdir()) and not (final / MARKER).is_file():
        raise UserError(f"--output {output}: holds files that are no result of amkd-distill; choose another folder")


def _start_in(final: Path, work: Path, output: str, overwrite: bool, first: Mapping[str, str]) -> None:
    if (final / MARKER).is_file() and not overwrite:
        raise UserError(f"--output {output}: holds an earlier result; choose another folder or give --overwrite")
    if work.exists() and not overwrite:
        raise UserError(
            f"--output {output}: an unfinished run is in {work}; --resume goes on with it, --overwrite discards it"
        )
    if work.exists():
        shutil.rmtree(work)
    with _whole(work) as new:
        new.mkdir(parents=True)
        for name, content in first.items():
            write_atomic(new / name, content)


def _continue_in(final: Path, work: Path, output: str) -> None:
    if work.is_dir():
        for left in work.rglob(".*.tmp"):  # of a file that was being written
            left.unlink()
        return
    if not (final / MARKER).is_file():
        raise UserError(f"--resume: there is no run to continue in {output}")
    with _whole(work) as new:
        shutil.copytree(final, new)


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Yield the name under which a folder is made that appears when it is complete."""
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        yield new
        os.rename(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _swap(work: Path, final: Path) -> None:
    """Put ``work`` in the place of ``final``; the earlier result is deleted after the new one stands."""
    earlier = final.with_name(final.name + ".earlier")
    if earlier.exists():
        shutil.rmtree(earlier)
    if final.exists():
        os.rename(final, earlier)
    try:
        os.rename(work, final)
    except OSError:
        if earlier.exists():
            os.rename(earlier, final)
        raise
    shutil.rmtree(earlier, ignore_errors=True)
