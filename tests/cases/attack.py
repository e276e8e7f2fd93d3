"""The attack family: samples moved one by one in NumPy, autograd's objective, loops over rows, and its cases.

The reference is held against these in fp64, and every backend against the reference.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from oracles_attack import objective_bounds
from torch import Tensor
from torch.nn import functional as F

import amkd_fast as af
from amkd_fast import philox
from amkd_fast.ops.attack import draw_targets
from cases.operation import Found, Operation, Plan, Refusal, generator, guarded, normal, wide

RULES = {
    "linf": {"norm": "linf"},
    "l2": {"norm": "l2"},
    "l1": {"norm": "l1", "top": 0.05},
    "unit": {"norm": "boundary"},
    "newton": {"norm": "boundary", "norm_power": 2},
}


def work_of(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def again(x: Tensor) -> Tensor:
    """A copy to be changed in place, aligned as the first and inside poisoned memory too."""
    return guarded(x, offset=x.storage_offset() % 16)


def assert_as_precise(value: Tensor, eager: Tensor, truth: Tensor) -> None:
    """Nowhere more than twice as far from fp64 as the reference in this dtype is anywhere, and a rounding or two."""
    value, eps = value.cpu(), torch.finfo(value.dtype).eps
    if value.dtype == torch.float64:  # where the reference is its own truth
        allowed = 32 * eps * truth.abs().clamp(min=1.0)
    else:
        allowed = 2 * (eager.double() - truth).abs().max() + 2 * eps * truth.abs().clamp(min=1e-3)
    assert torch.isfinite(value).all()
    error = (value.double() - truth).abs()
    assert (error <= allowed).all(), f"{error.max():.2e}, eager {(eager.double() - truth).abs().max():.2e}"


# ---- steps ----------------------------------------------------------------------------------------------------------


class Samples(NamedTuple):
    """What a step moves. The last sample's gradient is no number."""

    count: int
    shape: tuple[int, ...]
    each: bool = True  # sizes of every sample; the third is not active
    ball: bool = True  # of the rules that know one
    momentum: bool = False
    channels: tuple[str, ...] = ()  # bounds with a number for each
    last: bool = False  # channels_last
    wide: bool = False  # the gradient has the dtype of the arithmetic
    scale: float = 1.0  # of the gradient


def draw_samples(samples: Samples, dtype=torch.float32, seed=0, *, rule: str) -> dict[str, Tensor]:
    count, shape, work = samples.count, samples.shape, work_of(dtype)

    def image(number: int, spread: float, around: Tensor | float = 0.0, dtype: torch.dtype = dtype) -> Tensor:
        drawn = (spread * normal(10 * seed + number, count, *shape) + around).to(dtype)
        return drawn.contiguous(memory_format=torch.channels_last) if samples.last else drawn

    def each(*values: float) -> Tensor:
        return torch.tensor(values, dtype=work).repeat(count)[:count]

    x, grad = image(0, 0.5).clamp(-0.6, 0.6), image(1, samples.scale, dtype=work if samples.wide else dtype)
    if grad.numel():
        grad[(-1, *[0] * len(shape))] = math.nan
    drawn = {"x": x, "grad": grad}
    if samples.each:
        drawn |= {"step_size": each(0.3, -0.2), "active": torch.arange(count) != 2}
    size = math.prod(shape)
    if rule in ("unit", "newton"):
        drawn["gap"] = each(1.0, 2.0)
    elif samples.ball:  # which the first sample leaves
        reach = {"linf": 1.0, "l2": 0.2 * math.sqrt(size), "l1": 0.2 * size}[rule]
        drawn["x0"] = image(2, 0.05, x.double())
        if samples.each:
            drawn["eps"] = each(0.1 * reach, 2.0 * reach)
    if samples.momentum:
        drawn["momentum"] = image(3, 1.0, dtype=work)
    bound = torch.tensor([0.6, 0.5, 0.8], dtype=work).repeat(shape[0])[: shape[0]]  # some stand at one
    return drawn | {name: bound if name == "upper" else -bound for name in samples.channels}


def move(x: Tensor, grad: Tensor, momentum: Tensor | None = None, *, in_place=False, **given) -> tuple[Tensor, ...]:
    """The samples after a step, and the velocity where there is one; what the step changes is a copy."""
    velocity = None if momentum is None else again(momentum)
    if in_place:
        x = given["out"] = again(x)
    moved = af.attack_step(x, grad, momentum=velocity, **given)
    return (moved,) if velocity is None else (moved, velocity)


