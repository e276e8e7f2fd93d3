"""What an entry in the table of operation cases is, and how one of its samples is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amkd_fast import backends

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
Tensors = dict[str, Tensor]


class Plan(NamedTuple):
    """A shape that takes one way through the kernels, with the options it is called with."""

    name: str
    shape: Any
    options: Mapping[str, Any] = {}
    dtypes: tuple[torch.dtype, ...] | None = None  # those that take this way, where it is not all of the operation's
    offset: int = 0  # numbers by which tensors begin beside an aligned address


class Refusal(NamedTuple):
    """A call that is no use, the error it must raise, and how the message must begin."""

    message: str
    error: type[Exception]
    call: Callable[[], object]


class Found(NamedTuple):
    """What a call gave: its outputs, and the gradients of the tensors asked for, by name."""

    outputs: tuple[Tensor, ...]
    gradients: Tensors


@dataclass(frozen=True, kw_only=True)
class Operation:
    """An operation, how it is called and what is right. `test_contract.py` makes its tests from this alone.

    `call(**tensors, **options)` is the public function, or a thin wrapper that takes what `draw` gives. A result is
    right if it is as near to `truth` in fp64 as twice the error (three times, of a gradient) that `truth` itself makes
    in the dtype of its inputs, or within `floors`; or, where `exact`, if it equals `truth` bit for bit.
    """

    name: str
    family: str  # of amkd_fast.backends
    call: Callable[..., Tensor | tuple[Tensor, ...]]
    draw: Callable[..., Tensors]  # draw(shape, dtype, seed=0)
    plans: tuple[Plan, ...]  # every way through the CPU and CUDA kernels
    small: Plan  # for what does not depend on the size
    interpreted: tuple[Plan, ...]  # the smallest that reach every branch of the Triton kernels
    empty: tuple[Any, ...]  # shapes without rows or without elements
    truth: Callable[..., Tensor | tuple[Tensor, ...]] | None = None  # None: the reference backend
    exact: bool = False
    compare: Callable[..., None] | None = None  # compare(operation, plan, found, tensors) where errors are not of norms
    options: Mapping[str, Any] = field(default_factory=dict)
    gradients: tuple[str, ...] = ()  # tensors, of those that are drawn, whose gradients the kernels compute
    others: tuple[str, ...] = ()  # tensors whose gradients the reference computes
    dtypes: tuple[torch.dtype, ...] = DTYPES
    floors: Mapping[torch.dtype, float] = field(default_factory=lambda: {torch.float64: 1e-13})
    ties: float = 0.0  # share of whole numbers in the outputs that rounding may decide otherwise
    rounding_selects: bool = False  # what has a gradient: gradients are compared in fp64 alone
    draws: int = 16  # over which the error of a result of few numbers is taken
    strided: tuple[str, ...] = ()  # tensors that may have any strides
    saves: int | None = None  # numbers a row that may be kept for the backward pass beside the inputs
    rows: Mapping[str, Any] | None = None  # options under which every output has one number a row of its own
    atomics: bool = False  # a GPU adds up in any order, but for torch.use_deterministic_algorithms
    waits: bool = False  # values decide how long its outputs are: it waits for them, and compiles into no full graph
    looks: tuple[str, ...] = ()  # backends that look at values on a CPU, where that is no waiting
    masks: bool = False  # classes whose logits are −inf everywhere are as if absent
    module: Callable[..., object] | None = None  # module(tensors, options): the outputs of the nn.Module
    refusals: tuple[Refusal, ...] = ()

    def __repr__(self) -> str:
        return self.name

    def run(
        self,
        tensors: Tensors,
        options: Mapping[str, Any] | None = None,
        *,
        needed: tuple[str, ...] | None = None,
        call: Callable | None = None,
    ) -> Found:
        """Outputs and gradients, on the device of the tensors; the upstream gradients differ from output to output."""
        needed = tuple(n for n in (self.gradients if needed is None else needed) if n in tensors)
        given = {n: x.detach().requires_grad_(n in needed) for n, x in tensors.items()}
        outputs = flat((call or self.call)(**given, **{**self.options, **(options or {})}))
        with_graph = [x for x in outputs if x.requires_grad]
        gradients = ()
        if needed and with_graph:
            upstream = [ramp(x) for x in with_graph]
            leaves = [given[name] for name in needed]
            gradients = torch.autograd.grad(with_graph, leaves, upstream, allow_unused=True, materialize_grads=True)
        return Found(tuple(x.detach() for x in outputs), dict(zip(needed, gradients, strict=False)))

    def expected(self, tensors: Tensors, options: Mapping[str, Any] | None = None, **more) -> Found:
        """The same by `truth`, in the dtype of the tensors."""
        if self.truth is not None:
            return self.run(tensors, options, call=self.truth, **more)
        with backends.backend("reference"):
            return self.run(tensors, options, **more)

    def make(self, plan: Plan, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensors:
        """The tensors of a plan on the CPU, drawn in fp64 and rounded to the dtype."""
        return self.draw(plan.shape, dtype, seed)


def grown(shape, n: int):
    """A plan's shape with n more in its first number."""
    if hasattr(shape, "_replace"):
        return shape._replace(**{shape._fields[0]: grown(shape[0], n)})
    if isinstance(shape, int):
        return shape + n
    return (grown(shape[0], n), *shape[1:]) if isinstance(shape[0], int) else tuple(grown(s, n) for s in shape)


