"""The loop of every attack: run the network, step, take out who has finished, and from where it starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from amkd_fast import philox
from amkd_fast.attacks.capture import Fields, Graphs, each
from amkd_fast.attacks.frozen import FrozenModel
from amkd_fast.ops.attack.reference import rounded_inside
from amkd_fast.typing import AttackNorm, Switch

LogitsOf = Callable[[object], Tensor]
Evaluate = Callable[..., tuple[Tensor, Tensor]]  # `evaluate` below with its network and logits_of
Part = TypeVar("Part", bound=Fields)
Seen = TypeVar("Seen", bound=Fields)  # what was found at the samples


class Samples(Fields, Protocol):
    """The tensors of m rows that a step's samples have among theirs."""

    @property
    def x(self) -> Tensor: ...
    @property
    def rows(self) -> Tensor: ...
    @property
    def active(self) -> Tensor: ...


State = TypeVar("State", bound=Samples)


class Attack(Protocol):
    """What the loop asks of an attack."""

    model: FrozenModel
    logits_of: LogitsOf | None
    capture: Switch
    compact: Switch
    graphs: Graphs


class AttackStep(Generic[State, Seen]):
    """What a step depends on besides the samples, and the two halves of a step.

    The samples are a tuple of tensors of m rows, among them ``x``, ``rows`` (int64, where in the batch they are),
    ``active`` (bool, still to be moved) and ``steps``. A recorded step lives as long as the attack, and its context
    with it: it holds nothing of a batch.
    """

    evaluate: Evaluate

    def judge(self, s: State, logits: Tensor) -> tuple[State, Tensor, Seen]:
        """The samples with what the logits say of them, the objective's gradient [m, K], and what is to be kept."""
        raise NotImplementedError

    def move(self, s: State, seen: Seen, grad: Tensor) -> State:
        """The active samples one step on, by the gradient at each of them."""
        raise NotImplementedError

    def advance(self, s: State) -> State:
        """Both, for whoever is active: always of the same shapes, and nothing asked of the device."""
        logits, leaf = self.evaluate(s.x, grad=True)
        s, grad_logits, seen = self.judge(s, logits)
        return self.move(s, seen, input_gradient(logits, leaf, grad_logits))


class Loop:
    """How an attack goes through one batch.

    Attributes:
        evaluate: Logits of images and the leaf they hang on, by the network as it is now.
        clean: The images [M, ...], detached, of their own memory and in the network's memory format.
        compact: Finished samples are taken out of the batch.
        recorded: Steps are replayed from a recording.
    """

    def __init__(self, attack: Attack, images: Tensor, obstacle: str = "") -> None:
        network = attack.model.network(images, recorded=attack.graphs.wanted(attack.capture))
        self.evaluate: Evaluate = partial(evaluate, network, attack.logits_of)
        self._graphs = attack.graphs.recording(attack.capture, images, attack.model.generation, obstacle)
        self.recorded = self._graphs is not None
        compact = images.device.type == "cpu" if attack.compact == "auto" else attack.compact
        self.compact = compact and not self.recorded
        self.clean = images.detach().clone(memory_format=attack.model.memory_format(images))

    def rows(self, wanted: Tensor | None) -> Tensor:
        """Where the samples are that are worked on: those wanted, or all where nobody is taken out."""
        if self.compact and wanted is not None:
            return wanted.nonzero()[:, 0]
        return torch.arange(self.clean.shape[0], device=self.clean.device)

    def take_steps(
        self, context: AttackStep[State, Seen], s: State, steps: int, store: Callable[[State, Seen], None], *,
        until_done: bool, judge_first: bool = False, leave: Callable[[State], None] | None = None,
    ) -> None:  # fmt: skip
        """Step until the steps run out, and with ``until_done`` until nobody is active.

        Args:
            context: The step.
            s: The samples at the start.
            steps: Largest number of steps.
            store: Told the samples that have finished, and what ``judge`` found at their last point.
            until_done: Samples that are no longer active have finished.
            judge_first: The tensors that ``judge`` adds to ``s`` must be there before a step is recorded.
            leave: Told the samples after the last step in place of ``store``, without a judgement of them.
        """
        if self.recorded:
            if judge_first:
                s, _, _ = context.judge(s, context.evaluate(s.x, grad=False)[0])
            s = self.repeat(context.advance, s, steps, "active" if until_done else None)
            if leave is not None:
                leave(s)
                return
            s, _, seen = context.judge(s, context.evaluate(s.x, grad=False)[0])
            store(s, seen)
            return
        for taken in range(steps + 1):
            if taken == steps and leave is not None:
                leave(s)
                return
            logits, leaf = context.evaluate(s.x, grad=taken < steps)
            s, grad_logits, seen = context.judge(s, logits)
            keep = s.active.nonzero()[:, 0] if until_done and self.compact else None
            if taken == steps or (until_done and not (bool(s.active.any()) if keep is None else keep.numel())):
                store(s, seen)
                return
            grad = input_gradient(logits, leaf, grad_logits)
            if keep is not None and keep.numel() < s.rows.numel():
                gone = (~s.active).nonzero()[:, 0]
                store(take(s, gone), take(seen, gone))
                s, seen, grad = take(s, keep), take(seen, keep), grad[keep]
            s = context.move(s, seen, grad)

    def repeat(self, function: Callable[[Part], Part], s: Part, times: int, flags: str | None = None) -> Part:
        """Apply ``function`` again and again, recorded or not: see :meth:`amkd_fast.attacks.capture.Graphs.repeat`."""
        if self._graphs is not None:
            return self._graphs.repeat(function, s, times, flags)
        for _ in range(times):
            s = function(s)
        return s


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
    grad = torch.autograd.grad(logits, leaf, grad_logits)[0]
    if not logits._is_view():
        logits.detach_()  # the graph goes now, and not after the next pass has made another
    return grad


