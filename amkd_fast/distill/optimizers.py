"""The optimiser that the settings name."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from amkd_fast.distill.errors import UserError
from amkd_fast.distill.settings import Settings


def build(
    parameters: Iterable[nn.Parameter], settings: Settings, recorded_on: torch.device | None = None
) -> torch.optim.Optimizer:
    """SGD or AdamW, whose other choices are PyTorch's defaults.

    Args:
        parameters: What is trained.
        settings: ``optimizer``, ``lr``, ``momentum``, ``nesterov`` and ``weight_decay``.
        recorded_on: The device on which a CUDA graph records the step, and then reads the learning rate from a tensor.
    """
    recorded = recorded_on is not None
    lr = torch.tensor(settings.lr, device=recorded_on) if recorded else settings.lr
    fused = True if recorded else None
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr, weight_decay=settings.weight_decay, fused=fused, capturable=recorded)
    return torch.optim.SGD(
        parameters,
        lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        fused=fused,
    )


def check(settings: Settings) -> None:
    """Raise :class:`UserError` for Nesterov's momentum where there is none."""
    if settings.nesterov and (settings.optimizer != "sgd" or settings.momentum == 0.0):
        raise UserError("--nesterov: is for --optimizer sgd with a --momentum above 0")
