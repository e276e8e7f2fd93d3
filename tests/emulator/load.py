"""Puts the emulated CUDA kernels in the place of the CPU's in this process."""

from __future__ import annotations

import warnings

import torch

from amkd_fast import backends
from tests.emulator.build import MODES, build


def load() -> None:
    """Build the library that AMKD_FAST_EMULATE asks for, and let it serve CPU tensors as backend ``cuda``.

    Raises:
        ValueError: AMKD_FAST_EMULATE is no mode.
        RuntimeError: The library does not compile.
    """
    if backends.EMULATED not in MODES:
        raise ValueError(f"AMKD_FAST_EMULATE={backends.EMULATED!r}: must be one of {', '.join(MODES)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that operators of the extension are overridden is the purpose
        torch.ops.load_library(build(backends.EMULATED))
    backends._UNUSABLE["cuda"] = ""
