"""The pickles of CIFAR, read without running anything that they say.

A pickle calls what it names. Here it can name only stand-ins for the few names that a numpy array needs; they note
what they are told, and numpy itself, whose own ``__setstate__`` trusts its input, never sees it.
"""

from __future__ import annotations

import io
import math
import pickle
from typing import Any

import torch
from torch import Tensor

from amkd_fast.distill.errors import UserError


def load(content: bytes, path: object) -> dict[str, Any]:
    """The dictionary pickled in ``content``; arrays come as :class:`Array`.

    Args:
        content: Of the file.
        path: Of the file, for the errors.

    Raises:
        UserError: It names anything else than arrays of numpy, is broken, or is no dictionary.
    """
    try:
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(found, dict):
            raise pickle.UnpicklingError(f"holds a {type(found).__name__}, not a dictionary")
        return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in found.items()}
    except Exception as error:  # broken bytes raise nearly anything
        raise UserError(f"--data: {path}: {' '.join(str(error).split()) or type(error).__name__}") from error


class Array:
    """What a pickle tells about an array."""

    __slots__ = ("about",)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, *self.about = state  # shape, dtype, whether Fortran's order, bytes

    def rows(self, width: int) -> Tensor:
        """It as uint8 [N, width].

        Raises:
            ValueError: It is of another dtype or shape, or its bytes do not fill it.
        """
        shape, dtype, fortran, raw = self.about
        sound = isinstance(dtype, _Dtype) and isinstance(shape, tuple) and isinstance(raw, (bytes, bytearray))
        if not sound or dtype.name not in ("u1", b"u1") or len(shape) != 2 or shape[1] != width:
            raise ValueError(f"the pixels are no bytes in rows of {width}")
        if not isinstance(shape[0], int) or shape[0] < 1 or math.prod(shape) != len(raw):
            raise ValueError(f"{shape[0]} rows of {width} are not the {len(raw)} bytes that there are")
        flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        return flat.view(shape[::-1]).t() if fortran else flat.view(shape)


class _Dtype:
    __slots__ = ("name",)

    def __init__(self, name: object, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        pass


def _reconstruct(*_: object) -> Array:
    return Array()


def _frombuffer(raw: object, dtype: object, shape: object, order: object) -> Array:
    array = Array()
    array.about = [shape, dtype, order == "F", raw]
    return array


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


_KNOWN = {
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"names {module}.{name}, which no array needs: nothing was run") from None