def count_classes(evaluate: Evaluate, images: Tensor) -> int:
    """K, where no image is left to ask."""
    return evaluate(images.new_zeros((1, *images.shape[1:])), grad=False)[0].shape[1]


def take(samples: Part, index: Tensor) -> Part:
    """Some rows of every tensor of a tuple."""
    return each(samples, lambda part: part[index])


def where_rows(flags: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Rows of ``one`` where the flag [m] is set, of ``other`` elsewhere."""
    return torch.where(flags.view(-1, *[1] * (one.dim() - 1)), one, other)


def clipped(x: Tensor, lower: float | Tensor | None, upper: float | Tensor | None) -> Tensor:
    """``x`` [m, C, ...] inside bounds that are numbers or [C]; a NaN bound bounds nothing."""
    for bound, clip in ((lower, torch.fmax), (upper, torch.fmin)):
        if bound is not None:
            x = clip(x, torch.as_tensor(bound, dtype=x.dtype, device=x.device).reshape(1, -1, *[1] * (x.dim() - 2)))
    return x


def random_start(
    x0: Tensor, eps: float | Tensor, norm: AttackNorm, rows: Tensor, seed: int | Tensor, restart: int
) -> Tensor:
    """Points drawn evenly from the ``eps``-balls around ``x0`` [m, ...]; row i of the batch has draws of its own.

    linf: every coordinate evenly in ±ε. l2: a normal direction (Box and Muller) of length ε u^(1/n). l1: a Laplace
    direction of length ε u^(1/n). Where radii differ from channel to channel, in their units.
    """
    size = x0[0].numel() if x0.shape[0] else 1
    element = torch.arange(size, device=x0.device)
    counter = rows[:, None] * (size + 1) + element  # [m, n]; number n of a row is its length
    w0, w1, w2, w3 = philox.words(seed, counter, stream=restart)
    first, second = philox.unit(w0, w1), philox.unit(w2, w3)
    radius = eps
    if isinstance(eps, Tensor):  # [m], or [m, C, 1, ...]
        radius = eps.double().view(-1, *eps.shape[1:], *[1] * (x0.dim() - eps.dim())).expand_as(x0).flatten(1)
    if norm == "linf":
        offset = radius * (2.0 * first - 1.0)
    else:
        distance = -torch.log1p(-first)  # exponential, finite
        if norm == "l2":
            direction = (2.0 * distance).sqrt() * torch.cos(2.0 * math.pi * second)
            length = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
        else:
            direction = torch.where(second < 0.5, -distance, distance)
            length = direction.abs().sum(1, keepdim=True)
        share = philox.uniform(seed, rows * (size + 1) + size, stream=restart, dtype=torch.float64) ** (1.0 / size)
        offset = direction * (radius * share[:, None] / torch.where(length > 0, length, 1.0))
    start = (x0.double() + offset.view_as(x0)).to(x0.dtype)
    return rounded_inside(start, x0, x0, eps, norm) if x0.dtype.itemsize == 2 else start
