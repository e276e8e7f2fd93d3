"""Triplets out of a matrix of distances in PyTorch's own functions, and what two libraries make of them.

pytorch-metric-learning and sentence-transformers are called with the same distance, margin and reduction as ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines import there
from benchmarks.contest import Contestant

MARGIN = 1.0
METRIC_LEARNING, SENTENCES = "pytorch-metric-learning", "sentence-transformers"

Loss = Callable[[Tensor, Tensor], Tensor]


def hard(distance: str) -> Loss:
    """The farthest positive and the nearest negative of every anchor."""

    def matrix(rows: Tensor, labels: Tensor) -> Tensor:
        d, same, itself = _pairs(rows, labels, distance)
        farthest = d.masked_fill(~same | itself, -torch.inf).amax(1)
        nearest = d.masked_fill(same, torch.inf).amin(1)
        return F.relu(farthest - nearest + MARGIN).mean()

    return matrix


def tiled(distance: str) -> Loss:
    """256 anchors at a time; the gradient goes to the selected rows alone."""

    def loss(rows: Tensor, labels: Tensor) -> Tensor:
        rows = _wide(rows) if distance == "euclidean" else F.normalize(_wide(rows))
        positive, negative = [], []
        with torch.no_grad():
            square = rows.square().sum(1)
            for first in range(0, len(rows), 256):
                some = slice(first, first + 256)
                key = torch.addmm(square, rows[some], rows.mT, alpha=-2)  # [256, N], distance² but for a constant
                same = labels[some, None] == labels
                negative.append(key.masked_fill(same, torch.inf).argmin(1))
                own = torch.arange(len(key), device=rows.device)
                same[own, own + first] = False
                positive.append(key.masked_fill_(~same, -torch.inf).argmax(1))
        far, near = rows[torch.cat(positive)], rows[torch.cat(negative)]
        if distance == "euclidean":
            return F.relu((rows - far).norm(dim=1) - (rows - near).norm(dim=1) + MARGIN).mean()
        return F.relu((rows * (near - far)).sum(1) + MARGIN).mean()

    return loss


def semihard(fallback: bool) -> Loss:
    """The nearest negative beyond each positive, out of sorted rows of the matrix."""

    def matrix(rows: Tensor, labels: Tensor) -> Tensor:
        d, same, itself = _pairs(rows, labels)
        near = d.masked_fill(same, torch.inf).sort(1).values
        place = torch.searchsorted(near.detach(), d.detach(), right=True)
        near = near.gather(1, place.clamp(max=len(rows) - 1))
        kept = same & ~itself
        if fallback:
            farthest = d.masked_fill(same, -torch.inf).amax(1, keepdim=True)
            near = torch.where(near.isinf(), farthest, near)
        else:
            kept = kept & (near < d + MARGIN)
        cost = torch.where(kept, F.relu(d - near + MARGIN), 0.0).sum(1)
        size = kept.sum(1)
        return (cost / size.clamp(min=1)).sum() / (size > 0).sum()

    return matrix


def topk(k: int) -> Loss:
    """The farthest positive with each of the k nearest negatives."""

    def matrix(rows: Tensor, labels: Tensor) -> Tensor:
        d, same, itself = _pairs(rows, labels)
        farthest = d.masked_fill(~same | itself, -torch.inf).amax(1, keepdim=True)
        nearest = d.masked_fill(same, torch.inf).topk(k, largest=False).values  # [N, k]
        return F.relu(farthest - nearest + MARGIN).mean()

    return matrix


def among_clean(rows: Tensor, labels: Tensor, source: Tensor, base: Tensor, target: Tensor) -> Tensor:
    """Attacked rows, then clean ones: each attacked row with its own clean row and the nearest of a third class."""
    anchor, clean = rows[: len(source)], rows[len(source) :]
    other = (labels != base[:, None]) & (labels != target[:, None])
    nearest = torch.cdist(anchor, clean).masked_fill(~other, torch.inf).amin(1)
    return F.relu((anchor - clean[source]).norm(dim=1) - nearest + MARGIN).mean()


def mined(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the hardest triplets."""
    d, same, itself = _pairs(rows, labels)
    farthest = d.masked_fill(~same | itself, -torch.inf).argmax(1)
    return torch.arange(len(rows), device=rows.device), farthest, d.masked_fill(same, torch.inf).argmin(1)


def nearest(k: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Distances and indices of the nearest rows of other classes."""

    def matrix(rows: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor) -> tuple[Tensor, Tensor]:
        d = torch.cdist(rows, reference).masked_fill(labels[:, None] == reference_labels, torch.inf)
        return tuple(d.min(1, keepdim=True) if k == 1 else d.topk(k, largest=False))

    return matrix


# What the libraries have of our minings. Without a fallback pytorch-metric-learning takes every negative in the
# interval, which is another loss. With one, sentence-transformers' is ours where all classes are of one size: pairs
# beyond the margin cost nothing either way.
MINERS = {
    "hard": lambda miners, own: miners.BatchHardMiner(distance=own),
    "semihard": lambda miners, own: miners.TripletMarginMiner(MARGIN, "semihard", distance=own),
    "all": lambda miners, own: lambda *_: None,
}
SENTENCE_LOSSES = {
    "hard": "BatchHardTripletLoss",
    "semihard fallback": "BatchSemiHardTripletLoss",
    "all": "BatchAllTripletLoss",
}


def libraries(mining: str, distance: str = "euclidean") -> list[Contestant]:
    """Losses of rows that are there; sentence-transformers embeds nothing."""
    found = []
    if mining in MINERS and there(METRIC_LEARNING):
        from pytorch_metric_learning import losses, reducers

        miner, own = metric_learning(mining, distance)
        reducer = None if mining == "all" else reducers.MeanReducer()  # None: of what is above 0
        loss = losses.TripletMarginLoss(margin=MARGIN, distance=own, reducer=reducer)

        def mined(rows: Tensor, labels: Tensor) -> Tensor:
            rows = _wide(rows)
            return loss(rows, labels, miner(rows, labels))

        found.append(Contestant(METRIC_LEARNING, mined))
    if mining in SENTENCE_LOSSES and there(SENTENCES):
        from sentence_transformers.sentence_transformer import losses as sentence_losses

        metric = getattr(sentence_losses.BatchHardTripletLossDistanceFunction, f"{distance}_distance")
        batch = getattr(sentence_losses, SENTENCE_LOSSES[mining])(nn.Identity(), distance_metric=metric, margin=MARGIN)
        found.append(Contestant(SENTENCES, lambda rows, labels: batch.compute_loss_from_embeddings([rows], labels)))
    return found


def metric_learning(mining: str, distance: str = "euclidean") -> tuple[Callable[[Tensor, Tensor], Any], Any]:
    """Its miner and its distance."""
    from pytorch_metric_learning import distances, miners

    euclidean = distance == "euclidean"
    own = distances.LpDistance(normalize_embeddings=False) if euclidean else distances.CosineSimilarity()
    return MINERS[mining](miners, own), own


def _pairs(rows: Tensor, labels: Tensor, distance: str = "euclidean") -> tuple[Tensor, Tensor, Tensor]:
    """Distances, who shares a class, and who is who: [N, N] each."""
    same, itself = labels[:, None] == labels, torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    rows = _wide(rows)
    if distance == "euclidean":
        return torch.cdist(rows, rows), same, itself
    rows = F.normalize(rows)
    return 1 - rows @ rows.mT, same, itself


def _wide(rows: Tensor) -> Tensor:
    """``torch.cdist`` wants fp32 on a CPU, and distances of two bytes select other rows."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32))
