"""Recipes: published settings by name, each a YAML file in this folder that tells its source and what is different.

A file holds ``about``, ``source`` and ``deviations`` for its reader, ``settings`` for both commands, ``train`` and
``compare`` for one of them, and ``cases``: settings that hold where others have one of some values.
"""

from __future__ import annotations

from dataclasses import fields
from importlib.resources import files
from typing import Any

from amkd_fast.distill.errors import UserError, short
from amkd_fast.distill.settings import Settings, TrainSettings, default_of


def names() -> list[str]:
    """Of all recipes."""
    return sorted(file.name.removesuffix(".yaml") for file in files(__name__).iterdir() if file.name.endswith(".yaml"))


def text(name: str) -> str:
    """The recipe's file.

    Raises:
        UserError: There is none of that name.
    """
    if name not in names():
        raise UserError(f"--recipe {short(name)[1:-1]}: must be one of {', '.join(names())}")
    return files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def overview() -> str:
    """A line for each recipe, and how one is used."""
    width = max(map(len, names()))
    lines = [f"{name:{width}}  {load(name)['about']}" for name in names()]
    return "\n".join([*lines, "", "amkd-distill train --recipe NAME takes one, amkd-distill recipes NAME shows it", ""])


def load(name: str) -> dict[str, Any]:
    """The recipe's file, parsed."""
    import yaml

    return yaml.safe_load(text(name))


def below(kind: type[Settings], stated: dict[str, Any]) -> dict[str, Any]:
    """What was stated, with the settings of the recipe that it names, if any, where it states nothing.

    Args:
        kind: Whose settings they are.
        stated: By name; ``recipe`` is the recipe's.

    Raises:
        UserError: There is no such recipe.
    """
    from amkd_fast.distill import schemas

    name = stated.get("recipe")
    if name is None:
        return stated
    recipe = load(name)
    values = {**recipe["settings"], **recipe.get("train" if kind is TrainSettings else "compare", {})}
    default = {field.name: default_of(field) for field in fields(kind)}
    for case in recipe.get("cases", ()):
        found = {**default, **values, **stated}
        if all(found[setting] in wanted for setting, wanted in case["when"].items()):
            values |= case["settings"]
    checked = schemas.check(schemas.of_settings(kind), values, f"--recipe {name}")
    return {**{setting: getattr(checked, setting) for setting in values}, **stated}
