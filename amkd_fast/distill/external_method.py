"""Methods that are not ours: ``module:Class``. Finding and building one runs its code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amkd_fast.distill.epoch_log import COLUMNS, PARTS
from amkd_fast.distill.errors import UserError, short
from amkd_fast.distill.networks import external
from amkd_fast.methods import Losses, Method


def find(name: str, what: str) -> type[Method]:
    """The class called ``name``.

    Args:
        name: ``module:Class``.
        what: Where the name was given; it begins the message.

    Raises:
        UserError: There is no such module or class, or it is no :class:`amkd_fast.methods.Method`.
    """
    found = external.attribute(name, what, "module:Class")
    if not (isinstance(found, type) and issubclass(found, Method)):
        described = found.__name__ if isinstance(found, type) else f"a {type(found).__name__}"
        raise UserError(f"{what}: {described} must be a subclass of amkd_fast.methods.Method")
    return found


def build(name: str, options: Mapping[str, Any], *, fold: bool, distributed: bool) -> Method:
    """``Class(**options)``, with ``fold=False`` and ``distributed=True`` beside them where that is asked for.

    Raises:
        UserError: There is no such class, it cannot be made of these options, or it is for one process alone.
    """
    what = f"method {name}"
    kind = find(name, what)
    place = {"fold": False} if not fold else {}
    place |= {"distributed": True} if distributed else {}
    both = options.keys() & place.keys()
    if both:
        raise UserError(f"{what}: --method-option {min(both)}: is given by the trainer")
    words = ", ".join(f"{key}={short(value)}" for key, value in {**options, **place}.items())
    try:
        method = kind(**options, **place)
    except (Exception, SystemExit) as error:
        raise UserError(f"{what}: {kind.__name__}({words}) raised {external.told(error)}") from error
    if not isinstance(method, Method):
        raise UserError(f"{what}: {kind.__name__}({words}) is a {type(method).__name__}: must be a Method")
    if method.distributed is not distributed:
        ranks = "several processes" if distributed else "one process"
        raise UserError(f"{what}: distributed={method.distributed}: must be {distributed} in {ranks}")
    method.register_forward_hook(lambda _method, _inputs, losses: _check(losses, what))
    return method


def _check(losses: object, what: str) -> None:
    """What a method returns must be what the trainer minimises and logs."""
    if not isinstance(losses, Losses):
        raise UserError(f"{what}: returned a {type(losses).__name__}: must be amkd_fast.methods.Losses")
    if losses.total.dim() != 0 or not losses.total.requires_grad:
        shape = tuple(losses.total.shape)
        raise UserError(f"{what}: total of shape {shape}: must be a number with a gradient, of shape ()")
    taken = losses.parts.keys() & (set(COLUMNS) - {"ce", "kl", *PARTS})
    if taken:
        raise UserError(f"{what}: a part is called {min(taken)}: must be otherwise, the log has a column of this name")
