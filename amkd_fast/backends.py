"""Which implementation of an operation runs, and why.

The names are ``reference`` (plain PyTorch, any device), ``cpu`` and ``cuda`` (the compiled extension) and ``triton``.
Under ``auto`` a CUDA tensor takes ``cuda`` (where a GPU has confirmed it), then ``triton``, then ``reference``; a CPU
tensor takes ``cpu``, then ``reference``. A backend that was asked for by name never falls back: it raises.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import TypedDict, get_args

import torch
from torch.autograd import forward_ad

from amkd_fast import checks
from amkd_fast.typing import Backend, BackendChoice

BACKENDS: tuple[Backend, ...] = get_args(Backend)

# Operation families, each written for all backends.
FAMILIES = ("kl", "triplet", "attack", "images", "segments", "relations")

# What has run in the emulator of the tests alone, never on a GPU, is not for users who did not ask for it: ``auto``
# passes CUDA kernels over, but for these families; a function that is not a family's own says so to ``select``.
CONFIRMED = ("kl",)


class BuildInfo(TypedDict):
    """What :func:`build_info` tells."""

    decision: str  # why CUDA kernels are in it or not
    cuda: str  # version; empty without CUDA kernels
    cuda_archs: str
    torch: str
    compiler: str
    simd_compiled: str
    simd_usable: list[str]  # on this CPU
    simd: str  # in use


_BUILD: BuildInfo | None
try:
    from amkd_fast import _C

    _BUILD = _C.build_info()  # a ValueError where AMKD_FAST_SIMD cannot be had
    _BUILD_MISSING = ""
except ImportError as error:
    _BUILD = None
    _BUILD_MISSING = (
        f"the compiled extension is not there ({error}); AMKD_FAST_BUILD=auto (or cpu, cuda) and "
        "`pip install --no-build-isolation .` build it"
    )

# The autograd node in C++ uses more of torch than its stable ABI: it is for the torch that it was compiled with alone.
AUTOGRAD = os.environ.get("AMKD_FAST_AUTOGRAD", "auto")
checks.choice("AMKD_FAST_AUTOGRAD", AUTOGRAD, ("auto", "python"))
_NODE: ModuleType | None = None
_NODE_MISSING = _BUILD_MISSING
if AUTOGRAD == "python":
    _NODE_MISSING = "as AMKD_FAST_AUTOGRAD says"
elif _BUILD is not None and _BUILD["torch"] != torch.__version__:
    _NODE_MISSING = f"the node in C++ was built for torch {_BUILD['torch']} and this is {torch.__version__}"
elif _BUILD is not None:
    try:
        from amkd_fast import _autograd

        _NODE = _autograd
    except ImportError as error:
        _NODE_MISSING = f"the node in C++ is not there ({error})"

# Triton reads this variable once, when it is imported, so a later change would not be honest.
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

# The project's own tests run the CUDA kernels on CPU tensors: tests/emulator puts them in the CPU kernels' place.
EMULATED = os.environ.get("AMKD_FAST_EMULATE", "")

_NO_CUDA = "" if _BUILD is not None and _BUILD["cuda"] else "the extension was built without CUDA kernels"
# Why a backend could run nowhere in this process. Plain data, so that torch.compile can trace `select`.
_UNUSABLE = {
    "reference": "",
    "cpu": "the emulated CUDA kernels are in its place (AMKD_FAST_EMULATE)" if EMULATED else _BUILD_MISSING,
    "triton": "" if importlib.util.find_spec("triton") else "triton is not installed",
    "cuda": _BUILD_MISSING or _NO_CUDA,
}
if EMULATED:
    _UNUSABLE["cuda"] = "AMKD_FAST_EMULATE is set, but the emulated kernels are not loaded: tests/emulator does that"
_AUTO = {"cpu": ("reference",) if EMULATED else ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}

_forced: ContextVar[str] = ContextVar("amkd_fast_backend", default="auto")
# torch.compile traces no context variable. What it can look at, and watch, is the innermost block that is open now; it
# cannot tell threads apart.
_open_blocks: list[_Block] = []
_forced_in_graphs = ""  # no block is open

# torch.func works on plain PyTorch alone.
_transforms = torch._C._are_functorch_transforms_active
_ONLY_REFERENCE = "torch.func and forward-mode differentiation go through the reference alone"


class _Last:
    """What ran last, an attribute for each operation: of a dictionary a compiled graph would watch all its entries."""


_last = _Last()
_warned: set[str] = set()


def build_info() -> BuildInfo | None:
    """What the compiled extension holds (SIMD levels, CUDA architectures, decision), or None where there is none."""
    return _BUILD


def autograd_node() -> ModuleType | None:
    """The module of the autograd node in C++, or None where Python does its work: see :func:`autograd_missing`."""
    return _NODE


def autograd_missing() -> str:
    """Why there is no autograd node in C++ here; empty where there is one."""
    return _NODE_MISSING


def available() -> dict[str, dict[str, str]]:
    """Say for every operation which backends run here.

    Returns:
        ``{operation: {backend: reason}}``; an empty reason means that the backend runs on this machine.

    Example:
        >>> import amkd_fast as af
        >>> af.backends.available()["kl"]["reference"]
        ''
    """
    return {op: {name: _absent(op, name) for name in BACKENDS} for op in FAMILIES}


def last(op: str) -> str | None:
    """Name the backend that the latest call of ``op`` used in this process (None before the first call)."""
    checks.choice("op", op, FAMILIES)
    return getattr(_last, op, None)


@contextmanager
def backend(name: BackendChoice) -> Iterator[None]:
    """Run every operation inside the block on one backend, in this thread alone; new threads begin with ``"auto"``.

    Compiled graphs, which know no threads, follow the block that was opened last in any of them.

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
    checks.choice("name", name, ("auto", *BACKENDS))
    block = _Block(name)
    token = _forced.set(name)
    _open_blocks.append(block)
    _tell_graphs()
    try:
        yield
    finally:
        _forced.reset(token)
        _open_blocks.remove(block)
        _tell_graphs()


