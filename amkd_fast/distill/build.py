"""From settings to the objects that they mean: a method, an attack; and what cannot go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from torch import nn

from amkd_fast import CrossBatchMemory
from amkd_fast.attacks import BoundaryAttack, frozen
from amkd_fast.distill import external_method, loggers, lr_schedule, networks, normalisation, optimizers, teacher_file
from amkd_fast.distill.data import Data, torchvision_transforms
from amkd_fast.distill.data.sampling import class_weights
from amkd_fast.distill.distributed import torchrun_variables
from amkd_fast.distill.errors import UserError, allocating, short
from amkd_fast.distill.networks.normalised import Normalisation, normalisation_of
from amkd_fast.distill.settings import (
    METHODS,
    NEIGHBOURS,
    USUAL,
    CompareSettings,
    RunSettings,
    Settings,
    TrainSettings,
    is_external,
)
from amkd_fast.methods import (
    AMKD,
    AT,
    BSS,
    CCD,
    CRD,
    DKD,
    KD,
    MKD,
    RKD,
    SP,
    TALD,
    Constant,
    Delayed,
    ExtendedKD,
    Falling,
    FitNet,
    Linear,
    Method,
    ReviewKD,
    Rising,
    Schedule,
    StudentAlone,
    TripletKD,
)
from amkd_fast.typing import PresetName

_PIXELS = (0.0, 1.0)
_ZOO_WAIT, _ZOO_UNTIL = 10, 0.8  # of the published schedule; its start is the settings'


class _Place(TypedDict):
    """Keywords of every method with a teacher."""

    fold: bool
    distributed: bool


STAGED = ("extended-kd", "fitnet", "at", "sp", "reviewkd")  # methods that compare stages
LISTENING = (*STAGED, "rkd", "crd")  # methods that hook into the student's layers


def method(name: str, settings: Settings, data: Data, width: int | None = None, **options: Any) -> Method:
    """The method of that name.

    Raises:
        UserError: There is none, or a setting breaks a rule of it.

    Args:
        name: One of :data:`amkd_fast.distill.settings.METHODS`, or ``module:Class``.
        settings: Scales, schedules and choices.
        data: Its classes and channels.
        width: D of the student's features; needed for a memory of features alone.
        options: ``distributed``; for methods that attack, ``fixed_shape``; the teacher's ``normalisation`` (default:
            that of the networks trained here) and the ``labels`` that are learnt from (default: the student's).
    """
    if is_external(name):
        distributed = options.get("distributed", False)
        return external_method.build(name, settings.method_option, fold=settings.fold, distributed=distributed)
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}: choose from {', '.join(METHODS)}, or module:Class")
    try:
        return _method(name, settings, data, width, **options)
    except ValueError as error:  # what it is made of are settings alone
        raise UserError(f"{name}: {error}") from error


def _method(name: str, settings: Settings, data: Data, width: int | None, **options: Any) -> Method:
    distributed = options.get("distributed", False)
    if name == "student":
        labels = options.get("labels", data.student.labels)
        weights = class_weights(labels, len(data.classes)) if settings.balance == "loss" else None
        return StudentAlone(class_weights=weights, distributed=distributed)
    place: _Place = {"fold": settings.fold, "distributed": distributed}
    shared: dict[str, Any] = {
        "temperature": settings.temperature,
        "kl_weight": Linear(settings.kl_weight_start, settings.kl_weight_end),
        "scale_by_t2": settings.kl_t2,
        **place,
    }
    if name == "kd":
        return KD(**{**shared, **_kd(settings)})
    if name == "tald":
        return TALD(**shared, **_particles(settings, data))
    if name in NEIGHBOURS:
        return _neighbour(name, settings, data, place)
    preset = settings.amkd_preset if name == "amkd" else name.removeprefix("bss-")
    shared |= {
        "preset": preset,
        "attack": attack_options(settings, options.get("normalisation") or normalisation.of_student(settings, data)),
        "limit": settings.boundary_samples,
        "boundary_weight": boundary_weight(name, settings),
        "boundary_scale_by_t2": settings.boundary_t2,
        "bn": settings.bn,
        "fixed_shape": options.get("fixed_shape", False),
    }
    if name != "amkd":
        return BSS(**shared)
    return AMKD(**shared, **_metric(settings), memory=_memory(settings, len(data.classes), width))


def _neighbour(name: str, settings: Settings, data: Data, place: _Place) -> Method:
    """A method that takes nothing of the settings that KD, BSS and AMKD share."""
    if name in ("triplet-ce", "triplet-kd"):
        return TripletKD(
            triplet_weight=settings.triplet_kd_weight,
            kl_weight=float(name == "triplet-kd"),
            margin=settings.triplet_kd_margin,
            **place,
        )
    if name in STAGED:
        return _staged(name, settings, place)
    if name == "crd":
        return CRD(
            data.student.labels,
            contrast_weight=settings.crd_weight,
            temperature=settings.crd_temperature,
            negatives=settings.crd_negatives,
            features=settings.crd_features,
            momentum=settings.crd_momentum,
            **place,
        )
    if name == "jda-ccd":
        return CCD(
            mean=[0.0] * data.channels,
            std=1.0,
            probability=settings.jda_probability,
            temperature=settings.ccd_temperature,
            ce_weight=settings.ccd_ce_weight,
            **place,
        )
    if name == "mkd":
        return MKD(ce_weight=settings.mkd_ce_weight, **place)
    if name == "dkd":
        return DKD(
            temperature=settings.dkd_temperature,
            target_weight=settings.dkd_target_weight,
            other_weight=settings.dkd_other_weight,
            dkd_weight=Rising(1.0, settings.dkd_warmup),
            **place,
        )
    return RKD(distance_weight=settings.rkd_distance_weight, angle_weight=settings.rkd_angle_weight, **place)


def _staged(name: str, settings: Settings, place: _Place) -> Method:
    """A method that compares stages."""
    named = {role: getattr(settings, role) for role in ("student_stages", "teacher_stages")}
    stages: dict[str, Any] = {
        role: [part.strip() for part in names.split(",")] for role, names in named.items() if names
    }
    if name == "extended-kd":
        return ExtendedKD(
            logit_weight=settings.extended_logit_weight,
            segment_weight=settings.extended_segment_weight,
            ce_weight=settings.extended_ce_weight,
            **stages,
            **place,
        )
    if name == "fitnet":
        return FitNet(hint_weight=settings.fitnet_weight, stage=settings.fitnet_stage, **stages, **place)
    if name == "at":
        return AT(attention_weight=settings.at_weight, power=settings.at_power, **stages, **place)
    if name == "sp":
        return SP(similarity_weight=settings.sp_weight, **stages, **place)
    weight = Rising(settings.reviewkd_weight, settings.reviewkd_warmup)
    return ReviewKD(review_weight=weight, **stages, **place)


def _kd(settings: Settings) -> dict[str, Any]:
    """Keywords that are KD's alone."""
    own: dict[str, Any] = {"ce_weight": settings.kd_ce_weight}
    if settings.kd_temperature is not None:
        own["temperature"] = settings.kd_temperature
    if settings.kd_kl_weight is not None:
        own |= {"kl_weight": settings.kd_kl_weight, "scale_by_t2": True}
    return own


def _particles(settings: Settings, data: Data) -> dict[str, Any]:
    """Keywords of TALD."""
    lower, upper = _PIXELS if settings.bounds == "pixel" else (None, None)
    return {
        "eps": settings.radius(settings.tald_eps),
        "particles": settings.tald_particles,
        "steps": settings.tald_steps,
        "particle_weight": settings.tald_weight,
        "lower": lower,
        "upper": upper,
    }


def boundary_weight(name: str, settings: Settings) -> Schedule:
    """β by epoch, for the method of that name."""
    kind = settings.boundary_schedule
    if kind == "constant":
        return Constant(settings.boundary_weight)
    if kind == "zoo" or (kind == "auto" and name == "bss-zoo"):
        return Delayed(settings.boundary_weight, _ZOO_UNTIL, _ZOO_WAIT)
    return Falling(settings.boundary_weight, settings.boundary_until)


def attack_options(settings: Settings, attacked: Normalisation) -> dict[str, Any]:
    """Keywords of an attack on pixels, inside the bounds that the settings ask for.

    The preset's own step and bounds are meant in the units that the ``attacked`` network normalises to.
    """
    lower, upper = _PIXELS if settings.bounds == "pixel" else (None, None)
    return {"steps": settings.attack_steps, "lower": lower, "upper": upper, "normalisation": attacked}


def boundary_attack(settings: Settings, network: nn.Module, preset: PresetName, **options: Any) -> BoundaryAttack:
    """The attack of a preset on the network's pixels as the settings want it."""
    view = frozen(network, fold_batchnorm=settings.fold)
    return BoundaryAttack(view, preset=preset, **{**attack_options(settings, normalisation_of(network)), **options})


def check(settings: Settings, device: Any) -> None:
    """Raise :class:`UserError` for settings that do not go together, or not here, before any work is done."""
    loggers.check(settings.logger)
    if isinstance(settings, RunSettings):
        if settings.teacher is not None:
            teacher_file.check(settings.teacher, settings.teacher_network)
        elif settings.expect_teacher is not None:
            raise UserError("--expect-teacher: is for --teacher; one that is trained here gets as good as it gets")
    normalisation.check(settings)
    for role in ("teacher", "student"):
        networks.check(settings.network(role), f"--{role}-network")
    _check_training(settings)
    if settings.channels_last and device.type == "cpu":
        _check_channels_last(settings)
    names: Sequence[str] = ()
    if isinstance(settings, CompareSettings):
        names = settings.names()
    for name in names:
        if name not in METHODS and not is_external(name):
            raise UserError(
                f"--methods: unknown method {short(name)}: choose from {', '.join(METHODS)}, or module:Class"
            )
    if len(set(names)) < len(names):
        raise UserError(f"--methods {','.join(names)}: name each method once")
    try:
        AMKD(preset=settings.amkd_preset, **_metric(settings))
    except ValueError as error:
        raise UserError(str(error)) from error
    if settings.precision == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16: needs a GPU; a CPU has bf16")
    if isinstance(settings, TrainSettings):
        names = (settings.method,)
    if settings.compile and settings.space == "features":
        raise UserError("--compile: hides the features that --space features looks for")
    for name in filter(is_external, names):
        external_method.find(name, f"{'--methods' if len(names) > 1 else '--method'} {name}")
    if settings.method_option and not any(map(is_external, names)):
        raise UserError("--method-option: is for module:Class, a method of your own")
    for name in names:
        if settings.compile and name in LISTENING:
            raise UserError(f"--compile: hides the layers that {name} listens to")
        if settings.balance == "loss" and name != "student":
            raise UserError(
                f"--balance loss: weighs the cross-entropy of the method student and of teachers, not of {name}; "
                "--balance sampling is for every method"
            )
        if settings.whole_step and name not in USUAL:
            raise UserError(f"--whole-step: is for the methods {', '.join(USUAL)}, not for {name}")
    torchvision_transforms.check(settings, tuple(names))
    if settings.whole_step:
        _check_whole_step(settings, device)


def _check_training(settings: Settings) -> None:
    """Optimiser and learning rate, of the teacher too where it is trained here."""
    optimizers.check(settings)
    lr_schedule.check(settings)
    alone = isinstance(settings, TrainSettings) and settings.method == "student"
    if not (alone or (isinstance(settings, RunSettings) and settings.teacher is not None)):
        lr_schedule.check(settings.of_teacher(), "teacher-")


def _check_channels_last(settings: Settings) -> None:
    """Refuse networks that may have a strided 1x1 convolution: oneDNN corrupts memory in it (parts.subsampled)."""
    given = isinstance(settings, RunSettings) and settings.teacher is not None
    for role in ("student",) if given else ("teacher", "student"):
        name = settings.network(role)
        if networks.is_users(name):
            raise UserError(
                f"--channels-last: on a CPU must not be used with --{role}-network {name}, only with networks of ours: "
                "torch's strided 1x1 convolutions corrupt memory in this format"
            )


def _check_whole_step(settings: Settings, device: Any) -> None:
    if torchrun_variables().WORLD_SIZE > 1:
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
    dim = width if settings.space == "features" else classes
    if dim is None:
        raise TypeError("width=None: must be an int for a memory of features")
    with allocating(f"--memory {settings.memory}"):
        return CrossBatchMemory(settings.memory, dim)
