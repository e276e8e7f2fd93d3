"""The range of pixels, and distances between them, in the units of normalised images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from amkd_fast import checks

Numbers = float | Sequence[float] | Tensor  # one, or one a channel


class PixelBounds(NamedTuple):
    """What :func:`pixel_bounds` returns, for C channels.

    Attributes:
        lower: [C], a black pixel.
        upper: [C], a white pixel.
        std: [C], what pixels were divided by.
    """

    lower: Tensor
    upper: Tensor
    std: Tensor

    def radius(self, pixels: float | Tensor, dims: int = 4) -> Tensor:
        """A radius or step size for the attacks, from one that is measured in pixels.

        Args:
            pixels: A number, or one per image [B], in the units of pixels before they were normalised (8 / 255).
            dims: Number of dimensions of a batch.

        Returns:
            [1 or B, C, 1, …], ``pixels`` / ``std``.
        """
        size = torch.as_tensor(pixels, device=self.std.device)
        return size.reshape(-1, *[1] * (dims - 1)) / self.std.view(1, -1, *[1] * (dims - 2))


def pixel_bounds(
    mean: Numbers,
    std: Numbers,
    *,
    low: float = 0.0,
    high: float = 1.0,
) -> PixelBounds:
    """Say where the pixels of normalised images, (pixel − ``mean``)/``std``, begin and end.

    Args:
        mean: One number per channel [C], or one for the only channel.
        std: Likewise, above 0.
        low: A black pixel before normalisation.
        high: A white pixel.

    Returns:
        :class:`PixelBounds`, float32; its ``radius`` scales a radius given in pixels.

    Raises:
        ValueError: ``std`` is not above 0, the two differ in length, or ``high`` is not above ``low``.

    Example:
        >>> import torch, amkd_fast as af
        >>> pixels = af.attacks.pixel_bounds([0.5, 0.25], [0.25, 0.5])
        >>> pixels.lower, pixels.upper
        (tensor([-2.0000, -0.5000]), tensor([2.0000, 1.5000]))
        >>> pixels.radius(0.125).flatten()
        tensor([0.5000, 0.2500])
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8, 3))
        >>> attack = af.attacks.PGD(model, eps=pixels.radius(0.125), lower=pixels.lower, upper=pixels.upper)
        >>> attack(torch.zeros(1, 2, 2, 2)).images.shape
        torch.Size([1, 2, 2, 2])
    """
    mean, std = (torch.as_tensor(value, dtype=torch.float64).reshape(-1) for value in (mean, std))
    if len(mean) != len(std):
        raise ValueError(f"std has {len(std)} numbers and mean {len(mean)}: must be one per channel")
    if not bool((std > 0).all()):
        raise ValueError(f"std={std.tolist()}: must be above 0")
    if not checks.finite("low", low) < checks.finite("high", high):
        raise ValueError(f"high={high!r}: must be above low={low!r}")
    return PixelBounds(*(part.float() for part in ((low - mean) / std, (high - mean) / std, std)))
