"""Who is a candidate for whom, and which candidates each mining mode selects. No gradient passes through here.

``d_ap`` [N, Q] holds the distances to the candidates for the positive: all reference rows (Q = P), or the explicit one
(Q = 1). ``d_an`` [N, P] holds those to the reference rows. ``argmin``, ``argmax`` and the stable sort take the lowest
index of a tie; ``argmin`` and ``argmax`` also let NaN win.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from amkd_fast.ops.triplet.types import Rows

INF = float("inf")


class Slots(NamedTuple):
    """S triplets for each anchor: columns of ``d_ap`` and of ``d_an``, and whether the slot holds a triplet at all."""

    positive: Tensor  # [N, S] int64
    negative: Tensor  # [N, S] int64
    valid: Tensor  # [N, S] bool


def negatives(rows: Rows) -> Tensor:
    """Reference rows of another label, outside the exclusion set, that are not the anchor itself: [N, P]."""
    mask = ~_self(rows)
    if rows.labels is not None:
        mask = mask & (rows.labels[:, None] != rows.reference_labels)
    if rows.exclude_labels is not None:
        mask = mask & (rows.exclude_labels[:, :, None] != rows.reference_labels).all(1)
    return mask


def positives(rows: Rows) -> Tensor:
    """The explicit positive [N, 1], or the reference rows of the same label that are not the anchor itself [N, P]."""
    if rows.positive is not None:
        return torch.ones_like(rows.anchor[:, :1], dtype=torch.bool)
    return (rows.labels[:, None] == rows.reference_labels) & ~_self(rows)


def _self(rows: Rows) -> Tensor:
    n, p, device = rows.anchor.shape[0], rows.reference.shape[0], rows.anchor.device
    if rows.self_offset is None:
        return torch.zeros(n, p, dtype=torch.bool, device=device)
    return torch.arange(n, device=device)[:, None] + rows.self_offset == torch.arange(p, device=device)


def hard(d_ap: Tensor, is_positive: Tensor, d_an: Tensor, is_negative: Tensor) -> Slots:
    """The farthest positive and the nearest negative: S = 1."""
    positive = d_ap.masked_fill(~is_positive, -INF).argmax(1, keepdim=True)
    negative = d_an.masked_fill(~is_negative, INF).argmin(1, keepdim=True)
    return Slots(positive, negative, _both(is_positive, is_negative))


def topk(d_ap: Tensor, is_positive: Tensor, d_an: Tensor, is_negative: Tensor, k: int) -> Slots:
    """The farthest positive and the k nearest negatives: S = min(k, P)."""
    positive, _, valid = hard(d_ap, is_positive, d_an, is_negative)
    negative, found = nearest(d_an, is_negative, k)
    return Slots(positive.expand_as(negative), negative, found & valid)


def semihard(
    d_ap: Tensor, is_positive: Tensor, d_an: Tensor, is_negative: Tensor, margin: float, fallback: bool
) -> Slots:
    """For each positive the nearest negative with d_ap < d_an < d_ap + margin: S = Q, slot q for candidate q."""
    key, order = d_an.masked_fill(~is_negative, INF).sort(dim=1, stable=True)
    place = torch.searchsorted(key, d_ap.contiguous(), right=True)  # the first distance above d_ap
    beyond = place == key.shape[1]
    place = place.masked_fill(beyond, 0)
    negative, within = order.gather(1, place), ~beyond & (key.gather(1, place) < d_ap + margin)
    if fallback:
        farthest = d_an.masked_fill(~is_negative, -INF).argmax(1, keepdim=True)
        negative, within = torch.where(within, negative, farthest), torch.ones_like(within)
    # No interval holds a NaN. It wins all the same: its pairs stay, with the negative that argmin then finds.
    nan = d_ap.isnan() | (d_an.isnan() & is_negative).any(1, keepdim=True)
    negative = torch.where(nan, hard(d_ap, is_positive, d_an, is_negative).negative, negative)
    positive = torch.arange(d_ap.shape[1], device=d_ap.device).expand_as(d_ap)
    return Slots(positive, negative, (within | nan) & is_positive & _both(is_positive, is_negative))


def nearest(d_an: Tensor, is_negative: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The nearest negatives in ascending order, NaN first: index and whether there is one, both [N, min(k, P)]."""
    key = torch.where(d_an.isnan(), -INF, d_an).masked_fill(~is_negative, INF)
    index = key.argmin(1, keepdim=True) if k == 1 else key.sort(dim=1, stable=True).indices[:, :k]
    found = torch.arange(index.shape[1], device=index.device) < is_negative.sum(1, keepdim=True)
    return torch.where(found, index, index[:, :1]), found  # an empty slot repeats the first: it must not bring a NaN in


def _both(is_positive: Tensor, is_negative: Tensor) -> Tensor:
    return is_positive.any(1, keepdim=True) & is_negative.any(1, keepdim=True)
