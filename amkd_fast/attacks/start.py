"""Random starting points in a ball, from counter-based draws."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from amkd_fast import philox
from amkd_fast.ops.attack.steps import rounded_inside


def random_start(x0: Tensor, eps: float | Tensor, norm: str, rows: Tensor, seed: int | Tensor, restart: int) -> Tensor:
    """Points drawn evenly from the ``eps``-balls around ``x0`` [m, ...]; row i of the batch has draws of its own.

    linf: every coordinate evenly in ±ε. l2: a normal direction (Box and Muller) of length ε u^(1/n). l1: a Laplace
    direction of length ε u^(1/n). Where radii differ from channel to channel, in their units.
    """
    size = x0[0].numel() if x0.shape[0] else 1
    element = torch.arange(size, device=x0.device)
    counter = rows[:, None] * (size + 1) + element  # [m, n]; number n of a row is its length
    w0, w1, w2, w3 = philox.words(seed, counter, stream=restart)
    first, second = philox.unit(w0, w1), philox.unit(w2, w3)
    radius = eps
    if isinstance(eps, Tensor):  # [m], or [m, C, 1, ...]
        radius = eps.double().view(-1, *eps.shape[1:], *[1] * (x0.dim() - eps.dim())).expand_as(x0).flatten(1)
    if norm == "linf":
        offset = radius * (2.0 * first - 1.0)
    else:
        distance = -torch.log1p(-first)  # exponential, finite
        if norm == "l2":
            direction = (2.0 * distance).sqrt() * torch.cos(2.0 * math.pi * second)
            length = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
        else:
            direction = torch.where(second < 0.5, -distance, distance)
            length = direction.abs().sum(1, keepdim=True)
        share = philox.uniform(seed, rows * (size + 1) + size, stream=restart, dtype=torch.float64) ** (1.0 / size)
        offset = direction * (radius * share[:, None] / torch.where(length > 0, length, 1.0))
    start = (x0.double() + offset.view_as(x0)).to(x0.dtype)
    return rounded_inside(start, x0, x0, eps, norm) if x0.dtype.itemsize == 2 else start
