"""The attack family: steps on images [B, C, H, W], objectives and bases on logits [B, K]; nothing has a backward."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

import amkd_fast as af
from amkd_fast import backends
from amkd_fast.ops.attack import BoundaryBases
from benchmarks import contest
from benchmarks.baselines import attack as baselines
from benchmarks.contest import Answer, Contestant, Errors, WrongResult
from benchmarks.group import Goal, Group
from benchmarks.roofline import Work

LOWER, UPPER = 0.0, 1.0
EPS, STEP_SIZE = 8 / 255, 2 / 255
L2_EPS, L2_STEP, L1_EPS, L1_STEP = 0.5, 0.1, 12.0, 1.0
BOUNDARY_STEP, NEWTON_STEP = 0.3, 1.02
TOP = 0.01
LIMIT = 64  # bases out of a batch

BALLS = {"linf": (STEP_SIZE, EPS), "l2": (L2_STEP, L2_EPS), "l1": (L1_STEP, L1_EPS)}
STEPS = (*BALLS, "boundary", "newton")  # the position is the operator's `rule` number
OUT_GIVEN, KERNEL = "out given", "kernel alone"
LOGITS = ((64, 10), (256, 100))  # rows and classes


def groups() -> list[Group]:
    return [
        step("linf", 64, speedup=5.0),
        step("linf", 256, speedup=10.0),
        step("linf", 256, dtype=torch.bfloat16),
        step("linf", 256, memory_format=torch.channels_last),
        step("boundary", 64, speedup=5.0),
        step("boundary", 256, speedup=10.0),
        *(step(rule, count) for rule in ("l2", "l1", "newton") for count in (64, 256)),
        *(objective(rows, classes) for objective in (boundary_objective, ce_objective) for rows, classes in LOGITS),
        *(bases(256, classes, 10.0) for classes in (10, 100)),
        *(svgd(*shape) for shape in ((64, 4), (128, 8))),
    ]


def step(
    rule: str,
    count: int,
    channels: int = 3,
    side: int = 32,
    *,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    speedup: float | None = None,
) -> Group:
    """One of :data:`STEPS`: new images as the public function returns them, and as the forms write them."""
    shape = (count, channels, side, side)

    def inputs(device: str) -> tuple[Tensor, ...]:
        """Images, gradient, and either clean images or gaps."""
        draws = torch.Generator().manual_seed(0)
        clean, noise = torch.rand(2, *shape, generator=draws)
        grad = torch.randn(shape, generator=draws)
        x = (clean + EPS * (2 * noise - 1)).clamp(LOWER, UPPER)
        gap = 10 * torch.rand(count, generator=draws)
        images = (x, grad, clean) if rule in BALLS else (x, grad)
        found = [part.to(device, dtype, memory_format=memory_format) for part in images]
        return tuple(found) if rule in BALLS else (*found, gap.to(device))

    # The least that moves: the images, their gradient and the result; the clean images where there is a ball.
    work = Work((4 if rule in BALLS else 3) * math.prod(shape) * dtype.itemsize)
    bounds = () if speedup is None else (("", speedup), (KERNEL, speedup))
    return _group(
        f"attack_step {rule}{' channels_last' if memory_format == torch.channels_last else ''}",
        {"B": count, "C": channels, "H": side, "W": side},
        inputs,
        public_step(rule),
        lambda: rivals_of_step(rule),
        work,
        dtype,
        forms=lambda: {OUT_GIVEN: written_to(public_step(rule)), KERNEL: written_to(kernel(rule))},
        goals=tuple(Goal("speed-up", bound, f"eager {rule} step", "forward", form) for form, bound in bounds),
    )


def public_step(rule: str) -> Callable[..., Tensor]:
    """The public function, into a new tensor as eager PyTorch makes one; or into ``out``."""
    bounds = {"lower": LOWER, "upper": UPPER}
    if rule in BALLS:
        step_size, eps = BALLS[rule]
        ball = {"step_size": step_size, "eps": eps, "norm": rule, "top": TOP, **bounds}
        return lambda x, grad, clean, out=None: af.attack_step(x, grad, x0=clean, out=out, **ball)
    newton = rule == "newton"
    step_size = NEWTON_STEP if newton else BOUNDARY_STEP
    options = {"norm": "boundary", "norm_power": 1 + newton, "project": newton, "step_size": step_size, **bounds}
    return lambda x, grad, gap, out=None: af.attack_step(x, grad, gap=gap, out=out, **options)


def kernel(rule: str) -> Callable[..., Tensor]:
    """The operator alone, without the public function's checks and its choice of a backend."""
    newton = rule == "newton"
    step_size, eps = BALLS.get(rule, (NEWTON_STEP if newton else BOUNDARY_STEP, 0.0))
    none = (None,) * 4

    def call(x: Tensor, grad: Tensor, third: Tensor, out: Tensor) -> Tensor:
        operators = torch.ops.amkd_fast
        triton = x.is_cuda and backends.select("attack", "cuda") == "triton"
        run = operators.attack_step_triton.default if triton else operators.attack_step.default
        x0, gap = (third, None) if rule in BALLS else (None, third)
        top = math.ceil(TOP * x[0].numel()) if rule == "l1" else 1
        run(out, x, grad, x0, None, None, gap, *none, STEPS.index(rule), step_size, eps, LOWER, UPPER, 1.0, newton, top)
        return out

    return call


