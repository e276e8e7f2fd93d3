"""The operator that every fast backend of the relations family has; `csrc/library.cpp` states the schema.

The Triton operator has the same with the suffix `_triton`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from amkd_fast.ops.relations.reference import statistics_dtype

NAME = "relations_loss"


def registered(suffix: str = "") -> Callable:
    """The operator `amkd_fast::relations_loss` with ``suffix``, made known to torch.compile."""
    torch.library.register_fake(f"amkd_fast::{NAME}{suffix}", fake_loss)
    return getattr(torch.ops.amkd_fast, NAME + suffix).default


def fake_loss(student, teacher, distance_weight, angle_weight, with_gradient):
    """(loss, grad_student)."""
    dtype, (rows, width) = statistics_dtype(student.dtype), student.shape
    return student.new_empty((), dtype=dtype), student.new_empty((rows if with_gradient else 0, width), dtype=dtype)
