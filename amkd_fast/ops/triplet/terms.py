"""The terms of selected rows as a loss of rows, with the gradients that its operators do not make."""

from __future__ import annotations

import torch
from torch import Tensor

from amkd_fast import backends
from amkd_fast.ops.autograd import reference_grads
from amkd_fast.ops.row_loss import RowLoss
from amkd_fast.ops.triplet import reference as specification
from amkd_fast.ops.triplet.arguments import widened
from amkd_fast.ops.triplet.distances import DISTANCES
from amkd_fast.ops.triplet.types import REDUCTIONS, Rows, Rule

WEIGHT, TENSORS = 5, 9
TAIL = 6  # of the statistics: size, terms, active, positive, negative, missing; csrc/triplet/triplet.h


def _others(
    grad: Tensor, tensors: tuple[Tensor | None, ...], stats: Tensor, needed: tuple[bool, ...], numbers: tuple
) -> list[Tensor | None]:
    """Of the weight; where gradients are themselves differentiated, which is rare, of all, through the reference."""
    distance, margin, soft_margin, swap, reduction, self_offset = numbers
    positive_index, negative_index, weight, labels, reference_labels, exclude = tensors[3:]
    rule = Rule("topk", margin, negative_index.shape[1], False, DISTANCES[distance], soft_margin, swap)
    grads: list[Tensor | None] = [None] * TENSORS
    if not backends.differentiates():
        grads[WEIGHT] = _weight_grad(grad, weight, positive_index, negative_index, stats, rule, REDUCTIONS[reduction])
        return grads

    def value_of(anchor, positive, reference, weight):
        is_batch = reference is None
        rows = Rows(
            anchor,
            positive,
            anchor if is_batch else reference,
            labels,
            labels if is_batch else reference_labels,
            exclude,
            None if self_offset < 0 else self_offset,
            is_batch,
        )
        return specification.loss(widened(rows), rule, weight, REDUCTIONS[reduction]).value

    places = (0, 1, 2, WEIGHT)
    found = reference_grads(value_of, grad, [tensors[i] for i in places], [needed[i] for i in places])
    for i, x in zip(places, found, strict=True):
        grads[i] = x
    return grads


def _weight_grad(
    grad: Tensor,
    weight: Tensor,
    positive_index: Tensor | None,
    negative_index: Tensor,
    stats: Tensor,
    rule: Rule,
    reduction: str,
) -> Tensor:
    """dL/dw = (term − L · [the term counts]) / size for a mean, the term itself otherwise."""
    n, k = negative_index.shape
    d_ap, d_an = stats[:n, None], stats[n : n + n * k].view(n, k)
    if rule.swap:
        d_pn = stats[n + n * k : n + 2 * n * k].view(n, k)
        d_an = torch.where(d_pn < d_an, d_pn, d_an)
    slot = negative_index >= 0
    left = slot.any(1) & (weight != 0)
    if positive_index is not None:
        left = left & (positive_index >= 0)
    slot = slot & left[:, None]
    cost = torch.where(slot, specification.penalty(d_ap, d_an, rule), 0.0)
    term = cost.sum(1) / slot.sum(1).clamp(min=1)
    if reduction in ("sum", "none"):
        return grad * term
    counts = term > 0 if reduction == "mean_nonzero" else left
    size = stats[-TAIL]
    value = torch.where(counts, weight * term, 0.0).sum() / size
    return grad * (term - torch.where(counts, value, 0.0)) / size


TERMS = RowLoss((0, 1, 2), _others, tensors=6, numbers=5, more_tensors=3, more_numbers="i", asks_determinism=True)