def project_l1_by_bisection(v: np.ndarray, radius: float) -> np.ndarray:
    """The threshold of the soft shrinkage is found by bisection, not by sorting."""
    size = np.abs(v)
    if size.sum() <= radius:
        return v
    low, high = 0.0, size.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(size - middle, 0).sum() > radius else (low, middle)
    return np.sign(v) * np.maximum(size - high, 0)


def move_one(
    x, grad, *, step_size, norm, norm_power=1, active=True, x0=None, eps=None, gap=None, momentum=None, decay=1.0,
    lower=-math.inf, upper=math.inf, project=False, top=0.01,
) -> tuple[np.ndarray, np.ndarray | None]:  # fmt: skip
    """One sample [C, ...] in fp64 by the words of the docstring, and its velocity."""
    if not active or not np.isfinite(grad).all() or not grad.any():
        return x, momentum
    reach = step_size if gap is None else step_size * (gap + 1e-4)
    g = grad if momentum is None else decay * momentum + grad / np.abs(grad).mean()
    velocity = None if momentum is None else g
    if project:
        climb = np.sign(reach) * g
        g = np.where(((x <= lower) & (climb < 0)) | ((x >= upper) & (climb > 0)), 0.0, g)
    if not g.any():
        return x, velocity
    if norm == "linf":
        new = x + reach * np.sign(g)
    elif norm == "l1":
        least = np.sort(np.abs(g), axis=None)[-max(1, math.ceil(top * g.size))]
        chosen = (np.abs(g) >= least) & (g != 0)
        new = x + reach * np.sign(g) * chosen / chosen.sum()
    else:
        new = x + reach * g / np.sqrt((g**2).sum()) ** norm_power
    if eps is not None:
        d = new - x0
        if norm == "linf":
            new = x0 + np.clip(d, -eps, eps)
        elif norm == "l2":
            new = x0 + d * min(1.0, eps / max(np.sqrt((d**2).sum()), 1e-300))
        else:
            new = x0 + project_l1_by_bisection(d, eps)
    return np.clip(new, lower, upper), velocity


def moved_one_by_one(tensors: dict[str, Tensor], options: dict) -> tuple[Tensor, ...]:
    """The same in fp64; images and numbers of a sample go to each, bounds of channels to all."""
    per_sample, shared = {}, {n: v for n, v in options.items() if n != "in_place"}
    for name, value in tensors.items():
        value = value.double().numpy() if value.is_floating_point() else value.numpy()
        if name in ("lower", "upper"):
            shared[name] = value.reshape(-1, *[1] * (tensors["x"].dim() - 2))
        else:
            per_sample[name] = value
    each = [move_one(**{n: v[i] for n, v in per_sample.items()}, **shared) for i in range(len(tensors["x"]))]
    columns = zip(*each, strict=True)
    return tuple(torch.from_numpy(np.stack(column)) for column in columns if column[0] is not None)


def compare_step(operation: Operation, plan: Plan, found: Found, tensors: dict[str, Tensor]) -> None:
    """Samples and velocities are as precise as eager; a sample that stays has its bits."""
    eager, truth = (operation.expected(given, plan.options).outputs for given in (tensors, wide(tensors)))
    oracle = moved_one_by_one(tensors, {**operation.options, **plan.options})
    for value, *others, exact in zip(found.outputs, eager, truth, oracle, strict=True):
        torch.testing.assert_close(others[1], exact, rtol=0, atol=1e-12)
        assert value.dtype == others[0].dtype
        assert_as_precise(value, *others)
    stays = [2, -1] if plan.shape.each else [-1]
    assert torch.equal(found.outputs[0][stays].cpu(), tensors["x"][stays])


# A warp a sample; a block, held in registers; two blocks and eight, or one block that reads again and again.
STEPS = {
    "a warp": (9, (1, 8, 8)),
    "a warp, number by number": (6, (3, 5, 5)),
    "a block": (4, (3, 32, 32)),
    "a block, number by number": (4, (3, 31, 31)),
    "two blocks": (3, (3, 64, 64)),
    "two blocks, number by number": (3, (3, 61, 61)),
    "eight blocks, read again": (3, (3, 144, 144)),
}
BOTH = ("lower", "upper")
OWN = {  # what every rule takes beside, in turns with bounds of channels and projected gradients
    "linf": (
        {"each": False, "last": True, "channels": ("upper",)},
        {"step_size": -0.2, "eps": 0.1, "project": True, "lower": -0.6},
        0,
    ),
    "l2": ({"ball": False, "momentum": True}, {"in_place": True, "decay": 0.9}, 1),
    "l1": ({"wide": True, "momentum": True, "scale": 1e-38}, {"in_place": True, "upper": 0.6}, 0),
    "unit": ({"wide": True, "scale": 1e37}, {"in_place": True}, 0),
    "newton": ({"wide": True, "channels": ("lower",)}, {"upper": 0.3}, 1),
}


