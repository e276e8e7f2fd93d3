"""The operator that every fast backend of the images family has, and how the public function's arguments reach it.

`amkd_fast/ops/schemas.py` states the schema; the Triton operator has the same with the suffix `_triton`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from amkd_fast import checks, philox

NAME = "images_crop_flip"


def registered(suffix: str = "") -> Callable:
    """The operator `amkd_fast::images_crop_flip` with ``suffix``, made known to torch.compile."""
    torch.library.register_fake(f"amkd_fast::{NAME}{suffix}", fake_crop_flip)
    return getattr(torch.ops.amkd_fast, NAME + suffix).default


def crop_flip(
    operator: Callable, out: Tensor, pixels: Tensor, index: Tensor | None, scale: float, shift: Tensor,
    pad: int, flip: bool, seed: int | Tensor,
) -> Tensor:  # fmt: skip
    """Run the operator."""
    seeds, seed = philox.operator_seed(seed)
    index = None if index is None else index.contiguous()
    try:
        operator(out, pixels, index, shift, seeds, scale, pad, flip, seed)
    except RuntimeError as error:
        raise checks.refused(error, "rows: ") from None
    return out


def fake_crop_flip(*_) -> None:
    """Returns nothing: the result is in ``out``."""
