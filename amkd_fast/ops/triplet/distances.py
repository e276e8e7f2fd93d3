"""The three distances, between given rows and between all pairs, with the subgradients that the library promises."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from amkd_fast import backends
from amkd_fast.typing import Distance

DISTANCES: tuple[Distance, ...] = get_args(Distance)


def rowwise(x: Tensor, y: Tensor, distance: str) -> Tensor:
    """Distance of each row of ``x`` to the same row of ``y``: [..., D] → [...]."""
    if distance == "cosine":
        dtype, (x, x_short), (y, y_short) = x.dtype, unit(x), unit(y)
        half = (x - y).square().sum(-1) / 2
        return torch.where(x_short | y_short, 1.0, half).to(dtype)
    if distance == "sqeuclidean":
        return (x - y).square().sum(-1)
    return _root((x - y).square().sum(-1))


def numbers(distances: Tensor) -> Tensor:
    """NaN in place of an infinity: a row that is not finite has no distance to any other."""
    return torch.where(distances.isfinite(), distances, torch.nan)


def finite_or_nan(rows: Tensor) -> Tensor:
    """NaN all through a row that is not finite, so that its distances and all gradients with them are NaN."""
    return rows + (rows * 0.0).sum(-1, keepdim=True)


def rowwise_grads(x: Tensor, y: Tensor, grad: Tensor, distance: str) -> tuple[Tensor, Tensor]:
    """The gradients of :func:`rowwise` written out: ``grad`` [N] to x and y [N, D]."""
    if distance == "cosine":
        (u, x_short), (v, y_short) = unit(x), unit(y)
        step = torch.where(x_short | y_short, 0.0, grad.double())[:, None] * (u - v)
        step = torch.where(grad[:, None] == 0, 0.0, step)
        return from_unit(step, x), from_unit(-step, y)
    if distance == "sqeuclidean":
        step = 2.0 * grad[:, None] * (x - y)
    else:
        d = rowwise(x, y, distance)
        step = torch.where(d == 0, 0.0, grad / torch.where(d == 0, 1.0, d))[:, None] * (x - y)
    step = torch.where(grad[:, None] == 0, 0.0, step)  # 0 times a row that is not finite is not 0
    return step, -step


def from_unit(grad: Tensor, rows: Tensor) -> Tensor:
    """From the gradient of unit vectors to that of the rows; 0 for a row without direction, NaN where it is NaN."""
    usable = rows.isfinite().all(1, keepdim=True) & ~short_rows(rows)[:, None]
    x = torch.where(usable, rows, 1.0).double()
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    u, grad = x / norm, grad.double()
    onto = (grad - torch.linalg.vecdot(u, grad)[:, None] * u) / norm
    return torch.where(usable, onto, grad * 0.0).to(rows.dtype)


def pairwise(x: Tensor, y: Tensor, distance: str) -> Tensor:
    """Distance of every row of ``x`` to every row of ``y``: [..., N, D], [..., P, D] → [..., N, P].

    From differences, not expanded: equal rows tie exactly and collapsed data keeps its order. A distance beyond the
    largest finite number is held there, so that +inf is free to mean "no candidate".
    """
    if distance == "cosine":
        dtype, (x, x_short), (y, y_short) = x.dtype, unit(x), unit(y)
        common = y.detach().nanmean(-2, keepdim=True)  # what the rows share takes no digits from what they do not
        half = _euclidean((x - common).to(dtype), (y - common).to(dtype)).square() / 2
        return torch.where(x_short[..., :, None] | y_short[..., None, :], 1.0, half)
    d = _euclidean(x, y)
    if distance == "sqeuclidean":
        d = d.square()
    return d.clamp(max=torch.finfo(d.dtype).max)


def unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows on the unit sphere, and which rows are too short to have a direction: those become 0, without a gradient.

    For unit vectors 1 − x·y = ‖x − y‖²/2, and only the right side keeps its digits where the two nearly agree. Rounding
    the rows to fp32 would lose them again, so that these are fp64.
    """
    short = short_rows(x)
    x = x.double()
    norm = torch.where(short, 1.0, _root(x.square().sum(-1)))
    return torch.where(short[..., None], 0.0, x / norm[..., None]), short


def short_rows(x: Tensor) -> Tensor:
    """Which rows have no direction: [..., D] → [...]."""
    tiny = torch.finfo(x.dtype).tiny ** 0.5  # below this the sum of squares is no normal number any more
    return x.detach().double().square().sum(-1).sqrt() <= tiny


def _root(square: Tensor) -> Tensor:
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())  # every derivative at 0 is 0, and NaN stays


def _euclidean(x: Tensor, y: Tensor) -> Tensor:
    if backends.transforming():
        return _root((x[..., :, None, :] - y[..., None, :, :]).square().sum(-1))
    return _Euclidean.apply(x, y)


class _Euclidean(torch.autograd.Function):
    """``torch.cdist`` without its CUDA backward's [N, P, D] buffer."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor) -> Tensor:
        d = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        ctx.save_for_backward(x, y, d)
        return d

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, y, d = ctx.saved_tensors
        zero = d == 0
        u = torch.where(zero, 0.0, grad / torch.where(zero, 1.0, d)).double()  # the differences below cancel: fp64
        grad_x = u.sum(-1, keepdim=True) * x - u @ y.double()
        grad_y = u.sum(-2).unsqueeze(-1) * y - u.mT @ x.double()
        return grad_x.to(x.dtype), grad_y.to(y.dtype)
