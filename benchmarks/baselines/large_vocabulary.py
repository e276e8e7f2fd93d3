"""The divergence of logits of a whole vocabulary some rows at a time, in PyTorch's own functions.

Two ways to keep no [B, K] tensor but the gradient, which Liger-Kernel and Apple's cut cross-entropy have for a GPU.
Theirs begin with the product that makes the logits; these begin with the logits, as ours do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines.kl import T

FEW, SOME = 4, 32  # rows at a time: the fastest of those tried, eager the first and compiled the second


class GradientFirst(torch.autograd.Function):
    """The gradient is made while the loss is, as in Liger's chunked losses. Compiled it is slower than eager."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        grad, total = torch.empty_like(student), 0.0
        for s, t, g in _chunks(FEW, student, teacher, grad):
            log_q, log_p = (torch.log_softmax(part.float() / T, 1) for part in (s, t))
            p = log_p.exp()
            total = total + torch.dot(p.flatten(), log_p.sub_(log_q).flatten())
            g.copy_(log_q.exp_().sub_(p).mul_(T / len(student)))
        ctx.save_for_backward(grad)
        return total * (T**2 / len(student))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (grad,) = ctx.saved_tensors
        return grad.mul_(upstream), None


class Recomputed(torch.autograd.Function):
    """The normalisers are kept, and probabilities computed again in the backward pass, as in cut cross-entropy."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        total, normalisers = 0.0, []
        for s, t in _chunks(SOME, student, teacher):
            s, t = s.float() / T, t.float() / T
            both = torch.logsumexp(s, 1, keepdim=True), torch.logsumexp(t, 1, keepdim=True)
            total = total + ((t - both[1]).exp_() * (t - s)).sum() + (both[0] - both[1]).sum()
            normalisers.append(torch.cat(both, 1))
        ctx.save_for_backward(student, teacher, torch.cat(normalisers))
        return total * (T**2 / len(student))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        student, teacher, normalisers = ctx.saved_tensors
        grad = torch.empty_like(student)
        for s, t, n, g in _chunks(SOME, student, teacher, normalisers, grad):
            q, p = ((part.float() / T - n[:, i : i + 1]).exp_() for i, part in enumerate((s, t)))
            g.copy_(q.sub_(p).mul_(upstream * (T / len(student))))
        return grad, None


def recomputed(student: Tensor, teacher: Tensor) -> Tensor:
    return Recomputed.apply(student, teacher)


def _chunks(rows: int, *parts: Tensor) -> Iterable[tuple[Tensor, ...]]:
    return zip(*(part.split(rows) for part in parts), strict=True)
