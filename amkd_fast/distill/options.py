"""A settings dataclass as words of a command line and as a YAML file, with the same checks for both."""

from __future__ import annotations

import argparse
import math
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from amkd_fast.distill.errors import UserError
from amkd_fast.distill.settings import Settings

S = TypeVar("S", bound=Settings)
_LARGEST = 1 << 20  # bytes of a YAML file


def add(parser: argparse.ArgumentParser, kind: type[Settings]) -> None:
    """Give the parser one option for every field, and ``--config``. What is not given stays absent."""
    group = parser.add_argument_group("settings, as in a YAML file of --config")
    group.add_argument("--config", metavar="FILE.yaml", help="settings; words of the command line go before them")
    hints = get_type_hints(kind)
    for field in fields(kind):
        rules = field.metadata
        words: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(field)}
        if hints[field.name] is bool:
            words["action"] = argparse.BooleanOptionalAction
        elif rules["choices"]:
            words["choices"] = rules["choices"]
        else:
            words["type"] = _converter(field, hints[field.name])
        group.add_argument(_word(field.name), **words)


def resolve(kind: type[S], config: str | None, given: dict[str, Any]) -> S:
    """The settings of a YAML file, changed by what was given on the command line.

    Raises:
        UserError: The file cannot be read, or holds a setting that does not exist or a value that breaks its rule.
    """
    return kind(**{**({} if config is None else _read(Path(config), kind)), **given})


def given(kind: type[Settings], values: dict[str, Any]) -> dict[str, Any]:
    """Those of the parsed words that are settings."""
    return {field.name: values[field.name] for field in fields(kind) if field.name in values}


def to_yaml(settings: Settings) -> str:
    """The settings as a file that ``--config`` takes."""
    import yaml

    return yaml.safe_dump(settings.as_dict(), sort_keys=False, allow_unicode=True)


def _read(path: Path, kind: type[Settings]) -> dict[str, Any]:
    import yaml

    name = f"--config {path}"
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"{name}: has more than {_LARGEST} bytes")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: is no YAML file of settings ({error})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{name}: must hold settings by name, not a {type(values).__name__}")
    known, hints = {field.name: field for field in fields(kind)}, get_type_hints(kind)
    found = {}
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{name}: there is no setting {key!r}")
        try:
            found[key] = _checked(known[key], hints[key], value)
        except ValueError as error:
            raise UserError(f"{name}: {key}: {error}") from error
    return found


def _converter(field: Field, hint: Any) -> Any:
    """From a word of the command line."""
    kind = _base(hint)

    def convert(text: str) -> Any:
        try:
            return _checked(field, hint, kind(text))
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                str(error) if "must" in str(error) else f"{text!r}: no {_NAMES[kind]}"
            ) from error

    return convert


_NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def _checked(field: Field, hint: Any, value: Any) -> Any:
    """The value in the field's type.

    Raises:
        ValueError: It breaks the field's rule.
    """
    kind, rules = _base(hint), field.metadata
    if value is None and type(None) in get_args(hint):
        return None
    if kind is float and type(value) is int:
        value = float(value)
    if kind is str and type(value) in (int, float):  # precision: 32
        value = str(value)
    if type(value) is not kind:
        raise ValueError(f"{value!r}: must be a {_NAMES[kind]}")
    if rules["choices"] and value not in rules["choices"]:
        raise ValueError(f"{value!r}: must be one of {', '.join(rules['choices'])}")
    if rules["above"] is not None and not rules["above"] < value < math.inf:
        raise ValueError(f"{value}: must be above {rules['above']:g} and finite")
    if rules["least"] is not None and not rules["least"] <= value < math.inf:
        raise ValueError(f"{value}: must be at least {rules['least']:g} and finite")
    return value


def _base(hint: Any) -> type:
    """``int`` of ``int | None``."""
    return next((part for part in get_args(hint) if part is not type(None)), hint)


def _help(field: Field) -> str:
    text = field.metadata["help"]
    if field.default is not None and field.default != "" and "default" not in text:
        text += f" (default: {field.default})"
    return text.strip().replace("%", "%%")


def _word(name: str) -> str:
    return "--" + name.replace("_", "-")
