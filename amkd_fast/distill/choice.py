"""From settings to the objects that they mean: a method, an attack; and what cannot go together."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from amkd_fast import CrossBatchMemory
from amkd_fast.attacks import BoundaryAttack, frozen
from amkd_fast.distill import networks
from amkd_fast.distill.data import Data
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.methods import AMKD, BSS, KD, Constant, Delayed, Falling, Linear, Method, Schedule, StudentAlone
from amkd_fast.distill.settings import METHODS, CompareSettings, Settings

_ZOO_WAIT, _ZOO_UNTIL = 10, 0.8  # of the published schedule; its start is the settings'


def method(name: str, settings: Settings, data: Data, width: int | None = None, **options: Any) -> Method:
    """The method of that name.

    Args:
        name: One of :data:`amkd_fast.distill.settings.METHODS`.
        settings: Scales, schedules and choices.
        data: Its classes and pixel bounds.
        width: D of the student's features; needed for a memory of features alone.
        options: ``distributed`` and, for methods that attack, ``fixed_shape``.
    """
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}: choose from {', '.join(METHODS)}")
    if name == "student":
        return StudentAlone(distributed=options.get("distributed", False))
    shared = {
        "temperature": settings.temperature,
        "kl_weight": Linear(settings.kl_weight_start, settings.kl_weight_end),
        "scale_by_t2": settings.kl_t2,
        "fold": settings.fold,
        "distributed": options.get("distributed", False),
    }
    if name == "kd":
        return KD(**shared)
    preset = settings.amkd_preset if name == "amkd" else name.removeprefix("bss-")
    shared |= {
        "preset": preset,
        "attack": attack_options(settings, data),
        "limit": settings.boundary_samples,
        "boundary_weight": boundary_weight(name, settings),
        "boundary_scale_by_t2": settings.boundary_t2,
        "bn": settings.bn,
        "fixed_shape": options.get("fixed_shape", False),
    }
    if name != "amkd":
        return BSS(**shared)
    return AMKD(**shared, **_metric(settings), memory=_memory(settings, len(data.classes), width))


def boundary_weight(name: str, settings: Settings) -> Schedule:
    """β by epoch, for the method of that name."""
    kind = settings.boundary_schedule
    if kind == "constant":
        return Constant(settings.boundary_weight)
    if kind == "zoo" or (kind == "auto" and name == "bss-zoo"):
        return Delayed(settings.boundary_weight, _ZOO_UNTIL, _ZOO_WAIT)
    return Falling(settings.boundary_weight, settings.boundary_until)


def attack_options(settings: Settings, data: Data) -> dict[str, Any]:
    """Keywords of the attack inside the bounds that the settings ask for."""
    lower, upper = data.bounds() if settings.bounds == "pixel" else (None, None)
    return {"steps": settings.attack_steps, "lower": lower, "upper": upper}


def boundary_attack(
    settings: Settings, data: Data, network: nn.Module, preset: str, **options: object
) -> BoundaryAttack:
    """The attack of a preset as the settings want it."""
    view = frozen(network, fold_batchnorm=settings.fold)
    return BoundaryAttack(view, preset=preset, **{**attack_options(settings, data), **options})


def check(settings: Settings, device: Any) -> None:
    """Raise :class:`UserError` for settings that do not go together, or not here, before any work is done."""
    for role in ("teacher", "student"):
        networks.check(settings.network(role), f"--{role}-network")
    names = settings.methods.split(",") if isinstance(settings, CompareSettings) else []
    for name in names:
        if name not in METHODS:
            raise UserError(f"--methods: unknown method {name!r}: choose from {', '.join(METHODS)}")
    if len(set(names)) < len(names):
        raise UserError(f"--methods {settings.methods}: name each method once")
    try:
        AMKD(preset=settings.amkd_preset, **_metric(settings))
    except ValueError as error:
        raise UserError(str(error)) from error
    if settings.precision == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16: needs a GPU; a CPU has bf16")
    if settings.compile and settings.space == "features":
        raise UserError("--compile: hides the features that --space features looks for")
    if settings.whole_step:
        _check_whole_step(settings, device)


def _check_whole_step(settings: Settings, device: Any) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--whole-step: is for one process")
    if device.type != "cuda":
        raise UserError("--whole-step: records a CUDA graph, and needs --device cuda")
    for option, set_ in (
        ("--accumulate", settings.accumulate > 1),
        ("--precision fp16", settings.precision == "fp16"),
        ("--compile", settings.compile),
    ):
        if set_:
            raise UserError(f"--whole-step: does not go with {option}")


def _metric(settings: Settings) -> dict[str, Any]:
    names = ("triplet_weight", "margin", "variant", "negatives", "selector", "space", "force")
    return {name: getattr(settings, name) for name in names}


def _memory(settings: Settings, classes: int, width: int | None) -> CrossBatchMemory | None:
    if settings.memory == 0:
        return None
    return CrossBatchMemory(settings.memory, width if settings.space == "features" else classes)
