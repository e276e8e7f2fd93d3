"""A trained network with all that is needed to use it: its normalisation, its classes, the shape of its images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from amkd_fast.distill import schemas
from amkd_fast.distill.checkpoint import load_network
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.networks.normalised import Normalised
from amkd_fast.distill.settings import Settings

SIDES = {"tiny-imagenet": 64}  # of images of which the settings do not tell; else 32


class Student(Normalised):
    """A network for pixels [B, C, H, W] in [0, 1] that knows its classes.

    Attributes:
        classes: Names, in the order of the logits.
        shape: [C, H, W] of the images that it was trained with.
        name: Of the network within.
        settings: Of its training.
    """

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: float | Sequence[float],
        *,
        classes: Sequence[str],
        shape: tuple[int, int, int],
        name: str,
        settings: Settings,
    ) -> None:
        super().__init__(network, mean, std)
        self.classes, self.shape, self.name, self.settings = tuple(classes), shape, name, settings


def load(path: str | Path, network: str = "", option: str = "--network") -> Student:
    """The network of a checkpoint, in eval mode.

    Args:
        path: Of the checkpoint.
        network: The one name of a network of the user's own that may be built.
        option: What gives that name.

    Raises:
        UserError: The checkpoint cannot be used.
    """
    module, spec, about = load_network(path, network, option, about=schemas.Named)
    name = f"checkpoint {path}"
    settings = schemas.settings(Settings, about["settings"], name)
    classes = about["classes"]
    if len(classes) != spec.classes:
        raise UserError(f"{name}: has {len(classes)} names for its network's {spec.classes} classes")
    side = 8 if settings.data == "digits" else settings.image_size or SIDES.get(settings.data, 32)
    student = Student(
        module.network,
        *module.normalisation,
        classes=classes,
        shape=(spec.channels, side, side),
        name=spec.name,
        settings=settings,
    )
    return student.eval()
