"""The calls whose launches, waiting and counters are looked at: small ones, and those that fill a large GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import amkd_fast as af
from amkd_fast import backends
from amkd_fast.ops.triplet.operators import OPERATORS
from benchmarks.roofline import Work

EPS, STEP_SIZE = 8 / 255, 2 / 255
RULES = {
    "linf": {"norm": "linf", "eps": EPS, "step_size": STEP_SIZE},
    "boundary": {"norm": "boundary", "step_size": 0.3},
    "newton": {"norm": "boundary", "norm_power": 2, "project": True, "step_size": 1.02},
}
LONG = torch.int64.itemsize


class Call(NamedTuple):
    """One call of ours; ``make(device)`` draws its inputs and gives what is to be run, both on a backend of choice."""

    family: str
    name: str
    make: Callable[[str], Callable[[], object]]
    work: Work
    launches: dict[str, int] = {}  # noqa: RUF012 - the most that is promised, by backend

    def __str__(self) -> str:
        return self.name


def small() -> list[Call]:
    """One launch each, but for the forward pass of triplets, which searches and then sums."""
    one = {"cuda": 1, "triton": 1}
    return [
        *(kl((128, 100), torch.float32, way, launches={"cuda": 1}) for way in ("forward", "backward")),
        *(
            triplet(count, 128, torch.float32, way, launches={"cuda": 2 if way == "forward" else 1})
            for count in (128, 256, 512)
            for way in ("forward", "backward")
        ),
        *(step(rule, (64, 3, 32, 32), launches=one) for rule in RULES),
        objective((64, 10), launches=one),
        bases((256, 10), launches=one),
        crop_flip(128, launches=one),
        *(segments(64, way, launches={"cuda": 2 if way == "forward" else 1}) for way in ("forward", "backward")),
        relations((64, 64)),
        joint_augment(128, launches=one),
    ]


def headline() -> list[Call]:
    return [
        *(kl((8192, 32768), torch.bfloat16, way) for way in ("forward", "backward")),
        *(kl((512, 32000), torch.float32, way) for way in ("forward", "backward")),
        selection(16384, 512, torch.bfloat16),
        step("linf", (256, 3, 224, 224)),
        step("boundary", (256, 3, 224, 224)),
        objective((8192, 1000)),
        crop_flip(8192),
        relations((512, 512)),
        joint_augment(8192),
    ]


def rehearsal() -> list[Call]:
    """The headline's calls at sizes for a CPU."""
    return [
        *(kl((64, 100), torch.float32, way) for way in ("forward", "backward")),
        selection(512, 64, torch.float32),
        step("linf", (4, 3, 8, 8)),
        step("boundary", (4, 3, 8, 8)),
        objective((64, 10)),
        crop_flip(16),
        relations((16, 8)),
        joint_augment(16),
    ]


def kl(shape: tuple[int, int], dtype: torch.dtype, way: str, launches: dict[str, int] | None = None) -> Call:
    def make(device: str) -> Callable[[], object]:
        student, teacher = (_normal(shape, dtype, device, seed, 3.0) for seed in (0, 1))
        return _passes(lambda leaf: af.kl_div(leaf, teacher, 4.0), student, way)

    size = shape[0] * shape[1] * dtype.itemsize
    work = Work((2 if way == "forward" else 3) * size, 2 * shape[0] * shape[1])
    return Call("kl", f"kl_div {list(shape)} {_short(dtype)} {way}", make, work, launches or {})


def triplet(count: int, width: int, dtype: torch.dtype, way: str, launches: dict[str, int] | None = None) -> Call:
    """Batch-hard triplets."""

    def make(device: str) -> Callable[[], object]:
        rows, labels = labelled_rows(count, width, dtype, device, 16)
        return _passes(lambda leaf: af.triplet_margin_loss(leaf, labels, margin=1.0), rows, way)

    size = count * width * dtype.itemsize
    forward = Work(size + count * LONG, products=count * count * width)
    work = forward if way == "forward" else Work(2 * size)
    name = f"batch hard [{count}, {width}] {_short(dtype)} {way}"
    return Call("triplet", name, make, work, launches or {})


def selection(count: int, width: int, dtype: torch.dtype) -> Call:
    """Farthest positive and nearest negative of every row."""

    def make(device: str) -> Callable[[], object]:
        rows, labels = labelled_rows(count, width, dtype, device, 64)
        search = selector(device)
        return lambda: search(rows, labels)

    work = Work(count * (width * dtype.itemsize + 3 * LONG), products=count * count * width)
    return Call("triplet", f"selection [{count}, {width}] {_short(dtype)}", make, work)


