"""The files of CIFAR: pickles of the python version, records of the binary version."""

from __future__ import annotations

from pathlib import Path

import torch

from amkd_fast.distill.data import unpickle
from amkd_fast.distill.data.split import Split
from amkd_fast.distill.errors import UserError

SIDE = 32
VALUES = 3 * SIDE * SIDE  # of an image: channel, row, column
MOST_BYTES = 512 * 2**20  # three times the largest file of the real ones


def from_pickles(paths: list[Path], key: str, classes: int) -> Split:
    """The images under ``data`` and the labels under ``key`` of dictionaries.

    Raises:
        UserError: A file is missing or broken, names anything but arrays, or its labels are no classes.
    """
    parts = []
    for path in paths:
        found = unpickle.load(_content(path), path)
        array, labels = found.get("data"), found.get(key)
        try:
            if not isinstance(array, unpickle.Array):
                raise ValueError("there are no pixels under the key data")
            rows = array.rows(VALUES)
        except (AttributeError, TypeError, ValueError) as error:
            raise UserError(f"--data: {path}: {error}") from error
        if (
            not isinstance(labels, list)
            or len(labels) != len(rows)
            or not all(type(label) is int and 0 <= label < classes for label in labels)
        ):
            raise UserError(f"--data: {path}: {key} are not {len(rows)} numbers from 0 to {classes - 1}")
        parts.append((rows, torch.tensor(labels, dtype=torch.int64)))
    rows, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return Split(rows.reshape(-1, 3, SIDE, SIDE), labels)


def from_binary(paths: list[Path], skip: int, classes: int) -> Split:
    """The images of records: ``skip`` bytes, the label, the pixels.

    Raises:
        UserError: A file is missing, no whole number of records, or its labels are no classes.
    """
    parts = []
    record = skip + 1 + VALUES
    for path in paths:
        content = _content(path)
        if not content or len(content) % record:
            raise UserError(f"--data: {path}: {len(content)} bytes are no whole records of {record}")
        parts.append(torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, record))
        if int(parts[-1][:, skip].max()) >= classes:
            raise UserError(f"--data: {path}: holds labels beyond {classes - 1}")
    rows = torch.cat(parts)
    return Split(rows[:, skip + 1 :].contiguous().view(-1, 3, SIDE, SIDE), rows[:, skip].long())


def pickled_names(path: Path, key: str) -> tuple[str, ...]:
    """The class names under ``key`` of a dictionary.

    Raises:
        UserError: The file is missing or broken, or there are no names.
    """
    names = unpickle.load(_content(path), path).get(key)
    if not isinstance(names, list) or not all(isinstance(name, (bytes, str)) for name in names):
        raise UserError(f"--data: {path}: there are no names under the key {key}")
    return _checked([name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names], path)


def listed_names(path: Path) -> tuple[str, ...]:
    """The class names of a text file, one a line.

    Raises:
        UserError: The file is missing, or there are no names.
    """
    lines = _content(path).decode("utf-8", "replace").splitlines()
    return _checked([line.strip() for line in lines if line.strip()], path)


def _checked(names: list[str], path: Path) -> tuple[str, ...]:
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"--data: {path}: fewer than two class names, or one of them twice")
    return tuple(names)


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"--data: cannot read {path}: {error.strerror}") from error
    if len(content) > MOST_BYTES:
        raise UserError(f"--data: {path}: is larger than {MOST_BYTES // 2**20} MiB")
    return content
