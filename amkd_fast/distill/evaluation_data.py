"""What an evaluation looks at: the network of a file, and images for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from amkd_fast.distill import checkpoint, normalisation, schemas, state_dict_file, state_dict_fit, teacher_file
from amkd_fast.distill import data as datasets
from amkd_fast.distill.data import Data
from amkd_fast.distill.data.hugging_face import PREFIX
from amkd_fast.distill.data.subsets import evenly
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.evaluate_settings import EvaluateSettings
from amkd_fast.distill.networks import Spec
from amkd_fast.distill.networks.normalised import Normalised
from amkd_fast.distill.settings import Settings


def subject(
    options: EvaluateSettings, device: torch.device | str = "cpu"
) -> tuple[Normalised, Spec, str, Settings, Data]:
    """The network of the options' file, how it is built and what it is called; settings and images for it.

    Raises:
        UserError: The file cannot be used, a state dict lacks what says of which network and data it is, or the data
            cannot be read or is not for this network.
    """
    content = state_dict_file.read(options.checkpoint)
    if not checkpoint.is_ours(content):
        return _of_state_dict(content, options, device)
    for name in ("mean", "std"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name}: is for a state dict; checkpoint {options.checkpoint} has its own")
    network, spec, about = checkpoint.load_network(options.checkpoint, options.network or "", about=schemas.Evaluable)
    return network, spec, about["method"], *images_for(options, spec, about, device)


def _of_state_dict(
    content: Any, options: EvaluateSettings, device: torch.device | str
) -> tuple[Normalised, Spec, str, Settings, Data]:
    found = state_dict_file.find(content, options.checkpoint)
    if options.network is None or options.data is None:
        fitting = state_dict_fit.names_that_fit(found.tensors)
        raise UserError(
            f"checkpoint {options.checkpoint}: was not written by amkd-distill, and its weights do not say of which "
            f"network and data they are: give --network{f' ({fitting[0]} fits)' if fitting else ''} and --data"
        )
    settings = Settings(data=options.data, mean=options.mean, std=options.std)
    normalisation.check(settings)
    data = datasets.load(settings, device)
    network, spec, prefix = teacher_file.built(found, options.network, data, f"checkpoint {options.checkpoint}")
    told = teacher_file.told(options.checkpoint, found, prefix)
    return Normalised(network, *normalisation.of_student(settings, data)), spec, told, settings, _limited(data, options)


def images_for(
    options: EvaluateSettings, spec: Spec, about: dict[str, Any], device: torch.device | str = "cpu"
) -> tuple[Settings, Data]:
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
            label_column=settings.label_column if options.data.startswith(PREFIX) else None,
            val_fraction=None,
            test_fraction=None,
        )
    if settings.cache is not None and not Path(settings.cache).is_dir():  # the checkpoint is from elsewhere
        settings = replace(settings, cache=None)
    data = datasets.load(settings, device, test_alone=True)
    check_network(f"checkpoint {options.checkpoint}", spec, data)
    return settings, _limited(data, options)


def _limited(data: Data, options: EvaluateSettings) -> Data:
    return replace(data, test=data.test.take(evenly(len(data.test), options.limit)))


def check_network(name: str, spec: Spec, data: Data) -> None:
    """Raise :class:`UserError` unless the network is one for these classes and channels."""
    if len(data.classes) != spec.classes or data.channels != spec.channels:
        raise UserError(
            f"{name}: is for {spec.classes} classes and {spec.channels} channels; "
            f"the data has {len(data.classes)} and {data.channels}"
        )
