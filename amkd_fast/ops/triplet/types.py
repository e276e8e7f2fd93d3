"""What every implementation of the triplet losses takes and returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, get_args

from torch import Tensor

from amkd_fast.ops.row_loss import statistics_dtype as statistics_dtype
from amkd_fast.typing import TripletReduction

REDUCTIONS: tuple[TripletReduction, ...] = get_args(TripletReduction)


class Rows(NamedTuple):
    """The rows of a call in one dtype, with their labels."""

    anchor: Tensor  # [N, D]
    positive: Tensor | None  # [N, D]
    reference: Tensor  # [P, D]
    labels: Tensor | None  # [N]
    reference_labels: Tensor | None  # [P]
    exclude_labels: Tensor | None  # [N, E]
    self_offset: int | None
    is_batch: bool  # the anchors are the reference set


class Rule(NamedTuple):
    """What makes a triplet, and what it costs."""

    mining: str
    margin: float
    k: int
    semihard_fallback: bool
    distance: str
    soft_margin: bool = False
    swap: bool = False


class Terms(NamedTuple):
    """What the reductions need to know of each anchor."""

    total: Tensor  # [N] sum of its terms
    terms: Tensor  # [N] int64, number of its terms
    nonzero: Tensor  # [N] int64, number of its terms above 0
    triplets: Tensor  # [N] int64, number of its triplets
    d_ap: Tensor  # [N] sum of D_ap over them
    d_an: Tensor  # [N] sum of D_an over them


class Statistics(NamedTuple):
    """Scalars for logging, without a graph. A mean over nothing is 0."""

    active: Tensor  # fraction of the terms that are above 0
    positive_distance: Tensor  # mean D_ap over the triplets
    negative_distance: Tensor  # mean D_an over the triplets, before any swap
    without_triplet: Tensor  # number of anchors, of those with a weight other than 0


class Outcome(NamedTuple):
    """What every implementation of the loss returns; ``value`` has the graph."""

    value: Tensor  # [] or [N]
    size: Tensor  # what the sum of the terms was divided by; 1 for a sum or no reduction
    statistics: Callable[[], Statistics]  # few ask
