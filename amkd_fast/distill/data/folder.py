"""A folder of pictures: ``train/<class>/`` and ``test/<class>/`` (or ``val/<class>/``), folders within a class too."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from amkd_fast.distill.data import pictures, subsets
from amkd_fast.distill.data.split import Source, Split
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.settings import Settings

SIZE = 32  # unless the settings say otherwise
LEVEL = 1.0 / 255.0
DEEPEST = 32  # folders within a class


def read(settings: Settings) -> Source:
    """The pictures of the folder ``settings.data``; classes are its folders' names, sorted.

    Raises:
        UserError: The folder, a class or its pictures are missing, or a picture is unreadable (named).
    """
    root = Path(settings.data)
    if not root.is_dir():
        raise UserError(
            f"--data {root}: no such folder (give 'digits', 'cifar10', 'cifar100', 'tiny-imagenet' or a folder with"
            " train/<class>/ and test/<class>/)"
        )
    held = "val" if (root / "val").is_dir() and not (root / "test").exists() else "test"
    names = {part: class_names(root / part) for part in ("train", held)}
    if names["train"] != names[held]:
        odd = ", ".join(sorted(set(names["train"]) ^ set(names[held])))
        raise UserError(
            f"--data {root}: train has {len(names['train'])} classes and {held} {len(names[held])}; not in both: {odd}"
        )
    if len(names["train"]) < 2:
        raise UserError(f"--data {root}: one class only; at least two are needed")
    classes = tuple(names["train"][number] for number in subsets.choose(tuple(names["train"]), settings.classes))
    size = SIZE if settings.image_size is None else settings.image_size
    train, test = ([found(root / part / name) for name in classes] for part in ("train", held))
    return Source(pixels(train, size, settings.grayscale), pixels(test, size, settings.grayscale), classes, LEVEL)


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
        raise UserError(f"--data: {folder} holds no .png or .jpg (nor .jpeg, .bmp, .webp or .ppm)")
    return paths


def pixels(classes: list[list[Path]], size: int, grayscale: bool) -> Split:
    """The pictures of every class, class by class."""
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(paths) for paths in classes]))
    return Split(pictures.read([path for paths in classes for path in paths], size, grayscale), labels)


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