def flat(found: Tensor | tuple) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else tuple(x for x in found if isinstance(x, Tensor))


def ramp(output: Tensor) -> Tensor:
    """An upstream gradient that is not 1 and not the same everywhere."""
    return torch.linspace(0.5, 1.5, output.numel(), device=output.device, dtype=output.dtype).view(output.shape)


def wide(tensors: Tensors) -> Tensors:
    """In fp64 what is a float."""
    return {n: x.double() if x.is_floating_point() else x for n, x in tensors.items()}


def moved(tensors: Tensors, device: torch.device) -> Tensors:
    return {n: x.to(device) for n, x in tensors.items()}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def relative_error(value: Tensor, truth: Tensor) -> float:
    """‖value − truth‖ / ‖truth‖ in fp64; NaN anywhere is no match; of a truth of zeros, the error itself.

    Of whole numbers the share that differs.
    """
    if not truth.is_floating_point():
        return (value.cpu() != truth.cpu()).double().mean().nan_to_num().item()
    value, truth = value.detach().double().cpu(), truth.detach().double().cpu()
    size = truth.norm()
    return ((value - truth).norm() / (size if size > 0 else 1.0)).item()


def poison(dtype: torch.dtype) -> float | int:
    """What stands around a tensor, to be seen in the result by whoever reads it."""
    if dtype.is_floating_point:
        return float("nan")
    return {torch.bool: 1, torch.uint8: 173}.get(dtype, 1 << 30)


def guarded(x: Tensor, pad: int = 0, offset: int = 0) -> Tensor:
    """The same values and layout in memory that is poisoned around them, and for `pad` > 0 between rows of a matrix.

    Without `pad` the first element is aligned as that of a new tensor is, so that vector loads are taken as they would;
    or it stands `offset` elements behind.
    """
    if pad and x.dim() == 2:
        home = x.new_full((*x.shape[:-2], x.shape[-2] + 2, x.shape[-1] + pad), poison(x.dtype))
        inside = home[..., 1:-1, : x.shape[-1]]
    else:
        around = 64
        home = x.new_full((x.numel() + 2 * around,), poison(x.dtype))
        strides = torch.empty_like(x, device="meta").stride()  # those of x where it has no gaps
        inside = home.as_strided(x.shape, strides, around + offset)
    return inside.copy_(x)
