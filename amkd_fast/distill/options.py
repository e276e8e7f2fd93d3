"""A settings dataclass as words of a command line and as a YAML file, with the same checks for both."""

from __future__ import annotations

import argparse
import os
import re
import stat
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from amkd_fast.distill import recipes
from amkd_fast.distill.errors import UserError, short
from amkd_fast.distill.settings import Settings, choices, default_of, named_value

S = TypeVar("S", bound=Settings)
_LARGEST = 1 << 20  # bytes of a YAML file
_NAMES = {int: "whole number", float: "number", str: "text"}
# As YAML 1.2 has it; YAML 1.1, which pyyaml reads, wants a point before the exponent.
_FLOAT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


def add(parser: argparse.ArgumentParser, kind: type[Settings]) -> dict[str, argparse._ArgumentGroup]:
    """Give the parser one option for every field, and ``--config``. What is not given stays absent.

    Returns:
        The groups of options by their headings.
    """
    hints, heading = get_type_hints(kind), ""
    groups: dict[str, list[Field]] = {}
    for field in fields(kind):
        heading = field.metadata["group"] or heading
        groups.setdefault(heading, []).append(field)
    added = {}
    for heading in sorted(groups, key=lambda name: name != "run"):  # the run's own come first
        group = added[heading] = parser.add_argument_group(heading)
        if heading == "run":
            group.add_argument("--config", metavar="FILE.yaml", help="settings; words of the command line go before")
        for field in groups[heading]:
            words: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(field)}
            if hints[field.name] is bool:
                words["action"] = argparse.BooleanOptionalAction
            elif get_origin(hints[field.name]) is dict:
                words |= {"action": _Named, "metavar": "NAME=VALUE"}
            else:
                words["type"] = _converter(kind, field.name, _base(hints[field.name]))
                only = choices(hints[field.name])
                words["metavar"] = "{" + ",".join(only) + "}" if only else "X"
            group.add_argument(_word(field.name), **words)
    return added


def resolve(kind: type[S], config: str | None, given: dict[str, Any]) -> S:
    """The settings of a recipe, changed by those of a YAML file, and these by what was given on the command line.

    Raises:
        UserError: The file cannot be read, or holds a setting that does not exist or a value that breaks its rule; or
            there is no such recipe.
    """
    stated = {**({} if config is None else _read(Path(config), kind)), **given}
    return kind(**recipes.below(kind, stated))


def given(kind: type[Settings], values: dict[str, Any]) -> dict[str, Any]:
    """Those of the parsed words that are settings."""
    return {field.name: values[field.name] for field in fields(kind) if field.name in values}


def to_yaml(settings: Settings) -> str:
    """The settings as a file that ``--config`` takes."""
    import yaml

    return yaml.safe_dump(settings.as_dict(), sort_keys=False, allow_unicode=True)


def _read(path: Path, kind: type[Settings]) -> dict[str, Any]:
    from amkd_fast.distill import schemas

    name = f"--config {path}"
    values = _parsed(_text(path, name), name)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{name}: must hold settings by name, not a {type(values).__name__}")
    known = {field.name for field in fields(kind)}
    for key in values:
        if key not in known:
            raise UserError(f"{name}: there is no setting {short(key)}")
    found = schemas.check(schemas.of_settings(kind), values, name)
    return {key: getattr(found, key) for key in values}


def _text(path: Path, name: str) -> str:
    """The file's text; a pipe or a device may never end."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"{name}: is no file")
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise UserError(f"{name}: has more than {_LARGEST} bytes")
        return content.decode()
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: is no YAML file of settings ({error})") from error


def _parsed(text: str, name: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Without merge keys, which multiply, and dates, which settings have none of."""

        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [(tag, found) for tag, found in resolvers if not tag.endswith((":merge", ":timestamp"))]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key in seen:
                    raise UserError(f"{name}: holds {short(key)} twice")
                seen.add(key)
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
    try:
        return yaml.load(text, Loader)
    except RecursionError:
        reason = "brackets within brackets within brackets"
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
    raise UserError(f"{name}: is no YAML file of settings ({reason})")


class _Named(argparse.Action):
    """Collects the words ``name=value`` of an option that is given several times."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        try:
            found = named_value(values)
        except ValueError as error:
            raise argparse.ArgumentError(self, f"{short(values)[1:-1]}: {error}") from error
        before = getattr(namespace, self.dest, {})
        if before.keys() & found.keys():
            raise argparse.ArgumentError(self, f"{short(values)[1:-1]}: must not name {min(found)} twice")
        setattr(namespace, self.dest, {**before, **found})


def _converter(kind: type[Settings], name: str, base: type) -> Any:
    """From a word of the command line."""

    def convert(text: str) -> Any:
        from amkd_fast.distill import schemas

        try:
            value = base(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{short(text)}: must be a {_NAMES[base]}") from error
        try:
            return schemas.checked(kind, name, value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f"{short(value) if base is str else short(text)[1:-1]}: {error}"
            ) from error

    return convert


def _base(hint: Any) -> type:
    """``int`` of ``int | None``; ``str`` of words."""
    if choices(hint):
        return str
    return next((part for part in get_args(hint) if part is not type(None)), hint)


def _help(field: Field) -> str:
    text = field.metadata["help"]
    default = default_of(field)
    if default not in (None, "", {}) and "default" not in text:
        text += f" (default: {default})"
    return text.strip().replace("%", "%%")


def _word(name: str) -> str:
    return "--" + name.replace("_", "-")
