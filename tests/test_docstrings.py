"""Every example in a public docstring runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import amkd_fast

# Importing these needs more than torch, or they are the kernels of another device.
LEFT_OUT = ("amkd_fast._C", "amkd_fast.distill", "amkd_fast.ops.kl.triton", "amkd_fast.ops.triplet.triton_")
MODULES = sorted(
    info.name for info in pkgutil.walk_packages(amkd_fast.__path__, "amkd_fast.") if not info.name.startswith(LEFT_OUT)
)
PUBLIC = [name for name in amkd_fast.__all__ if callable(getattr(amkd_fast, name))]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example(name):
    assert ">>> " in getattr(amkd_fast, name).__doc__
