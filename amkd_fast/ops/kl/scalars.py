"""The numbers of a call, checked; a call that repeats an earlier one finds them ready."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from amkd_fast import checks
from amkd_fast.ops.row_loss import REDUCTIONS
from amkd_fast.typing import Divergence, Reduction

# The positions are the operators' number `divergence`.
DIVERGENCES: tuple[str, ...] = (*get_args(Divergence), "soft_cross_entropy")
CHOICES: tuple[Reduction, ...] = get_args(Reduction)  # of the functions' reduction


class Scalars(NamedTuple):
    """The numbers of one call, in the order in which the operators take them."""

    temperature: float | Tensor  # a tensor is for the reference alone
    divergence: int
    beta: float
    row_scale: float | Tensor  # T² or 1, part of every row's divergence
    kl_factor: float  # weight of the divergence
    ce_factor: float  # weight of the mean cross-entropy
    ignore_index: int
    reduction: int  # of the divergence: with labels the cross-entropy is a mean over them


def remembered(build: Callable[..., tuple]) -> Callable[..., tuple]:
    """``build`` with its latest results kept: checking a dozen numbers costs a small call more than its arithmetic."""

    def cacheable(*arguments: object) -> tuple:
        if any(isinstance(argument, Tensor) for argument in arguments):
            raise TypeError  # its hash does not tell its value
        return build(*arguments)

    known = functools.lru_cache(256, typed=True)(cacheable)  # typed: True is no temperature, though it equals 1.0

    def look_up(*arguments: object) -> tuple:
        if not torch.compiler.is_compiling():  # which traces what is behind a cache, and warns
            try:
                return known(*arguments)
            except TypeError:  # a symbolic size has no hash, nor have some wrong types, which `build` names
                pass
        return build(*arguments)

    return look_up


def checked_temperature(temperature: object) -> float | Tensor:
    """A number above 0, or the tensor that :func:`amkd_fast.ops.kl.arguments.temperature_of` has checked."""
    return temperature if isinstance(temperature, Tensor) else checks.positive("temperature", temperature)


def reduction_of(reduction: str) -> int:
    """The operators' number of a reduction; that of logits [B, K], where ``batchmean`` is the mean over the rows."""
    checks.choice("reduction", reduction, CHOICES)
    return REDUCTIONS.index("mean" if reduction == "batchmean" else reduction)


@remembered
def of_divergence(
    temperature: float | Tensor,
    divergence: str,
    beta: float,
    weight: float | None,
    scale_by_t2: bool,
    reduction: str,
    divisor: int,
) -> tuple:
    """The :class:`Scalars` of a divergence alone."""
    beta = checks.open_unit("beta", beta)
    temperature = checked_temperature(temperature)
    factor = (1.0 if weight is None else checks.finite("weight", weight)) / divisor
    row_scale = temperature * temperature if scale_by_t2 else 1.0
    number = DIVERGENCES.index(divergence)
    return tuple(Scalars(temperature, number, beta, row_scale, factor, 0.0, -100, reduction_of(reduction)))


@remembered
def of_distillation(
    temperature: float | Tensor,
    divergence: str,
    ce_weight: float | None,
    kl_weight: float | None,
    scale_by_t2: bool,
    ignore_index: int,
) -> tuple:
    """The :class:`Scalars` of a divergence and a cross-entropy."""
    checks.choice("divergence", divergence, DIVERGENCES[:3])
    temperature = checked_temperature(temperature)
    ignore_index = checks.whole("ignore_index", ignore_index)
    kl_factor = 1.0 if kl_weight is None else checks.finite("kl_weight", kl_weight)
    ce_factor = 1.0 if ce_weight is None else checks.finite("ce_weight", ce_weight)
    row_scale = temperature * temperature if scale_by_t2 else 1.0
    number = DIVERGENCES.index(divergence)
    return tuple(Scalars(temperature, number, 0.5, row_scale, kl_factor, ce_factor, ignore_index, reduction_of("mean")))
