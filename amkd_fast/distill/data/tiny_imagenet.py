"""Tiny ImageNet as its archive unpacks: 200 classes named by their WordNet numbers, 64 x 64."""

from __future__ import annotations

from pathlib import Path

from amkd_fast.distill.data import folder, subsets
from amkd_fast.distill.data.memory import Room
from amkd_fast.distill.data.split import Source
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.settings import Settings

NAME = "tiny-imagenet-200"
SIZE = 64  # unless the settings say otherwise


def read(settings: Settings, room: Room) -> Source:
    """Its training pictures, and its validation pictures as the test set (its own test set has no labels).

    Raises:
        UserError: The unpacked archive is not in ``settings.data_root``, is incomplete, or a picture is unreadable.
    """
    given = Path(settings.data_root)
    root = next((place for place in (given / NAME, given) if (place / "val" / "val_annotations.txt").is_file()), None)
    if root is None:
        raise UserError(
            f"--data tiny-imagenet: there is no {NAME}/val/val_annotations.txt in {given.resolve()}; unpack"
            f" {NAME}.zip there, or name the folder it is in with --data-root"
        )
    everything = tuple(folder.class_names(root / "train"))
    classes = tuple(everything[number] for number in subsets.choose(everything, settings.classes))
    train = [folder.found(root / "train" / name / "images") for name in classes]
    labelled = _annotations(root / "val" / "val_annotations.txt", everything)
    test = [[root / "val" / "images" / file for file in labelled[name]] for name in classes]
    splits = folder.pixels({"train": folder.listed(train), "test": folder.listed(test)}, settings, SIZE, room)
    return Source(splits["train"], splits["test"], classes, folder.LEVEL)


def _annotations(path: Path, classes: tuple[str, ...]) -> dict[str, list[str]]:
    """File names by class, from lines of a file name, a class and the corners of a box."""
    found: dict[str, list[str]] = {name: [] for name in classes}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"--data: cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        file, name, *_ = (*line.split("\t"), "", "")
        if name not in found or Path(file).name != file or not file:
            raise UserError(f"--data: {path}, line {number}: {line[:80]!r} is no picture and one of the classes")
        found[name].append(file)
    return found
