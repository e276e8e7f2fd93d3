"""A network that takes pixels and normalises them itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from amkd_fast import checks


class Normalisation(NamedTuple):
    """What becomes of a pixel in [0, 1] before a network sees it: (pixel − ``mean``)/``std``, channel by channel.

    Attributes:
        mean: One number a channel.
        std: Likewise, above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, mean: Sequence[float], std: float | Sequence[float]) -> Normalisation:
        """The two as tuples of one number a channel, checked.

        Args:
            mean: One number a channel.
            std: Likewise, or one for all channels.

        Raises:
            TypeError: Something in them is no number.
            ValueError: They have no numbers, or not as many, a mean is not finite, or a std not above 0.

        Example:
            >>> from amkd_fast.distill.networks.normalised import Normalisation
            >>> Normalisation.of([0.5, 0.4], 0.25)
            Normalisation(mean=(0.5, 0.4), std=(0.25, 0.25))
        """
        means = tuple(checks.finite("mean", number) for number in mean)
        given = std if isinstance(std, Sequence) else [std] * len(means)
        stds = tuple(checks.positive("std", number) for number in given)
        if not means:
            raise ValueError("mean=(): must have one number a channel")
        if len(stds) != len(means):
            raise ValueError(f"std={stds}: must have {len(means)} numbers, as mean has, or be one number")
        return cls(means, stds)

    def as_dict(self) -> dict[str, list[float]]:
        """As a checkpoint has it."""
        return {"mean": list(self.mean), "std": list(self.std)}

    def __str__(self) -> str:
        """``mean 0.4914, 0.4822, 0.4465 and std 0.247``: four digits, one number where all are the same."""
        once = (numbers[:1] if len(set(numbers)) == 1 else numbers for numbers in self)
        mean, std = (", ".join(f"{number:.4g}" for number in numbers) for numbers in once)
        return f"mean {mean} and std {std}"


class Normalised(nn.Module):
    """A network behind its normalisation: pixels in, the network's answer out.

    The first step, one pass over the pixels, gives the network (pixels − ``mean``)/``std`` in its dtype and in the
    pixels' memory format; gradients go through it to the pixels. The state dict is the network's own, without a word of
    this module: mean and std are no weights, and travel beside them.

    Args:
        network: What takes normalised images [B, C, H, W].
        mean: One number a channel, in [0, 1] pixel units.
        std: Likewise above 0, or one number for all channels.

    Attributes:
        network: The network.
        normalisation: Mean and std, one number a channel each.

    Raises:
        TypeError: Something in ``mean`` or ``std`` is no number.
        ValueError: They are not as many, a mean is not finite, or a std not above 0; when called: the images have
            another number of channels.

    Example:
        >>> import torch
        >>> from amkd_fast.distill.networks.normalised import Normalised
        >>> network = Normalised(torch.nn.Flatten(), mean=[0.5, 0.25], std=[0.5, 0.25])
        >>> network(torch.tensor([0.0, 1.0]).view(1, 2, 1, 1))
        tensor([[-1.,  3.]])
    """

    network: Any  # a module; what it has besides forward is its own affair
    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        self.network, self.training = network, network.training
        self.normalisation = Normalisation.of(mean, std)
        mean64, std64 = (torch.tensor(numbers, dtype=torch.float64).view(-1, 1, 1) for numbers in self.normalisation)
        like = next(network.parameters(), torch.empty(0))
        for name, value in (("scale", 1.0 / std64), ("shift", -mean64 / std64)):  # [C, 1, 1]
            self.register_buffer(name, value.to(like.device, like.dtype), persistent=False)
        self.register_load_state_dict_pre_hook(_one_level_down)

    def normalise(self, images: Tensor) -> Tensor:
        """What the network sees of pixels [B, C, H, W]."""
        channels = len(self.normalisation.mean)
        if isinstance(images, Tensor) and (images.dim() < 3 or images.shape[-3] != channels):  # fx traces without one
            raise ValueError(f"images.shape={tuple(images.shape)}: must be [B, {channels}, H, W], as mean and std are")
        return torch.addcmul(self.shift, images, self.scale).to(self.scale.dtype)

    def forward(self, images: Tensor) -> Any:
        """The network's answer to pixels [B, C, H, W]."""
        return self.network(self.normalise(images))

    @property
    def embed(self) -> Callable[[Tensor], Tensor]:
        """The network's ``embed``, of pixels; an AttributeError where it has none."""
        embed = self.network.embed
        return lambda images: embed(self.normalise(images))

    @property
    def head(self) -> nn.Module:
        """The network's ``head``; an AttributeError where it has none."""
        return self.network.head

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """The network's own."""
        return self.network.state_dict(*args, **options)


def normalisation_of(network: nn.Module) -> Normalisation:
    """What the network does to pixels first; mean 0 and std 1 of one that takes them as they are."""
    return network.normalisation if isinstance(network, Normalised) else Normalisation((0.0,), (1.0,))


def _one_level_down(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """From the network's own names to those by which the modules within are found."""
    for name in [name for name in state if name.startswith(prefix)]:
        state[f"{prefix}network.{name.removeprefix(prefix)}"] = state.pop(name)
