"""Decoded pictures in files that are mapped into memory, so that a set is decoded once."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from amkd_fast.distill.data import pictures
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.exit_codes import say
from amkd_fast.distill.files import replacing
from amkd_fast.distill.settings import Resize

VERSION = 1  # of how pixels are made of pictures; a change of pictures.py that changes them raises it
SUFFIX = ".pixels"
DIGEST = hashlib.sha256().digest_size


def read(folder: str | Path, paths: Sequence[pictures.Picture], size: int, grayscale: bool, resize: Resize) -> Tensor:
    """What :func:`.pictures.read` returns, out of a file in ``folder``, which is written where there is none.

    The file is named by a digest of what the pixels come from: the pictures' paths, sizes and times of their last
    change, the other arguments, and the version of PIL. It holds the pixels as they lie in memory and their SHA-256.
    One that is damaged is told of and written anew.

    Args:
        folder: Is made where it is missing.
        paths: As the others of :func:`.pictures.read`.
        size: Height and width.
        grayscale: One channel.
        resize: ``squash`` or ``crop``.

    Returns:
        uint8 [N, C, size, size]; its pages are read when they are looked at, and writing to them changes no file.

    Raises:
        UserError: A picture is refused, or the folder cannot be made.
    """
    shape = (len(paths), 1 if grayscale else 3, size, size)
    path = Path(folder) / f"{_key(paths, size, grayscale, resize)}{SUFFIX}"
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--cache {folder}: cannot be made ({error.strerror})") from error
    if path.is_file():
        pixels = _mapped(path, shape)
        if pixels is not None:
            return pixels
        say(f"--cache: {path} is damaged; its pictures are decoded anew")
    digest = hashlib.sha256()
    with replacing(path) as file:
        for block in pictures.blocks(paths, size, grayscale, resize):
            content = block.contiguous().numpy().data.cast("B")
            digest.update(content)
            file.write(content)
        file.write(digest.digest())
    pixels = _mapped(path, shape)
    if pixels is None:
        raise UserError(f"--cache: {path} is not what has just been written to it")
    return pixels


def _mapped(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The pixels of a file; None where it does not hold these."""
    count = math.prod(shape)
    if path.stat().st_size != count + DIGEST:
        return None
    content = torch.from_file(str(path), shared=False, size=count + DIGEST, dtype=torch.uint8)
    pixels, digest = content[:count], content[count:]
    if hashlib.sha256(pixels.numpy().data).digest() != bytes(digest.tolist()):
        return None
    return pixels.view(shape)


def _key(paths: Sequence[pictures.Picture], size: int, grayscale: bool, resize: Resize) -> str:
    import PIL

    digest = hashlib.sha256(json.dumps([VERSION, PIL.__version__, size, grayscale, resize]).encode())
    for path in paths:
        if isinstance(path, pictures.Stored):
            digest.update(path.origin())
            continue
        try:
            about = os.stat(path)
        except OSError as error:
            raise pictures.refusal(path, error.strerror) from error
        digest.update(os.fsencode(os.path.abspath(path)) + f"\0{about.st_size}\0{about.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:32]
