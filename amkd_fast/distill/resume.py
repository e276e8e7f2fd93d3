"""What a run was started with, written beside its results, and found again by ``--resume``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from amkd_fast.distill import options, schemas
from amkd_fast.distill.errors import UserError, short
from amkd_fast.distill.files import read_json
from amkd_fast.distill.settings import Settings

RUN = "run.json"  # command, settings, versions, commit, machine
CONFIG = "config.yaml"  # the settings alone, as --config takes them

S = TypeVar("S", bound=Settings)


def start(command: str, settings: Settings) -> dict[str, str]:
    """The files, by name, that a working folder begins with."""
    from amkd_fast.distill import report

    about = {"command": command, "settings": settings.as_dict(), "environment": report.environment()}
    return {RUN: report.to_json(about), CONFIG: options.to_yaml(settings)}


def stored(folder: Path, command: str, settings: S, given: dict[str, Any]) -> S:
    """The settings that the run in ``folder`` was started with.

    Args:
        folder: The working folder.
        command: ``train`` or ``compare``.
        settings: Of the same kind.
        given: Those that the user stated now; they must not contradict the stored ones.

    Raises:
        UserError: They do, the run is another command's, or the file is missing or damaged.
    """
    path = folder / RUN
    found = schemas.check(schemas.RunFile, read_json(path, "--resume"), f"--resume: {path}")
    of = found.command or ("compare" if "methods" in found.settings else "train")
    if of != command:
        raise UserError(f"--resume: {folder} is a run of {of}, not of {command}")
    of_then = {"val_fraction": 0.0, **found.settings}  # a version without it chose on the test set
    settings = schemas.settings(type(settings), of_then, f"--resume: {path}")
    values = settings.as_dict()
    for name, value in given.items():
        if values[name] != value:
            option = "--" + name.replace("_", "-")
            raise UserError(f"--resume: the run was started with {option} {values[name]}, not {short(value)}")
    return settings
