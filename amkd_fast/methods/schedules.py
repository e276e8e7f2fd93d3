"""Weights that change with the epoch, as the public BSS trainers change them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from amkd_fast import checks


class Schedule(Protocol):
    """A weight for every epoch e of E."""

    def __call__(self, epoch: int, epochs: int) -> float: ...


class Constant(NamedTuple):
    """The same weight in every epoch.

    Example:
        >>> from amkd_fast.methods import Constant
        >>> Constant(0.5)(3, 60)
        0.5
    """

    weight: float

    def __call__(self, epoch: int, epochs: int) -> float:
        return self.weight


class Linear(NamedTuple):
    """From ``start`` in epoch 0 to ``end`` in epoch E; the public KD weight 3(1 − e/E) + 1 is ``Linear(4, 1)``.

    Example:
        >>> from amkd_fast.methods import Linear
        >>> Linear(4.0, 1.0)(30, 60)
        2.5
    """

    start: float
    end: float

    def __call__(self, epoch: int, epochs: int) -> float:
        return self.start + (self.end - self.start) * (epoch / epochs)


class Falling(NamedTuple):
    """Linear from ``start`` to 0 at ``until`` of the epochs, then 0.

    The public BSS weight max(2(1 − 4e/(3E)), 0) is ``Falling(2.0, 0.75)``.

    Example:
        >>> from amkd_fast.methods import Falling
        >>> [Falling(2.0, 0.75)(epoch, 60) for epoch in (0, 45, 59)]
        [2.0, 0.0, 0.0]
    """

    start: float
    until: float

    def __call__(self, epoch: int, epochs: int) -> float:
        return self.start * max(0.0, 1.0 - epoch / (self.until * epochs))


class Delayed(NamedTuple):
    """0 in the first ``wait`` epochs, then on a line from ``start`` in epoch 0 to 0 at ``until`` of the epochs.

    The zoo's trainer, whose first epoch is 1: 2(1 − 5(e − 1)/(4E)) after ten epochs is ``Delayed(2.0, 0.8, 10)``.

    Example:
        >>> from amkd_fast.methods import Delayed
        >>> [Delayed(2.0, 0.8, 10)(epoch, 100) for epoch in (9, 10, 80, 99)]
        [0.0, 1.75, 0.0, 0.0]
    """

    start: float
    until: float
    wait: int

    def __call__(self, epoch: int, epochs: int) -> float:
        return 0.0 if epoch < self.wait else Falling(self.start, self.until)(epoch, epochs)


class Rising(NamedTuple):
    """Linear up to ``weight``, which the epoch number ``over`` has, counted from 1; the same from then on.

    Example:
        >>> from amkd_fast.methods import Rising
        >>> [Rising(1.0, 20)(epoch, 60) for epoch in (0, 9, 19, 59)]
        [0.05, 0.5, 1.0, 1.0]
    """

    weight: float
    over: int

    def __call__(self, epoch: int, epochs: int) -> float:
        return self.weight * min(1.0, (epoch + 1) / self.over)


OFFICIAL_KL = Linear(4.0, 1.0)
OFFICIAL_BOUNDARY = Falling(2.0, 0.75)
ZOO_BOUNDARY = Delayed(2.0, 0.8, 10)
DECOUPLED_RISE = Rising(1.0, 20)


def as_schedule(name: str, weight: float | Schedule) -> Schedule:
    """A number means the same weight in every epoch."""
    return weight if callable(weight) else Constant(checks.non_negative(name, weight))