def step_plans(rule: str) -> tuple[Plan, ...]:
    more, options, offset = OWN[rule]
    plans = []
    for name, (count, shape) in STEPS.items():
        plans += [
            Plan(name, Samples(count, shape, channels=BOTH), {"project": True}),
            Plan(f"{name}, and more", Samples(count, shape, **more), options, offset=offset),
        ]
    return (
        *plans,
        Plan("a number", Samples(4, (1,))),
        Plan("a vector and a rest", Samples(4, (9,))),
        Plan("a partial sum", Samples(4, (4096,))),
        Plan("a partial sum and one", Samples(4, (4097,))),
        Plan("four dimensions", Samples(5, (2, 3, 2, 3), channels=BOTH), {"project": True}),
    )


TRITON_STEPS = {  # one tile, which a sample fills in part, and two
    "linf": (Plan("a tile", Samples(4, (3, 7), channels=("upper",)), {"project": True, "lower": -0.6}),
             Plan("channels last", Samples(4, (2, 2, 3), channels=BOTH, last=True), {"in_place": True})),
    "l2": (Plan("a tile", Samples(3, (21,), momentum=True, wide=True, scale=1e-38), {"decay": 0.9}),
           Plan("two tiles", Samples(3, (3, 1400), channels=BOTH), {"project": True}),
           Plan("far", Samples(3, (21,), each=False), {"step_size": 1e20, "eps": 0.5})),
    "l1": (Plan("a tile", Samples(3, (3, 7))),
           Plan("two tiles", Samples(3, (2100,), momentum=True))),
    "unit": (Plan("a tile", Samples(3, (21,), wide=True, scale=1e37)),),
    "newton": (Plan("a tile", Samples(3, (3, 7), channels=BOTH), {"project": True}),),
}  # fmt: skip


def step_refusals() -> tuple[Refusal, ...]:
    x, y = torch.zeros(2, 3), torch.zeros(2)

    def refusal(message: str, error: type[Exception], **change) -> Refusal:
        given = {"x": x, "grad": torch.ones(2, 3), "step_size": 0.1, **change}
        return Refusal(message, error, lambda: af.attack_step(**given))

    return (
        refusal("x.dtype", TypeError, x=x.long()),
        refusal("x.shape", ValueError, x=y, grad=y),
        refusal("grad.shape", ValueError, grad=torch.zeros(2, 4)),
        refusal("grad.dtype", TypeError, grad=x.double()),
        refusal("x0=None", ValueError, eps=0.1),
        refusal("eps=-0.1", ValueError, eps=-0.1, x0=x),
        refusal("step_size=nan", ValueError, step_size=math.nan),
        refusal("step_size is a str", TypeError, step_size="1"),
        refusal("step_size.shape", ValueError, step_size=torch.zeros(3)),
        refusal("norm='l3'", ValueError, norm="l3"),
        refusal("norm_power=2", ValueError, norm_power=2),
        refusal("gap is None", ValueError, norm="boundary"),
        refusal("gap is given", ValueError, gap=y),
        refusal("eps=1.0", ValueError, norm="boundary", gap=y, eps=1.0),
        refusal("momentum", ValueError, norm="boundary", gap=y, momentum=x),
        refusal("momentum.dtype", TypeError, momentum=x.double()),
        refusal("active.dtype", TypeError, active=y),
        refusal("active.shape", ValueError, active=torch.zeros(3, dtype=torch.bool)),
        refusal("lower.shape", ValueError, lower=y),
        refusal("upper=nan", ValueError, upper=math.nan),
        refusal("top=0.0", ValueError, top=0.0),
        refusal("decay=inf", ValueError, decay=math.inf),
        refusal("out", ValueError, out=x, x=x.clone().requires_grad_()),
    )


def step(rule: str, **more) -> Operation:
    return Operation(
        name=f"attack_step {rule}",
        family="attack",
        call=move,
        draw=partial(draw_samples, rule=rule),
        compare=compare_step,
        options=RULES[rule],
        plans=step_plans(rule),
        small=Plan("small", Samples(3, (3, 4, 6), channels=BOTH)),
        interpreted=TRITON_STEPS[rule],
        empty=(Samples(0, (3, 4, 4), channels=BOTH), Samples(2, (3, 0, 4))),
        strided=("x", "grad", "x0"),
        **more,
    )


