"""What an evaluation looks at: images for the network of a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from amkd_fast.distill import data as datasets
from amkd_fast.distill import schemas
from amkd_fast.distill.data import Data
from amkd_fast.distill.data.subsets import evenly
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.evaluate_settings import EvaluateSettings
from amkd_fast.distill.networks import Spec
from amkd_fast.distill.settings import Settings


def images_for(options: EvaluateSettings, spec: Spec, about: dict[str, Any]) -> tuple[Settings, Data]:
    """The data of the options, ``limit`` of its test images.

    Raises:
        UserError: The data cannot be read or is not for this network.
    """
    settings = schemas.settings(Settings, about["settings"], f"checkpoint {options.checkpoint}")
    if options.data is not None:
        settings = replace(
            settings,
            data=options.data,
            teacher_images=0,
            student_images=0,
            student_fraction=None,
            student_shots=None,
            classes="",
            image_size=None,
        )
    data = datasets.load(settings)
    check_network(f"checkpoint {options.checkpoint}", spec, data)
    return settings, replace(data, test=data.test.take(evenly(len(data.test), options.limit)))


def check_network(name: str, spec: Spec, data: Data) -> None:
    """Raise :class:`UserError` unless the network is one for these classes and channels."""
    if len(data.classes) != spec.classes or data.channels != spec.channels:
        raise UserError(
            f"{name}: is for {spec.classes} classes and {spec.channels} channels; "
            f"the data has {len(data.classes)} and {data.channels}"
        )
