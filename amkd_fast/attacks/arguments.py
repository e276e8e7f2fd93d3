"""Checks of the arguments that several attacks take."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from amkd_fast import checks
from amkd_fast.ops.attack.arguments import check_bounds, check_size, size_of


def check_switch(name: str, value: object, *others: object) -> None:
    """``value`` must be True, False or one of ``others``."""
    if not isinstance(value, bool) and value not in others:
        raise ValueError(f"{name}={value!r}: must be True, False or {' or '.join(map(repr, others))}")


def check_count(name: str, value: object, least: int) -> None:
    """``value`` must be an int of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a {type(value).__name__}: must be an int")
    if value < least:
        raise ValueError(f"{name}={value}: must be at least {least}")


def check_images(images: Tensor, lower: object, upper: object) -> None:
    """``images`` must be floating [M, ...]; bounds must fit their channels."""
    checks.floating("images", images)
    if images.dim() < 2:
        raise ValueError(f"images.shape={tuple(images.shape)}: must have a batch dimension and at least one more")
    check_bounds(lower, upper, images)


class BoundsCheck:
    """Whether images are inside their bounds, up to rounding: looked at in every call on a CPU, once on a GPU.

    Attributes:
        seen: Devices whose images nobody looks at any more.
    """

    def __init__(self) -> None:
        self.seen: set[torch.device] = set()

    def check(self, images: Tensor, lower: object, upper: object, valid: Tensor | None = None) -> None:
        """Raise :class:`ValueError` where valid images are outside, or ``lower`` is above ``upper``."""
        device = images.device
        if device in self.seen or (lower is None and upper is None) or not images.numel():
            return
        if device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():
                return
            self.seen.add(device)
            lower, upper = (bound.cpu() if isinstance(bound, Tensor) else bound for bound in (lower, upper))
            check_bounds(lower, upper, images)
        x = images.detach()
        shape = (1, -1, *[1] * (x.dim() - 2))
        work = torch.promote_types(x.dtype, torch.float32)
        low, high = (
            torch.as_tensor(bound).to(x.device, work).reshape(shape) if bound is not None else None
            for bound in (lower, upper)
        )
        finite = [bound.abs().nan_to_num(0.0, 0.0, 0.0) for bound in (low, high) if bound is not None]
        slack = max(
            8 * torch.finfo(torch.float32).eps, 2 * torch.finfo(images.dtype).eps * (images.dtype.itemsize == 2)
        )
        allowed = slack * sum(finite, x.new_zeros((), dtype=work)).clamp(min=torch.finfo(torch.float32).tiny)
        channel = [0, *range(2, x.dim())]
        for name, bound, given in (("lower", low, lower), ("upper", high, upper)):
            if bound is None:
                continue
            # In one pass; where a channel's extreme is outside or a NaN, look at every pixel.
            farthest = bound - x.amin(channel, True) if name == "lower" else x.amax(channel, True) - bound
            if bool((farthest <= allowed).all()):
                continue
            beyond = bound - x.to(work) if name == "lower" else x.to(work) - bound
            outside = beyond > allowed
            if valid is not None:
                outside = outside & valid.view(-1, *[1] * (x.dim() - 1))
            if bool(outside.any()):
                far = float(torch.where(outside, beyond, 0.0).amax())
                side = "below" if name == "lower" else "above"
                given = given.tolist() if isinstance(given, Tensor) else given
                raise ValueError(
                    f"images are {side} {name}={given} by up to {far:.4g}: must be inside their bounds, which are in "
                    "the images' units (attacks.pixel_bounds makes those of normalised images)"
                )


def check_rows(name: str, value: Tensor | None, images: Tensor, *, flags: bool = False) -> None:
    """``value`` must be None or one class (one flag) for every image."""
    if value is None:
        return
    if not flags:
        checks.integer(name, value)
    else:
        checks.tensor(name, value)
        if value.dtype != torch.bool:
            raise TypeError(f"{name}.dtype={value.dtype}: must be bool")
    checks.shape(name, value, (images.shape[0],), f"one {'flag' if flags else 'class'} per image")
    checks.same_device(images=images, **{name: value})


@overload
def to_device(bound: float | Tensor, device: torch.device) -> float | Tensor: ...


@overload
def to_device(bound: float | Tensor | None, device: torch.device) -> float | Tensor | None: ...


def to_device(bound: float | Tensor | None, device: torch.device) -> float | Tensor | None:
    """Bring a per-channel bound to the images."""
    return bound.to(device) if isinstance(bound, Tensor) else bound


def size_on(name: str, value: float | Tensor, images: Tensor) -> float | Tensor:
    """A radius or step size beside the images: a number, [M], or [M, C, 1, …] where channels differ."""
    value = to_device(value, images.device)
    check_size(name, value, images)
    value = size_of(value, images)
    return value.expand(images.shape[0], *value.shape[1:]) if isinstance(value, Tensor) else value


def check_logits_of(logits_of: object) -> None:
    """What picks the logits must be a function, or None."""
    if logits_of is not None and not callable(logits_of):
        kind = type(logits_of).__name__
        raise TypeError(f"logits_of is a {kind}: must be a function of the model's outputs, or None")
