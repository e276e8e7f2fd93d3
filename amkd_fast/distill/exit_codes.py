"""How every command ends: with an exit code and, if anything went wrong, one line on stderr that says what."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from amkd_fast.distill.errors import Diverged, UserError, exhausted
from amkd_fast.version import __version__

OK, BUG, BAD_INPUT, DIVERGED, PARTLY, INTERRUPTED = 0, 1, 2, 3, 4, 130
CODES = (
    f"exit codes: {OK} done; {BUG} a bug of amkd_fast (a traceback, and how to report it); {BAD_INPUT} "
    f"something to put right: input, files, the machine; {DIVERGED} the training diverged (compare: every run); "
    f"{PARTLY} predict: some pictures could not be read, the others are predicted; "
    f"{INTERRUPTED} interrupted (SIGINT, SIGTERM, SIGHUP); what is unfinished goes on with --resume"
)
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_WORD = 400  # characters of a word that a line shows


def guarded(work: Callable[[], int]) -> int:
    """Do the work; return its exit code, or that of what it raised, of which one line tells."""
    with _stopped_by_signals() as stopped:
        try:
            _check_streams()
            code = work()
            sys.stdout.flush()
            return code
        except BaseException as error:
            return _told(error, bool(stopped))


def say(message: str) -> None:
    """One line on stderr, if anybody listens."""
    message = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(message.split()))
    message = re.sub(rf"\S{{{_WORD},}}", lambda word: f"{word[0][: _WORD // 2]}…{word[0][-20:]}", message)
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(f"amkd-distill: {message}", file=sys.stderr, flush=True)


def _told(error: BaseException, stopped: bool) -> int:
    # An import or a library that is interrupted may turn the interruption into anything.
    if stopped or isinstance(error, KeyboardInterrupt):
        say("interrupted" + (" (--resume goes on)" if getattr(error, "resumable", False) else ""))
        return INTERRUPTED
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else OK if error.code is None else BUG
    if isinstance(error, UserError):
        say(str(error))
        return BAD_INPUT
    if isinstance(error, Diverged):
        say(str(error))
        return DIVERGED
    if isinstance(error, OSError):
        _abandon_stdout()
        where = f"{error.filename}: " if error.filename else ""
        reason = "nobody reads what is printed" if isinstance(error, BrokenPipeError) else error.strerror or str(error)
        say(f"{where}{reason}")
        return BAD_INPUT
    if exhausted(error):
        say(f"the machine has not enough memory for this ({str(error)[:200] or type(error).__name__})")
        return BAD_INPUT
    with contextlib.suppress(OSError, ValueError):
        traceback.print_exception(error)
    say(
        f"this is a bug of amkd_fast {__version__}: please report it with the command, the lines above and what "
        "`python -m amkd_fast.info` prints"
    )
    return BUG


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[list[int]]:
    """Every signal that asks for an end is a KeyboardInterrupt; yields those that came."""
    came: list[int] = []

    def stop(number: int, frame: Any) -> None:
        came.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    # What nohup or a shell's & ignores stays ignored.
    ours = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield came
    finally:
        for number in ours:
            signal.signal(number, before[number])


def _check_streams() -> None:
    """Give closed streams something to point at, else the next file that is opened takes their number.

    Raises:
        UserError: There is no standard output.
    """
    silent = sys.stdout is None
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            silent = silent or number == 1
    if silent:
        raise UserError("standard output is closed: give it a file, or /dev/null")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a name that the terminal's encoding lacks is no reason to stop


def _abandon_stdout() -> None:
    """What cannot be written now cannot be written at exit either; spare the user the second complaint."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