# ---- rows of logits -------------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """Logits [count, classes]."""

    count: int
    classes: int
    target: bool = False  # classes to reach are given
    counters: bool = False  # of the draws


def autograd_objective(logits, labels, target, *, loss, score, targeted) -> tuple[Tensor, Tensor]:
    """Value and gradient in fp64."""
    z = logits.double().clone().requires_grad_()
    rows = torch.arange(len(z))
    if loss == "ce":
        value = F.cross_entropy(z, target if targeted else labels, reduction="none") * (-1 if targeted else 1)
    else:
        if target is None:
            others = z.detach().clone()
            others[rows, labels] = -math.inf
            target = others.argmax(1)
        f = z.softmax(1) if score == "softmax" else z
        value = f[rows, target] - f[rows, labels]
        if loss == "dlr":
            s = z.sort(1, descending=True).values
            value = value / (s[:, 0] - ((s[:, 2] + s[:, 3]) / 2 if targeted else s[:, 2]))
    return value.detach(), torch.autograd.grad(value.sum(), z)[0]


def draw_rows(rows: Rows, dtype=torch.float32, seed=0) -> dict[str, Tensor]:
    """Half of the labels are what the logits say."""
    place, classes = torch.arange(rows.count), rows.classes
    logits = (3 * normal(seed, rows.count, classes)).to(dtype)
    labels = torch.where(place % 2 == 0, logits.argmax(1), 1 % classes)
    target = (labels + 1 + place % max(classes - 1, 1)) % classes
    return {"logits": logits, "labels": labels} | ({"target": target} if rows.target else {})


def compare_objective(operation: Operation, plan: Plan, found: Found, tensors: dict[str, Tensor]) -> None:
    """Values and gradients to the roundings that they take, element by element; the same predictions and states."""
    eager, truth = (operation.expected(given, plan.options).outputs for given in (tensors, wide(tensors)))
    logits, labels, target = tensors["logits"], tensors["labels"], tensors.get("target")
    options = {"score": "logits", "targeted": False, **operation.options, **plan.options}
    settled = (logits.double().sort(1).values[:, -5:].diff() > 0).all(1)  # which of equals is the third is not said
    assert settled.any()
    for a, b in zip(truth, autograd_objective(logits, labels, target, **options), strict=False):
        torch.testing.assert_close(a[settled], b[settled], rtol=1e-9, atol=1e-9)
    value, gradient, prediction, active = (x.cpu() for x in found.outputs)
    bounds = objective_bounds(logits, labels, *truth[:2], target=target, **options)
    for ours, theirs, exact, bound in zip((value, gradient), eager, truth, bounds, strict=False):
        assert ours.dtype == theirs.dtype
        wrong = (ours.double() - exact).abs() > bound
        assert torch.isfinite(ours).all()
        assert not (wrong[settled] if options["loss"] == "dlr" else wrong).any()
    assert torch.equal(prediction, logits.argmax(1))
    assert torch.equal(active, prediction != target if options["targeted"] else prediction == labels)


# Part of a vector; rows of several lanes, a warp and a block, in whole vectors and not; longer than a thread holds.
CLASSES = {
    "few": 4,
    "lanes": 10,
    "lanes, number by number": 7,
    "a warp": 96,
    "a warp, number by number": 1001,
    "whole vectors": 1000,
    "a block": 2048,
    "a block, number by number": 3001,
}


def objective_plans(classes: dict[str, int], count: int) -> tuple[Plan, ...]:
    """Without a target, with one, and on the way to it, in turns."""
    return tuple(
        Plan(name, Rows(count, k, target=i % 3 > 0), {"targeted": i % 3 == 2})
        for i, (name, k) in enumerate(classes.items())
    )


def objective(name: str, options: dict, **more) -> Operation:
    return Operation(
        name=f"attack_objective {name}",
        family="attack",
        call=af.attack_objective,
        draw=draw_rows,
        compare=compare_objective,
        options=options,
        plans=objective_plans(CLASSES, 37) + objective_plans(dict([*CLASSES.items()][:1:-1]), 21),
        small=Plan("small", Rows(6, 9, target=True)),
        interpreted=(
            *objective_plans({"a tile": 5, "a tile, wanted": 7, "a tile, targeted": 6}, 4),
            Plan("two tiles", Rows(2, 4100)),
        ),
        empty=(Rows(0, 4),),
        strided=("logits",),
        looks=("reference", "triton", "cuda"),
        **more,
    )  # fmt: skip


