"""What the attacks share: checks, evaluation of the network, gradients with respect to images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.attacks.frozen import FrozenModel, frozen
from amkd_fast.ops.attack.arguments import check_bounds, check_size, size_of

LogitsOf = Callable[[object], Tensor]
# What rounding may do to a pixel at its bound, in shares of the bounds' sizes: images are often normalised in float32.
_ROUNDING = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
Evaluate = Callable[..., tuple[Tensor, Tensor]]  # `evaluate` below with its network and logits_of


def as_frozen(model: nn.Module | FrozenModel) -> FrozenModel:
    """Take a view as it is; make the default one of a module."""
    return model if isinstance(model, FrozenModel) else frozen(model)


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


def check_images(images: object, lower: object, upper: object) -> None:
    """``images`` must be floating [M, ...]; bounds must fit their channels."""
    checks.floating("images", images)
    if images.dim() < 2:
        raise ValueError(f"images.shape={tuple(images.shape)}: must have a batch dimension and at least one more")
    check_bounds(lower, upper, images)


class Inside:
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
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        shape = (1, -1, *[1] * (x.dim() - 2))
        low, high = (
            torch.as_tensor(bound).to(x).reshape(shape) if bound is not None else None for bound in (lower, upper)
        )
        finite = [bound.abs().nan_to_num(0.0, 0.0, 0.0) for bound in (low, high) if bound is not None]
        slack = max(
            8 * torch.finfo(torch.float32).eps, 2 * torch.finfo(images.dtype).eps * (images.dtype.itemsize == 2)
        )
        slack = slack * sum(finite).clamp(min=torch.finfo(torch.float32).tiny)
        for name, bound, given in (("lower", low, lower), ("upper", high, upper)):
            if bound is None:
                continue
            beyond = bound - x if name == "lower" else x - bound
            outside = beyond > slack
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


def check_rows(name: str, value: object, images: Tensor, *, flags: bool = False) -> None:
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


def to_device(bound: float | Tensor | None, device: torch.device) -> float | Tensor | None:
    """Bring a per-channel bound to the images."""
    return bound.to(device) if isinstance(bound, Tensor) else bound


def size_on(name: str, value: float | Tensor, images: Tensor) -> float | Tensor:
    """A radius or step size beside the images: a number, [M], or [M, C, 1, …] where channels differ."""
    value = to_device(value, images.device)
    check_size(name, value, images)
    value = size_of(value, images)
    return value.expand(images.shape[0], *value.shape[1:]) if isinstance(value, Tensor) else value


def clipped(x: Tensor, lower: float | Tensor | None, upper: float | Tensor | None) -> Tensor:
    """``x`` [m, C, ...] inside bounds that are numbers or [C]; a NaN bound bounds nothing."""
    for bound, clip in ((lower, torch.fmax), (upper, torch.fmin)):
        if bound is not None:
            x = clip(x, torch.as_tensor(bound).to(x).reshape(1, -1, *[1] * (x.dim() - 2)))
    return x


def own(images: Tensor, memory_format: torch.memory_format) -> Tensor:
    """A private, detached copy that autograd accepts."""
    return images.detach().clone(memory_format=memory_format)


def check_logits_of(logits_of: object) -> None:
    """What picks the logits must be a function, or None."""
    if logits_of is not None and not callable(logits_of):
        kind = type(logits_of).__name__
        raise TypeError(f"logits_of is a {kind}: must be a function of the model's outputs, or None")


def evaluate(network: Callable, logits_of: LogitsOf | None, x: Tensor, *, grad: bool) -> tuple[Tensor, Tensor]:
    """Logits [B, K] of ``x`` and the leaf they hang on.

    The leaf is float32 at least: a gradient rounded to half precision loses its small entries.
    """
    leaf = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    with torch.set_grad_enabled(grad):
        leaf.requires_grad_(grad)
        outputs = network(leaf)
        logits = outputs if logits_of is None else logits_of(outputs)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != x.shape[0]:
        what = f"of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ValueError(f"model: its output is {what}, must be logits [B, K]; logits_of can pick them")
    return logits, leaf


def input_gradient(logits: Tensor, leaf: Tensor, grad_logits: Tensor) -> Tensor:
    """Pull ``grad_logits`` back to the images; nothing is accumulated anywhere."""
    if not logits.requires_grad:
        raise ValueError("model: its logits carry no graph to the images, so there is no direction to step in")
    return torch.autograd.grad(logits, leaf, grad_logits)[0]


def count_classes(evaluate: Evaluate, images: Tensor) -> int:
    """K, where no image is left to ask."""
    return evaluate(images.new_zeros((1, *images.shape[1:])), grad=False)[0].shape[1]
