"""What is compared: one operation at one size in one dtype, with everybody who computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import contest
from benchmarks.baselines import written
from benchmarks.contest import Contestant, Errors
from benchmarks.roofline import Work

SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64", torch.uint8: "u8"}
BEST = "the fastest of the others"


class Goal(NamedTuple):
    """A goal of a group; every report says whether it was reached."""

    kind: str  # "speed-up" at least, "time" or "memory" at most, or one of the group's extras at most
    bound: float  # of theirs over ours, of ours over theirs, in bytes, in the extra's unit
    rival: str = BEST  # the contestant's name, for the first two
    direction: str = "both"
    form: str = ""  # of ours: "" the public function


@dataclass(frozen=True, eq=False)
class Group:
    """``ours`` and the ``rivals`` compute the same from the same inputs."""

    family: str  # the room of the operation: "kl", "triplet", …
    operation: str  # the function, with what matters of its arguments: "kl_div reverse"
    sizes: dict[str, int]  # what the shape is made of, by the field's letters: {"B": 128, "K": 10}
    dtype: torch.dtype  # of the floating-point inputs; uint8 where there are none
    draw: Callable[[], tuple[Any, ...]]  # the inputs; of a differentiable operation the first ones are leaves
    ours: Callable[..., Any]  # our public function on them
    rivals: dict[str, Callable[..., Any]] = field(default_factory=dict)  # in plain PyTorch: eager, and compiled
    work: dict[str, Work] = field(default_factory=dict)  # the least that has to be done, by direction that is timed
    others: Callable[[], list[Contestant]] = list  # rivals that are not to be compiled: libraries, loops
    forms: dict[str, Callable[..., Any]] = field(default_factory=dict)  # other ways to call us: into a tensor, …
    reference: bool = True  # whether the specification takes part; networks are slow enough without it
    verify: Callable[[Contestant, tuple[Any, ...], Any], Errors] = contest.verify  # hold one against the truth
    truth: Callable[[Callable[..., Any], tuple[Any, ...]], Any] = contest.truth  # by default the reference in fp64
    extras: Callable[[tuple[Any, ...]], dict[str, Any]] = lambda given: {}  # more figures of ours, by name
    goals: tuple[Goal, ...] = ()
    # Contestants that compute less than ours, or are ours, and so are never the best of the others; "NAME: DIRECTION"
    # for one that has done in the other direction what is due in this.
    yardsticks: tuple[str, ...] = ()
    floor: str = ""  # the contestant whose time is the limit where no rate of the machine says one
    absent: Callable[[str], bool] = lambda title: False  # whether a contestant of this title is not asked
    needs: tuple[str, ...] = ()  # libraries without which nothing of it runs

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} = {size}" for name, size in self.sizes.items())
        return f"{self.operation}, {sizes}, {SHORT[self.dtype]}"

    @property
    def directions(self) -> tuple[str, ...]:
        """Of ``"forward"``, ``"backward"``, ``"both"``; one call forward where nobody knows its work."""
        return tuple(self.work) or ("forward",)

    def inputs(self, device: str) -> tuple[Any, ...]:
        """The same ones for every device."""
        return tuple(_on(device, part) for part in self.draw())

    def contestants(self, device: str) -> list[Contestant]:
        """The reference, those of others, ours on each backend that runs here."""
        found = [contest.reference(self.ours)] if self.reference else []
        found += [entry for name, call in self.rivals.items() for entry in written(name, call)]
        found += [*self.others(), *contest.ours(self.family, self.ours, device)]
        for form, call in self.forms.items():
            found += [entry._replace(form=form) for entry in contest.ours(self.family, call, device)]
        return [entry for entry in found if not self.absent(entry.title)]


def _on(device: str, part: Any) -> Any:
    if isinstance(part, tuple):
        return tuple(_on(device, inner) for inner in part)
    return part.detach().to(device).requires_grad_(part.requires_grad) if isinstance(part, Tensor) else part


@dataclass
class Field:
    """A group's inputs on a device, and those contestants that gave the right answer."""

    inputs: tuple[Any, ...]
    errors: dict[Contestant, Errors] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def prepare(group: Group, device: str) -> Field:
    """Draw the inputs, compile, and hold every contestant against the truth.

    Raises:
        WrongResult: One of ours is wrong. Who else is wrong, or fails, is left out by name.
    """
    torch._dynamo.reset()  # compiled forms of the last group would lengthen every call of this one's
    found = Field(group.inputs(device))
    expected = group.truth(group.ours, found.inputs)
    for entry in group.contestants(device):
        try:
            found.errors[entry] = group.verify(entry, found.inputs, expected)
        except Exception as error:  # somebody's compiler may fail in any way
            if entry.backend is not None:
                raise
            reason = str(error) if isinstance(error, contest.WrongResult) else f"{type(error).__name__}: {error}"
            found.left_out[entry.title] = reason.strip().splitlines()[0][:200]
    return found
