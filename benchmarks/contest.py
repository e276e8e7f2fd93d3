"""Contestants of a benchmark, and the check that each computes the right thing before it is timed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amkd_fast import backends

# Largest error relative to the largest entry of the truth. It tells another function from this one and no more; how
# precise ours are is the business of tests/.
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}

_ON = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}  # on a CPU Triton only interprets, which is no speed to measure
# Convolutions may use TF32 while the clock runs, as PyTorch allows by default, but not while results are checked.
without_tf32 = partial(torch.backends.cudnn.flags, enabled=True, allow_tf32=False)
# Families that are made of operations, each of which takes the backend that it chooses by itself.
COMPOSED = {"whole_attack": ("attack",), "training": ("kl", "triplet", "attack")}


class Contestant(NamedTuple):
    """A way to compute ``call(*inputs)``; ``backend`` is set for ours, ``form`` where it is not the public function."""

    name: str
    call: Callable[..., Any]
    backend: str | None = None
    form: str = ""

    @property
    def title(self) -> str:
        return f"{self.name}, {self.form}" if self.form else self.name

    @property
    def ours(self) -> bool:
        return self.backend not in (None, "reference")

    def chosen(self) -> AbstractContextManager[None]:
        """Select the backend; entered outside of what is timed."""
        return nullcontext() if self.backend is None else backends.backend(self.backend)


class Answer(NamedTuple):
    """Value of a call, in one tensor or several, and the gradients in all inputs that ask for one, in a row."""

    value: Any
    grad: Tensor | None


class Errors(NamedTuple):
    """Relative to the largest entry of the truth."""

    value: float
    grad: float | None


class WrongResult(Exception):
    """A contestant's answer is not that of the fp64 reference."""


def reference(call: Callable[..., Any]) -> Contestant:
    """The specification in plain PyTorch."""
    return Contestant("reference", call, "reference")


def ours(operation: str, call: Callable[..., Any], device: str) -> list[Contestant]:
    """One contestant for each fast backend that runs on ``device`` (``"cpu"``, ``"cuda"``)."""
    return [Contestant(f"amkd_fast {name}", call, name) for name in backend_names(operation, device)]


def backend_names(operation: str, device: str) -> list[str]:
    if operation in COMPOSED:
        return ["auto"]
    return [name for name in _ON[device] if not backends.available()[operation][name]]


def devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def missing(operation: str, device: str) -> dict[str, str]:
    """Fast backends of ours for ``device`` that do not run here, with the reason."""
    found = {}
    for part in COMPOSED.get(operation, (operation,)):
        reasons = backends.available()[part]
        found |= {f"amkd_fast {name} ({part})": reasons[name] for name in _ON[device] if reasons[name]}
    return found


def leaves(inputs: tuple[Any, ...]) -> list[Tensor]:
    """Those that want a gradient."""
    return [part for part in inputs if isinstance(part, Tensor) and part.requires_grad]


def drop_grads(inputs: tuple[Any, ...]) -> None:
    for leaf in leaves(inputs):
        leaf.grad = None


def answer(contestant: Contestant, inputs: tuple[Tensor, ...]) -> Answer:
    """Call once, backward included."""
    with contestant.chosen():
        value = contestant.call(*inputs)
        if isinstance(value, tuple):
            return Answer(value, None)
        grads = torch.autograd.grad(value, leaves(inputs)) if value.requires_grad else ()
    return Answer(value.detach(), torch.cat([grad.flatten() for grad in grads]) if grads else None)


def truth(call: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Answer:
    """The reference in fp64."""
    return answer(reference(call), wide(inputs))


def wide(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x for x in inputs)


def verify(contestant: Contestant, inputs: tuple[Tensor, ...], expected: Answer, limit: float | None = None) -> Errors:
    """Compare with :func:`truth`.

    Raises:
        WrongResult: The error is above ``limit``, by default that of :data:`LIMITS`, or whole numbers differ.
    """
    got = answer(contestant, inputs)
    if (got.grad is None) != (expected.grad is None):
        raise WrongResult(f"{contestant.name}: only one of it and the reference has a gradient")
    parts, wanted = (part if isinstance(part, tuple) else (part,) for part in (got.value, expected.value))
    errors = Errors(
        max(distance(*pair) for pair in zip(parts, wanted, strict=True)),
        None if expected.grad is None else distance(got.grad, expected.grad),
    )
    limit = LIMITS[inputs[0].dtype] if limit is None else limit
    if not all(error <= limit for error in errors if error is not None):  # a NaN is not
        raise WrongResult(f"{contestant.name}: {errors} against the fp64 reference, allowed is {limit:g}")
    return errors


def within(contestant: Contestant, error: float, limit: float, of: str = "from the truth") -> Errors:
    """The error.

    Raises:
        WrongResult: It is above ``limit``.
    """
    if not error <= limit:  # a NaN is not
        raise WrongResult(f"{contestant.name}: {error:.2g} {of}, allowed is {limit:g}")
    return Errors(error, None)


def distance(got: Tensor, expected: Tensor) -> float:
    """Relative to the largest entry; of whole numbers, infinite where they differ."""
    if not expected.is_floating_point():
        return 0.0 if torch.equal(got, expected) else float("inf")
    scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    return ((got.to(expected.dtype) - expected).abs().max() / scale).item()
