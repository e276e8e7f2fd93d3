"""Whether a state dict is a network's: loaded as a whole, or told name by name what does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

import torch
from torch import Tensor, nn

from amkd_fast.distill import networks
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.networks import Spec, names
from amkd_fast.distill.state_dict_file import without_prefixes

_SHOWN = 6  # names of a kind
_OPTIONAL = "num_batches_tracked"  # counts batches; in eval mode nobody asks for it


def load(network: nn.Module, tensors: dict[str, Tensor], spec: Spec, what: str) -> str:
    """Give ``network`` the tensors as its state, all of them or none; a prefix that all their names have may go.

    Args:
        network: Its state changes in place.
        tensors: A state dict, under any of the prefixes of :func:`.state_dict_file.without_prefixes`. BatchNorm's
            ``num_batches_tracked`` may be missing.
        spec: How the network was built.
        what: Begins the message.

    Returns:
        The prefix that was taken off.

    Raises:
        UserError: Names are missing or unexpected, or tensors have another shape; the message lists them.
    """
    own = network.state_dict()
    # A wrapper may be a part of the network itself: the names decide how much of a prefix is one.
    prefix, given = max(_variants(tensors, spec.name), key=lambda found: len(found[1].keys() & own.keys()))
    faults = list(_faults(own, given, spec))
    if faults:
        others = [name for name in names_that_fit(tensors) if name != spec.name]
        hint = f"; its names and shapes are those of {', '.join(others)}" if others else ""
        raise UserError(f"{what}: does not fit {spec.name}: {'; '.join(faults)}{hint}")
    try:
        network.load_state_dict({**own, **given})
    except RuntimeError as error:
        raise UserError(f"{what}: does not fit {spec.name} ({' '.join(str(error).split())[:200]})") from error
    return prefix


def names_that_fit(tensors: dict[str, Tensor]) -> list[str]:
    """Names of our own networks whose state dict has these names and shapes, for any channels and classes.

    Example:
        >>> from amkd_fast.distill.networks import Spec, build
        >>> from amkd_fast.distill.state_dict_fit import names_that_fit
        >>> names_that_fit(build(Spec("wrn-10-2", channels=3, classes=100), seed=0).state_dict())
        ['wrn-10-2']
    """
    return [name for name in names.common() if any(_is_of(name, given) for _, given in _variants(tensors, name))]


def _variants(tensors: dict[str, Tensor], name: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """By the prefix that is off: the tensors as the file calls them, and in the words of our network ``name``."""
    for prefix, given in without_prefixes(tensors):
        yield prefix, given
        yield prefix, networks.translated(name, given)


def _is_of(name: str, given: dict[str, Tensor]) -> bool:
    """Whether our network ``name`` has these names and shapes, but for what images' channels and classes decide."""
    if "head.weight" not in given:
        return False
    stem, own = _own_shapes(name)
    return own == _shapes(given, stem)


@cache
def _own_shapes(name: str) -> tuple[str, dict[str, tuple[int, ...]]]:
    """The weight that the images come to, and the shapes."""
    with torch.device("meta"):
        own = names.find(name, name)(channels=1, classes=1).state_dict()
    stem = next(name for name, value in own.items() if value.dim() == 4)
    return stem, _shapes(own, stem)


def _shapes(tensors: dict[str, Tensor], stem: str) -> dict[str, tuple[int, ...]]:
    """By name, without the sizes that channels and classes decide."""
    return {
        name: tuple(value.shape)[2 if name == stem else name.startswith("head.") :]
        for name, value in tensors.items()
        if not name.endswith(_OPTIONAL)
    }


def _faults(own: dict[str, Tensor], given: dict[str, Tensor], spec: Spec) -> Iterator[str]:
    """What keeps ``given`` from being the state of a network that has ``own``."""
    shapes = {name: (own[name], value) for name, value in given.items() if name in own and not _alike(own[name], value)}
    yield from _of_other_data(shapes, spec)
    missing = [name for name in own if name not in given and not name.endswith(_OPTIONAL)]
    unexpected = [name for name in given if name not in own]
    told = [f"{name} {_shape(other, one)} instead of {_shape(one, other)}" for name, (one, other) in shapes.items()]
    for found, kind in ((missing, "missing"), (unexpected, "unexpected"), (told, "of another shape")):
        if found:
            yield f"{len(found)} {kind} ({_some(found)})"


def _of_other_data(shapes: dict[str, tuple[Tensor, Tensor]], spec: Spec) -> Iterator[str]:
    """The two misfits that lie with the data: a head of other classes, a first layer for other channels."""
    for one, other in shapes.values():
        if one.dim() == other.dim() == 2 and one.shape[0] == spec.classes and one.shape[1] == other.shape[1]:
            yield (
                f"the file's head has {other.shape[0]} classes, the data {spec.classes}: give it the data that it was "
                "trained on"
            )
        if one.dim() == other.dim() == 4 and one.shape[1] == spec.channels and one.shape[::2] == other.shape[::2]:
            yield f"the file's first layer takes {other.shape[1]} channels, the data has {spec.channels}"


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.is_floating_point() == other.is_floating_point()


def _shape(value: Tensor, other: Tensor) -> str:
    """The shape; of tensors that differ otherwise the dtype."""
    if value.shape == other.shape:
        return str(value.dtype).removeprefix("torch.")
    return " × ".join(map(str, value.shape)) or "a number"


def _some(found: Iterable[str]) -> str:
    found = list(found)
    more = len(found) - _SHOWN
    return ", ".join(found[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