def objective_refusals() -> tuple[Refusal, ...]:
    def refusal(message: str, error: type[Exception], **change) -> Refusal:
        given = {"logits": torch.zeros(2, 3), "labels": torch.tensor([0, 1]), **change}
        return Refusal(message, error, lambda: af.attack_objective(**given))

    return (
        refusal("logits.shape", ValueError, logits=torch.zeros(3)),
        refusal("logits.dtype", TypeError, logits=torch.zeros(2, 3).long()),
        refusal("labels.dtype", TypeError, labels=torch.zeros(2)),
        refusal("labels holds 3", ValueError, labels=torch.tensor([0, 3])),
        refusal("labels holds -1", ValueError, labels=torch.tensor([-1, 0])),
        refusal("target holds 5", ValueError, target=torch.tensor([0, 5])),
        refusal("target=None", ValueError, targeted=True),
        refusal("loss='mse'", ValueError, loss="mse"),
        refusal("score='p'", ValueError, score="p"),
        refusal("logits.shape=(2, 2): must have at least 3 classes", ValueError, logits=torch.zeros(2, 2), loss="dlr"),
    )


def draw_one(logits: np.ndarray, base: int, uniform: float) -> int:
    """A class of one row other than its base, by inversion in fp64; the second where no other has a weight."""
    others = np.where(np.arange(len(logits)) == base, -math.inf, logits)
    if others.max() == -math.inf:
        return int(base == 0)
    cumulative = np.exp(others - others.max()).cumsum()
    return int((cumulative <= uniform * cumulative[-1]).sum())


def drawn_one_by_one(logits: Tensor, base: Tensor, seed: Tensor, rows: Tensor | None = None) -> Tensor:
    uniform = philox.uniform(seed, torch.arange(len(logits)) if rows is None else rows, dtype=torch.float64)
    each = zip(logits.double().numpy(), base.tolist(), uniform.tolist(), strict=True)
    return torch.tensor([draw_one(*row) for row in each], dtype=torch.int64)


def draw_draws(rows: Rows, dtype=torch.float32, seed=0) -> dict[str, Tensor]:
    logits, generate = (3 * normal(seed, rows.count, rows.classes)).to(dtype), generator(seed + 1)
    base = torch.randint(rows.classes, (rows.count,), generator=generate)
    logits[2:3, 1:], base[2:3] = -math.inf, 0  # nothing to draw from
    drawn = {"logits": logits, "base": base, "seed": torch.tensor(12345 - seed)}
    counters = torch.randint(1 << 62, (rows.count,), generator=generate)
    return drawn | ({"rows": counters} if rows.counters else {})


def draw_bases(rows: Rows, dtype=torch.float32, seed=0) -> dict[str, Tensor]:
    """Networks that agree for the most part; two rows that are equal, labels of nobody and of no class."""
    teacher = 3 * normal(seed, rows.count, rows.classes)
    student = teacher + normal(seed + 1, rows.count, rows.classes)
    teacher[-1:], student[-1:] = teacher[-3:-2], student[-3:-2]
    teacher, student = teacher.to(dtype), student.to(dtype)
    labels = torch.where(torch.arange(rows.count) % 4 == 1, 0, teacher.argmax(1))
    labels[::6] = -100
    return {"student": student, "teacher": teacher, "labels": labels, "seed": torch.tensor(seed - 5)}


def disagreements(student: Tensor, teacher: Tensor, labels: Tensor) -> dict[int, float]:
    """Of the rows that are eligible, in fp64."""
    found = {}
    for i, (s, t, y) in enumerate(zip(student.double(), teacher.double(), labels.tolist(), strict=True)):
        if int(s.argmax()) == int(t.argmax()) == y:
            square = (t.softmax(0) - s.softmax(0)).square()
            square[y] = 0.0
            found[i] = float(square.sum())
    return found


