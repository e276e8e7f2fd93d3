"""The numbers of a call, checked; a call that repeats an earlier one finds them ready."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from amkd_fast import checks
from amkd_fast.ops.kl.function import DIVERGENCES, Scalars


def remembered(build: Callable[..., tuple]) -> Callable[..., tuple]:
    """``build`` with its latest results kept: checking a dozen numbers costs a small call more than its arithmetic."""
    known = functools.lru_cache(256, typed=True)(build)  # typed: True is no temperature, though it equals 1.0

    def look_up(*arguments: object) -> tuple:
        if not torch.compiler.is_compiling():  # which traces what is behind a cache, and warns
            try:
                return known(*arguments)
            except TypeError:  # a symbolic size has no hash, nor have some wrong types, which `build` names
                pass
        return build(*arguments)

    return look_up


@remembered
def of_divergence(
    temperature: float,
    divergence: str,
    beta: float,
    weight: float | None,
    scale_by_t2: bool,
    reduction: str,
    batch: int,
    rows: int,
) -> tuple:
    """The :class:`Scalars` of a divergence alone; ``batch`` is the size of the logits' first dimension."""
    beta = checks.open_unit("beta", beta)
    temperature = checks.positive("temperature", temperature)
    factor = 1.0 if weight is None else checks.finite("weight", weight)
    if reduction == "batchmean":
        factor /= max(batch, 1)
    elif reduction == "mean":
        factor /= max(rows, 1)
    else:
        checks.choice("reduction", reduction, ("none", "sum", "mean", "batchmean"))
    row_scale = temperature * temperature if scale_by_t2 else 1.0
    number, per_row = DIVERGENCES.index(divergence), reduction == "none"
    return tuple(Scalars(temperature, number, beta, row_scale, factor, 0.0, -100, per_row))


@remembered
def of_distillation(
    temperature: float,
    divergence: str,
    ce_weight: float | None,
    kl_weight: float | None,
    scale_by_t2: bool,
    ignore_index: int,
    rows: int,
) -> tuple:
    """The :class:`Scalars` of a divergence and a cross-entropy."""
    checks.choice("divergence", divergence, DIVERGENCES[:3])
    temperature = checks.positive("temperature", temperature)
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index is a {type(ignore_index).__name__}: must be an int")
    kl_factor = 1.0 if kl_weight is None else checks.finite("kl_weight", kl_weight)
    ce_factor = 1.0 if ce_weight is None else checks.finite("ce_weight", ce_weight)
    row_scale = temperature * temperature if scale_by_t2 else 1.0
    number = DIVERGENCES.index(divergence)
    return tuple(Scalars(temperature, number, 0.5, row_scale, kl_factor / max(rows, 1), ce_factor, ignore_index, False))
