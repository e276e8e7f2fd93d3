"""Where and when numbers were made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import amkd_fast
from amkd_fast.version import __version__

PACKAGES = ("lightning", "torchmetrics", "triton", "numpy", "scipy")
PATIENCE = 5.0  # seconds that git has


def environment() -> dict[str, Any]:
    """Versions, commit, machine and time (UTC), as plain values; None for what cannot be found out."""
    return {
        "amkd_fast": __version__,
        "commit": commit(Path(amkd_fast.__file__).parents[1]),
        "torch": torch.__version__,
        **{name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": _cpu(Path("/proc/cpuinfo")),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def commit(folder: Path, but: Sequence[str] = ()) -> str | None:
    """The commit that is checked out in ``folder``, with ``-dirty`` where tracked files, ``but`` for some, differ.

    None where ``folder`` is not itself the top of a checkout (a package installed into an environment inside somebody's
    repository must not name that repository's commit), or git is missing, fails or takes too long.
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    if not top or not Path(top).is_dir() or not Path(top).samefile(folder):
        return None
    code = ("--untracked-files=no", "--", ".", *(f":!{path}" for path in but))
    head, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", *code)
    if not head or changes is None:
        return None
    return head + ("-dirty" if changes else "")


def _git(folder: Path, *words: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    # A hook that runs us has GIT_DIR set, and git would take any folder for a checkout of that.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            command, check=True, env=env, capture_output=True, text=True, errors="replace", timeout=PATIENCE
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu(info: Path) -> str | None:
    """The model's name: Linux has it in a file of its own, other systems tell what they tell."""
    try:
        lines = info.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or None