class _Block:
    """An open block of :func:`backend`, which equals no other one."""

    def __init__(self, name: str) -> None:
        self.name = name


def _tell_graphs() -> None:
    global _forced_in_graphs
    _forced_in_graphs = _open_blocks[-1].name if _open_blocks else ""


def transforming() -> bool:
    """Whether torch.func or forward-mode differentiation looks at the tensors, whose values then are not for us."""
    return _transforms() or forward_ad._current_level >= 0


def differentiates() -> bool:
    """Whether a backward pass must itself be made of plain PyTorch: for a second one, or under torch.func."""
    return (torch.is_grad_enabled() and not torch.compiler.is_compiling()) or _transforms()


def select(op: str, device: str, only_reference: str = "", function: str = "") -> str:
    """Choose the backend for a call of ``op`` on tensors of a device type (``"cpu"``, ``"cuda"``); :func:`last` tells.

    ``only_reference`` says why nothing but the reference computes this call, where that is so. ``function`` names the
    one that is called, where ``CONFIRMED`` holds for its family and not for it.

    Raises:
        RuntimeError: A backend was asked for by name that cannot run here, not on this device or not this call.
    """
    forced = "auto"
    if _forced_in_graphs:
        forced = _forced_in_graphs if torch.compiler.is_compiling() else _forced.get()
    if device == "cuda" and not torch.compiler.is_compiling():
        _ask_driver()
    if _transforms() or forward_ad._current_level >= 0:
        only_reference = only_reference or _ONLY_REFERENCE
    if only_reference:
        if forced not in ("auto", "reference"):
            raise RuntimeError(f"backend {forced!r} was asked for by name, but for {op!r}: {only_reference}")
        name = "reference"
    else:
        name = _select_auto(op, device, function or op) if forced == "auto" else _named(forced, op, device)
    setattr(_last, op, name)
    return name


@functools.cache
def _ask_driver() -> None:
    """Count the CUDA kernels out where the driver is too old for them; once CUDA is in use, as asking may start it."""
    built = "" if _BUILD is None else str(_BUILD["cuda"])
    ask = getattr(torch._C, "_cuda_getDriverVersion", None)  # a CUDA build of torch has it
    if built and ask is not None and not EMULATED:
        _UNUSABLE["cuda"] = _too_old(built, ask())


def _too_old(built: str, driver: int) -> str:
    """Why a driver for CUDA ``driver`` (12040 is 12.4) refuses a runtime of CUDA ``built``; empty if it does not."""
    if driver // 1000 >= int(built.split(".")[0]):  # drivers serve every minor version of their major one
        return ""
    return f"it needs a driver for CUDA {built}, and this one is for CUDA {driver // 1000}.{driver % 1000 // 10}"


def _named(name: str, op: str, device: str) -> str:
    reason = _UNUSABLE[name]
    if reason:
        raise RuntimeError(f"backend {name!r} was asked for by name, but for {op!r}: {reason}")
    if not _serves(name, device):
        raise RuntimeError(f"backend {name!r} was asked for by name, but the tensors are on {device!r}")
    return name


def _select_auto(op: str, device: str, function: str) -> str:
    for name in _AUTO.get(device, ("reference",)):
        if name != "cuda" or function in CONFIRMED:
            reason = _UNUSABLE[name]
            if not reason:
                return name
            _warn_once(f"amkd_fast {op}: backend {name!r} cannot run, taking the next one: {reason}")
    return "reference"


def _serves(name: str, device: str) -> bool:
    if name == "triton":
        return device == "cuda" or (device == "cpu" and INTERPRETING)
    if name == "cuda" and EMULATED and device == "cpu":
        return True
    return name == device or name == "reference"


def _absent(op: str, name: str) -> str:
    """The reason why a backend cannot run on this machine, empty when it can."""
    if name == "cuda" and torch.cuda.is_available():
        _ask_driver()
    reason = _UNUSABLE[name]
    if reason or name in ("reference", "cpu") or torch.cuda.is_available():
        return reason
    if (name == "triton" and INTERPRETING) or (name == "cuda" and EMULATED):
        return ""
    return "no CUDA device"


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=4)