def compare_bases(operation: Operation, plan: Plan, found: Found, tensors: dict[str, Tensor]) -> None:
    """Those of a loop over rows. In half precision two that differ by a rounding alone may change places."""
    index, base, target, valid = (column.cpu() for column in found.outputs)
    student, teacher, labels, seed = (tensors[name] for name in ("student", "teacher", "labels", "seed"))
    limit = plan.options["limit"]
    key = disagreements(student, teacher, labels)
    want = sorted(key, key=lambda i: (-key[i], i))[:limit]
    assert [column.shape for column in (index, base, target, valid)] == [(limit,)] * 4
    assert valid.tolist() == [True] * len(want) + [False] * (limit - len(want))
    chosen = index[valid].tolist()
    if teacher.dtype in (torch.float32, torch.float64):
        assert chosen == want
    assert len(set(chosen)) == len(want)
    assert set(chosen) <= key.keys()
    np.testing.assert_allclose([key[i] for i in chosen], [key[i] for i in want], rtol=1e-4, atol=1e-9)
    assert torch.equal(base[valid], labels[chosen])
    assert torch.equal(target[valid], drawn_one_by_one(teacher, labels.clamp(min=0), seed)[chosen])
    assert not (index + base + target)[~valid].any()


def bases_refusals() -> tuple[Refusal, ...]:
    x = torch.zeros(4, 3)

    def refusal(message: str, error: type[Exception], **change) -> Refusal:
        given = {"student": x, "teacher": x, "labels": torch.zeros(4).long(), "limit": 2, "seed": 0, **change}
        return Refusal(message, error, lambda: af.select_boundary_bases(**given))

    return (
        refusal("student.shape", ValueError, student=x[:, :2]),
        refusal("labels.shape", ValueError, labels=torch.zeros(3).long()),
        refusal("limit=-1", ValueError, limit=-1),
        refusal("limit is a float", TypeError, limit=2.0),
        refusal("seed is a str", TypeError, seed="1"),
        refusal("teacher.shape=(4, 1): must have at least 2 classes", ValueError, student=x[:, :1], teacher=x[:, :1]),
    )


# ---- particles ------------------------------------------------------------------------------------------------------


class Crowd(NamedTuple):
    """Images and so many particles of each. The last one's gradient is no number."""

    images: int
    count: int
    shape: tuple[int, ...]
    last: bool = False  # channels_last
    wide: bool = False  # the gradient has the dtype of the arithmetic
    each: bool = False  # sizes of every image and bounds of every channel


