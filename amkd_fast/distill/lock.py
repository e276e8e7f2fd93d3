"""A lock on a place for results, so that two processes never write one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from amkd_fast.distill.errors import UserError, short


@contextlib.contextmanager
def locked(place: Path, output: str) -> Iterator[None]:
    """Hold ``place`` for the length of the block, by a lock on a file beside it.

    The system lets go of the lock when the process ends, however it does: what a dead process has left locks nothing.

    Args:
        place: What is going to be written.
        output: What its user calls it.

    Raises:
        UserError: Another process holds it; the message names that process, its host and since when.
    """
    path = place.with_name(f".{place.name}.lock")
    handle = _locked(path, output)
    try:
        record = {"process": os.getpid(), "host": socket.gethostname(), "since": _now()}
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps(record).encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)  # still locked: who opens it from now on makes a new one
        os.close(handle)


def _locked(path: Path, output: str) -> int:
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise UserError(f"--output {output}: cannot be written to ({path}: {error.strerror})") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(handle)):
                return handle
            problem = None  # its holder has just deleted it: a lock on a file that is no longer there
        except BlockingIOError:
            problem = f"in use by {_holder(handle)}"
        except FileNotFoundError:
            problem = None
        except OSError as error:
            problem = f"cannot be locked ({path}: {error.strerror})"
        os.close(handle)
        if problem is not None:
            raise UserError(f"--output {output}: {problem}")


def _holder(handle: int) -> str:
    try:
        record = json.loads(os.pread(handle, 4096, 0))
        return f"process {int(record['process'])} on {short(record['host'])[1:-1]} since {short(record['since'])[1:-1]}"
    except (ValueError, KeyError, TypeError):  # it has not written it yet
        return "another process"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
