"""The operator of joint augmentation that every fast backend has, and how the public function's arguments reach it.

`amkd_fast/ops/schemas.py` states the schema; the Triton operator has the same with the suffix `_triton`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from amkd_fast import philox

NAME = "images_joint_augment"


def registered(suffix: str = "") -> Callable:
    """The operator `amkd_fast::images_joint_augment` with ``suffix``, made known to torch.compile."""
    torch.library.register_fake(f"amkd_fast::{NAME}{suffix}", fake_joint_augment)
    return getattr(torch.ops.amkd_fast, NAME + suffix).default


def joint_augment(
    operator: Callable, pixels: Tensor, rows: Tensor | None, seed: int | Tensor, threshold: int, operations: int,
    fill: int,
) -> Tensor:  # fmt: skip
    """Run the operator."""
    seeds, seed = philox.operator_seed(seed)
    rows = None if rows is None else rows.contiguous()
    return operator(pixels, rows, seeds, threshold, operations, fill, seed)


def fake_joint_augment(pixels: Tensor, *_) -> Tensor:
    return torch.empty_like(pixels)
