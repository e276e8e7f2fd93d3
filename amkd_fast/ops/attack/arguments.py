"""Argument checks of the attack family."""

from __future__ import annotations

import math
import operator
from typing import get_args, overload

import torch
from torch import Tensor

from amkd_fast import checks
from amkd_fast.ops.attack.reference import has_channels
from amkd_fast.ops.row_loss import alike
from amkd_fast.typing import AttackLoss, NormPower, StepNorm

NORMS: tuple[StepNorm, ...] = get_args(StepNorm)
POWERS: tuple[NormPower, ...] = get_args(NormPower)
_LEAST: dict[AttackLoss, int] = {"ce": 1, "boundary": 2, "dlr": 3}  # classes that a loss compares
_NEWTON = "must be one number, or one per sample, for norm_power=2, whose steps have no unit"


def check_step(
    x, grad, x0, step_size, eps, norm, norm_power, gap, momentum, decay, lower, upper, active, top, out
) -> None:
    """What :func:`amkd_fast.attack_step` asks of its arguments and of their combination."""
    if grad is None or not alike(x, grad, x0, out):
        _check_images(x, grad, x0, out)
    if norm not in NORMS or norm_power not in POWERS:
        checks.choice("norm", norm, NORMS)
        checks.choice("norm_power", norm_power, POWERS)
    if norm != "boundary" and norm_power != 1:
        raise ValueError(f"norm_power={norm_power}: must be 1 unless norm is 'boundary'")
    if (norm == "boundary") != (gap is not None):
        raise ValueError(f"gap is {'None' if gap is None else 'given'} and norm={norm!r}: gap must go with 'boundary'")
    if gap is not None:
        checks.floating("gap", gap)
        if gap.shape != x.shape[:1]:
            checks.shape("gap", gap, (x.shape[0],), "one gap per sample")
    if eps is not None:
        if norm == "boundary":
            raise ValueError(f"eps={eps!r}: must be None for norm='boundary', which has no ball")
        if x0 is None:
            raise ValueError("x0=None: must be given with eps")
        check_size("eps", eps, x)
        if not isinstance(eps, Tensor) and not eps >= 0:
            raise ValueError(f"eps={eps!r}: must be at least 0")
    check_size("step_size", step_size, x)
    if norm_power == 2 and has_channels(size_of(step_size, x)):
        raise ValueError(f"step_size.shape={tuple(step_size.shape)}: {_NEWTON}")
    if momentum is not None:
        _check_momentum(momentum, x, norm)
    if lower is not None or upper is not None:
        check_bounds(lower, upper, x)
    if active is not None:
        checks.tensor("active", active)
        if active.dtype != torch.bool:
            raise TypeError(f"active.dtype={active.dtype}: must be bool")
        if active.shape != x.shape[:1]:
            checks.shape("active", active, (x.shape[0],), "one flag per sample")
    for value in (gap, momentum, active, lower, upper):
        if value is not None and type(value) is not float and isinstance(value, Tensor) and value.device != x.device:
            checks.same_device(x=x, gap=gap, momentum=momentum, lower=lower, upper=upper, active=active)
    if out is not None:
        if out is not x and overlaps(out, x, grad, x0, momentum):
            raise ValueError("out: must be x itself, or share no memory with x, grad, x0 and momentum")
        if torch.is_grad_enabled() and (x.requires_grad or grad.requires_grad):
            raise ValueError("out: must be None where autograd follows x or grad")
    checks.finite("decay", decay)
    check_top(top)


def _check_images(x, grad, x0, out) -> None:
    checks.floating("x", x)
    shape, dtype = x.shape, x.dtype
    if len(shape) < 2:
        raise ValueError(f"x.shape={tuple(shape)}: must have a batch dimension and at least one more")
    work = torch.float64 if dtype == torch.float64 else torch.float32
    for name, value in (("grad", grad), ("x0", x0), ("out", out)):
        if value is not None or name == "grad":
            checks.floating(name, value)
            checks.shape(name, value, tuple(shape), "the shape of x")
            if value.dtype != dtype and not (name == "grad" and value.dtype == work):
                raise TypeError(f"{name}.dtype={value.dtype}: must be {dtype}, the dtype of x")
    checks.same_device(x=x, grad=grad, x0=x0, out=out)


def check_top(top: object) -> None:
    """``top`` must be a share above 0."""
    if not 0.0 < checks.finite("top", top) <= 1.0:
        raise ValueError(f"top={top!r}: must lie above 0 and at most at 1")


def overlaps(out: Tensor, x: Tensor, *others: Tensor | None) -> bool:
    """Whether ``out`` shares memory with another tensor, unless it is all of ``x``'s.

    Where one of two is not dense, it is copied, and what they share does no harm.
    """
    if torch.compiler.is_compiling() or out.is_meta or not _dense(out):
        return False
    start, end = out.data_ptr(), out.data_ptr() + out.numel() * out.itemsize
    for other in (x, *others):
        if other is None:
            continue
        first = other.data_ptr()
        if first < end and start < first + other.numel() * other.itemsize and _dense(other):
            if other is x and first == start and x.stride() == out.stride() and x.dtype == out.dtype:
                continue
            return True
    return False


def _dense(image: Tensor) -> bool:
    return image.is_contiguous() or (image.dim() == 4 and image.is_contiguous(memory_format=torch.channels_last))


