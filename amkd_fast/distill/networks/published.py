"""State dicts of published networks: their modules' names in ours.

RepDistiller and mdistiller, whose files of CIFAR-100 teachers are those that the literature uses, call the modules of a
network otherwise than this package, which has ``conv``, ``bn``, ``stages``, ``head`` in all of its networks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from typing import TypeVar

from amkd_fast.distill.networks import imagenet_resnet, mobilenetv2, shufflenetv1, shufflenetv2, vgg

_Value = TypeVar("_Value")

_STEM = {"conv1": "conv", "bn1": "bn"}
_LAST = {"conv2": "last_conv", "bn2": "last_bn"}


def translated(name: str, state_dict: Mapping[str, _Value]) -> dict[str, _Value]:
    """A state dict in the layout of RepDistiller and mdistiller, under the names that a network of ours has.

    Nothing is checked: keys that are of no module there stay as they are, those of ours among them, and so does all
    of a network that these projects do not have (``resnet20``, whose shortcuts have no parameters, is another one than
    theirs, ``resnet20-b``). ``load_state_dict`` tells what does not fit.

    Args:
        name: Of the network, as :func:`.build` takes it.
        state_dict: Its keys without a prefix (``module.``, ``network.``).

    Returns:
        The same values in the same order.

    Example:
        >>> from amkd_fast.distill.networks import translated
        >>> translated("wrn-40-2", {"block2.layer.0.convShortcut.weight": 1, "fc.bias": 2, "other": 3})
        {'stages.6.shortcut.weight': 1, 'head.bias': 2, 'other': 3}
    """
    modules = modules_of(name)
    return {_renamed(key, modules): value for key, value in state_dict.items()}


def in_published_layout(name: str, state_dict: Mapping[str, _Value]) -> dict[str, _Value]:
    """The way back of :func:`translated`: a state dict of ours, as RepDistiller and mdistiller load it.

    Args:
        name: Of the network.
        state_dict: As of ``network.state_dict()``.

    Returns:
        The same values in the same order.

    Example:
        >>> from amkd_fast.distill.networks import in_published_layout
        >>> in_published_layout("vgg13", {"stages.3.bn.weight": 1, "head.bias": 2})
        {'block1.4.weight': 1, 'classifier.bias': 2}
    """
    modules = {ours: theirs for theirs, ours in modules_of(name).items()}
    return {_renamed(key, modules): value for key, value in state_dict.items()}


def modules_of(name: str) -> dict[str, str]:
    """Published names of modules with ours, of a network with this name; those inside have the same ending.

    Empty where RepDistiller and mdistiller do not have the network.
    """
    if found := re.fullmatch("resnet([0-9]+)(?:-b|x4)", name):
        return _resnet([(int(found[1]) - 2) // 6] * 3, {"downsample": "shortcut"}, "fc")
    if found := re.fullmatch("wrn-([0-9]+)-[0-9]+", name):
        blocks = _blocks("block{}.layer.{}", 1, [(int(found[1]) - 4) // 6] * 3, {"convShortcut": "shortcut"})
        return {**_STEM, **blocks, "fc": "head"}
    if found := re.fullmatch("vgg(8|11|13|16|19)", name):
        return _vgg(vgg.COUNTS[int(found[1])])
    if name in ("resnet18", "resnet50"):
        return _resnet(imagenet_resnet.COUNTS[int(name[-2:])], {}, "linear")
    if name == "shufflenetv1":
        return _resnet(shufflenetv1.COUNTS, {}, "linear")
    if name == "shufflenetv2":
        return {**_resnet(shufflenetv2.COUNTS, {}, "linear"), **_LAST}
    if name == "mobilenetv2":
        return _mobilenet()
    return {}


def _renamed(key: str, modules: Mapping[str, str]) -> str:
    """``key`` with the longest of the modules' names that it begins with replaced."""
    start = key.rpartition(".")[0]
    while start and start not in modules:
        start = start.rpartition(".")[0]
    return modules[start] + key[len(start) :] if start else key


def _blocks(theirs: str, first: int, counts: Sequence[int], inside: Mapping[str, str]) -> dict[str, str]:
    """Blocks, called by the numbers of stage (from ``first``) and block, in the row of ours."""
    places = chain.from_iterable(zip(repeat(first + stage), range(count)) for stage, count in enumerate(counts))
    modules = {}
    for i, (stage, block) in enumerate(places):
        modules[theirs.format(stage, block)] = f"stages.{i}"
        modules |= {f"{theirs.format(stage, block)}.{a}": f"stages.{i}.{b}" for a, b in inside.items()}
    return modules


def _resnet(counts: Sequence[int], inside: Mapping[str, str], head: str) -> dict[str, str]:
    return {**_STEM, **_blocks("layer{}.{}", 1, counts, inside), head: "head"}


def _vgg(counts: Sequence[int]) -> dict[str, str]:
    """Their stages are rows of convolution, BatchNorm and ReLU."""
    modules, i = {}, 0
    for stage, count in enumerate(counts):
        for position in range(count):
            modules[f"block{stage}.{3 * position}"] = f"stages.{i}.conv"
            modules[f"block{stage}.{3 * position + 1}"] = f"stages.{i}.bn"
            i += 1
    return {**modules, "classifier": "head"}


def _mobilenet() -> dict[str, str]:
    """Their blocks are rows of three convolutions, each with its BatchNorm and, but for the last, ReLU."""
    inside = {f"conv.{3 * i + j}": f"{kind}{i + 1}" for i in range(3) for j, kind in enumerate(("conv", "bn"))}
    outside = {"conv1.0": "conv", "conv1.1": "bn", "conv2.0": "last_conv", "conv2.1": "last_bn"}
    return {**outside, **_blocks("blocks.{}.{}", 0, mobilenetv2.COUNTS, inside), "classifier.0": "head"}
