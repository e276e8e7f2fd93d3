"""Where the kernels' plans run: on a GPU, or on a CPU where tests/emulator stands in for it."""

from __future__ import annotations

from amkd_fast import backends

DEVICE = "cpu" if backends.EMULATED else "cuda"

if backends.EMULATED:
    from tests.emulator.load import load

    load()
