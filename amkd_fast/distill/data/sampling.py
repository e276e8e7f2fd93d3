"""The order in which an epoch takes a set's images."""

from __future__ import annotations

import torch
from torch import Tensor


def shuffled(count: int, draws: torch.Generator) -> Tensor:
    """Every image once: int64 [``count``]."""
    return torch.randperm(count, generator=draws)


def balanced(labels: Tensor, draws: torch.Generator) -> Tensor:
    """As many images as there are, every class as often as any other, give or take one.

    A class with more images than its share gives some of them; one with fewer gives all of them, again and again.
    Classes without images have no share.

    Args:
        labels: int64 [N], on the CPU.
        draws: A generator of the CPU.

    Returns:
        Rows, int64 [N].

    Example:
        >>> import torch
        >>> from amkd_fast.distill.data.sampling import balanced
        >>> labels = torch.tensor([0, 0, 0, 0, 0, 1])
        >>> labels[balanced(labels, torch.Generator().manual_seed(0))].bincount()
        tensor([3, 3])
    """
    present, counts = labels.unique(return_counts=True)
    total, kinds = len(labels), len(present)
    share = torch.full((kinds,), total // max(kinds, 1))
    share[torch.randperm(kinds, generator=draws)[: total - int(share.sum())]] += 1  # by chance, another one each epoch
    order = torch.randperm(total, generator=draws)
    order = order[labels[order].argsort(stable=True)]  # class by class, shuffled within it
    kind = torch.arange(kinds).repeat_interleave(share)
    place = torch.arange(total) - (share.cumsum(0) - share)[kind]
    rows = order[(counts.cumsum(0) - counts)[kind] + place % counts[kind]]
    return rows[torch.randperm(total, generator=draws)]


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """What an image of each class counts so that all classes count the same; 1 on average over the images.

    Args:
        labels: int64 [N].
        classes: K.

    Returns:
        float32 [K], 0 for a class without images.
    """
    counts = torch.bincount(labels, minlength=classes).double()
    weights = len(labels) / (counts * (counts > 0).sum())
    return weights.masked_fill(counts == 0, 0.0).float()
