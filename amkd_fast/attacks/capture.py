"""CUDA graphs of an attack's steps: recorded once for a shape, then replayed with nothing asked of the host."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from amkd_fast import checks

# Written, and never run: no GPU has been there yet. Until `make gpu` has passed, ``capture="auto"`` means False.
CONFIRMED = False
_KEPT = 8  # recordings of one attack, each with buffers for a batch and the network's activations on it
_WARM_UP = 2  # runs before a recording, in which libraries choose their algorithms and allocate


def check_capture(capture: object) -> None:
    """``capture`` must be "auto", True or False."""
    if not isinstance(capture, bool):
        checks.choice("capture", capture, ("auto", False, True))


class CudaGraph:
    """A recording of ``function``, which takes nothing and returns nothing."""

    def __init__(self, function: Callable[[], None]) -> None:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                function()
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            function()

    def replay(self) -> None:
        """Run it once more on the current stream."""
        self._graph.replay()


class Message:
    """A number on its way from the device to the host."""

    def __init__(self, value: Tensor) -> None:
        self._number = torch.empty((), dtype=value.dtype, pin_memory=True)
        self._number.copy_(value, non_blocking=True)
        self._sent = torch.cuda.Event()
        self._sent.record()

    def read(self) -> int:
        """Wait until it is there; what was launched after it goes on meanwhile."""
        self._sent.synchronize()
        return int(self._number)


class Recording:
    """A function from a state to the next one, of the same shapes, over buffers of its own."""

    def __init__(self, function: Callable[[NamedTuple], NamedTuple], state: NamedTuple, graph: type) -> None:
        self._function = function
        size = _bucket(len(state[0]))
        self.state = type(state)(*(part if part is None else _enlarged(part, size) for part in state))
        self._graph = graph(self._advance)

    def load(self, state: NamedTuple) -> None:
        """Start from this state; the places behind it hold zeros."""
        for own, part in zip(self.state, state, strict=True):
            if own is not None:
                own[: len(part)].copy_(part)
                own[len(part) :].zero_()

    def result(self, count: int) -> NamedTuple:
        """The first ``count`` places, in tensors that the next replay leaves alone."""
        return type(self.state)(*(part if part is None else part[:count].clone() for part in self.state))

    def replay(self) -> None:
        """One function further."""
        self._graph.replay()

    def _advance(self) -> None:
        for own, part in zip(self.state, self._function(self.state), strict=True):
            if own is not None and own is not part:
                own.copy_(part)


class Graphs:
    """The recordings of one attack, the latest few, each for a function and the shapes of its state.

    Attributes:
        reason: Why the latest call ran eagerly although a recording was asked for; empty otherwise.
    """

    def __init__(self, graph: type = CudaGraph, message: type = Message) -> None:
        self.reason = ""
        self._graph, self._message = graph, message
        self._kept: OrderedDict[tuple, Recording] = OrderedDict()
        self._generation = 0
        self._warned = False

    @staticmethod
    def wanted(capture: str | bool) -> bool:
        """Whether recordings are asked for: the network is to run on tensors that stay then."""
        return CONFIRMED if capture == "auto" else capture

    def recording(self, capture: str | bool, images: Tensor, generation: int, obstacle: str = "") -> Graphs | None:
        """Whether a call on ``images`` replays recordings: self, or None for an eager call.

        ``obstacle`` says what about the call forbids it. Recordings of another ``generation`` of the network read
        tensors that are no longer its own, and are forgotten.
        """
        if not self.wanted(capture):
            self.reason = ""
            return None
        if self._graph is CudaGraph and images.device.type != "cuda":
            obstacle = f"the images are on {images.device.type!r}, not on a CUDA device"
        elif torch.is_autocast_enabled(images.device.type):
            obstacle = "autocast is on, whose cache of weights a recording would outlive"
        self.reason = obstacle
        if obstacle:
            self._warn()
            return None
        if generation != self._generation:
            self._kept.clear()
            self._generation = generation
        return self

    def repeat(self, function: Callable, state: NamedTuple, times: int, flags: str | None = None) -> NamedTuple:
        """Apply ``function`` to ``state`` up to ``times`` times; with ``flags`` until none of that field is set.

        The count of flags is read when the next step has been launched already, so that the device never idles; the
        step that was one too many changes nothing.
        """
        recording = self._recorded(function, state)
        if recording is None:
            for _ in range(times):
                state = function(state)
            return state
        recording.load(state)
        before = None
        for _ in range(times):
            recording.replay()
            if flags is None:
                continue
            message = self._message(getattr(recording.state, flags).sum())
            if before is not None and before.read() == 0:
                break
            before = message
        return recording.result(len(state[0]))

    def _recorded(self, function: Callable, state: NamedTuple) -> Recording | None:
        size = _bucket(len(state[0]))
        parts = ((t.shape[1:], t.dtype, t.stride()[1:], t.device) for t in state if t is not None)
        key = (function.__name__, size, *parts)
        if key not in self._kept:
            try:
                self._kept[key] = Recording(function, state, self._graph)
            except RuntimeError as error:  # the network waits for the device, or draws random numbers
                self.reason = f"the network cannot be recorded: {error}"
                self._warn()
                return None
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"the attack runs eagerly: {self.reason}", RuntimeWarning, stacklevel=5)


def _bucket(count: int) -> int:
    """Batches of nearly the same size share a recording."""
    step = 16 if count <= 128 else 64
    return -(-count // step) * step


def _enlarged(part: Tensor, size: int) -> Tensor:
    """Zeros of ``size`` places that lie as ``part`` does."""
    return torch.empty_like(part[:1].expand(size, *part.shape[1:]), memory_format=_lying(part)).zero_()


def _lying(part: Tensor) -> torch.memory_format:
    last = part.dim() == 4 and part.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not part.is_contiguous() else torch.contiguous_format
