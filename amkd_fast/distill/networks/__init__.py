"""Teachers and students by name: the networks of the literature, small ones for quick experiments, and the user's own.

====================  ==================================================================================================
``resnet8`` …         ResNets for CIFAR of 8, 14, 20, 26, 32, 44, 56 or 110 layers, :class:`.cifar_resnet.CifarResNet`;
                      their shortcuts have no parameters (option A)
``resnet8-b`` …       the same with 1x1 convolutions and BatchNorm in the shortcuts (option B), which RepDistiller and
                      mdistiller call resnet8 …, :class:`.cifar_resnet_b.CifarResNetB`
``resnet8x4``         those four times as wide, and ``resnet32x4``
``resnet18``          ImageNet's ResNets with a stem for small images, and ``resnet50``,
                      :class:`.imagenet_resnet.ImageNetResNet`
``wrn-D-K``           Wide ResNets of D = 6n + 4 layers, K times as wide, :class:`.wide_resnet.WideResNet`
``vgg8`` …            VGG of 8, 11, 13, 16 or 19 layers with BatchNorm for small images, :class:`.vgg.VGG`
``mobilenetv2``       MobileNetV2 of width 0.5 for small images, :class:`.mobilenetv2.MobileNetV2`
``shufflenetv1``      ShuffleNet of 3 groups for small images, :class:`.shufflenetv1.ShuffleNetV1`
``shufflenetv2``      ShuffleNetV2 1x for small images, :class:`.shufflenetv2.ShuffleNetV2`
``small-W-B``         three stages of B blocks, W channels in the first, :class:`.small_resnet.ResNet`
``module:factory``    what ``factory(channels=…, classes=…)`` of an importable module returns
``timm:NAME``         ``timm.create_model(NAME)`` without pretrained weights, where timm is installed; with them where
                      the name ends in ``@pretrained`` and they are on this machine (:mod:`.timm_weights`)
====================  ==================================================================================================

Each maps images [B, channels, H, W] to logits [B, classes]. Our own also have ``embed(images)``, the pooled features
[B, D], ``head``, the ``torch.nn.Linear`` that makes the logits of them, and ``stages``, the row of their blocks.
:func:`translated` reads state dicts of RepDistiller and mdistiller.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from amkd_fast import checks
from amkd_fast.distill.networks import external, names
from amkd_fast.distill.networks.published import in_published_layout, translated

__all__ = ["Spec", "build", "check", "in_published_layout", "is_users", "translated", "untrained"]


class Spec(NamedTuple):
    """All that a checkpoint must know to build its network again.

    Attributes:
        name: One of the names above.
        channels: Channels of the images.
        classes: Number of logits.

    Example:
        >>> from amkd_fast.distill.networks import Spec
        >>> Spec("wrn-16-2", channels=3, classes=100)
        Spec(name='wrn-16-2', channels=3, classes=100)
    """

    name: str
    channels: int
    classes: int


def build(spec: Spec, seed: int) -> nn.Module:
    """Build a network whose initial weights depend on ``seed`` alone, on the CPU and in training mode.

    What is seeded is torch's CPU generator, and it is left as it was; a factory that draws from another one must see to
    that itself.

    Args:
        spec: Which network, for which images and classes.
        seed: Seed of the initial weights.

    Returns:
        The network: images [B, channels, H, W] to logits [B, classes].

    Raises:
        TypeError: ``spec.channels`` or ``spec.classes`` is no number.
        ValueError: ``spec.channels`` or ``spec.classes`` is not above zero.
        UserError: There is no network of this name, or the user's own could not be built.

    Example:
        >>> import torch
        >>> from amkd_fast.distill.networks import Spec, build
        >>> build(Spec("resnet8", channels=1, classes=10), seed=0)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    checks.positive("channels", spec.channels)
    checks.positive("classes", spec.classes)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        make = _factory(spec.name, f"network {spec.name}")
        torch.default_generator.manual_seed(
            seed
        )  # after a user's import, which may draw; torch.manual_seed reaches GPUs
        return make(channels=spec.channels, classes=spec.classes)


def check(name: str, option: str) -> None:
    """Find out whether :func:`build` knows a name, without building the network.

    Of a user's own network the module is imported, of a ``timm:`` name timm.

    Args:
        name: The name of a network.
        option: Where the name was given; it begins the message.

    Raises:
        UserError: There is no such network.

    Example:
        >>> from amkd_fast.distill.networks import check
        >>> check("resnet20", "--teacher-network")
        >>> check("wrn-17-2", "--teacher-network")
        Traceback (most recent call last):
        amkd_fast.distill.errors.UserError: --teacher-network wrn-17-2: must be resnet8, resnet14, resnet20, resnet26, \
resnet32, resnet44, resnet56, resnet110, each also with -b, resnet8x4, resnet32x4, resnet18, resnet50, vgg8, vgg11, \
vgg13, vgg16, vgg19, mobilenetv2, shufflenetv1, shufflenetv2, wrn-D-K with D = 6n + 4 from 10 on, small-W-B, \
module:factory or timm:NAME (D, K, W, B at most 9999)
    """
    with torch.random.fork_rng(devices=[]):  # a user's module may draw when it is imported
        _factory(name, f"{option} {name}")


def is_users(name: str) -> bool:
    """Whether building the network of this name runs code that is not ours: ``module:factory`` or ``timm:NAME``.

    Example:
        >>> from amkd_fast.distill.networks import is_users
        >>> is_users("models:make_teacher"), is_users("timm:resnet18"), is_users("small-4-1")
        (True, True, False)
    """
    return ":" in name


def untrained(name: str) -> str:
    """The name of the same network whose weights do not matter, as a checkpoint has them: without ``@pretrained``.

    Example:
        >>> from amkd_fast.distill.networks import untrained
        >>> untrained("timm:resnet18.a1_in1k@pretrained"), untrained("resnet8")
        ('timm:resnet18.a1_in1k', 'resnet8')
    """
    return name.removesuffix(external.PRETRAINED) if is_users(name) else name


def _factory(name: str, what: str) -> names.Factory:
    return external.find(name, what) if is_users(name) else names.find(name, what)
