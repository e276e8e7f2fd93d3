"""Which parts of a set are learnt from, are tested on, and choose best.ckpt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from amkd_fast.distill.errors import UserError
from amkd_fast.distill.settings import Settings

VALIDATION = ("val", "validation", "valid")
P = TypeVar("P")


def choose(found: Mapping[str, P], test: P, settings: Settings, hint: str = "") -> dict[str, P]:
    """The parts ``train``, ``test`` (unless it is split off) and ``validation`` (where there is one).

    Args:
        found: What there is, by its name; ``train`` is among them. In messages its text stands for it.
        test: What is looked for as the test set, for the message that it is missing.
        settings: ``val_fraction``, ``test_fraction``.
        hint: What else to say where there is no test set.

    Raises:
        UserError: There is none, or one too many.
    """
    validation = [name for name in VALIDATION if name in found]
    if len(validation) > 1:
        raise UserError(f"--data {settings.data}: {' and '.join(validation)}: must be one of them")
    parts = {"train": found["train"]}
    if "test" in found:
        parts["test"] = found["test"]
    elif validation and settings.test_fraction is None:
        parts["test"] = found[validation.pop()]
    if validation and settings.val_fraction != 0.0:
        parts["validation"] = found[validation[0]]
    if settings.test_fraction is None:
        if "test" not in parts:
            raise UserError(
                f"--data {settings.data}: {test} is missing, and so is val; --test-fraction 0.2 takes that share of the"
                f" training images{hint}"
            )
    elif "test" in parts:
        raise UserError(f"--test-fraction {settings.test_fraction:g}: {parts['test']} is the test set already")
    if settings.val_fraction and "validation" in parts:
        raise UserError(
            f"--val-fraction {settings.val_fraction:g}: {parts['validation']} is the validation set already"
        )
    return parts
