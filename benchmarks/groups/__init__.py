"""Everything that is measured, one module a family: ``groups(family)``."""

from __future__ import annotations

from importlib import import_module

from benchmarks.group import Group

FAMILIES = ("kl", "triplet", "attack", "images", "whole_attack", "training")


def groups(family: str) -> list[Group]:
    """The groups of a family, in the order of their tables."""
    return import_module(f"benchmarks.groups.{family}").groups()
