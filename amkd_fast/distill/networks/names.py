"""From the name of one of our own networks to its class and sizes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from functools import partial

from torch import nn

from amkd_fast.distill.errors import UserError
from amkd_fast.distill.networks import imagenet_resnet, vgg, wide_resnet
from amkd_fast.distill.networks.cifar_resnet import DEPTHS, CifarResNet
from amkd_fast.distill.networks.cifar_resnet_b import CifarResNetB
from amkd_fast.distill.networks.imagenet_resnet import ImageNetResNet
from amkd_fast.distill.networks.mobilenetv2 import MobileNetV2
from amkd_fast.distill.networks.shufflenetv1 import ShuffleNetV1
from amkd_fast.distill.networks.shufflenetv2 import ShuffleNetV2
from amkd_fast.distill.networks.small_resnet import ResNet
from amkd_fast.distill.networks.vgg import VGG
from amkd_fast.distill.networks.wide_resnet import WideResNet

Factory = Callable[..., nn.Module]  # takes channels= and classes=

FACTORIES: dict[str, Factory] = {
    **{f"resnet{depth}": partial(CifarResNet, depth=depth) for depth in DEPTHS},
    **{f"resnet{depth}-b": partial(CifarResNetB, depth=depth) for depth in DEPTHS},
    **{f"resnet{depth}x4": partial(CifarResNetB, depth=depth, stem=32, widths=(64, 128, 256)) for depth in (8, 32)},
    **{f"resnet{depth}": partial(ImageNetResNet, depth=depth) for depth in imagenet_resnet.COUNTS},
    **{f"vgg{depth}": partial(VGG, depth=depth) for depth in vgg.COUNTS},
    "mobilenetv2": MobileNetV2,
    "shufflenetv1": ShuffleNetV1,
    "shufflenetv2": ShuffleNetV2,
}
_ELSEWHERE = {  # what RepDistiller and mdistiller call them, where capitals and underscores are not all
    "mobile-half": "mobilenetv2",
    "shufflev1": "shufflenetv1",
    "shufflev2": "shufflenetv2",
    **{f"vgg{depth}-bn": f"vgg{depth}" for depth in vgg.COUNTS},
}

_NUMBER = "([1-9][0-9]{0,3})"
_RULE = (
    f"must be {', '.join(f'resnet{depth}' for depth in DEPTHS)}, each also with -b, "
    f"{', '.join(list(FACTORIES)[2 * len(DEPTHS) :])}, {wide_resnet.NAMES}, small-W-B, module:factory or timm:NAME "
    "(D, K, W, B at most 9999)"
)


def common() -> Iterator[str]:
    """Names that people use; there are others, of any depth and width."""
    yield from FACTORIES
    yield from (f"wrn-{depth}-{width}" for depth in range(10, 41, 6) for width in (1, 2, 4, 8, 10))
    yield from (f"small-{width}-{blocks}" for width in (2, 4, 8, 16, 32, 64) for blocks in (1, 2, 3))


def find(name: str, what: str) -> Factory:
    """The class that builds the network called ``name``, with its sizes filled in.

    Raises:
        UserError: There is none; the message begins with ``what``.
    """
    if found := _find(name):
        return found
    meant = _meant(name)
    raise UserError(f"{what}: {_RULE}" + (f"; did you mean {meant}?" if meant else ""))


def _find(name: str) -> Factory | None:
    if name in FACTORIES:
        return FACTORIES[name]
    if found := re.fullmatch(f"wrn-{_NUMBER}-{_NUMBER}", name):
        depth, width = map(int, found.groups())
        if wide_resnet.is_depth(depth):
            return partial(WideResNet, depth=depth, width=width)
    if found := re.fullmatch(f"small-{_NUMBER}-{_NUMBER}", name):
        width, blocks = map(int, found.groups())
        return partial(ResNet, width=width, blocks=blocks)
    return None


def _meant(name: str) -> str | None:
    """A name of ours that is written nearly so."""
    usual = re.sub(r"[_\s]", "-", name.strip().lower())
    usual = _ELSEWHERE.get(usual, usual)
    if _find(usual):
        return usual
    return next(iter(difflib.get_close_matches(usual, FACTORIES, n=1, cutoff=0.75)), None)
