"""A training step as one CUDA graph: student forward and backward, attack, losses and optimiser, nothing in between.

Written against a stand-in on a CPU (tests/test_whole_step.py); no GPU has run it yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from amkd_fast.attacks.capture import CudaGraph
from amkd_fast.methods import Losses, Method, StepContext
from amkd_fast.methods.base import Batch


class _Recorded(NamedTuple):
    """A graph with the tensors that it reads and those that it writes."""

    graph: CudaGraph
    batch: Batch
    moment: StepContext
    losses: list[Losses]  # of one, put there when the graph was recorded


def _uncached(device: str) -> torch.autocast:
    """The caller's autocast without its cache, whose copies of the weights a recording would read for ever."""
    return torch.autocast(
        device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device), cache_enabled=False
    )


class WholeStep:
    """Replays training steps; one recording for every shape of batch, and for epochs with and without an attack.

    Recording changes nothing: weights, buffers and the optimiser's state are put back after the runs that warm up.

    Args:
        method: With ``fixed_shape=True``, if it attacks.
        teacher: In eval mode; None for a method that needs none.
        student: On the GPU, in train mode.
        optimizer: Reads its learning rate from a tensor on the GPU (``fused=True``), which a schedule may fill.
        graph: What records a function and replays it.
    """

    def __init__(
        self,
        method: Method,
        teacher: nn.Module | None,
        student: nn.Module,
        optimizer: torch.optim.Optimizer,
        graph: Callable[[Callable[[], None]], CudaGraph] = CudaGraph,
    ) -> None:
        if not getattr(method, "fixed_shape", True):
            raise ValueError("method.fixed_shape=False: must be True, a recording has one shape")
        for group in optimizer.param_groups:
            if not isinstance(group["lr"], Tensor):
                raise TypeError("optimizer: its lr must be a tensor, a number would be recorded with the step")
            if any(part.device != group["lr"].device for part in group["params"]):
                raise ValueError("optimizer: its lr must be on the weights' device, else its number would be recorded")
        self._method, self._teacher, self._student, self._optimizer = method, teacher, student, optimizer
        self._graph = graph
        self._recorded: dict[tuple, _Recorded] = {}

    def __call__(self, batch: Batch, moment: StepContext) -> Losses:
        """Take one step.

        Args:
            batch: On the GPU; ``index`` is not looked at.
            moment: ``draw`` a number; weights that are 0 by the method's schedule leave the attack out.

        Returns:
            The losses before the step, without a graph, in tensors of their own.
        """
        if moment.draw is None:
            raise ValueError("moment.draw=None: must be a number, which the recorded step gets")
        weights = self._method.weights(moment)
        attacks = weights.get("boundary", 0.0) > 0.0
        known = batch.teacher_logits is not None
        images, device = batch.images, batch.images.device.type
        precision = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        key = (images.shape, images.stride(), images.dtype, batch.labels.dtype, known, attacks, precision)
        if key not in self._recorded:
            self._recorded[key] = self._record(batch, weights, attacks)
        step = self._recorded[key]
        for own, part in zip(step.batch, batch, strict=True):
            if own is not None:
                own.copy_(part)
        step.moment.draw.fill_(moment.draw)
        for name, value in step.moment.weights.items():
            if isinstance(value, Tensor):
                value.fill_(weights[name])
        step.graph.replay()
        losses = step.losses[0]
        attack = losses.attack
        return Losses(
            losses.total.clone(),
            {name: part.clone() for name, part in losses.parts.items()},
            None if attack is None else attack.clone(),
        )

    def _record(self, batch: Batch, weights: dict[str, float], attacks: bool) -> _Recorded:
        device = batch.images.device
        own = Batch(*(None if part is None else part.clone() for part in batch._replace(index=None)))
        numbers = {
            name: torch.full((), value, dtype=torch.float64, device=device) if attacks or name != "boundary" else 0.0
            for name, value in weights.items()
        }
        moment = StepContext(0, 1, torch.zeros((), dtype=torch.int64, device=device), numbers)
        written: list[Losses] = []

        def step() -> None:
            for parameter in self._student.parameters():
                parameter.grad = None
            with _uncached(device.type):
                losses = self._method(own, self._teacher, self._student, moment)
            losses.total.backward()
            self._optimizer.step()
            written[:] = [losses._replace(total=losses.total.detach())]

        with self._unchanged():
            graph = self._graph(step)
        return _Recorded(graph, own, moment, written)

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Put back what the block changes, in place: a recording keeps the addresses."""
        tensors = [*self._student.state_dict().values(), *self._method.state_dict().values()]
        tensors += [part for state in self._optimizer.state.values() for part in state.values()]
        tensors = [part for part in tensors if isinstance(part, Tensor)]
        before = [part.detach().clone() for part in tensors]
        try:
            yield
        finally:
            self._restore(tensors, before)

    def _restore(self, tensors: list[Tensor], before: list[Tensor]) -> None:
        with torch.no_grad():
            for part, value in zip(tensors, before, strict=True):
                part.copy_(value)
            kept = {id(part) for part in tensors}
            for state in self._optimizer.state.values():  # made in the block: momentum starts from nothing
                for part in state.values():
                    if isinstance(part, Tensor) and id(part) not in kept:
                        part.zero_()
