"""What an evaluation looks at: the network of a checkpoint, and images normalised as that network knows them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from amkd_fast.distill import data as datasets
from amkd_fast.distill import schemas
from amkd_fast.distill.data import Data
from amkd_fast.distill.data.subsets import evenly
from amkd_fast.distill.errors import UserError, short
from amkd_fast.distill.evaluate_settings import EvaluateSettings
from amkd_fast.distill.networks import Spec
from amkd_fast.distill.settings import Settings


def images_for(options: EvaluateSettings, spec: Spec, about: dict[str, Any]) -> tuple[Settings, Data]:
    """The data of the options, its test images normalised as in the training of the checkpoint, ``limit`` of them.

    Raises:
        UserError: The data cannot be read or is not for this network.
    """
    settings = schemas.settings(Settings, about["settings"], f"checkpoint {options.checkpoint}")
    if options.data is not None:
        whole = {"student_fraction": None, "student_shots": None, "classes": "", "image_size": None}
        settings = replace(settings, data=options.data, teacher_images=0, student_images=0, **whole)
    data = datasets.load(settings)
    name = f"checkpoint {options.checkpoint}"
    check_network(name, spec, data)
    mean, std = normalisation(name, about, data.channels)
    data = replace(data, test=data.test.take(evenly(len(data.test), options.limit)))
    return settings, data.normalised(mean, std)


def check_network(name: str, spec: Spec, data: Data) -> None:
    """Raise :class:`UserError` unless the network is one for these classes and channels."""
    if len(data.classes) != spec.classes or data.channels != spec.channels:
        raise UserError(
            f"{name}: is for {spec.classes} classes and {spec.channels} channels; "
            f"the data has {len(data.classes)} and {data.channels}"
        )


def normalisation(name: str, about: dict[str, Any], channels: int) -> tuple[tuple[float, ...], float]:
    """The means per channel and the scale that a checkpoint's network was trained with.

    Raises:
        UserError: The scale is not one number for all channels, so that a radius in pixels would not be one either; or
            the means are not one number a channel.
    """
    mean, std = about.get("mean"), about.get("std")
    if not isinstance(std, (int, float)) or not 0.0 < std < math.inf:
        raise UserError(f"{name}: std {short(std)} is not one number above 0 for all channels")
    numbers = isinstance(mean, (list, tuple)) and all(isinstance(m, (int, float)) and math.isfinite(m) for m in mean)
    if not numbers or len(mean) != channels:
        raise UserError(f"{name}: mean {short(mean)} is not one number for each of {channels} channels")
    return tuple(mean), std
