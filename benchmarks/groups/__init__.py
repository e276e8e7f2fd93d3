"""Everything that is measured, one module a family: ``groups(family, device)``."""

from __future__ import annotations

from importlib import import_module

from benchmarks.baselines import there
from benchmarks.group import Group
from benchmarks.groups import gpu

FAMILIES = ("kl", "triplet", "attack", "images", "segments", "relations", "whole_attack", "training")


def groups(family: str, device: str = "cpu") -> list[Group]:
    """Those of :func:`described` that can run here."""
    return [group for group in described(family, device) if all(map(there, group.needs))]


def described(family: str, device: str = "cpu") -> list[Group]:
    """The groups of a family, in the order of their tables; on a GPU first those that only a GPU is given."""
    module = import_module(f"benchmarks.groups.{family}")
    return module.groups() if device == "cpu" else gpu.groups(family, module)
