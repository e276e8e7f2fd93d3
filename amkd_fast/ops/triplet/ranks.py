"""Triplets over the rows of all ranks: the single process's loss and gradients, shared out among the processes.

Anchors stay where they are. The reference rows travel once in the forward pass, their gradient once in the backward
pass; what else is exchanged are a few numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from amkd_fast import ranks
from amkd_fast.ops.triplet.types import Outcome, Rows, Rule

Local = Callable[[Rule, str], Outcome]  # the loss of the local anchors by a rule and a reduction


def gather(rows: Rows) -> Rows:
    """The same anchors against the reference rows of all ranks, in rank order."""
    if ranks.require_group() == 1:
        return rows
    counts, double, wants_grad = _agree(rows)
    if double:
        rows = rows._replace(
            anchor=rows.anchor.double(),
            positive=None if rows.positive is None else rows.positive.double(),
            reference=rows.anchor.double() if rows.is_batch else rows.reference.double(),
        )
    reference = rows.reference
    if wants_grad and not (reference.requires_grad and torch.is_grad_enabled()):
        # The backward pass is a collective: a rank that does not want its own gradient still owes the others theirs.
        reference = reference.detach().requires_grad_()
    labels = rows.reference_labels
    offset, before = rows.self_offset, sum(counts[: dist.get_rank()])
    return rows._replace(
        reference=ranks.Gather.apply(reference, counts),
        reference_labels=None if labels is None else ranks.gather(labels.long(), counts),
        self_offset=None if offset is None else offset + before,
        is_batch=False,
    )


def loss(local: Local, rows: Rows, rule: Rule, weight: Tensor | None, reduction: str) -> Outcome:
    """The loss over the anchors of all ranks, out of each rank's own. The statistics stay local."""
    found = local(rule, reduction)
    if reduction == "none" or dist.get_world_size() == 1:
        return found
    if reduction == "sum":
        size = found.size * (dist.get_rank() == 0)  # 1 in all
        return Outcome(*ranks.MeanOverAll.apply(found.value, size), found.statistics)
    size = found.size
    if weight is not None and weight.requires_grad and not size.requires_grad:
        size = _size(local, rule, weight, reduction)
    size = torch.where(_without_terms(found, rows, weight, reduction), 0, size)
    return Outcome(*ranks.MeanOverAll.apply(found.value * size, size), found.statistics)


def _agree(rows: Rows) -> tuple[list[int], bool, bool]:
    """Rows of each rank; whether they are fp64 on any rank; whether any rank wants the gradient of its own."""
    reference = rows.reference
    told = [
        *reference.shape,
        rows.labels is not None,
        reference.dtype == torch.float64,
        reference.requires_grad and torch.is_grad_enabled(),
    ]
    told = torch.tensor([told], dtype=torch.int64, device=reference.device)
    counts, widths, labelled, double, wants_grad = zip(
        *ranks.gather(told, [1] * dist.get_world_size()).tolist(), strict=True
    )
    if len(set(widths)) > 1:
        raise ValueError(f"distributed=True: anchor must have one width D on all ranks, not {list(widths)}")
    if len(set(labelled)) > 1:
        raise ValueError("distributed=True: labels must be given on all ranks or on none")
    return list(counts), any(double), any(wants_grad)


def _size(local: Local, rule: Rule, weight: Tensor, reduction: str) -> Tensor:
    """What the local terms are divided by, with its graph to a weight that learns: the fast selection has none.

    One term an anchor: which of them count shows where a margin beyond all distances lets every term be there.
    """
    if reduction == "mean":
        rule = rule._replace(margin=torch.inf, soft_margin=False)
    with torch.no_grad():
        counts = local(rule, "none").value != 0
    return torch.where(counts, weight, 0.0).sum()


def _without_terms(found: Outcome, rows: Rows, weight: Tensor | None, reduction: str) -> Tensor:
    """Whether the local size is the 1 that stands in for 0."""
    if reduction == "mean_nonzero":
        return found.statistics().active == 0
    missing = found.statistics().without_triplet
    used = rows.anchor.shape[0] if weight is None else (weight.detach() != 0).sum().to(missing.dtype)
    return missing == used
