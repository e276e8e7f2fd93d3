"""What a run was started with, written beside its results, and found again by ``--resume``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from amkd_fast.distill import options, report
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.settings import Settings

RUN = "run.json"  # settings, versions, commit, machine
CONFIG = "config.yaml"  # the settings alone, as --config takes them

S = TypeVar("S", bound=Settings)


def start(settings: Settings) -> dict[str, str]:
    """The files, by name, that a working folder begins with."""
    about = {"settings": settings.as_dict(), "environment": report.environment()}
    return {RUN: report.to_json(about), CONFIG: options.to_yaml(settings)}


def stored(folder: Path, kind: type[S], given: dict[str, Any]) -> S:
    """The settings that the run in ``folder`` was started with.

    Args:
        folder: The working folder.
        kind: Of the settings.
        given: Those that the user stated now; they must not contradict the stored ones.

    Raises:
        UserError: They do, or the file is missing or damaged.
    """
    try:
        settings = kind.from_dict(json.loads((folder / RUN).read_text())["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--resume: {folder / RUN} is missing or damaged") from error
    values = settings.as_dict()
    for name, value in given.items():
        if values[name] != value:
            option = "--" + name.replace("_", "-")
            raise UserError(f"--resume: the run was started with {option} {values[name]}, not {value}")
    return settings
