"""Specification of a step of Stein variational gradient ascent for the particles of every image."""

from __future__ import annotations

import torch
from torch import Tensor

from amkd_fast.ops.attack.reference import attack_step, has_channels, shares


def svgd_step(
    particles: Tensor,
    grad: Tensor,
    x0: Tensor,
    *,
    step_size: float | Tensor,
    eps: float | Tensor,
    lower: float | Tensor | None,
    upper: float | Tensor | None,
    bandwidth: float | None,
) -> Tensor:
    """The step of :func:`amkd_fast.attack_step` with norm ``"linf"`` along Stein's direction."""
    if has_channels(eps):
        phi = stein_direction(*in_units_of(eps, particles, grad), bandwidth)
    else:
        phi = stein_direction(particles, grad, bandwidth)
    return along(phi, particles, x0, step_size, eps, lower, upper)


def in_units_of(eps: Tensor, particles: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Particles and gradients where the radius of an image is the same in every channel."""
    work = torch.promote_types(particles.dtype, torch.float32)
    unit = shares(eps.to(work))[:, None]
    return particles.to(work) / torch.where(unit > 0, unit, 1.0), grad.to(work) * unit


def along(
    phi: Tensor,
    particles: Tensor,
    x0: Tensor,
    step_size: float | Tensor,
    eps: float | Tensor,
    lower: float | Tensor | None,
    upper: float | Tensor | None,
) -> Tensor:
    """A sign step of every particle along its ``phi``."""
    count = particles.shape[1]
    x, phi = particles.flatten(0, 1), phi.flatten(0, 1)
    step_size, eps, x0 = (
        value.repeat_interleave(count, 0) if isinstance(value, Tensor) and value.shape[0] == x0.shape[0] else value
        for value in (step_size, eps, x0)
    )
    moved, _ = attack_step(
        x, phi, x0=x0, step_size=step_size, eps=eps, norm="linf", norm_power=1, gap=None, velocity=None, decay=1.0,
        lower=lower, upper=upper, active=None, project=False, top=1.0,
    )  # fmt: skip
    return moved.unflatten(0, particles.shape[:2])


def stein_direction(particles: Tensor, grad: Tensor, bandwidth: float | None) -> Tensor:
    """φ of every particle, shape of ``particles``; 0 for one that is not finite or whose gradient is not."""
    work = torch.promote_types(particles.dtype, torch.float32)
    x, g = particles.to(work).flatten(2), grad.to(work).flatten(2)  # [B, n, D]
    usable = torch.isfinite(x).all(2) & torch.isfinite(g).all(2)  # [B, n]
    x, g = torch.where(usable[:, :, None], x, 0.0), torch.where(usable[:, :, None], g, 0.0)
    each = range(x.shape[1])
    square = torch.stack([(x - x[:, j, None]).square().sum(2) for j in each], 2)  # [B, n, n]
    both = usable[:, :, None] & usable[:, None, :]

    h = _median_bandwidth(square, both) if bandwidth is None else square.new_full((x.shape[0], 1, 1), bandwidth)
    near = torch.exp(-square / torch.where(h > 0, h, 1.0))
    kernel = torch.where(square == 0, 1.0, torch.where((h > 0) & torch.isfinite(square), near, 0.0)) * both
    # Without a bandwidth there is no repulsion: its limit for h → 0.
    push = torch.where(h > 0, 2.0 * kernel / h, 0.0).clamp(max=torch.finfo(work).max)
    share = 1.0 / usable.sum(1)[:, None, None].clamp(min=1).to(work)
    kernel, push = kernel * share, push * share
    phi = sum(kernel[:, :, j, None] * g[:, j, None] + push[:, :, j, None] * (x - x[:, j, None]) for j in each)
    return phi.view(particles.shape)


def _median_bandwidth(square: Tensor, both: Tensor) -> Tensor:
    """(Lower median of the squared distances of two usable particles) / log of their number, [B, 1, 1]; 0 for one."""
    i, j = torch.triu_indices(*square.shape[1:], 1, device=square.device)
    if i.numel() == 0:
        return square.new_zeros(square.shape[0], 1, 1)
    pairs = both[:, i, j]
    ordered = torch.where(pairs, square[:, i, j], torch.inf).sort(1).values
    number = pairs.sum(1, keepdim=True)
    median = ordered.gather(1, ((number - 1) // 2).clamp(min=0))
    usable = both.diagonal(dim1=1, dim2=2).sum(1, keepdim=True).to(square.dtype)
    return torch.where(number > 0, median / usable.clamp(min=2.0).log(), 0.0)[:, :, None]
