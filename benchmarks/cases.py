"""The cases of the KL family that are measured, with their inputs and contestants."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import amkd_fast as af
from benchmarks import contest, peers
from benchmarks.contest import Answer, Contestant, Errors, WrongResult

TEMPERATURE = 4.0
CE_WEIGHT, KL_WEIGHT = 0.1, 0.9
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}


@dataclass(frozen=True)
class Case:
    """An operation on logits [rows, classes]; ``target`` is the speed-up that forward + backward should reach."""

    operation: str
    rows: int
    classes: int
    dtype: torch.dtype
    target: float

    def __str__(self) -> str:
        return f"{self.operation} [{self.rows}, {self.classes}] {SHORT[self.dtype]}"


CASES = (
    Case("kl_div", 128, 10, torch.float32, 2.3),
    Case("kl_div", 128, 100, torch.float32, 4.0),
    Case("kl_div", 256, 1000, torch.float32, 3.5),
    Case("kl_div", 512, 32000, torch.float32, 3.0),
    Case("kl_div", 256, 1000, torch.bfloat16, 3.0),
    Case("distillation_loss", 128, 100, torch.float32, 3.0),
)


@dataclass
class Field:
    """Inputs of a case and the contestants that passed the check, the reference among them."""

    inputs: tuple[Tensor, ...]
    errors: dict[Contestant, Errors]
    left_out: dict[str, str]  # contestant → why it is not timed


def kl_div(student: Tensor, teacher: Tensor) -> Tensor:
    return af.kl_div(student, teacher, TEMPERATURE)


def distillation_loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return af.distillation_loss(
        student, teacher, labels, temperature=TEMPERATURE, ce_weight=CE_WEIGHT, kl_weight=KL_WEIGHT
    ).total


def contestants(case: Case, device: str) -> list[Contestant]:
    """Reference, eager, compiled, ours; nothing is computed or compiled yet."""
    call = {"kl_div": kl_div, "distillation_loss": distillation_loss}[case.operation]
    others = peers.kl(TEMPERATURE)
    if case.operation == "distillation_loss":
        others = peers.distillation(TEMPERATURE, CE_WEIGHT, KL_WEIGHT)
    return [contest.reference(call), *others, *contest.ours("kl", call, device)]


def inputs(case: Case, device: str) -> tuple[Tensor, ...]:
    """Student (a leaf that wants a gradient) and teacher [rows, classes], with labels where the case has them."""
    draws = torch.Generator().manual_seed(0)
    size = (case.rows, case.classes)
    student, teacher = (torch.randn(size, generator=draws).mul_(3.0).to(device, case.dtype) for _ in range(2))
    student.requires_grad_()
    if case.operation == "kl_div":
        return student, teacher
    return student, teacher, torch.randint(case.classes, (case.rows,), generator=draws).to(device)


def prepare(case: Case, device: str) -> Field:
    """Draw the inputs, compile, and check every contestant against the reference in fp64.

    Raises:
        WrongResult: One of ours is wrong. A peer that is wrong, or fails, is left out by name.
    """
    torch._dynamo.reset()  # compiled forms of the last case would otherwise lengthen every call of this one's
    entries = contestants(case, device)
    field = Field(inputs(case, device), {}, {})
    expected: Answer = contest.truth(entries[0].call, field.inputs)
    for contestant in entries:
        try:
            field.errors[contestant] = contest.verify(contestant, field.inputs, expected)
        except Exception as error:  # a peer's compiler may fail in any way
            if contestant.backend is not None:
                raise
            reason = str(error) if isinstance(error, WrongResult) else f"{type(error).__name__}: {error}"
            field.left_out[contestant.name] = reason.strip().splitlines()[0]
    return field
