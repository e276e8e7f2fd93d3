"""From the name of one of our own networks to its class and sizes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial

from torch import nn

from amkd_fast.distill.errors import UserError
from amkd_fast.distill.networks import wide_resnet
from amkd_fast.distill.networks.cifar_resnet import DEPTHS, CifarResNet
from amkd_fast.distill.networks.small_resnet import ResNet
from amkd_fast.distill.networks.wide_resnet import WideResNet

Factory = Callable[..., nn.Module]  # takes channels= and classes=

_NUMBER = "([1-9][0-9]{0,3})"
_RESNETS = [f"resnet{depth}" for depth in DEPTHS]
_RULE = (
    f"must be {', '.join(_RESNETS[:-1])} or {_RESNETS[-1]}, {wide_resnet.NAMES}, small-W-B, module:factory "
    "or timm:NAME (D, K, W, B at most 9999)"
)


def common() -> Iterator[str]:
    """Names that people use; there are others, of any depth and width."""
    yield from _RESNETS
    yield from (f"wrn-{depth}-{width}" for depth in range(10, 41, 6) for width in (1, 2, 4, 8, 10))
    yield from (f"small-{width}-{blocks}" for width in (2, 4, 8, 16, 32, 64) for blocks in (1, 2, 3))


def find(name: str, what: str) -> Factory:
    """The class that builds the network called ``name``, with its sizes filled in.

    Raises:
        UserError: There is none; the message begins with ``what``.
    """
    if name in _RESNETS:
        return partial(CifarResNet, depth=int(name.removeprefix("resnet")))
    if found := re.fullmatch(f"wrn-{_NUMBER}-{_NUMBER}", name):
        depth, width = map(int, found.groups())
        if wide_resnet.is_depth(depth):
            return partial(WideResNet, depth=depth, width=width)
    if found := re.fullmatch(f"small-{_NUMBER}-{_NUMBER}", name):
        width, blocks = map(int, found.groups())
        return partial(ResNet, width=width, blocks=blocks)
    raise UserError(f"{what}: {_RULE}")
