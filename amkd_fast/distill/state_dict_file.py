"""Files of weights, whoever wrote them: read without running code from them, and the state dict found in them."""

from __future__ import annotations

import argparse
import math
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amkd_fast.distill.errors import UserError, allocating, short

# Where trainers put a state dict, the likelier ones first.
PLACES = (
    *("state_dict", "model_state_dict", "model", "net", "network", "model_state", "weights", "params"),
    *("teacher", "state_dict_ema", "ema_state_dict", "model_ema", "ema"),
)
# What trainers and wrappers put before the names of a network's own parts.
PREFIXES = ("module.", "model.", "_orig_mod.", "network.", "net.", "backbone.", "teacher.")
# Where they say how good it is, on the images that it was tested with.
CLAIMS = (
    *("test_acc", "test_accuracy", "acc", "accuracy", "acc1", "top1", "prec1"),
    *("best_acc", "best_accuracy", "best_acc1", "best_top1", "best_prec1"),
)
_DEEPEST = 4  # dictionaries within dictionaries


class Claim(NamedTuple):
    """An accuracy that somebody says a network has.

    Attributes:
        percent: The accuracy.
        source: Who says so.
    """

    percent: float
    source: str


class FoundStateDict(NamedTuple):
    """A state dict in a file.

    Attributes:
        tensors: By the names that the file has.
        place: The keys that lead to it, with dots between; empty where it is the file's whole content.
        others: Places of further state dicts.
        claim: The accuracy that the file names, or None.
    """

    tensors: dict[str, Tensor]
    place: str
    others: tuple[str, ...]
    claim: Claim | None


def read(path: str | Path) -> Any:
    """The content of a file of ``torch.save`` or of safetensors, on the CPU: tensors and plain values.

    Nothing from the file is executed: whole modules, which are code, are refused.

    Raises:
        UserError: The file is missing or damaged, holds more than that, or needs a package that is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path}: no such file")
    try:
        with allocating(f"checkpoint {path}"):
            return _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    except UserError:
        raise
    except Exception as error:  # a damaged file raises nearly anything
        reason = " ".join(str(error).split())
        if code := re.search(r"GLOBAL (\S+)|TorchScript archive", reason):
            raise UserError(
                f"checkpoint {path}: holds more than tensors and plain values ({code[1] or 'TorchScript'}), which is "
                "code, and nothing from a file is executed: where that code is at home, save the weights alone, "
                "torch.save(model.state_dict(), FILE)"
            ) from error
        reason = reason[:120] or type(error).__name__
        raise UserError(f"checkpoint {path}: cannot be read, damaged or no checkpoint ({reason})") from error


def find(content: Any, path: str | Path) -> FoundStateDict:
    """The state dict in what :func:`read` returned: the content itself, or what lies under one of the usual keys.

    Args:
        content: Of the file.
        path: Of the file, for messages.

    Raises:
        UserError: There is none.

    Example:
        >>> import torch
        >>> from amkd_fast.distill.state_dict_file import find
        >>> found = find({"epoch": 240, "model": {"module.fc.weight": torch.ones(2, 3)}, "best_acc": 0.756}, "x.pth")
        >>> found.place, list(found.tensors), found.claim
        ('model', ['module.fc.weight'], Claim(percent=75.6, source='best_acc in x.pth'))
    """
    places = list(_places(content, ()))
    if not places:
        held = f"holds {', '.join(short(key) for key in list(content)[:10])}" if isinstance(content, Mapping) else ""
        raise UserError(
            f"checkpoint {path}: was not written by amkd-distill, and has no state dict in it, neither as a whole nor "
            f"under {', '.join(PLACES)} ({held or 'holds a ' + type(content).__name__})"
        )
    keys, tensors = places[0]
    node, claim = content, _claim(content, path)
    for key in keys:  # the closer to the weights, the surer it is theirs
        node = node[key]
        claim = _claim(node, path) or claim
    others = tuple(".".join(more) for more, _ in places[1:])
    return FoundStateDict(tensors, ".".join(keys), others, claim)


def without_prefixes(tensors: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The tensors as they are named, and with each of the usual prefixes taken off that all names have; and which.

    Example:
        >>> import torch
        >>> from amkd_fast.distill.state_dict_file import without_prefixes
        >>> [(prefix, list(names)) for prefix, names in without_prefixes({"module.model.fc.bias": torch.ones(2)})]
        [('', ['module.model.fc.bias']), ('module.', ['model.fc.bias']), ('module.model.', ['fc.bias'])]
    """
    taken, prefix = "", ""
    while True:
        taken, tensors = taken + prefix, {name.removeprefix(prefix): value for name, value in tensors.items()}
        yield taken, tensors
        common = [prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in tensors)]
        if not common:
            return
        prefix = common[0]


def _pickled(path: Path) -> Any:
    with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what looks like TorchScript, which is refused anyway
        return torch.load(path, map_location="cpu", weights_only=True)


def _harmless() -> list[Any]:
    """What trainers save beside the weights and what holds values alone: options, numpy's numbers."""
    import numpy as np

    number = np.float64(0.0).__reduce__()[0]
    return [
        *(argparse.Namespace, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?"))),
        *((number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # of numpy 1 and 2
    ]


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"checkpoint {path}: needs safetensors: run `pip install safetensors`") from error
    return load_file(path)


def _places(node: object, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """State dicts in ``node``, and the keys that lead to them: usual ones in their order, then any other at the top."""
    if not isinstance(node, Mapping):
        return
    if _is_state_dict(node):
        yield keys, {name: value for name, value in node.items() if isinstance(value, Tensor)}
    elif len(keys) < _DEEPEST:
        usual = [(key, found) for key in PLACES for found in _places(node.get(key), (*keys, key))]
        yield from (found for _, found in usual)
        if not keys and not usual:
            yield from (((key,), dict(value)) for key, value in node.items() if _is_state_dict(value))


def _is_state_dict(node: object) -> bool:
    """Tensors by name. A module's extra state may be anything."""
    if not isinstance(node, Mapping) or not all(isinstance(name, str) for name in node):
        return False
    values = [value for name, value in node.items() if not name.endswith("_extra_state")]
    return bool(values) and all(isinstance(value, Tensor) for value in values)


def _claim(node: object, path: str | Path) -> Claim | None:
    if not isinstance(node, Mapping) or _is_state_dict(node):
        return None
    for name in CLAIMS:
        percent = as_percent(node.get(name))
        if percent is not None:
            return Claim(percent, f"{name} in {path}")
    return None


def as_percent(value: object) -> float | None:
    """A stored accuracy, be it per cent or, up to 1, a share; None of what is no accuracy."""
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 and not value.is_complex() else None
    elif "numpy" in sys.modules and isinstance(value, sys.modules["numpy"].generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    percent = 100.0 * value if value <= 1.0 else float(value)
    return percent if 0.0 < percent <= 100.0 else None
