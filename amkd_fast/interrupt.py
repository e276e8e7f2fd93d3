"""Ctrl-C while ``amkd-distill`` is still importing torch, which takes seconds: one line, no traceback."""

from __future__ import annotations

import os
import signal
import sys
import threading

_PROGRAM = "amkd_fast.distill"


def expect() -> None:
    """End at once on SIGINT, until the command line has its own handlers; does nothing in any other program."""
    ours = os.path.basename(sys.argv[0]) == "amkd-distill" if sys.argv else False
    # `python -m` has no name yet while it imports the package that its module lies in.
    asked = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    ours = ours or (sys.argv[:1] == ["-m"] and asked[-1:] == [_PROGRAM])
    main = threading.current_thread() is threading.main_thread()
    if ours and main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(*_: object) -> None:
    os.write(2, b"amkd-distill: interrupted\n")
    os._exit(130)


expect()
