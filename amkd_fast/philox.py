"""Counter-based random numbers: Philox-4x32-10 in int64 tensor arithmetic.

A draw is a pure function of (seed, stream, counter). It has no state, touches no global generator, needs no host
round trip, and gives the same bits on a CPU and on a GPU. Source: Salmon, Moraes, Dror and Shaw, "Parallel random
numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import numbers
from typing import overload

import torch
from torch import Tensor

from amkd_fast import checks

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def words(seed: int | Tensor, counter: Tensor, *, stream: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four independent 32-bit words for every counter.

    Args:
        seed: The 64-bit key: an int (its low 64 bits count), or an int64 tensor of no dimensions on ``counter``'s
            device, which a CUDA graph can change between replays.
        counter: int64 tensor of any shape; the low two words of the 128-bit counter.
        stream: The high two words: draws for different purposes take different streams.

    Returns:
        Four int64 tensors shaped like ``counter``, values in [0, 2³²).

    Raises:
        TypeError: ``counter`` is not an int64 tensor, ``seed`` is neither an int nor an int64 tensor, or ``stream`` is
            not an int.
        ValueError: ``seed`` is a tensor with dimensions or on another device.

    Example:
        >>> import torch
        >>> from amkd_fast import philox
        >>> [hex(int(word)) for word in philox.words(0, torch.tensor(0))]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    checks.tensor("counter", counter)
    if counter.dtype != torch.int64:
        raise TypeError(f"counter.dtype={counter.dtype}: must be int64")
    if isinstance(stream, bool) or not isinstance(stream, int):
        raise TypeError(f"stream is a {type(stream).__name__}: must be an int")
    key0, key1 = _split(check_seed(seed, counter.device))
    c0, c1 = _split(counter)
    c2, c3 = (torch.full_like(counter, word) for word in _split(stream))
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + _WEYL[0]) & _LOW, (key1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def uniform(seed: int | Tensor, counter: Tensor, *, stream: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """One uniform number in [0, 1) for every counter, never rounded up to 1.

    Args:
        seed: As in :func:`words`.
        counter: As in :func:`words`.
        stream: As in :func:`words`.
        dtype: ``torch.float32`` (24 random bits of the first word) or ``torch.float64`` (53 bits of the first two).

    Returns:
        Tensor of ``dtype`` shaped like ``counter``.

    Raises:
        TypeError: As in :func:`words`.
        ValueError: As in :func:`words`, or ``dtype`` is another one.

    Example:
        >>> import torch
        >>> from amkd_fast import philox
        >>> draw = philox.uniform(7, torch.arange(5))
        >>> bool(torch.equal(draw, philox.uniform(7, torch.arange(5))))
        True
    """
    checks.choice("dtype", dtype, (torch.float32, torch.float64))
    first, second, _, _ = words(seed, counter, stream=stream)
    return unit(first, second) if dtype == torch.float64 else (first >> 8).to(dtype) * 2.0**-24


def unit(high: Tensor, low: Tensor) -> Tensor:
    """Make float64 numbers in [0, 1) of 53 bits from two tensors of 32-bit words."""
    return ((high << 21) + (low >> 11)).to(torch.float64) * 2.0**-53


@overload
def check_seed(seed: int, device: torch.device) -> int: ...


@overload
def check_seed(seed: object, device: torch.device) -> int | Tensor: ...


def check_seed(seed: object, device: torch.device) -> int | Tensor:
    """``seed`` must be an int, NumPy's among them, or an int64 tensor of no dimensions on ``device``."""
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64:
            raise TypeError(f"seed.dtype={seed.dtype}: must be int64")
        checks.shape("seed", seed, (), "one number")
        if seed.device != device:
            raise ValueError(f"seed.device={seed.device}: must be {device}, the device of the draw")
        return seed
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise TypeError(f"seed is a {type(seed).__name__}: must be an int or an int64 tensor")
    return int(seed)


def chosen_seed(seed: int | Tensor | None, device: torch.device) -> int | Tensor:
    """``seed``, checked; for None a fresh one from torch's generator of ``device``, where it stays."""
    return torch.randint(2**63 - 1, (), device=device) if seed is None else check_seed(seed, device)


def operator_seed(seed: int | Tensor) -> tuple[Tensor | None, int]:
    """What the compiled operators take for a seed: the tensor, or the low 64 bits of an int as their signed number."""
    if isinstance(seed, Tensor):
        return seed, 0
    return None, (seed + 2**63) % 2**64 - 2**63


def _split(value):
    """Low and high 32-bit word of an int or an int64 tensor."""
    return value & _LOW, (value >> 32) & _LOW


def _multiply(constant: int, value: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of a 32 x 32 bit product, in halves that stay below 2⁶³."""
    low, high = constant * (value & 0xFFFF), constant * (value >> 16)
    return (high + (low >> 16)) >> 16, (low + ((high & 0xFFFF) << 16)) & _LOW
