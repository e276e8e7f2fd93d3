"""The calls of the attack family that are measured, with their inputs, contestants and the check of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import amkd_fast as af
from amkd_fast.ops.attack import BoundaryBases
from benchmarks import attack_rivals, contest, peers
from benchmarks.contest import Answer, Contestant, Errors, WrongResult

LOWER, UPPER = 0.0, 1.0
EPS, STEP_SIZE = 8 / 255, 2 / 255
L2_EPS, L2_STEP, L1_EPS, L1_STEP = 0.5, 0.1, 12.0, 1.0
BOUNDARY_STEP, NEWTON_STEP = 0.3, 1.02
TOP = 0.01
LIMIT = 64  # bases out of a batch
PUBLIC = "public bases"

BALLS = {"linf": (STEP_SIZE, EPS), "l2": (L2_STEP, L2_EPS), "l1": (L1_STEP, L1_EPS)}
STEPS = (*BALLS, "boundary", "newton")


@dataclass(frozen=True)
class Case:
    """An operation and the shape of its first input; ``targets`` are speed-ups over contestants by name."""

    operation: str
    shape: tuple[int, ...]
    targets: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.operation}{' step' if self.operation in STEPS else ''} {list(self.shape)} fp32"

    @property
    def passes(self) -> int | None:
        """The least that a step moves, in passes over its images: x, its gradient, the result; x0 where it has one."""
        return None if self.operation not in STEPS else 4 if self.operation in BALLS else 3


CASES = (
    Case("linf", (64, 3, 32, 32), {"eager linf step": 5.0}),
    Case("linf", (256, 3, 32, 32), {"eager linf step": 10.0}),
    Case("boundary", (64, 3, 32, 32), {"eager boundary step": 5.0}),
    Case("boundary", (256, 3, 32, 32), {"eager boundary step": 10.0}),
    *(Case(operation, (count, 3, 32, 32)) for operation in ("l2", "l1", "newton") for count in (64, 256)),
    Case("bases", (256, 10), {PUBLIC: 10.0}),
    Case("bases", (256, 100), {PUBLIC: 10.0}),
    Case("objective", (64, 10)),
    Case("objective", (256, 100)),
)


def step(operation: str, out: Tensor | None = None) -> Callable[..., Tensor]:
    """A step by the public function; a new tensor, as eager PyTorch makes one, or ``out``."""
    bounds = {"lower": LOWER, "upper": UPPER, "out": out}
    if operation in BALLS:
        step_size, eps = BALLS[operation]
        ball = {"step_size": step_size, "eps": eps, "norm": operation, "top": TOP, **bounds}
        return lambda x, grad, clean: af.attack_step(x, grad, x0=clean, **ball)
    newton = operation == "newton"
    rule = {"norm": "boundary", "norm_power": 1 + newton, "project": newton, **bounds}
    step_size = NEWTON_STEP if newton else BOUNDARY_STEP
    return lambda x, grad, gap: af.attack_step(x, grad, step_size=step_size, gap=gap, **rule)


def kernel(operation: str, out: Tensor) -> Callable[..., Tensor]:
    """The operator of a step alone, without the public function's checks and its choice of a backend."""
    rule, newton = STEPS.index(operation), operation == "newton"
    step_size, eps = BALLS.get(operation, (NEWTON_STEP if newton else BOUNDARY_STEP, 0.0))
    top = math.ceil(TOP * out[0].numel())
    numbers = (rule, step_size, eps, LOWER, UPPER, 1.0, newton, top)
    run, none = torch.ops.amkd_fast.attack_step.default, (None,) * 4

    def call(x: Tensor, grad: Tensor, third: Tensor) -> Tensor:
        x0, gap = (third, None) if operation in BALLS else (None, third)
        run(out, x, grad, x0, None, None, gap, *none, *numbers)
        return out

    return call


def forms(case: Case) -> dict[str, Callable]:
    """The ways to call us that are timed: a step also into a tensor that is there, and without its Python."""
    if case.operation not in STEPS:
        return {"": call(case)}
    out = torch.empty(case.shape)
    return {
        "": call(case),
        ", out given": step(case.operation, out),
        ", kernel alone": kernel(case.operation, out),
    }


