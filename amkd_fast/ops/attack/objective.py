"""Specification of the attack objective: what a step increases, and its gradient in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

DLR_FLOOR = 1e-12


def attack_objective(
    logits: Tensor, labels: Tensor, loss: str, target: Tensor | None, score: str, targeted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value [B], gradient with respect to the logits [B, K], prediction [B] and active flag [B]."""
    z = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    labels = labels.long()
    target = None if target is None else target.long()
    prediction = z.argmax(1)

    if loss == "ce":
        value, gradient = _cross_entropy(z, target if targeted else labels)
        if targeted:
            value, gradient = -value, -gradient
    else:
        rival = best_other(z, labels) if target is None else target
        if loss == "boundary":
            value, gradient = _boundary(z, labels, rival, score)
        else:
            value, gradient = _dlr(z, labels, rival, targeted)

    value = torch.where(torch.isnan(z).any(1), torch.nan, value)
    usable = torch.isfinite(value) & torch.isfinite(gradient).all(1)
    gradient = torch.where(usable[:, None], gradient, 0.0).to(logits.dtype)
    unfinished = prediction != target if targeted else prediction == labels
    return value, gradient, prediction, unfinished & usable


def best_other(z: Tensor, labels: Tensor) -> Tensor:
    """The highest class besides ``labels``, the lowest index among equals."""
    highest = z.masked_fill(_hot(z, labels), -torch.inf).argmax(1)
    return torch.where(highest == labels, (labels == 0).to(highest.dtype), highest)  # equal where all others are −inf


def _cross_entropy(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    p, rest, left = _probabilities(z)
    return rest.log1p() + (z.amax(1) - _at(z, labels)), torch.where(_hot(z, labels), -left, p)


def _boundary(z: Tensor, base: Tensor, target: Tensor, score: str) -> tuple[Tensor, Tensor]:
    to_target, to_base = _hot(z, target), _hot(z, base)  # [B, K]
    if score == "logits":
        return _at(z, target) - _at(z, base), to_target.to(z.dtype) - to_base.to(z.dtype)
    p, _, left = _probabilities(z)
    up, down = _at(p, target)[:, None], _at(p, base)[:, None]  # [B, 1]
    value = up - down
    # p · (±1 − value) for the two, and what the rest of the classes have
    gradient = torch.where(to_target, p * (left + down), torch.where(to_base, -p * (left + up), -p * value))
    return value[:, 0], torch.where(to_target & to_base, 0.0, gradient)


def _probabilities(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p = σ(z) [B, K], Σ exp(z − max z) over the classes besides the highest [B], and 1 − p [B, K].

    Where p is nearly 1, its rounding would leave few digits of 1 − p.
    """
    highest, peak = _hot(z, z.argmax(1)), z.amax(1, keepdim=True)
    weight = (z - peak).exp()
    rest = weight.masked_fill(highest, 0.0).sum(1, keepdim=True) + (peak - peak)  # [B, 1], NaN for an infinite peak
    p = weight / (1 + rest)
    return p, rest[:, 0], torch.where(highest, rest / (1 + rest), 1 - p)


def _dlr(z: Tensor, labels: Tensor, rival: Tensor, targeted: bool) -> tuple[Tensor, Tensor]:
    """Difference of logits ratio (z_rival − z_y)/(z_(1) − z_(3)); targeted over z_(1) − (z_(3) + z_(4))/2."""
    order = z.argsort(dim=1, descending=True, stable=True)
    lift = _hot(z, rival).to(z.dtype) - _hot(z, labels).to(z.dtype)
    spread = _hot(z, order[:, 0]).to(z.dtype)
    for place in (2, 3) if targeted else (2,):
        spread = spread - _hot(z, order[:, place]).to(z.dtype) / (2 if targeted else 1)
    below = [_at(z, order[:, place]) for place in ((2, 3) if targeted else (2,))]
    width = (_at(z, order[:, 0]) - sum(below) / len(below) + DLR_FLOOR)[:, None]  # [B, 1]
    value = (_at(z, rival) - _at(z, labels))[:, None] / width
    return value[:, 0], (lift - value * spread) / width


def _hot(z: Tensor, classes: Tensor) -> Tensor:
    return torch.arange(z.shape[1], device=z.device) == classes[:, None]


def _at(z: Tensor, classes: Tensor) -> Tensor:
    return z.gather(1, classes[:, None])[:, 0]
