"""Values by epoch, method by method: the mean over the seeds and the band around it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from amkd_fast.distill.progress import loss_parts

LOSSES = {
    "ce": "cross-entropy",
    "kl": "KL to the teacher",
    "boundary": "KL, boundary samples",
    "triplet": "triplets",
    "segments": "stages and logits, squared",
    "augmented": "KL, augmented images",
    "particles": "KL, particles",
    "distance": "distances among samples",
    "angle": "angles among samples",
}
LOGARITHMIC = ("ce", "kl", "segments")
ACCURACY = "accuracy"
WINDOW = 20  # the part of the epochs over which losses are averaged, so that a trend can be seen

Log = tuple[str, Sequence[dict[str, Any]]]  # method, and the rows of one of its seeds


class Curve(NamedTuple):
    """Of one method; masked where no seed has a value."""

    method: str
    mean: np.ma.MaskedArray  # [epochs]
    low: np.ma.MaskedArray  # the lowest seed's
    high: np.ma.MaskedArray


def curves(logs: Iterable[Log], name: str, window: int = 1) -> list[Curve]:
    """The curves of a column of the log, of the methods that have it.

    Args:
        logs: One for every seed of every method.
        name: Of the column.
        window: Epochs over which each seed's values are averaged.
    """
    by_method: dict[str, list[Sequence[dict[str, Any]]]] = {}
    for method, rows in logs:
        by_method.setdefault(method, []).append(rows)
    found = []
    for method, of_seeds in by_method.items():
        values = _values(of_seeds, name)
        if not values.mask.all():
            values = np.ma.stack([smoothed(line, window) for line in values])
            found.append(Curve(method, values.mean(0), values.min(0), values.max(0)))
    return found


def losses(logs: Iterable[Log]) -> list[str]:
    """Names of the parts of the loss that some log has: those of our methods, then others."""
    found = dict.fromkeys(part for _, rows in logs for row in rows for part in loss_parts(row) if part != "total")
    return [*(part for part in LOSSES if part in found), *(part for part in found if part not in LOSSES)]


def title(part: str) -> str:
    """Of a part's chart."""
    return LOSSES.get(part, part)


def window_of(logs: Iterable[Log]) -> int:
    """Epochs over which losses are averaged: odd, a :data:`WINDOW`-th of the longest log."""
    return 2 * (max((len(rows) for _, rows in logs), default=0) // (2 * WINDOW)) + 1


def smoothed(values: np.ma.MaskedArray, window: int) -> np.ma.MaskedArray:
    """The mean of those of the ``window`` values around each that are there; masked where the value is.

    Example:
        >>> import numpy as np
        >>> from amkd_fast.distill.report.curves import smoothed
        >>> smoothed(np.ma.masked_invalid([1.0, 2.0, 6.0, float("nan")]), 3).tolist()
        [1.5, 3.0, 4.0, None]
    """
    if window == 1:
        return values
    ones = np.ones(window)
    sums = np.convolve(values.filled(0.0), ones, "full")
    counts = np.convolve((~np.ma.getmaskarray(values)).astype(float), ones, "full")
    inside = slice(window // 2, window // 2 + len(values))
    return np.ma.array(sums[inside] / np.maximum(counts[inside], 1.0), mask=np.ma.getmaskarray(values))


def _values(logs: list[Sequence[dict[str, Any]]], name: str) -> np.ma.MaskedArray:
    """[seeds, epochs], masked where a seed has no finite value; on a line between two epochs that have one."""
    length = max(map(len, logs), default=0)
    values = np.full((len(logs), length), np.nan)
    for line, log in zip(values, logs, strict=True):
        known = [(place, row[name]) for place, row in enumerate(log) if row.get(name) is not None]
        if known:
            places, found = zip(*known, strict=True)
            inside = np.arange(places[0], places[-1] + 1)
            line[inside] = np.interp(inside, places, found)
    return np.ma.masked_invalid(values)