def objective(logits: Tensor, base: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    return af.attack_objective(logits, base, loss="boundary", target=target)


def bases(student: Tensor, teacher: Tensor, labels: Tensor) -> BoundaryBases:
    return af.select_boundary_bases(student, teacher, labels, LIMIT, seed=1)


def call(case: Case) -> Callable:
    """Our public function with the arguments of the case."""
    return step(case.operation) if case.operation in STEPS else {"objective": objective, "bases": bases}[case.operation]


def rivals(case: Case) -> list[Contestant]:
    """What computes the same without us; nothing is compiled yet."""
    return {
        "linf": lambda: peers.pgd_step(STEP_SIZE, EPS, LOWER, UPPER),
        "boundary": lambda: peers.boundary_step(BOUNDARY_STEP, LOWER, UPPER),
        "objective": peers.boundary_objective,
        "bases": lambda: [Contestant(PUBLIC, attack_rivals.public_bases(LIMIT))],
    }.get(case.operation, list)()


def inputs(case: Case, device: str) -> tuple[Tensor, ...]:
    """Steps: images, gradient and either clean images or gaps. Else logits and classes."""
    draws = torch.Generator().manual_seed(0)
    count = case.shape[0]
    if case.operation in STEPS:
        clean, noise = torch.rand(2, *case.shape, generator=draws)
        grad = torch.randn(case.shape, generator=draws)
        x = (clean + EPS * (2 * noise - 1)).clamp(LOWER, UPPER)
        gap = 10 * torch.rand(count, generator=draws)
        found = (x, grad, clean if case.operation in BALLS else gap)
    else:
        classes = case.shape[1]
        labels = torch.randint(classes, (count,), generator=draws)
        likely = 6.0 * torch.eye(classes)[labels]  # most rows are predicted right
        first, second = 2.0 * torch.randn(2, *case.shape, generator=draws) + likely
        shift = torch.randint(1, classes, (count,), generator=draws)
        found = (first, second, labels) if case.operation == "bases" else (first, labels, (labels + shift) % classes)
    return tuple(part.to(device) for part in found)


def visible(result: object, entry: Contestant) -> tuple[Tensor, ...]:
    """The tensors of a result that must be the reference's: all but the draws of somebody else's generator."""
    parts = result if isinstance(result, tuple) else (result,)
    return tuple(part for name, part in zip(_names(result), parts, strict=True) if entry.backend or name != "target")


def truth(case: Case, given: tuple[Tensor, ...]) -> object:
    """The reference's result in fp64."""
    wide = tuple(part.double() if part.is_floating_point() else part for part in given)
    with contest.reference(call(case)).chosen():
        return call(case)(*wide)


def verify(entry: Contestant, given: tuple[Tensor, ...], expected: object) -> Errors:
    """Hold every part of a contestant's result against :func:`truth`.

    Raises:
        WrongResult: A part differs, or draws do not follow their distribution.
    """
    largest = 0.0
    with entry.chosen():
        result = entry.call(*given)
    for part, wanted in zip(visible(result, entry), visible(expected, entry), strict=True):
        one = Contestant(entry.name, lambda *_, part=part: part)
        # Whole numbers must agree, and the check of contest.py is relative to the largest.
        if wanted.is_floating_point():
            largest = max(largest, contest.verify(one, given, Answer(wanted, None)).value)
        elif not torch.equal(part, wanted):
            raise WrongResult(f"{entry.name}: whole numbers differ from the reference's")
    if entry.name == PUBLIC:
        check_draws(entry, given, expected)
    return Errors(largest, None)


def check_draws(entry: Contestant, given: tuple[Tensor, ...], expected: object, times: int = 30) -> None:
    """Whether each class is drawn about as often as it should be, over all rows and many calls."""
    _, teacher, _ = given
    p = teacher[expected.index].double().softmax(1).scatter(1, expected.base[:, None], 0.0)
    p = p / p.sum(1, keepdim=True)  # [M, K]
    drawn = torch.cat([entry.call(*given).target for _ in range(times)])
    counts = drawn.bincount(minlength=p.shape[1])
    allowed = 6.0 * (times * (p * (1 - p)).sum(0)).sqrt() + 1.0
    if not ((counts - times * p.sum(0)).abs() <= allowed).all():
        raise WrongResult(f"{entry.name}: its draws do not follow the teacher's distribution")


def _names(result: object) -> tuple[str, ...]:
    return getattr(result, "_fields", None) or ("",) * (len(result) if isinstance(result, tuple) else 1)
