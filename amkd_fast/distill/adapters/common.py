"""What the adapters share."""

from __future__ import annotations

from amkd_fast import checks
from amkd_fast.methods import Method


class Draws:
    """Numbers for :attr:`StepContext.draw`: step s of epoch e, both from 0, gets e·2³² + s.

    A training resumed at the start of an epoch goes on with the numbers that it would have had.
    """

    def __init__(self) -> None:
        self._epoch, self._step = None, 0

    def __call__(self, epoch: int) -> int:
        self._step = self._step + 1 if epoch == self._epoch else 0
        self._epoch = epoch
        return (epoch << 32) + self._step


def check_method(method: object) -> Method:
    """``method`` must be a method of one process."""
    if not isinstance(method, Method):
        raise TypeError(f"method is a {type(method).__name__}: must be a method of amkd_fast.methods")
    if method.distributed:
        raise ValueError("method.distributed=True: must be False, an adapter takes each process's batch as a whole one")
    return method


def check_epoch(epoch: object, first: int, epochs: int) -> int:
    """``epoch`` must be an int among the ``epochs`` that start with ``first``; returns it counted from 0."""
    epoch = checks.whole("epoch", epoch)
    if not first <= epoch < first + epochs:
        raise ValueError(
            f"epoch={epoch}: must lie in {first} … {first + epochs - 1}, epochs={epochs} count from {first}"
        )
    return epoch - first