def draw_crowd(crowd: Crowd, dtype=torch.float32, seed=0) -> dict[str, Tensor]:
    """Particles, their gradients and clean images in [0, 1]; repulsion counts as much as the gradients."""
    images, count, shape, work = *crowd[:3], work_of(dtype)

    def laid(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if crowd.last else x

    x0 = torch.rand(images, *shape, generator=generator(seed), dtype=torch.float64)
    offset = 0.05 * (2 * torch.rand(images, count, *shape, generator=generator(seed + 1), dtype=torch.float64) - 1)
    grad = normal(seed + 2, images, count, *shape) / math.sqrt(max(math.prod(shape), 1))
    if grad.numel():
        grad[(-1, -1, *[0] * len(shape))] = math.nan
    particles, grad = (laid(x.flatten(0, 1)).unflatten(0, (images, count)) for x in (x0[:, None] + offset, grad))
    drawn = {"particles": particles.to(dtype), "grad": grad.to(work if crowd.wide else dtype), "x0": laid(x0).to(dtype)}
    if crowd.each:
        alternately = torch.arange(images) % 2
        drawn |= {
            "step_size": (0.02 - 0.03 * alternately).to(work),
            "eps": (0.05 + 0.02 * alternately).to(work),
            "lower": torch.linspace(0.1, 0.3, shape[0], dtype=work),
            "upper": torch.linspace(0.7, 0.9, shape[0], dtype=work),
        }
    return drawn


def repel(particles: Tensor, *given, step_size=0.02, eps=0.05, in_place=False, **more) -> Tensor:
    if in_place:
        particles = more["out"] = again(particles)
    return af.svgd_step(particles, *given, step_size=step_size, eps=eps, **more)


def direction(x: Tensor, grad: Tensor, bandwidth: float | None = None) -> Tensor:
    """φ [n, D] of one image in fp64, the gradients of the kernel by autograd; NaN of those that are not there."""
    x, grad = x.double().flatten(1), grad.double().flatten(1)
    here = torch.isfinite(x).all(1) & torch.isfinite(grad).all(1)
    phi = torch.full_like(x, math.nan)
    x, grad, count, rows = x[here], grad[here], int(here.sum()), []
    square = (x[:, None] - x).square().sum(2)[torch.ones(count, count).tril(-1) > 0].sort().values
    h = float(square[(len(square) - 1) // 2]) / math.log(count) if bandwidth is None and len(square) else bandwidth
    for i in range(count):
        others = x.clone().requires_grad_()
        distance = (others - x[i]).square().sum(1)
        if h:
            kernel = torch.exp(-distance / h)
            (push,) = torch.autograd.grad(kernel.sum(), others)
        else:
            kernel, push = (distance == 0).double(), torch.zeros_like(others)
        rows.append(((kernel.detach()[:, None] * grad) + push).sum(0) / count)
    phi[here] = torch.stack(rows) if rows else x
    return phi


def assert_one_of_the_ways(
    got: Tensor, particles: Tensor, grad: Tensor, x0: Tensor, *, step_size=0.02, eps=0.05, lower=None, upper=None,
    bandwidth=None,
) -> None:  # fmt: skip
    """The oracle's wherever the sign is certain; elsewhere one of those that are possible."""
    slack, x = 4 * torch.finfo(got.dtype).eps, particles

    def of_image(value: float | Tensor, i: int) -> float:
        return float(value[i] if isinstance(value, Tensor) else value)

    for i in range(len(x)):
        reach, radius = of_image(step_size, i), of_image(eps, i)
        phi = direction(x[i], grad[i], bandwidth).view_as(x[i])
        here = ~phi.flatten(1).isnan().any(1)
        torch.testing.assert_close(got[i][~here], x[i][~here], rtol=0, atol=0, equal_nan=True)
        if not here.any():
            continue
        ways = []
        for sign in (-1, 0, 1):
            moved = x[i][here].double() + sign * reach
            moved = torch.minimum(torch.maximum(moved, x0[i].double() - radius), x0[i].double() + radius)
            for bound, clip in ((lower, torch.maximum), (upper, torch.minimum)):
                if bound is not None:
                    bound = torch.as_tensor(bound, dtype=torch.float64)
                    moved = clip(moved, bound.reshape(-1, *[1] * (moved.dim() - 2)))
            ways.append(moved)
        phi = phi[here]
        error = (got[i][here].double() - torch.stack(ways)).abs()
        certain = phi.abs() > 1e-5 * phi.abs().max()
        assert certain.double().mean() > 0.9
        right = error.gather(0, (phi.sign().long() + 1)[None])[0]
        assert right[certain].max() <= slack
        assert error.amin(0).max() <= slack


def compare_particles(operation: Operation, plan: Plan, found: Found, tensors: dict[str, Tensor]) -> None:
    (got,) = found.outputs
    assert got.dtype == tensors["particles"].dtype
    options = {n: v for n, v in plan.options.items() if n != "in_place"}
    assert_one_of_the_ways(got.cpu(), **tensors, **options)


def particles_refusals() -> tuple[Refusal, ...]:
    x0 = torch.zeros(2, 3, 4, 5)
    x = torch.zeros(2, 3, 3, 4, 5)

    def refusal(message: str, error: type[Exception], **change) -> Refusal:
        given = {"particles": x, "grad": x, "x0": x0, "step_size": 0.02, "eps": 0.05, **change}
        return Refusal(message, error, lambda: af.svgd_step(**given))

    return (
        refusal("particles is a list", TypeError, particles=[1.0]),
        refusal("particles.dtype=torch.int64", TypeError, particles=x.long()),
        refusal("particles.shape=(2, 5)", ValueError, particles=x[:, 0, 0, 0]),
        refusal("particles.shape=(2, 0, 3): must be [B, n, C, ...] with n", ValueError, particles=torch.zeros(2, 0, 3)),
        refusal("particles.shape=(2, 65, 3)", ValueError, particles=torch.zeros(2, 65, 3)),
        refusal("grad.shape", ValueError, grad=x[:1]),
        refusal("grad.dtype=torch.float64", TypeError, grad=x.double()),
        refusal("x0.shape", ValueError, x0=x),
        refusal("x0.dtype=torch.float16", TypeError, x0=x0.half()),
        refusal("step_size is a str", TypeError, step_size="1"),
        refusal("step_size=inf", ValueError, step_size=math.inf),
        refusal("step_size.shape", ValueError, step_size=torch.ones(3)),
        refusal("eps=-0.1", ValueError, eps=-0.1),
        refusal("eps is a NoneType", TypeError, eps=None),
        refusal("lower.shape", ValueError, lower=torch.zeros(2)),
        refusal("upper=nan", ValueError, upper=math.nan),
        refusal("bandwidth=0.0", ValueError, bandwidth=0.0),
        refusal("bandwidth is a Tensor", TypeError, bandwidth=torch.ones(2)),
        refusal("out.shape", ValueError, out=x[:1].clone()),
        refusal("out.dtype=torch.float64", TypeError, out=x.double()),
        refusal("out.requires_grad=True", ValueError, out=x.clone().requires_grad_()),
        refusal("x0.device=meta", ValueError, x0=x0.to("meta")),
    )


# ---- the table ------------------------------------------------------------------------------------------------------

BOUNDARY = {"loss": "boundary"}
OPERATIONS = (
    step("linf", refusals=step_refusals()),
    *(step(rule) for rule in ("l2", "l1", "unit", "newton")),
    objective("ce", {"loss": "ce"}, refusals=objective_refusals()),
    objective("boundary", BOUNDARY),
    objective("boundary softmax", {**BOUNDARY, "score": "softmax"}),
    objective("dlr", {"loss": "dlr"}),
    Operation(
        name="select_boundary_bases",
        family="attack",
        call=af.select_boundary_bases,
        draw=draw_bases,
        compare=compare_bases,
        plans=(
            Plan("one block", Rows(256, 10), {"limit": 64}),
            Plan("one block, padded", Rows(200, 17), {"limit": 300}),
            Plan("two launches", Rows(700, 100), {"limit": 64}),
            Plan("two launches, padded", Rows(600, 7), {"limit": 650}),
            Plan("two launches, long rows", Rows(40, 1000), {"limit": 13}),
            Plan("two launches, number by number", Rows(520, 33), {"limit": 64}),
            Plan("none", Rows(12, 5), {"limit": 0}),
        ),
        small=Plan("small", Rows(12, 6), {"limit": 5}),
        interpreted=(
            Plan("one launch", Rows(70, 5), {"limit": 80}),
            Plan("three launches, two tiles", Rows(5, 2100), {"limit": 130}),
        ),
        empty=(Rows(0, 4),),
        strided=("student", "teacher"),
        refusals=bases_refusals(),
    ),
    Operation(
        name="draw_targets",
        family="attack",
        call=draw_targets,
        truth=drawn_one_by_one,
        exact=True,
        draw=draw_draws,
        plans=(
            Plan("few classes", Rows(500, 7)),
            Plan("below a vector", Rows(37, 3, counters=True)),
            Plan("many classes", Rows(37, 1000, counters=True)),
            Plan("number by number", Rows(37, 1001)),
            Plan("longer than a thread holds", Rows(21, 3000, counters=True)),
        ),
        small=Plan("small", Rows(6, 9)),
        interpreted=(Plan("a tile", Rows(5, 4, counters=True)), Plan("two tiles", Rows(3, 2100))),
        empty=(Rows(0, 4),),
        strided=("logits",),
        looks=("reference", "triton", "cuda"),
    ),
    Operation(
        name="svgd_step",
        family="attack",
        call=repel,
        draw=draw_crowd,
        compare=compare_particles,
        plans=(
            Plan("one particle", Crowd(3, 1, (3, 8, 8), each=True)),
            Plan("a pair, number by number", Crowd(3, 2, (1, 5, 5)), {"lower": 0.1, "upper": 0.9}),
            Plan("several pieces", Crowd(3, 4, (3, 32, 32), each=True)),
            Plan("channels last", Crowd(3, 3, (4, 8, 8), last=True, each=True), {"bandwidth": 0.02}),
            Plan("channels last, in place", Crowd(3, 8, (4, 8, 8), last=True, wide=True), {"in_place": True}),
            Plan("wide gradient", Crowd(5, 3, (3, 6, 7), wide=True), offset=1),
            Plan("a wave of particles, unaligned", Crowd(5, 8, (3, 6, 7)), {"in_place": True}, offset=1),
            Plan("several waves", Crowd(3, 13, (3, 9, 11), each=True)),
            Plan("pieces and a rest", Crowd(2, 6, (1, 1500)), {"lower": 0.05}),
            Plan("half of the most particles", Crowd(2, 33, (17,)), {"bandwidth": 0.5}),
            Plan("most particles", Crowd(2, 64, (1, 7, 5))),
        ),
        small=Plan("small", Crowd(3, 4, (3, 4, 6), each=True)),
        interpreted=(
            Plan("tiles", Crowd(2, 4, (1, 1100), each=True)),
            Plan("bisection, channels last", Crowd(1, 9, (2, 3, 3), last=True), {"in_place": True}),
            Plan("one particle", Crowd(2, 1, (5,)), {"bandwidth": 0.5}),
        ),
        empty=(Crowd(0, 4, (3, 2, 2)), Crowd(2, 4, (3, 0, 2))),
        strided=("particles", "grad", "x0"),
        refusals=particles_refusals(),
    ),
)  # fmt: skip
