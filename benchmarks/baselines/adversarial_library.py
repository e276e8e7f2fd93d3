"""adversarial-library's PGD, without two libraries that its package imports and its PGD does not use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from types import ModuleType

UNUSED = {"torchvision": ("models",), "visdom": ()}  # networks for LPIPS, which is a distance; a logger


@cache
def pgd_linf() -> Callable:
    """``adv_lib.attacks.pgd_linf``.

    adv_lib imports torchvision and visdom with its package, so without them none of it can be imported. Where one is
    missing an empty module takes its name while adv_lib is being imported and goes afterwards, because other libraries
    look for torchvision, and would find a hull. What adv_lib builds on it fails when it is used; ``pgd_linf`` uses
    neither.
    """
    with placeholders():
        from adv_lib.attacks import pgd_linf
    return pgd_linf


@contextmanager
def placeholders() -> Iterator[None]:
    """Empty modules in place of those of :data:`UNUSED` that cannot be found."""
    absent = [name for name in UNUSED if name not in sys.modules and find_spec(name) is None]
    for name in absent:
        module = sys.modules[name] = ModuleType(name)
        for part in UNUSED[name]:
            setattr(module, part, ModuleType(f"{name}.{part}"))
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
