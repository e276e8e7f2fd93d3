"""Argument checks that every operation shares. Each error names the argument, the value and the rule."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def choice(name: str, value: object, options: Iterable[object]) -> None:
    """``value`` must be one of ``options``."""
    options = tuple(options)
    if value not in options:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(map(repr, options))}")


def positive(name: str, value: object) -> float:
    """``value`` must be a finite number above zero."""
    value = _number(name, value)
    if not (0.0 < value < math.inf):
        raise ValueError(f"{name}={value!r}: must be a finite number above 0")
    return value


def non_negative(name: str, value: object) -> float:
    """``value`` must be a finite number of at least zero."""
    value = _number(name, value)
    if not (0.0 <= value < math.inf):
        raise ValueError(f"{name}={value!r}: must be a finite number of at least 0")
    return value


def finite(name: str, value: object) -> float:
    """``value`` must be a finite number."""
    value = _number(name, value)
    if not (-math.inf < value < math.inf):  # a comparison can be traced with a symbolic number, math.isfinite cannot
        raise ValueError(f"{name}={value!r}: must be a finite number")
    return value


def unit(name: str, value: object) -> float:
    """``value`` must lie between zero and one."""
    value = _number(name, value)
    if not (0.0 <= value <= 1.0):
        raise ValueError(f"{name}={value!r}: must lie between 0 and 1")
    return value


def open_unit(name: str, value: object) -> float:
    """``value`` must lie strictly between zero and one."""
    value = _number(name, value)
    if not (0.0 < value < 1.0):
        raise ValueError(f"{name}={value!r}: must lie strictly between 0 and 1")
    return value


def tensor(name: str, value: object) -> None:
    """``value`` must be a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}: must be a torch.Tensor")


def floating(name: str, value: Tensor) -> None:
    """``value`` must be a tensor of float32, float64, float16 or bfloat16."""
    tensor(name, value)
    if value.dtype not in FLOATING:
        raise TypeError(f"{name}.dtype={value.dtype}: must be float32, float64, float16 or bfloat16")


def integer(name: str, value: Tensor) -> None:
    """``value`` must be an int32 or int64 tensor (labels, indices)."""
    tensor(name, value)
    if value.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}.dtype={value.dtype}: must be int64 or int32")


def shape(name: str, value: Tensor, expected: tuple[int, ...], rule: str) -> None:
    """``value.shape`` must equal ``expected``; ``rule`` says in words what that is."""
    if value.shape != expected:
        raise ValueError(f"{name}.shape={tuple(value.shape)}: must be {tuple(expected)}, {rule}")


def same_device(**tensors: Tensor | None) -> None:
    """All tensors given (``None`` and non-tensors are passed over) must live on the first one's device."""
    first = device = None
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            continue
        if device is None:
            first, device = name, value.device
        elif value.device != device:
            raise ValueError(f"{name}.device={value.device}: must be {device}, the device of {first}")


def refused(error: RuntimeError, mark: str) -> Exception:
    """Give the ValueError in what a CPU operator says behind ``mark`` about a value; another error stays what it is."""
    _, _, rule = str(error).partition(mark)
    return ValueError(rule.splitlines()[0]) if rule else error


def whole(name: str, value: object, least: int | None = None) -> int:
    """``value`` must be an integer, of at least ``least``: an int, NumPy's, or a tensor on the CPU that holds one."""
    if not isinstance(value, int) or isinstance(value, bool):
        if isinstance(value, Tensor):
            value = _number_in(name, value, "an int")
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"{name} is a {type(value).__name__}: must be an int")
        value = int(value)
    if least is not None and value < least:
        raise ValueError(f"{name}={value}: must be at least {least}")
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, Tensor):
        value = _number_in(name, value, "a number")
    if isinstance(value, bool) or not isinstance(value, numbers.Real):  # which NumPy's scalars are
        raise TypeError(f"{name} is a {type(value).__name__}: must be a number")
    return float(value)


def _number_in(name: str, value: Tensor, what: str) -> object:
    """The number that a tensor on the CPU holds: for others one would wait, and a gradient would be lost."""
    if value.dim() != 0 or value.device.type != "cpu" or value.requires_grad:
        grad = " that requires grad" if value.requires_grad else ""
        raise TypeError(
            f"{name} is a Tensor of shape {tuple(value.shape)} on {value.device}{grad}: must be {what}, "
            "or one in a tensor of no dimensions on the CPU, without gradient"
        )
    return value.item()
