"""What the command line tells its user: one line, exit code 2."""

from __future__ import annotations

import importlib.util

EXTRA = {
    "lightning": "lightning",
    "torchmetrics": "torchmetrics",
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "rich": "rich",
}


class UserError(Exception):
    """Something only the user can put right; the message is one line that says what."""


def require_extra() -> None:
    """Raise :class:`UserError` unless every package of the extra ``train`` is installed."""
    missing = [name for module, name in EXTRA.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed: run `pip install amkd_fast[train]`")
