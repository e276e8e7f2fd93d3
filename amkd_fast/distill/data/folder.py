"""A folder of pictures: ``train/<class>/``, ``test/<class>/`` and ``val/<class>/``, or ``<class>/`` alone."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from amkd_fast.distill.data import cache, memory, parts, pictures, subsets
from amkd_fast.distill.data.memory import Room
from amkd_fast.distill.data.split import TESTED, Source, Split
from amkd_fast.distill.data.streamed import Streamed
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.settings import Settings

SIZE = 32  # unless the settings say otherwise
LEVEL = 1.0 / 255.0
DEEPEST = 32  # folders within a class
WIDENED = 5  # bytes of a level in a batch: its own, and those of float32


def read(settings: Settings, room: Room) -> Source:
    """The pictures of the folder ``settings.data``; classes are its folders' names, sorted.

    They are decoded now as far as there is ``room``, else whenever they are asked for.

    Where there are both ``test/`` and ``val/`` (or ``validation/``, ``valid/``), the latter is the validation set,
    unless ``settings.val_fraction`` is 0; where there is one of them, it is the test set. Without ``test/``,
    ``settings.test_fraction`` of every class in ``train/``, or in the folder itself, can be the test set.

    Raises:
        UserError: The folder, a class or its pictures are missing, or a picture is unreadable (named).
    """
    root = Path(settings.data)
    if not root.is_dir():
        raise UserError(
            f"--data {root}: no such folder (give 'digits', 'cifar10', 'cifar100', 'tiny-imagenet' or a folder with"
            " train/<class>/ and test/<class>/)"
        )
    places = parts.choose(_found(root, settings), root / "test", settings, _hint(root))
    names = class_names(places["train"])
    for part in places.values():
        others = class_names(part)
        if names != others:
            odd = ", ".join(sorted(set(names) ^ set(others)))
            raise UserError(
                f"--data {root}: train has {len(names)} classes and {part.name} {len(others)}; not in both: {odd}"
            )
    if len(names) < 2:
        raise UserError(f"--data {root}: one class only; at least two are needed")
    classes = tuple(names[number] for number in subsets.choose(tuple(names), settings.classes))
    files = {part: listed([found(place / name) for name in classes]) for part, place in places.items()}
    return source(files, classes, settings, room)


def source(files: dict[str, Files], classes: tuple[str, ...], settings: Settings, room: Room) -> Source:
    """The pictures of every part; ``settings.test_fraction`` of those of ``train`` can be ``test``.

    Raises:
        UserError: A class has too few pictures for that, or one is unreadable (named).
    """
    if settings.test_fraction is not None:
        seed, option = settings.data_seed, "--test-fraction"
        rest, out = subsets.held_out(files["train"].labels, settings.test_fraction, classes, seed, option)
        files |= {"train": files["train"].take(rest), "test": files["train"].take(out)}
    splits = pixels(files, settings, SIZE, room)
    return Source(splits["train"], splits["test"], classes, LEVEL, splits.get("validation"))


def _found(root: Path, settings: Settings) -> dict[str, Path]:
    """The folders of the parts that there are; of ``train`` the folder itself, where that has to be split."""
    places = {name: root / name for name in parts.VALIDATION if (root / name).is_dir()}
    if (root / "test").exists():
        places["test"] = root / "test"
    flat = settings.test_fraction is not None and "test" not in places and not (root / "train").is_dir()
    return {"train": root if flat else root / "train", **places}


def _hint(root: Path) -> str:
    return "" if (root / "train").is_dir() else ", or of <class>/ where there is no train/"


def class_names(folder: Path) -> list[str]:
    """Sorted names of the folders in ``folder``, hidden ones left out.

    Raises:
        UserError: ``folder`` is missing or holds none.
    """
    if not folder.is_dir():
        raise UserError(f"--data: {folder} is missing")
    names = [entry.name for entry in _entries(folder) if _is_folder(entry)]
    if not names:
        raise UserError(f"--data: {folder} holds no class folders")
    return names


def found(folder: Path) -> list[Path]:
    """Sorted picture files (by suffix) in ``folder`` and the folders within it, hidden ones left out.

    Symbolic links are followed.

    Raises:
        UserError: There are none, ``folder`` is missing or too deep, or a link within leads back to a folder around it.
    """
    paths = _walk(folder, ())
    if not paths:
        raise UserError(f"--data: {folder} holds no .png or .jpg (nor .jpeg, .bmp, .webp, .ppm or .tif)")
    return paths


class Files(NamedTuple):
    """Pictures that have not been read yet."""

    paths: Sequence[pictures.Picture]
    labels: Tensor  # int64 [N]

    def take(self, rows: Tensor) -> Files:
        """These pictures, in their order."""
        return Files([self.paths[row] for row in rows.tolist()], self.labels[rows])


def listed(classes: list[list[Path]]) -> Files:
    """The pictures of every class, class by class."""
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(paths) for paths in classes]))
    return Files([path for paths in classes for path in paths], labels)


def pixels(files: dict[str, Files], settings: Settings, usual: int, room: Room) -> dict[str, Split]:
    """The pictures of every part, as the settings wish.

    Args:
        files: By the part's name.
        settings: ``image_size``, ``grayscale``, ``resize``, ``cache``.
        usual: Their size unless the settings give one.
        room: What is beyond it is streamed.

    Raises:
        MemoryError: A streamed batch alone is more than there is memory.
    """
    size = usual if settings.image_size is None else settings.image_size
    image = (1 if settings.grayscale else 3, size, size)
    resident = room.residents({name: len(part.paths) * math.prod(image) for name, part in files.items()})
    splits = {}
    for name, (paths, labels) in files.items():
        if name not in resident and min(len(paths), TESTED) * math.prod(image) * WIDENED > memory.available():
            raise MemoryError
        levels: Tensor | Streamed
        kept = None if room.test_alone and name != "test" else settings.cache
        if kept is not None:
            found = cache.read(kept, paths, size, settings.grayscale, settings.resize)
            levels = found if name in resident else Streamed(found.__getitem__, torch.arange(len(paths)), image)
        elif name in resident:
            levels = pictures.read(paths, size, settings.grayscale, settings.resize)
        else:
            levels = Streamed(_decoder(paths, settings, size), torch.arange(len(paths)), image)
        splits[name] = Split(levels, labels)
    return splits


def _decoder(paths: Sequence[pictures.Picture], settings: Settings, size: int) -> Callable[[Tensor], Tensor]:
    def decode(rows: Tensor) -> Tensor:
        chosen = [paths[row] for row in rows.tolist()]
        empty = torch.empty(0, 1 if settings.grayscale else 3, size, size, dtype=torch.uint8)
        return torch.cat([empty, *pictures.blocks(chosen, size, settings.grayscale, settings.resize)])

    return decode


def _walk(folder: Path, around: tuple[tuple[int, int], ...]) -> list[Path]:
    try:
        about = folder.stat()
    except OSError as error:
        raise UserError(f"--data: cannot read {folder}: {error.strerror}") from error
    if len(around) == DEEPEST:
        raise UserError(f"--data: {folder.parents[DEEPEST - 1]} goes more than {DEEPEST} folders deep")
    here = (about.st_dev, about.st_ino)
    if here in around:
        raise UserError(f"--data: {folder} leads back to a folder around it, through a symbolic link")
    paths = []
    for entry in _entries(folder):
        path = folder / entry.name
        if _is_folder(entry):
            paths += _walk(path, (*around, here))
        elif path.suffix.lower() in pictures.SUFFIXES:
            paths.append(path)
    return paths


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            seen = [entry for entry in entries if not entry.name.startswith(".")]
            return sorted(seen, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"--data: cannot read {folder}: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle: as a picture it will be refused by name
        return False