def written_to(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``call`` into one tensor that is there from the second call on."""
    out = None

    def run(*inputs: Tensor) -> Tensor:
        nonlocal out
        if out is None:
            out = torch.empty_like(inputs[0])
        return call(*inputs, out=out)

    return run


def rivals_of_step(rule: str) -> list[Contestant]:
    size = BALLS.get(rule, (NEWTON_STEP if rule == "newton" else BOUNDARY_STEP,))
    write = {
        "linf": baselines.linf_step,
        "l2": baselines.l2_step,
        "l1": lambda *numbers: baselines.l1_step(*numbers, TOP),
        "boundary": baselines.boundary_step,
        "newton": baselines.newton_step,
    }[rule]
    return write(*size, LOWER, UPPER)


def svgd(count: int, particles: int, channels: int = 3, side: int = 32) -> Group:
    """A step of the particles of every image. Signs of what is nearly 0 may differ from the reference's in fp64."""
    shape = (count, particles, channels, side, side)

    def ours(x: Tensor, grad: Tensor, clean: Tensor, out: Tensor | None = None) -> Tensor:
        return af.svgd_step(x, grad, clean, step_size=STEP_SIZE, eps=EPS, lower=LOWER, upper=UPPER, out=out)

    def inputs(device: str) -> tuple[Tensor, ...]:
        draws = torch.Generator().manual_seed(0)
        clean = torch.rand(count, *shape[2:], generator=draws)
        x = clean[:, None] + EPS * (2 * torch.rand(shape, generator=draws) - 1)
        grad = 0.01 * torch.randn(shape, generator=draws)
        return x.clamp(LOWER, UPPER).to(device), grad.to(device), clean.to(device)

    size, image = math.prod(shape), channels * side * side
    # Distances of all pairs, and for each particle a gradient and a position of every other one.
    products = count * image * (particles * (particles - 1) // 2 + 2 * particles**2)
    work = Work((3 * size + count * image) * 4, products=products)
    sizes, rivals = {"B": count, "n": particles, "C": channels, "H": side, "W": side}, _svgd_rivals
    more = {"forms": lambda: {OUT_GIVEN: written_to(ours)}, "verify": verify_signs}
    return _group("svgd_step", sizes, inputs, ours, rivals, work, **more)


def _svgd_rivals() -> list[Contestant]:
    return baselines.svgd_step(STEP_SIZE, EPS, LOWER, UPPER)


def boundary_objective(rows: int, classes: int) -> Group:
    """Three more numbers a row are written: value, prediction, active flag."""

    def ours(logits: Tensor, base: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        return af.attack_objective(logits, base, loss="boundary", target=target)

    def inputs(device: str) -> tuple[Tensor, ...]:
        logits, _, base = drawn(rows, classes, device)
        shift = torch.randint(1, classes, (rows,), generator=torch.Generator().manual_seed(1)).to(device)
        return logits, base, (base + shift) % classes

    work = Work(2 * rows * classes * 4 + rows * (2 * 8 + 4 + 8 + 1))
    sizes, rivals = {"B": rows, "K": classes}, baselines.boundary_objective
    return _group("attack_objective boundary", sizes, inputs, ours, rivals, work)


def ce_objective(rows: int, classes: int) -> Group:
    def inputs(device: str) -> tuple[Tensor, ...]:
        logits, _, labels = drawn(rows, classes, device)
        return logits, labels

    work = Work(2 * rows * classes * 4 + rows * (8 + 4 + 8 + 1), rows * classes)
    sizes, rivals = {"B": rows, "K": classes}, baselines.ce_objective
    return _group("attack_objective ce", sizes, inputs, af.attack_objective, rivals, work)


def bases(rows: int, classes: int, speedup: float | None = None) -> Group:
    """At most :data:`LIMIT` rows come out, each with three classes or places and a flag."""

    def ours(student: Tensor, teacher: Tensor, labels: Tensor) -> BoundaryBases:
        return af.select_boundary_bases(student, teacher, labels, LIMIT, seed=1)

    def rivals() -> list[Contestant]:
        return [Contestant(baselines.PUBLIC_BASES, baselines.public_bases(LIMIT))]

    def inputs(device: str) -> tuple[Tensor, ...]:
        return drawn(rows, classes, device)

    work = Work(rows * (2 * classes * 4 + 8) + LIMIT * (3 * 8 + 1), 2 * rows * classes)
    goals = () if speedup is None else (Goal("speed-up", speedup, baselines.PUBLIC_BASES, "forward"),)
    more = {"verify": verify_draws, "goals": goals}
    return _group("select_boundary_bases", {"B": rows, "K": classes}, inputs, ours, rivals, work, **more)


def _group(name, sizes, inputs, ours, rivals, work, dtype=torch.float32, **more) -> Group:
    return Group("attack", name, sizes, dtype, inputs, ours, rivals, {"forward": work}, **more)


def drawn(rows: int, classes: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of two networks that predict most rows right, and the labels."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (rows,), generator=draws)
    likely = 6.0 * torch.eye(classes)[labels]
    first, second = 2.0 * torch.randn(2, rows, classes, generator=draws) + likely
    return first.to(device), second.to(device), labels.to(device)


def verify_signs(entry: Contestant, given: tuple[Tensor, ...], expected: Answer) -> Errors:
    """As the usual check for steps along signs: one number in 10,000 may go the other way, by two steps.

    Raises:
        WrongResult: More of them differ, or one is further off.
    """
    with entry.chosen():
        result = entry.call(*given).double()
    error = (result - expected.value).abs()
    other_way = error > 1e-5
    if not (other_way.double().mean() <= 1e-4 and error.max() <= 2 * STEP_SIZE + 1e-5):
        raise WrongResult(f"{entry.name}: {int(other_way.sum())} numbers went another way than the reference's")
    return Errors((error * ~other_way).max().item() / expected.value.abs().max().item(), None)


def verify_draws(entry: Contestant, given: tuple[Tensor, ...], expected: Answer, times: int = 30) -> Errors:
    """The usual check; of somebody else's draws, whether each class is drawn about as often as it should be."""
    if entry.backend is not None:
        return contest.verify(entry, given, expected)
    bases, (_, teacher, _) = expected.value, given
    p = teacher[bases.index].double().softmax(1).scatter(1, bases.base[:, None], 0.0)
    p = p / p.sum(1, keepdim=True)  # [M, K]
    counts = torch.cat([entry.call(*given).target for _ in range(times)]).bincount(minlength=p.shape[1])
    allowed = 6.0 * (times * (p * (1 - p)).sum(0)).sqrt() + 1.0
    if not ((counts - times * p.sum(0)).abs() <= allowed).all():
        raise WrongResult(f"{entry.name}: its draws do not follow the teacher's distribution")
    others = entry._replace(call=lambda *given: entry.call(*given)._replace(target=bases.target))
    return contest.verify(others, given, expected)
