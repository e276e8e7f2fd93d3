"""The attack family: steps on images [B, C, H, W], objectives and bases on logits [B, K]; nothing has a backward."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import amkd_fast as af
from amkd_fast import backends
from amkd_fast.ops.attack import BoundaryBases
from benchmarks import contest
from benchmarks.baselines import attack as baselines
from benchmarks.baselines.attack import EPS, LOWER, STEP_SIZE, TOP, UPPER
from benchmarks.contest import Answer, Contestant, Errors, WrongResult
from benchmarks.group import Goal, Group
from benchmarks.roofline import Work

LIMIT = 64  # bases out of a batch
FP32, CHANNELS_LAST = torch.float32, torch.channels_last
OUT_GIVEN, KERNEL = "out given", "kernel alone"
LOGITS = ((64, 10), (256, 100))  # rows and classes
# Arguments of the public function; the position is the operator's `rule` number.
RULES: dict[str, dict[str, Any]] = {
    "linf": {"norm": "linf", "step_size": STEP_SIZE, "eps": EPS},
    "l2": {"norm": "l2", "step_size": baselines.L2_STEP, "eps": baselines.L2_EPS},
    "l1": {"norm": "l1", "step_size": baselines.L1_STEP, "eps": baselines.L1_EPS, "top": TOP},
    "boundary": {"norm": "boundary", "step_size": baselines.BOUNDARY_STEP},
    "newton": {"norm": "boundary", "norm_power": 2, "project": True, "step_size": baselines.NEWTON_STEP},
}


def groups() -> list[Group]:
    return [
        *(step(rule, count) for rule in RULES for count in (64, 256)),
        step("linf", 256, dtype=torch.bfloat16),
        step("linf", 256, memory_format=CHANNELS_LAST),
        *(objective(rows, classes) for objective in (boundary_objective, ce_objective) for rows, classes in LOGITS),
        *(bases(256, classes, 10.0) for classes in (10, 100)),
        *(svgd(*shape) for shape in ((64, 4), (128, 8))),
    ]


def step(
    rule: str,
    count: int,
    side: int = 32,
    dtype: torch.dtype = FP32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Group:
    """One of :data:`RULES`: new images as the public function returns them, and as the forms write them."""
    shape, ball = (count, 3, side, side), "eps" in RULES[rule]

    def draw() -> tuple[Tensor, ...]:
        """Images, gradient, and either clean images or gaps."""
        draws = torch.Generator().manual_seed(0)
        clean, noise = torch.rand(2, *shape, generator=draws)
        grad = torch.randn(shape, generator=draws)
        x = (clean + EPS * (2 * noise - 1)).clamp(LOWER, UPPER)
        gap = 10 * torch.rand(count, generator=draws)
        images = [part.to(dtype, memory_format=memory_format) for part in (x, grad, clean)]
        return tuple(images) if ball else (*images[:2], gap)

    # The least that moves: the images, their gradient and the result; the clean images where there is a ball.
    work = Work((4 if ball else 3) * math.prod(shape) * dtype.itemsize)
    name = f"attack_step {rule}{' channels_last' if memory_format == CHANNELS_LAST else ''}"
    return _group(
        name, _sizes(shape), draw, public_step(rule), {f"{rule} step": getattr(baselines, f"{rule}_step")}, work, dtype,
        forms={OUT_GIVEN: written_to(public_step(rule)), KERNEL: written_to(kernel(rule))},
    )  # fmt: skip


def public_step(rule: str) -> Callable[..., Tensor]:
    """The public function, into a new tensor as eager PyTorch makes one; or into ``out``."""
    move = partial(af.attack_step, lower=LOWER, upper=UPPER, **RULES[rule])
    if "eps" in RULES[rule]:
        return lambda x, grad, clean, out=None: move(x, grad, x0=clean, out=out)
    return lambda x, grad, gap, out=None: move(x, grad, gap=gap, out=out)


def kernel(rule: str) -> Callable[..., Tensor]:
    """The operator alone, without the public function's checks and its choice of a backend."""
    number, newton, none = list(RULES).index(rule), rule == "newton", (None,) * 4
    step_size, eps = RULES[rule]["step_size"], RULES[rule].get("eps", 0.0)

    def call(x: Tensor, grad: Tensor, third: Tensor, out: Tensor) -> Tensor:
        operators = torch.ops.amkd_fast
        triton = x.is_cuda and backends.select("attack", "cuda") == "triton"
        run = operators.attack_step_triton.default if triton else operators.attack_step.default
        x0, gap = (third, None) if eps else (None, third)
        top = math.ceil(TOP * x[0].numel()) if rule == "l1" else 1
        run(out, x, grad, x0, None, None, gap, *none, number, step_size, eps, LOWER, UPPER, 1.0, newton, top)
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


