"""How far rounding can take the attack's objective from its exact value, element by element."""

from __future__ import annotations

import torch


def objective_bounds(logits, labels, value, gradient, *, loss, score, targeted, target):
    """Bounds on the errors of value [B] and gradient [B, K], to first order, from both as they are in fp64.

    A softmax that subtracts the peak, exponentiates, adds and divides gives the exact result for logits that are off
    by a few roundings, of which a difference z − peak has its own, one of its product with log₂(e), and a quarter of
    one that log₂(e) itself is off by; an exponential, a product and a quotient add 4. A sum of K terms in at least four
    lanes is off by less than √K/2, six standard deviations of the random walk of its roundings. What such logits do to
    a result is Σ |∂result/∂z_j|·δ_j; the few products and sums behind the softmax come on top.
    """
    z, rows = logits.double(), torch.arange(len(logits))
    work = torch.promote_types(logits.dtype, torch.float32)
    unit = torch.finfo(work).eps / 2
    rival = z.scatter(1, labels[:, None], -torch.inf).argmax(1) if target is None else target
    up, down = torch.zeros_like(z), torch.zeros_like(z)
    up[rows, rival], down[rows, labels] = 1.0, 1.0
    size = value.abs()
    if loss == "dlr":
        order = z.sort(dim=1, descending=True, stable=True)
        places = (2, 3) if targeted else (2,)
        spread = torch.zeros_like(z).scatter_(1, order.indices[:, [0, *places]], 1.0)
        below = order.values[:, places].mean(1)
        width = order.values[:, 0] - below
        of_width = unit * (2 + below.abs() / width)
        parts = up + down + size[:, None] * spread
        bounds = size * (of_width + 2 * unit), parts / width[:, None] * (2 * of_width + 5 * unit)[:, None]
    elif loss == "boundary" and score == "logits":
        bounds = unit * size, torch.zeros_like(z)
    else:
        p = z.softmax(1)
        off = unit * (2.25 * (z.amax(1, keepdim=True) - z) + 4 + z.shape[1] ** 0.5 / 2)
        mean, steep = (p * off).sum(1, keepdim=True), (gradient.abs() * off).sum(1, keepdim=True)
        of_p = p * ((1 - 2 * p) * off + mean)  # Σ_j |∂p_k/∂z_j|·δ_j
        if loss == "ce":
            bounds = steep[:, 0] + 3 * unit * size, of_p + 3 * unit * gradient.abs()
        else:
            ends = (p * (up + down)).sum(1, keepdim=True)
            of_gradient = (up - down - value[:, None]).abs() * of_p + p * (steep + 3 * unit * ends)
            bounds = steep[:, 0] + 3 * unit * ends[:, 0], of_gradient + 4 * unit * gradient.abs()
    # fp64 is judged by itself, so that both may err; a result is rounded to its dtype, and exponentials end above 0.
    for result, bound in zip((value, gradient), bounds, strict=True):
        out = torch.finfo(work if result is value else logits.dtype)
        both = 2 if logits.dtype == torch.float64 else 1
        yield both * bound + (result.abs() + out.smallest_normal) * out.eps / 2 + 4 * torch.finfo(work).smallest_normal
