"""One pytest, watched: which test fails first, crashes or never ends."""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from .selection import Stage
from .tree import Tree

# A test's line, to which a crash adds its own words.
STARTED = re.compile(
    r"^(tests/\S+?\.py::.*?)(?: (?:(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b|Fatal Python error: ).*)?$"
)
_NOTHING_SELECTED = 5


class Outcome(NamedTuple):
    """What became of a stage."""

    verdict: str  # passed, caught, crash, timeout or error
    test: str  # that decided it
    passed: int  # tests
    failed: tuple[str, ...] = ()
    words: str = ""  # the end of the output, where it is an error


def run(tree: Tree, stage: Stage, through: list[str], limit: float, *, stop: bool = True) -> Outcome:
    """A stage on the tree as it is; a test that says nothing for ``limit`` seconds hangs."""
    command = [*through, sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"]
    command += ["-o", "console_output_style=classic", "--tb=line", *(["-x"] if stop else []), *stage.arguments()]
    process = subprocess.Popen(
        command, cwd=tree.root, env=tree.environment() | stage.environment(), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    text, timed_out = "", False
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        since = None  # the command may wait for its turn before it says anything
        while True:
            if selector.select(timeout=5.0):
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                if not chunk:
                    break
                text, since = text + chunk.decode(errors="replace"), time.monotonic()
            elif since is not None and time.monotonic() - since > limit:
                timed_out = True
                break
    if timed_out:
        os.killpg(process.pid, signal.SIGKILL)
    return _judge(text, process.wait(), timed_out)


def _judge(text: str, code: int, timed_out: bool) -> Outcome:
    passed, failed, running = 0, [], ""
    for line in text.splitlines():
        if not (match := STARTED.match(line)):
            continue
        test, verdict = match.groups()
        running = "" if verdict else test.strip()
        passed += verdict == "PASSED"
        if verdict in ("FAILED", "ERROR"):
            failed.append(test)
    if timed_out:
        return Outcome("timeout", running or "collection", passed)
    if failed:
        return Outcome("caught", failed[0], passed, tuple(failed))
    if code in (0, _NOTHING_SELECTED):
        return Outcome("passed", "", passed)
    if running:
        return Outcome("crash", running, passed)
    return Outcome("error", "", passed, words=text[-2000:])
