"""The triplet family once more, one pair at a time in Python loops over fp64 scalars, to test the library against."""

from __future__ import annotations

import math

import torch


def value(u, v, distance):
    """The distance of two rows as a Python float, for the selection."""
    u, v = u.tolist(), v.tolist()
    if distance == "cosine":
        norms = math.sqrt(sum(a * a for a in u)) * math.sqrt(sum(b * b for b in v))
        return 1.0 - sum(a * b for a, b in zip(u, v, strict=True)) / norms if norms else 1.0
    square = sum((a - b) ** 2 for a, b in zip(u, v, strict=True))
    return math.sqrt(square) if distance == "euclidean" else square


def differentiable(u, v, distance):
    """The same with a graph; subgradient 0 where the distance is 0 or a row has no direction."""
    if distance == "cosine":
        if not u.any() or not v.any():
            return u.new_ones(())
        return 1.0 - (u @ v) / (u.pow(2).sum().sqrt() * v.pow(2).sum().sqrt())
    square = (u - v).pow(2).sum()
    if distance == "sqeuclidean":
        return square
    return square.sqrt() if square > 0 else u.new_zeros(())


class Oracle:
    def __init__(
        self,
        anchor,
        labels=None,
        *,
        positive=None,
        reference=None,
        reference_labels=None,
        exclude_labels=None,
        self_offset=None,
        distance="euclidean",
    ):
        self.anchor, self.positive, self.distance = anchor, positive, distance
        self.known = {}
        self.reference = anchor if reference is None else reference
        if reference is None:
            reference_labels, self_offset = labels, 0
        n, p = len(self.anchor), len(self.reference)
        excluded = [[] for _ in range(n)]
        if exclude_labels is not None:
            excluded = [[x] if isinstance(x, int) else x for x in exclude_labels.tolist()]
        self.positives, self.negatives = [], []
        for i in range(n):
            others = [j for j in range(p) if self_offset is None or j != i + self_offset]
            if labels is None:
                own, rest = [], others
            else:
                own = [j for j in others if reference_labels[j] == labels[i]]
                rest = [j for j in others if reference_labels[j] != labels[i]]
            if exclude_labels is not None:
                rest = [j for j in rest if int(reference_labels[j]) not in excluded[i]]
            self.positives.append(own if positive is None else [i])
            self.negatives.append(rest)

    def positive_row(self, p):
        return (self.reference if self.positive is None else self.positive)[p]

    def ap(self, i, p, function=value):
        return self.once(function, "ap", i, p, lambda: (self.anchor[i], self.positive_row(p)))

    def an(self, i, n, function=value):
        return self.once(function, "an", i, n, lambda: (self.anchor[i], self.reference[n]))

    def pn(self, p, n, function=value):
        return self.once(function, "pn", p, n, lambda: (self.positive_row(p), self.reference[n]))

    def once(self, function, *key_and_rows):
        *key, rows = key_and_rows
        key = (function, *key)
        if key not in self.known:
            self.known[key] = function(*rows(), self.distance)
        return self.known[key]

    def mined(self, i, mining, margin=1.0, k=1, semihard_fallback=False):
        """The (positive, negative) pairs of anchor i. Python's min, max and sort take the first of equals."""
        ps, ns = self.positives[i], self.negatives[i]
        if not ps or not ns:
            return []
        if mining == "all":
            return [(p, n) for p in ps for n in ns]
        if mining in ("hard", "topk"):
            farthest = max(ps, key=lambda p: self.ap(i, p))
            near = sorted(ns, key=lambda n: self.an(i, n))
            return [(farthest, n) for n in near[: 1 if mining == "hard" else k]]
        pairs = []
        for p in ps:
            inside = [n for n in ns if self.ap(i, p) < self.an(i, n) < self.ap(i, p) + margin]
            if inside:
                pairs.append((p, min(inside, key=lambda n: self.an(i, n))))
            elif semihard_fallback:
                pairs.append((p, max(ns, key=lambda n: self.an(i, n))))
        return pairs

    def cost(self, i, p, n, margin, soft_margin, swap):
        d_ap, d_an = self.ap(i, p, differentiable), self.an(i, n, differentiable)
        if swap:
            d_pn = self.pn(p, n, differentiable)
            d_an = d_pn if d_pn < d_an else d_an
        if soft_margin:
            return torch.log1p(torch.exp(d_ap - d_an))
        x = d_ap - d_an + margin
        return x if x > 0 else x.new_zeros(())

    def loss(
        self,
        *,
        margin=1.0,
        mining="hard",
        k=1,
        semihard_fallback=False,
        soft_margin=False,
        swap=False,
        weight=None,
        reduction="mean",
    ):
        shares, weights = [], []
        zero = self.anchor.new_zeros(())
        for i in range(len(self.anchor)):
            w = 1.0 if weight is None else weight[i]
            share = zero
            if weight is None or w != 0:
                pairs = self.mined(i, mining, margin, k, semihard_fallback)
                terms = [self.cost(i, p, n, margin, soft_margin, swap) for p, n in pairs]
                if terms and mining != "all":
                    terms = [sum(terms) / len(terms)]
                for term in terms:
                    share = share + w * term
                    if reduction == "mean" or (reduction == "mean_nonzero" and term > 0):
                        weights.append(w)
            shares.append(share)
        if reduction == "none":
            return torch.stack(shares) if shares else self.anchor.new_zeros(0)
        total = sum(shares, zero)
        return total if reduction == "sum" or not weights else total / sum(weights)
