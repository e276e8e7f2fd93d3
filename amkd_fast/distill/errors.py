"""What ends a command by no fault of the code: each is one line to its user (:mod:`.exit_codes` has the exit codes)."""

from __future__ import annotations

import contextlib
import importlib.util
import reprlib
from collections.abc import Iterator
from typing import Any

EXTRA = {
    "lightning": "lightning",
    "torchmetrics": "torchmetrics",
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
    "PIL": "pillow",
    "pydantic": "pydantic",
    "yaml": "pyyaml",
    "rich": "rich",
}
# How torch and Python say, in a RuntimeError, that the machine has no more to give.
_EXHAUSTED = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "can't start new thread")
_SHOWN = reprlib.Repr()
_SHOWN.maxlevel, _SHOWN.maxstring, _SHOWN.maxother = 2, 60, 60


class UserError(Exception):
    """Something only the user can put right; the message is one line that says what."""


class Diverged(Exception):
    """A training whose loss or weights are no longer finite; the message is one line that says where.

    Attributes:
        epoch: The first such epoch, from 1.
        what: Which parts of the loss, or the weights.
        rows: The log of the epochs before.
    """

    def __init__(self, epoch: int, what: str, rows: list[dict[str, Any]], message: str = "") -> None:
        super().__init__(message or f"epoch {epoch}: {what} not finite")
        self.epoch, self.what, self.rows = epoch, what, rows


def require_extra() -> None:
    """Raise :class:`UserError` unless every package of the extra ``train`` is installed."""
    missing = [name for module, name in EXTRA.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed: run `pip install amkd_fast[train]`")


def short(value: object, most: int = 80) -> str:
    """The value as Python writes it, cut: a few bytes of a file can stand for more than any terminal holds.

    Example:
        >>> from amkd_fast.distill.errors import short
        >>> short([[[[1]]]] * 1000), short("ok")
        ("[[[...]], [[...]], [[...]], [[...]], [[...]], [[...]], ...]", "'ok'")
    """
    try:
        text = _SHOWN.repr(value)
    except Exception:  # an int of too many digits, a type of somebody else's
        text = f"a {type(value).__name__}"
    return text if len(text) <= most else text[: most - 1] + "…"


def exhausted(error: BaseException) -> bool:
    """Whether the error says that memory, or room for threads, has run out."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(mark in str(error) for mark in _EXHAUSTED)
    )


@contextlib.contextmanager
def allocating(what: str) -> Iterator[None]:
    """Name what asked for more memory than there is."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not exhausted(error):
            raise
        raise UserError(f"{what}: needs more memory than there is") from error
