"""A folder of Hugging Face's ``datasets``: what ``save_to_disk`` writes, or parquet files."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amkd_fast.distill.data import folder, parts, pictures, subsets
from amkd_fast.distill.data.memory import Room
from amkd_fast.distill.data.split import Source
from amkd_fast.distill.errors import UserError, short
from amkd_fast.distill.settings import Settings

PREFIX = "hf:"
SPLITS = ("train", "test", *parts.VALIDATION)
SAVED = ("dataset_dict.json", "state.json")  # one of them is in a folder that save_to_disk has written


def read(settings: Settings, room: Room) -> Source:
    """The pictures of the folder behind ``hf:`` in ``settings.data``, decoded as those of :func:`.folder.read`.

    The image column is the one that is an ``Image``; labels are the column ``settings.label_column``, or the only one
    that is a ``ClassLabel``, whose names are the classes. Splits are what folders of these names are to
    :func:`.folder.read`; a single data set is ``train``. Nothing is downloaded.

    Raises:
        UserError: ``datasets`` is not installed, the folder, a column or a label is missing, or a picture is
            unreadable (its row is named).
    """
    root, what = Path(settings.data.removeprefix(PREFIX)), f"--data {settings.data}"
    package = _package(what)
    sets = _opened(package, root, what)
    if "train" not in sets:
        raise UserError(f"{what}: has no split train, but {', '.join(sets) or 'none'}")
    named = parts.choose({name: name for name in SPLITS if name in sets}, "test", settings)
    image, label = _columns(package, sets["train"], settings.label_column, what)
    names = sets["train"].features[label].names
    for name in named.values():
        columns = _columns(package, sets[name], label, f"{what}: {name}")
        if columns != (image, label) or sets[name].features[label].names != names:
            raise UserError(f"{what}: train and {name} differ in their image column or the classes of {label}")
    if len(names) < 2:
        raise UserError(f"{what}: one class only; at least two are needed")
    chosen = subsets.choose(tuple(names), settings.classes)
    files = {}
    for part, name in named.items():
        found = sets[name].with_format(None)  # one that was saved with it makes tensors of numbers
        numbers = found.select_columns([label])[:][label]
        plain = found.select_columns([image]).cast_column(image, package.Image(decode=False))
        files[part] = _labelled(
            Rows(plain, image, f"{root} {name}", _origin(sets[name], name, image)), numbers, chosen, len(names)
        )
    return folder.source(files, tuple(names[number] for number in chosen), settings, room)


@dataclass(frozen=True)
class Rows:
    """A data set with nothing but its encoded pictures.

    Attributes:
        table: Of ``datasets``.
        column: Its only one.
        name: For messages.
        origin: Tells its content from any other one.
    """

    table: Any
    column: str
    name: str
    origin: bytes


@dataclass(frozen=True)
class Row(pictures.Stored):
    """One of them."""

    rows: Rows
    number: int

    def __str__(self) -> str:
        return f"{self.rows.name}, row {self.number}"

    def content(self) -> bytes:
        picture = self.rows.table[self.number][self.rows.column] or {}
        if picture.get("bytes") is not None:
            return picture["bytes"]
        if picture.get("path") is None:
            raise ValueError("there is none")
        return pictures.content(picture["path"])

    def origin(self) -> bytes:
        return self.rows.origin + f"{self.number}\0".encode()


def _labelled(rows: Rows, labels: Sequence[Any], chosen: list[int], classes: int) -> folder.Files:
    """The rows of the chosen classes, with labels from 0 in their order."""
    for number, label in enumerate(labels):
        if not isinstance(label, int) or not 0 <= label < classes:
            raise UserError(f"--data: {rows.name}, row {number}: label {short(label)}: must be from 0 to {classes - 1}")
    place = {label: position for position, label in enumerate(chosen)}
    kept = [number for number, label in enumerate(labels) if label in place]
    found = torch.tensor([place[labels[number]] for number in kept], dtype=torch.int64)
    return folder.Files([Row(rows, number) for number in kept], found)


def _columns(package: Any, dataset: Any, label: str | None, what: str) -> tuple[str, str]:
    """The names of the image column and of the labels'."""
    images, labels = (
        [name for name, feature in dataset.features.items() if isinstance(feature, kind)]
        for kind in (package.Image, package.ClassLabel)
    )
    columns = ", ".join(dataset.features)
    if len(images) != 1:
        raise UserError(f"{what}: {', '.join(images) or 'none'} of its columns ({columns}) is an Image: must be one")
    if label is None and len(labels) > 1:
        raise UserError(f"{what}: {', '.join(labels)} are ClassLabels: choose one by --label-column")
    if label is None and not labels:
        raise UserError(f"{what}: none of its columns ({columns}) is a ClassLabel; class_encode_column makes one")
    if label is not None and label not in labels:
        raise UserError(f"{what}: --label-column {label}: must be a ClassLabel, as {', '.join(labels) or 'none'} is")
    return images[0], label or labels[0]


def _opened(package: Any, root: Path, what: str) -> dict[str, Any]:
    """Its data sets by the names of the splits."""
    if not root.is_dir():
        raise UserError(f"{what}: there is no folder {root}; nothing is downloaded")
    try:
        package.disable_progress_bars()
        if any((root / name).is_file() for name in SAVED):
            found = package.load_from_disk(str(root), keep_in_memory=False)
            return dict(found) if isinstance(found, dict) else {"train": found}
        files = _parquet(root)
        if not files:
            raise UserError(f"{what}: holds neither what save_to_disk writes ({' or '.join(SAVED)}) nor parquet files")
        return {
            split: package.Dataset.from_parquet([str(path) for path in paths], keep_in_memory=False)
            for split, paths in files.items()
        }
    except (UserError, MemoryError):
        raise
    except Exception as error:  # whatever its readers stumble over
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{what}: datasets cannot read it ({type(error).__name__}: {reason})") from error


def _parquet(root: Path) -> dict[str, list[Path]]:
    """Parquet files by the last word of their paths that is the name of a split; if none has one, all are train."""
    paths = sorted(path for path in root.rglob("*.parquet") if path.is_file())
    found: dict[str, list[Path]] = {}
    for path in paths:
        words = re.findall(r"[a-z]+", str(path.relative_to(root)).lower())
        split = next((word for word in reversed(words) if word in SPLITS), None)
        if split is not None:
            found.setdefault(split, []).append(path)
    return found or ({"train": paths} if paths else {})


def _origin(dataset: Any, *names: str) -> bytes:
    """The names; and paths, sizes and times of change of the files that it is mapped from."""
    found = [f"{name}\0" for name in names]
    for path in (file["filename"] for file in dataset.cache_files):
        about = os.stat(path)
        found.append(f"{os.path.abspath(path)}\0{about.st_size}\0{about.st_mtime_ns}\0")
    return "".join(found).encode(errors="surrogateescape")


def _package(what: str) -> Any:
    try:
        package = importlib.import_module("datasets")
    except ModuleNotFoundError:
        package = None
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{what}: datasets cannot be imported ({type(error).__name__}: {reason})") from error
    if not hasattr(package, "load_from_disk"):  # a folder of that name can be imported, too
        raise UserError(f"{what}: datasets is not installed: run `pip install datasets`")
    return package
