"""What the ranks of torch.distributed tell each other: rows, sums, and the gradients that belong to them."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def require_group() -> int:
    """The number of ranks.

    Raises:
        RuntimeError: There is no default process group.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "distributed=True: needs the default process group, which is not initialised "
            "(torch.distributed.init_process_group)"
        )
    return dist.get_world_size()


def counts_of(rows: Tensor) -> list[int]:
    """How many rows each rank has."""
    told = torch.tensor([rows.shape[0]], dtype=torch.int64, device=rows.device)
    return gather(told, [1] * dist.get_world_size()).tolist()


def row_numbers(rows: Tensor, distributed: bool = False) -> Tensor:
    """int64 [B]: which rows of the whole batch this rank's are; 0, 1, … without ranks."""
    first = sum(counts_of(rows)[: dist.get_rank()]) if distributed else 0
    return torch.arange(first, first + rows.shape[0], device=rows.device)


def gather(x: Tensor, counts: list[int]) -> Tensor:
    """The rows of all ranks in rank order, without a graph; rank i has ``counts[i]``."""
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


def reduce_scatter(x: Tensor, counts: list[int]) -> Tensor:
    """Sum over the ranks of what they have for the rows of this one: [Σ counts, D] → [counts[rank], D]."""
    longest, mine = max(counts), counts[dist.get_rank()]
    if x.numel() == 0:
        return x.new_zeros(mine, x.shape[1])
    if min(counts) < longest:
        x = torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[0])) for part in x.split(counts)])
    found = x.new_empty(longest, x.shape[1])
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    scatter(found, x.contiguous())
    return found[:mine]


def mean_over_rows(value: Tensor, logits: Tensor) -> Tensor:
    """The mean over the rows of all ranks, out of the mean over this one's ``logits``; without any it is not used."""
    count = logits.shape[0]
    total = value * count if count else logits.sum().to(value.dtype)  # a zero with a graph
    return MeanOverAll.apply(total, torch.full_like(total, count, requires_grad=False))[0]


class Gather(torch.autograd.Function):
    """[P, D] → the rows of all ranks; each rank gets the gradient that all of them have for its rows."""

    @staticmethod
    def forward(ctx, x: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        return gather(x, counts)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return reduce_scatter(grad, ctx.counts), None


class GatherForCopies(torch.autograd.Function):
    """[P, D] → the rows of all ranks, of which every rank then computes one and the same loss.

    Each rank's copy of the loss has the whole gradient, of which it keeps its own rows'.
    """

    @staticmethod
    def forward(ctx, x: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        return gather(x, counts)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad.split(ctx.counts)[dist.get_rank()], None


class MeanOverAll(torch.autograd.Function):
    """Σ total / Σ size over the ranks, and Σ size; 0 / 0 is 0.

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


class SumOverAll(torch.autograd.Function):
    """The sum over the ranks, on every rank, each of which goes on with a loss of its own: so the gradient is the sum
    over the ranks, too."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad
