"""The loss of the KL operators, for every divergence, with or without a cross-entropy part."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from amkd_fast.ops.kl import reference
from amkd_fast.ops.row_loss import RowLoss, by_reference

# The positions are the operators' numbers `divergence` and `reduction`.
DIVERGENCES = ("forward", "reverse", "js", "soft_cross_entropy")
REDUCTIONS = ("sum", "mean", "none")  # the mean is over the rows

# Statistics that the forward operator leaves for the backward one, field by field ([FIELDS, B], flat), then the
# three TAIL scalars. csrc/kl/kl.h has the same list.
FIELDS = 6  # student max, student log-sum, teacher max, teacher log-sum, inner, student log-sum at temperature 1
TAIL = 3  # number of labelled rows, mean cross-entropy, mean divergence


class Scalars(NamedTuple):
    """The numbers of one call, in the order in which the operators take them."""

    temperature: float
    divergence: int
    beta: float
    row_scale: float  # T² or 1, part of every row's divergence
    kl_factor: float  # weight of the divergence
    ce_factor: float  # weight of the mean cross-entropy
    ignore_index: int
    reduction: int  # of the divergence: with labels the cross-entropy is a mean over them


def compute(
    student: Tensor, teacher: Tensor, weight: Tensor | None, labels: Tensor | None, ce_weight: Tensor | None, s: Scalars
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss by the reference: (loss, mean cross-entropy, mean divergence); the last two without a graph."""
    call = (s.temperature, DIVERGENCES[s.divergence], s.beta)
    weight, ce_weight = reference.to_save(weight), reference.to_save(ce_weight)

    def divergence(hidden: Tensor | None) -> Tensor:  # [B]
        pair = (reference.without(hidden, z) for z in (student, teacher))
        return s.row_scale * reference.without(hidden, reference.row_divergence(*pair, *call))

    hidden = None if weight is None else weight == 0
    rows = divergence(hidden)
    weighted = rows if s.kl_factor != 0 else divergence(reference.every_row(student))
    weighted = reduced(s.kl_factor * (weighted if weight is None else weighted * weight), s.reduction)
    mean_divergence = reduced(rows.detach(), REDUCTIONS.index("mean"))
    if labels is None:
        return weighted, rows.new_zeros(()), mean_divergence

    def cross_entropy(hidden: Tensor) -> Tensor:  # [B]
        return reference.without(
            hidden, reference.row_cross_entropy(reference.without(hidden, student), labels, s.ignore_index)
        )

    ignored = labels == s.ignore_index
    hidden = ignored if ce_weight is None else ignored | (ce_weight == 0)
    rows = cross_entropy(hidden)
    labelled = (~ignored).sum().clamp(min=1).to(rows.dtype)
    weighted_ce = rows if s.ce_factor != 0 else cross_entropy(reference.every_row(student))
    weighted_ce = s.ce_factor * (weighted_ce if ce_weight is None else weighted_ce * ce_weight)
    return weighted + weighted_ce.sum() / labelled, rows.detach().sum() / labelled, mean_divergence


def reduced(rows: Tensor, reduction: int) -> Tensor:
    """By its number; the mean of no rows is 0."""
    if REDUCTIONS[reduction] == "none":
        return rows
    return rows.sum() / max(rows.shape[0], 1) if REDUCTIONS[reduction] == "mean" else rows.sum()


def _reference(student, teacher, weight, labels, ce_weight, *numbers):
    return compute(student, teacher, weight, labels, ce_weight, Scalars(*numbers))[0]


# The backward operator computes the probabilities again, from the statistics.
ROW_LOSS = RowLoss((0,), by_reference(_reference), tensors=5, numbers=8)
