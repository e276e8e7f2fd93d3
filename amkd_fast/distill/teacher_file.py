"""``--teacher FILE``: one of our checkpoints, or the state dict of a network that is named beside it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from amkd_fast.distill import checkpoint, networks, normalisation, schemas, state_dict_file, state_dict_fit
from amkd_fast.distill.data import Data
from amkd_fast.distill.errors import UserError, allocating
from amkd_fast.distill.networks import Spec
from amkd_fast.distill.networks.normalised import Normalised
from amkd_fast.distill.settings import Settings, default_of
from amkd_fast.distill.state_dict_file import Claim, FoundStateDict

# Of the settings of the data, those that leave the test images as they are.
_TRAINING_ONLY = (
    *("teacher_images", "student_images", "student_fraction", "student_shots", "drop_labels", "augment", "erase"),
    *("rand_augment", "rand_augment_magnitude", "mixup", "cutmix", "val_fraction", "balance", "cache", "resident"),
)


class TeacherFile(NamedTuple):
    """A teacher as it was read.

    Attributes:
        network: In eval mode; takes pixels.
        spec: How it is built.
        source: The file, and where in it the weights were, to be told.
        claim: The accuracy that the file says it has on these test images, or None.
    """

    network: Normalised
    spec: Spec
    source: str
    claim: Claim | None


def check(path: str | Path, network: str) -> None:
    """Refuse what can be refused before the data is read.

    Args:
        path: Of the file.
        network: ``--teacher-network``.

    Raises:
        UserError: It cannot be read, is no whole checkpoint of ours and no state dict, or the latter without a network.
    """
    content = state_dict_file.read(path)
    if checkpoint.is_ours(content):
        checkpoint.checked(content, path)
    else:
        _check_named(state_dict_file.find(content, path), path, network)


def load(path: str | Path, data: Data, settings: Settings) -> TeacherFile:
    """The teacher in a file, for the channels and classes of the data.

    Raises:
        UserError: The file cannot be used, or its network is for other data.
    """
    content = state_dict_file.read(path)
    if checkpoint.is_ours(content):
        return _of_checkpoint(content, path, data, settings)
    found = state_dict_file.find(content, path)
    _check_named(found, path, settings.teacher_network)
    network, spec, prefix = built(found, settings.teacher_network, data, f"--teacher {path}")
    wished = normalisation.of_teacher(settings, data, None)
    return TeacherFile(Normalised(network, *wished), spec, told(path, found, prefix), found.claim)


def built(found: FoundStateDict, name: str, data: Data, what: str) -> tuple[nn.Module, Spec, str]:
    """The network called ``name`` with a state dict's weights, in eval mode; how it is built; the prefix taken off.

    Raises:
        UserError: The weights do not fit it; the message begins with ``what``.
    """
    spec = Spec(networks.untrained(name), data.channels, len(data.classes))
    with allocating(what):
        network = networks.build(spec, seed=0)
    prefix = state_dict_fit.load(network, found.tensors, spec, what)
    return network.eval(), spec, prefix


def _of_checkpoint(content: Any, path: str | Path, data: Data, settings: Settings) -> TeacherFile:
    usual = normalisation.of_student(settings, data)
    network, spec, about = checkpoint.load_network(path, settings.teacher_network, "--teacher-network", otherwise=usual)
    for name, value in (("channels", data.channels), ("classes", len(data.classes))):
        if getattr(spec, name) != value:
            raise UserError(f"--teacher {path}: has {getattr(spec, name)} {name}, the data has {value}")
    claim = _own_claim(content, path) if _same_test_images(about, settings) else None
    wished = normalisation.of_teacher(settings, data, network.normalisation)
    return TeacherFile(Normalised(network.network, *wished), spec, str(path), claim)


def _check_named(found: FoundStateDict, path: str | Path, network: str) -> None:
    if network != "auto":
        return
    fitting = state_dict_fit.names_that_fit(found.tensors)
    names = f"names and shapes are those of {', '.join(fitting)}" if fitting else "it is none of ours"
    raise UserError(
        f"checkpoint {path}: was not written by amkd-distill, and its weights do not say of which network they are: "
        f"give --teacher-network, a name, module:factory or timm:NAME ({names})"
    )


def told(path: str | Path, found: FoundStateDict, prefix: str) -> str:
    """Which part of the file was taken, if it was a part."""
    parts = [found.place] if found.place else []
    parts += [f"not {', '.join(found.others)}"] if found.others else []
    parts += [f"names without {prefix}"] if prefix else []
    return f"{path} ({'; '.join(parts)})" if parts else str(path)


def _own_claim(content: Any, path: str | Path) -> Claim | None:
    """Of a teacher.ckpt the stored accuracy; of a training's checkpoints that of their epoch."""
    source = f"accuracy in {path}"
    percent = content[checkpoint.KEY].get("accuracy")
    if percent is None:
        try:
            log = schemas.Rows.model_validate(content["callbacks"]["Journal"]).rows
            percent = log[-1]["accuracy"]
        except (KeyError, IndexError, TypeError, ValueError):  # not of a training, or of a damaged one
            return None
    usable = isinstance(percent, float) and 0.0 <= percent <= 100.0
    return Claim(percent, source) if usable else None


def _same_test_images(about: dict[str, Any], settings: Settings) -> bool:
    """Whether a checkpoint was tested on the images that these settings name."""
    before = about.get("settings")
    if not isinstance(before, dict):
        return False
    deciding, heading = [], ""
    for field in fields(Settings):
        heading = field.metadata["group"] or heading
        if heading == "data" and field.name not in _TRAINING_ONLY:
            deciding.append(field)
    return all(before.get(field.name, default_of(field)) == getattr(settings, field.name) for field in deciding)