def _check_momentum(momentum: Tensor, x: Tensor, norm: StepNorm) -> None:
    if norm == "boundary":
        raise ValueError("momentum: must be None for norm='boundary'")
    checks.floating("momentum", momentum)
    checks.shape("momentum", momentum, tuple(x.shape), "the shape of x")
    work = torch.promote_types(x.dtype, torch.float32)
    if momentum.dtype != work:
        raise TypeError(f"momentum.dtype={momentum.dtype}: must be {work} for x.dtype={x.dtype}")
    if momentum.requires_grad:
        raise ValueError("momentum.requires_grad=True: must be False, it is changed in place")


def check_size(name: str, value: object, x: Tensor) -> None:
    """A radius or step size must be a number, a floating tensor [B], or one that broadcasts as [1 or B, C, 1, …]."""
    if type(value) is float and -math.inf < value < math.inf:
        return
    if isinstance(value, Tensor):
        checks.floating(name, value)
        checks.same_device(x=x, **{name: value})
        count, channels, *rest = x.shape
        shape = tuple(value.shape)
        if shape == (count,) or (_broadcasts(shape, x) and len(shape) != 1):
            return
        forms = f"[{', '.join(['1 or B', 'C', *['1'] * len(rest)])}]"
        rule = f"one number per sample [B] = [{count}] or broadcast as {forms} with C = {channels}"
        if shape == (channels,):
            form = ", ".join(["1", "-1", *["1"] * len(rest)])
            rule += f"; one per channel is written {name}.view({form})"
        raise ValueError(f"{name}.shape={shape}: must be {rule}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a {type(value).__name__}: must be a number or a tensor")
    if value != value or (name == "step_size" and abs(value) == math.inf):  # as a compiler can trace
        raise ValueError(f"{name}={value!r}: must be {'finite' if name == 'step_size' else 'no NaN'}")


@overload
def size_of(value: float | Tensor, x: Tensor) -> float | Tensor: ...


@overload
def size_of(value: float | Tensor | None, x: Tensor) -> float | Tensor | None: ...


def size_of(value: float | Tensor | None, x: Tensor) -> float | Tensor | None:
    """A checked radius or step size as the number, [B], or [1 or B, C, 1, …] with as many dimensions as ``x``."""
    if type(value) is float or not isinstance(value, Tensor) or value.dim() == 1:
        return value
    value = value.reshape(*[1] * (x.dim() - value.dim()), *value.shape)
    if value.shape[1] == 1:
        return value.flatten().expand(x.shape[0])
    return value


def _broadcasts(shape: tuple[int, ...], x: Tensor) -> bool:
    if len(shape) > x.dim():
        return False
    whole = (1,) * (x.dim() - len(shape)) + shape
    return whole[0] in (1, x.shape[0]) and whole[1] in (1, x.shape[1]) and all(size == 1 for size in whole[2:])


def check_bound(name: str, value: object, x: Tensor) -> None:
    """``value`` must be None, a number or a floating tensor [C] with C = ``x.shape[1]``."""
    if isinstance(value, Tensor):
        checks.floating(name, value)
        checks.shape(name, value, (x.shape[1],), "one number per channel of x")
    elif value is not None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} is a {type(value).__name__}: must be a number, a tensor [C] or None")
        if value != value:  # as a compiler can trace
            raise ValueError(f"{name}={value!r}: must be no NaN")


def check_bounds(lower: object, upper: object, x: Tensor) -> None:
    """Bounds must be such, and in order; of tensors on a GPU nobody asks, which would wait for it."""
    if type(lower) is type(upper) is float and lower <= upper:
        return
    check_bound("lower", lower, x)
    check_bound("upper", upper, x)
    if lower is None or upper is None or torch.compiler.is_compiling():
        return
    if any(isinstance(bound, Tensor) and bound.device.type != "cpu" for bound in (lower, upper)):
        return
    low, high = (bound.tolist() if isinstance(bound, Tensor) else bound for bound in (lower, upper))
    lows, highs = (bound if isinstance(bound, list) else [bound] * x.shape[1] for bound in (low, high))
    if any(map(operator.gt, lows, highs)):
        raise ValueError(f"lower={low} is above upper={high}: must be at most upper")


def check_logits(name: str, value: Tensor) -> None:
    """``value`` must be floating [B, K]."""
    checks.floating(name, value)
    if value.dim() != 2:
        raise ValueError(f"{name}.shape={tuple(value.shape)}: must be [B, K]")


def check_objective(logits: Tensor, loss: AttackLoss, targeted: bool = False) -> None:
    """``logits`` [B, K] must be floating, of as many classes as the loss compares."""
    if logits.dtype not in checks.FLOATING:
        checks.floating("logits", logits)
    least = _LEAST[loss] + (targeted and loss == "dlr")
    if logits.shape[1] < least:
        raise ValueError(f"logits.shape={tuple(logits.shape)}: must have at least {least} classes for loss={loss!r}")


def check_classes(name: str, value: Tensor, logits: Tensor) -> None:
    """``value`` must be one class for every row of ``logits``."""
    checks.integer(name, value)
    if value.shape != logits.shape[:1]:  # the error's words take time
        checks.shape(name, value, (logits.shape[0],), "one class per row")


def check_range(name: str, value: Tensor | None, logits: Tensor) -> None:
    """The classes must lie in [0, K), where looking costs no device synchronisation."""
    if value is None:
        return
    if value.device.type == "cpu" and value.numel() and not torch.compiler.is_compiling():
        low, high = (int(bound) for bound in torch.aminmax(value))
        if low < 0 or high >= logits.shape[1]:
            raise ValueError(f"{name} holds {low if low < 0 else high}: must lie in [0, {logits.shape[1]})")
