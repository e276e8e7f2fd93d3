"""Triplets over the rows of all ranks: the single process's loss and gradients, shared out among the processes.

Anchors stay where they are. The reference rows travel once in the forward pass, their gradient once in the backward
pass; what else is exchanged are a few numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from amkd_fast.ops.triplet.arguments import Rows
from amkd_fast.ops.triplet.reference import Outcome, Rule

Local = Callable[[Rule, str], Outcome]  # the loss of the local anchors by a rule and a reduction


def gather(rows: Rows) -> Rows:
    """The same anchors against the reference rows of all ranks, in rank order."""
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "distributed=True: needs the default process group, which is not initialised "
            "(torch.distributed.init_process_group)"
        )
    if dist.get_world_size() == 1:
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
        reference=_Gather.apply(reference, counts),
        reference_labels=None if labels is None else _gather(labels.long(), counts),
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
        return Outcome(*_OverAll.apply(found.value, size), found.statistics)
    size = found.size
    if weight is not None and weight.requires_grad and not size.requires_grad:
        size = _size(local, rule, weight, reduction)
    size = torch.where(_without_terms(found, rows, weight, reduction), 0, size)
    return Outcome(*_OverAll.apply(found.value * size, size), found.statistics)


class _Gather(torch.autograd.Function):
    """[P, D] → the rows of all ranks; each rank gets the gradient that all of them have for its rows."""

    @staticmethod
    def forward(ctx, x: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        return _gather(x, counts)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _reduce_scatter(grad, ctx.counts), None


class _OverAll(torch.autograd.Function):
    """Σ total / Σ size over the ranks, and Σ size.

    Every rank has a copy of the one loss. Each sends the gradient to its own share alone, so that nothing is counted
    twice and no collective is needed here.
    """

    @staticmethod
    def forward(ctx, total: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.stack([total.double(), size.double()])  # counts beyond 2²⁴ too
        dist.all_reduce(both)
        value, size = both.unbind()
        size = torch.where(size == 0, 1, size)
        value, size = (value / size).to(total.dtype), size.to(total.dtype)
        ctx.save_for_backward(value, size)
        ctx.mark_non_differentiable(size)
        return value, size

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _) -> tuple[Tensor, Tensor]:
        value, size = ctx.saved_tensors
        grad = grad / size
        return grad, -grad * value


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
        *_gather(told, [1] * dist.get_world_size()).tolist(), strict=True
    )
    if len(set(widths)) > 1:
        raise ValueError(f"distributed=True: anchor must have one width D on all ranks, not {list(widths)}")
    if len(set(labelled)) > 1:
        raise ValueError("distributed=True: labels must be given on all ranks or on none")
    return list(counts), any(double), any(wants_grad)


def _gather(x: Tensor, counts: list[int]) -> Tensor:
    """The rows of all ranks in rank order; rank i has ``counts[i]``."""
    longest = max(counts)
    if longest == 0 or 0 in x.shape[1:]:
        return x.new_empty(sum(counts), *x.shape[1:])
    if x.shape[0] < longest:
        x = torch.cat([x, x.new_zeros(longest - x.shape[0], *x.shape[1:])])
    found = x.new_empty(len(counts) * longest, *x.shape[1:])
    all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.13
    all_gather(found, x.contiguous())
    if min(counts) == longest:
        return found
    return torch.cat([part[:n] for part, n in zip(found.split(longest), counts, strict=True)])


def _reduce_scatter(x: Tensor, counts: list[int]) -> Tensor:
    """Sum over the ranks of what they have for the rows of this one: [Σ counts, D] → [counts[rank], D]."""
    longest, mine = max(counts), counts[dist.get_rank()]
    if x.numel() == 0:
        return x.new_zeros(mine, x.shape[1])
    if min(counts) < longest:
        x = torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[0])) for part in x.split(counts)])
    found = x.new_empty(longest, x.shape[1])
    reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    reduce_scatter(found, x.contiguous())
    return found[:mine]


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