def svgd(count: int, particles: int, side: int = 32) -> Group:
    """A step of the particles of every image. Signs of what is nearly 0 may differ from the reference's in fp64."""
    shape = (count, particles, 3, side, side)

    def ours(x: Tensor, grad: Tensor, clean: Tensor, out: Tensor | None = None) -> Tensor:
        return af.svgd_step(x, grad, clean, step_size=STEP_SIZE, eps=EPS, lower=LOWER, upper=UPPER, out=out)

    def draw() -> tuple[Tensor, ...]:
        draws = torch.Generator().manual_seed(0)
        clean = torch.rand(count, *shape[2:], generator=draws)
        x = clean[:, None] + EPS * (2 * torch.rand(shape, generator=draws) - 1)
        return x.clamp(LOWER, UPPER), 0.01 * torch.randn(shape, generator=draws), clean

    size, image = math.prod(shape), math.prod(shape[2:])
    # Distances of all pairs, and for each particle a gradient and a position of every other one.
    products = count * image * (particles * (particles - 1) // 2 + 2 * particles**2)
    work, rivals = Work((3 * size + count * image) * 4, products=products), {"svgd step": baselines.svgd_step}
    more = {"forms": {OUT_GIVEN: written_to(ours)}, "verify": verify_signs}
    return _group("svgd_step", _sizes(shape), draw, ours, rivals, work, **more)


def boundary_objective(rows: int, classes: int) -> Group:
    """Three more numbers a row are written: value, prediction, active flag."""

    def draw() -> tuple[Tensor, ...]:
        logits, _, base = two_networks(rows, classes)
        shift = torch.randint(1, classes, (rows,), generator=torch.Generator().manual_seed(1))
        return logits, base, (base + shift) % classes

    def ours(logits: Tensor, base: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        return af.attack_objective(logits, base, loss="boundary", target=target)

    work = Work(2 * rows * classes * 4 + rows * (2 * 8 + 4 + 8 + 1))
    return _objective("boundary", rows, classes, draw, ours, work, baselines.gap, baselines.closed_gap)


def ce_objective(rows: int, classes: int) -> Group:
    def draw() -> tuple[Tensor, ...]:
        return two_networks(rows, classes)[::2]

    work = Work(2 * rows * classes * 4 + rows * (8 + 4 + 8 + 1), rows * classes)
    rivals = baselines.cross_entropy, baselines.closed_cross_entropy
    return _objective("ce", rows, classes, draw, af.attack_objective, work, *rivals)


def bases(rows: int, classes: int, speedup: float | None = None) -> Group:
    """At most :data:`LIMIT` rows come out, each with three classes or places and a flag."""

    def ours(student: Tensor, teacher: Tensor, labels: Tensor) -> BoundaryBases:
        return af.select_boundary_bases(student, teacher, labels, LIMIT, seed=1)

    def others() -> list[Contestant]:
        return [Contestant(baselines.PUBLIC_BASES, baselines.public_bases(LIMIT))]

    work = Work(rows * (2 * classes * 4 + 8) + LIMIT * (3 * 8 + 1), 2 * rows * classes)
    goals = () if speedup is None else (Goal("speed-up", speedup, baselines.PUBLIC_BASES, "forward"),)
    draw, more = partial(two_networks, rows, classes), {"others": others, "verify": verify_draws, "goals": goals}
    return _group("select_boundary_bases", {"B": rows, "K": classes}, draw, ours, {}, work, **more)


def _objective(loss, rows, classes, draw, ours, work, value, closed) -> Group:
    def others() -> list[Contestant]:
        return [Contestant("eager autograd", baselines.by_autograd(value))]

    sizes, rivals = {"B": rows, "K": classes}, {"objective": closed}
    return _group(f"attack_objective {loss}", sizes, draw, ours, rivals, work, others=others)


def _group(name, sizes, draw, ours, rivals, work, dtype=FP32, **more) -> Group:
    return Group("attack", name, sizes, dtype, draw, ours, rivals, {"forward": work}, **more)


def _sizes(shape: tuple[int, ...]) -> dict[str, int]:
    return dict(zip("BCHW" if len(shape) == 4 else "BnCHW", shape, strict=True))


def two_networks(rows: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of two networks that predict most rows right, and the labels."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (rows,), generator=draws)
    likely = 6.0 * torch.eye(classes)[labels]
    return *(2.0 * torch.randn(2, rows, classes, generator=draws) + likely), labels


def verify_signs(entry: Contestant, given: tuple[Tensor, ...], expected: Answer) -> Errors:
    """As the usual check for steps along signs: one number in 10,000 may go the other way, by two steps."""
    error = (contest.answer(entry, given).value.double() - expected.value).abs()
    other_way = error > 1e-5
    contest.within(
        entry, other_way.double().mean().item(), 1e-4, "of the numbers went another way than the reference's"
    )
    contest.within(entry, error.max().item(), 2 * STEP_SIZE + 1e-5, "from the reference")
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
