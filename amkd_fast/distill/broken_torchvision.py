"""A torchvision that does not match torch cannot be imported, and takes with it whatever imports it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys

from amkd_fast.distill import exit_codes

NAME = "torchvision"


def put_aside() -> None:
    """Say so, and go on as if it were not installed: torchmetrics imports it unasked, and nothing here needs it."""
    if NAME in sys.modules or importlib.util.find_spec(NAME) is None:
        return
    try:
        importlib.import_module(NAME)
    except Exception as error:  # it raises what it likes
        import torch
        from lightning_utilities.core import imports

        reason = " ".join(str(error).split())[:100]
        exit_codes.say(
            f"going on without {NAME}: it does not match torch {torch.__version__} ({type(error).__name__}: {reason})"
        )
        for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
            del sys.modules[name]
        sys.modules[NAME] = None  # what Python takes for not installed

        version = imports._version  # which looks for the files, not for what can be imported

        def known(name: str) -> str:
            if name == NAME:
                raise importlib.metadata.PackageNotFoundError(name)
            return version(name)

        imports._version = known


def is_aside() -> bool:
    """Whether it was put aside."""
    return NAME in sys.modules and sys.modules[NAME] is None