def selector(device: str) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The operator of the chosen backend alone, which takes two-byte rows as they are: indices [N] and [N, 1]."""
    operators = OPERATORS[backends.select("triplet", device)]
    return lambda rows, labels: operators.select(rows, None, labels, labels, None, 0, 0, 1, True)


def labelled_rows(count: int, width: int, dtype: torch.dtype, device: str, classes: int) -> tuple[Tensor, Tensor]:
    return _normal((count, width), dtype, device, 0), torch.arange(count, device=device) % classes


def step(rule: str, shape: tuple[int, ...], launches: dict[str, int] | None = None) -> Call:
    def make(device: str) -> Callable[[], object]:
        clean, grad = _uniform(shape, device), _normal(shape, torch.float32, device, 1)
        x = (clean + 0.5 * EPS * grad.sign()).clamp(0.0, 1.0)
        linf = rule == "linf"
        given = {"x0": clean} if linf else {"gap": 10.0 * _uniform(shape[:1], device)}
        return lambda: af.attack_step(x, grad, lower=0.0, upper=1.0, **given, **RULES[rule])

    size = torch.float32.itemsize
    for axis in shape:
        size *= axis
    work = Work((4 if rule == "linf" else 3) * size)
    return Call("attack", f"{rule} step {list(shape)} fp32", make, work, launches or {})


def objective(shape: tuple[int, int], launches: dict[str, int] | None = None) -> Call:
    def make(device: str) -> Callable[[], object]:
        logits, (base, target) = _normal(shape, torch.float32, device, 0, 3.0), _classes(shape, device)
        return lambda: af.attack_objective(logits, base, loss="boundary", target=target)

    work = Work(2 * shape[0] * shape[1] * torch.float32.itemsize)  # logits in, their gradient out
    return Call("attack", f"objective {list(shape)} fp32", make, work, launches or {})


def bases(shape: tuple[int, int], launches: dict[str, int] | None = None) -> Call:
    def make(device: str) -> Callable[[], object]:
        labels, _ = _classes(shape, device)
        likely = 6.0 * torch.eye(shape[1], device=device)[labels]  # most rows are predicted right
        student, teacher = (_normal(shape, torch.float32, device, seed, 2.0) + likely for seed in (0, 1))
        return lambda: af.select_boundary_bases(student, teacher, labels, 64, seed=1)

    work = Work(2 * shape[0] * shape[1] * torch.float32.itemsize)
    return Call("attack", f"bases {list(shape)} fp32", make, work, launches or {})


def crop_flip(batch: int, launches: dict[str, int] | None = None) -> Call:
    def make(device: str) -> Callable[[], object]:
        draws = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (20_000, 3, 32, 32), dtype=torch.uint8, generator=draws).to(device)
        index = torch.randint(len(pixels), (batch,), generator=draws).to(device)
        shift = torch.tensor((-1.989, -1.984, -1.709), device=device)
        return lambda: af.crop_flip(pixels, index, scale=1 / 63, shift=shift, pad=4, flip=True, seed=3)

    work = Work(batch * 3 * 32 * 32 * 5)  # a byte in, four out
    return Call("images", f"crop_flip [{batch}, 3, 32, 32]", make, work, launches or {})


def segments(batch: int, way: str, launches: dict[str, int] | None = None) -> Call:
    """The stages of a CIFAR ResNet; without gradients, or only those of a second backward pass."""

    def make(device: str) -> Callable[[], object]:
        shapes = [(batch, 16 << stage, 32 >> stage, 32 >> stage) for stage in range(3)]
        student = [_normal(shape, torch.float32, device, 0) for shape in shapes]
        teacher = [_normal(shape, torch.float32, device, 1) for shape in shapes]
        if way == "forward":
            return lambda: af.segment_mse(student, teacher)
        loss, one = _graph_used_once([x.requires_grad_() for x in student], teacher), torch.ones((), device=device)
        return lambda: torch.autograd.grad(loss, student, one, retain_graph=True)

    numbers = batch * 16 * 32 * 32 * 7 // 4
    return Call(
        "segments",
        f"segment_mse B = {batch} fp32 {way}",
        make,
        Work((2 + (way != "forward")) * 4 * numbers),
        launches or {},
    )


def _graph_used_once(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """The first pass gives away what the forward pass had made."""
    loss = af.segment_mse(student, teacher)
    torch.autograd.grad(loss, student, retain_graph=True)
    return loss


def relations(shape: tuple[int, int]) -> Call:
    """The angles' loss; its gradient is found on the way."""

    def make(device: str) -> Callable[[], object]:
        student, teacher = (_normal(shape, torch.float32, device, seed) for seed in (0, 1))
        return _passes(lambda leaf: af.rkd_angle_loss(leaf, teacher), student, "forward")

    work = Work(3 * shape[0] * shape[1] * torch.float32.itemsize)  # both sides in, the gradient out
    return Call("relations", f"rkd angle {list(shape)} fp32", make, work)


def joint_augment(batch: int, launches: dict[str, int] | None = None) -> Call:
    def make(device: str) -> Callable[[], object]:
        draws = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (batch, 3, 32, 32), dtype=torch.uint8, generator=draws).to(device)
        return lambda: af.joint_augment(pixels, seed=3)

    work = Work(batch * 3 * 32 * 32 * 2)
    return Call("images", f"joint_augment [{batch}, 3, 32, 32]", make, work, launches or {})


def _passes(loss: Callable[[Tensor], Tensor], leaf: Tensor, way: str) -> Callable[[], object]:
    leaf.requires_grad_()
    if way == "forward":
        return lambda: loss(leaf)
    value, one = loss(leaf), torch.ones((), device=leaf.device)
    return lambda: torch.autograd.grad(value, leaf, one, retain_graph=True)


def _normal(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, device=device, generator=torch.Generator(device).manual_seed(seed)).mul_(scale).to(dtype)


def _uniform(shape: tuple[int, ...], device: str) -> Tensor:
    return torch.rand(shape, device=device, generator=torch.Generator(device).manual_seed(2))


def _classes(shape: tuple[int, int], device: str) -> tuple[Tensor, Tensor]:
    """Labels, and another class for each."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.randint(shape[1], shape[:1], generator=draws)
    others = (labels + torch.randint(1, shape[1], shape[:1], generator=draws)) % shape[1]
    return labels.to(device), others.to(device)


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
