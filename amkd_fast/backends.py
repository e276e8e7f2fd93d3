"""Which implementation of an operation runs, and why.

The names are ``reference`` (plain PyTorch, any device), ``cpu`` and ``cuda`` (the compiled extension) and ``triton``.
Under ``auto`` a CUDA tensor takes ``cuda``, then ``triton``, then ``reference``; a CPU tensor takes ``cpu``, then
``reference``. A backend that was asked for by name never falls back: it raises.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from amkd_fast import checks

BACKENDS = ("reference", "cpu", "triton", "cuda")

# The backends each operation family is written for. What is missing here has not been written yet, which is no reason
# to warn; what is here and cannot run on this machine is.
WRITTEN = {
    "kl": ("reference", "cpu", "triton", "cuda"),
    "triplet": ("reference",),
    "attack": ("reference",),
}

try:
    from amkd_fast import _C
except ImportError as error:
    _C = None
    _C_MISSING = (
        f"the compiled extension is not there ({error}); build it with AMKD_FAST_BUILD=auto, cpu or cuda "
        "and `pip install --no-build-isolation .`"
    )

_forced = "auto"
_last: dict[str, str] = {}
_warned: set[str] = set()


def build_info() -> dict[str, object] | None:
    """What the compiled extension holds (SIMD levels, CUDA architectures, decision), or None where there is none."""
    return None if _C is None else _C.build_info()


def available() -> dict[str, dict[str, str]]:
    """Say for every operation which backends run here.

    Returns:
        ``{operation: {backend: reason}}``; an empty reason means that the backend runs on this machine.

    Example:
        >>> import amkd_fast as af
        >>> af.backends.available()["kl"]["reference"]
        ''
    """
    return {op: {name: _missing(op, name) for name in BACKENDS} for op in WRITTEN}


def last(op: str) -> str | None:
    """Name the backend that the latest call of ``op`` used in this process (None before the first call)."""
    checks.choice("op", op, WRITTEN)
    return _last.get(op)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run every operation inside the block on one backend; process-wide, like the flags of ``torch.backends``.

    Args:
        name: ``"auto"``, ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``. A named backend never falls back.

    Raises:
        ValueError: The name is not a backend.

    Example:
        >>> import torch, amkd_fast as af
        >>> with af.backends.backend("reference"):
        ...     loss = af.kl_div(torch.zeros(2, 3), torch.zeros(2, 3))
        >>> af.backends.last("kl")
        'reference'
    """
    global _forced
    checks.choice("name", name, ("auto", *BACKENDS))
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def select(op: str, device: torch.device) -> str:
    """Choose the backend for a call of ``op`` on tensors of ``device`` and remember it for :func:`last`.

    Raises:
        RuntimeError: A backend was asked for by name that cannot run here or not on this device.
    """
    name = _select_auto(op, device.type) if _forced == "auto" else _select_named(op, device.type)
    _last[op] = name
    return name


def _select_named(op: str, device: str) -> str:
    reason = _missing(op, _forced)
    if reason:
        raise RuntimeError(f"backend {_forced!r} was asked for by name, but for {op!r}: {reason}")
    if not _serves(_forced, device):
        raise RuntimeError(f"backend {_forced!r} was asked for by name, but the tensors are on {device!r}")
    return _forced


def _select_auto(op: str, device: str) -> str:
    for name in ("cuda", "triton") if device == "cuda" else ("cpu",) if device == "cpu" else ():
        if name not in WRITTEN[op]:
            continue
        reason = _missing(op, name)
        if not reason:
            return name
        _warn_once(f"amkd_fast.{op}: backend {name!r} cannot run, using the next one: {reason}")
    return "reference"


def _serves(name: str, device: str) -> bool:
    if name == "reference":
        return True
    if name == "triton":
        return device == "cuda" or (device == "cpu" and interpreting())
    return name == device


def interpreting() -> bool:
    """Triton runs its kernels in the interpreter, on the CPU (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _missing(op: str, name: str) -> str:
    """The reason why a backend cannot run here, empty when it can."""
    if name not in WRITTEN[op]:
        return "not written yet"
    if name == "reference":
        return ""
    if name == "triton":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        return "" if torch.cuda.is_available() or interpreting() else "no CUDA device"
    if _C is None:
        return _C_MISSING
    if name == "cuda":
        if not _C.build_info()["cuda"]:
            return "the extension was built without CUDA kernels"
        return "" if torch.cuda.is_available() else "no CUDA device"
    return ""


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=4)
