"""Whole attacks on images [B, C, H, W] by a trained network: ours against the loops and the libraries.

A call takes seconds. Before the clock starts everybody's images must end, and fool the network, as those of the loop
do; that ours are the loop's step by step, in fp64, is the business of tests/test_attacks.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from amkd_fast import backends
from amkd_fast.attacks import PGD, BoundaryAttack, pixel_bounds
from amkd_fast.ops.attack import draw_targets
from benchmarks import outside
from benchmarks.baselines import attack_loops, there
from benchmarks.baselines.attack_loops import RADII, STEPS
from benchmarks.contest import Contestant, Errors, WrongResult, within, without_tf32
from benchmarks.group import Goal, Group
from benchmarks.groups import digits
from benchmarks.presets import boundary_attack, presets_on
from benchmarks.report.judge import OUTSIDE
from benchmarks.setting import BATCH, Setting, of_environment

PUBLIC, LEAN, LOOP = "public loop", "lean loop", "PGD loop"
TORCHATTACKS = "torchattacks"
PGD_LOOPS = {
    "linf": {
        LOOP: attack_loops.pgd_loop,
        TORCHATTACKS: attack_loops.torchattacks_pgd,
        "adversarial-library": attack_loops.adv_lib_pgd,
    },
    "l2": {LOOP: attack_loops.pgd_l2_loop, TORCHATTACKS: attack_loops.torchattacks_pgd_l2},
}
PRESETS, RUNS = 256, 5  # images, runs whose share outside is looked at
OTHERS = 0.02  # of the timed images: one may end otherwise by rounding


def groups() -> list[Group]:
    there_for_digits = there("lightning") and there("scikit-learn")
    return [
        boundary("official", Goal("speed-up", 3.0, PUBLIC, "forward")),
        boundary("near_boundary"),
        pgd("linf"),
        pgd("l2"),
        *(on_digits(preset) for preset in ("official", "near_boundary") if there_for_digits),
    ]


class InPixels(nn.Module):
    """The network behind its normalisation, for images in [0, 1]: all that attack libraries know."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.network = setting.network
        self.register_buffer("lower", setting.lower.view(-1, 1, 1).clone())
        self.register_buffer("range", (setting.upper - setting.lower).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images * self.range + self.lower)


def boundary(preset: str, *goals: Goal, batch: int = BATCH) -> Group:
    """:class:`BoundaryAttack` from the network's predictions to targets that were drawn before."""

    def draw() -> tuple[Tensor, ...]:
        setting = of_environment("cpu")
        images = setting.images[:batch]
        logits = setting.network(images)  # whose weights want no gradient
        return images, logits.argmax(1), draw_targets(logits, logits.argmax(1), seed=0)

    def ours(images: Tensor, base: Tensor, target: Tensor) -> Any:
        return our_boundary(preset, images.device.type)(images, base, target)

    def public(images: Tensor, *classes: Tensor) -> attack_loops.LoopSamples:
        return attack_loops.bss_loop(loud(images.device.type), images, *classes)

    def lean(images: Tensor, *classes: Tensor) -> attack_loops.LoopSamples:
        return attack_loops.bss_loop_lean(of_environment(images.device.type).network, images, *classes)

    def truth(_: Callable, given: tuple[Tensor, ...]) -> dict[bool, Tensor]:
        """How the images end, by whether the attack is ours."""
        with without_tf32(), backends.backend("reference"):
            loop = lean(*given).status
            return {True: loop if preset == "official" else ours(*given).status, False: loop}

    def verify(entry: Contestant, given: tuple[Tensor, ...], expected: dict[bool, Tensor]) -> Errors:
        with without_tf32(), entry.chosen():
            return same_ends(entry, entry.call(*given).status, expected[entry.ours])

    def extras(given: tuple[Tensor, ...]) -> dict[str, Any]:
        setting, found = of_environment(given[0].device.type), accounts(ours, given)
        if preset == "near_boundary":
            images = setting.images[: PRESETS if setting.real else BATCH]
            table = presets_on(setting.network, images, setting.bounds)
            found |= {"preset_images": len(images), "presets": table}
        return found

    rivals, goals = {PUBLIC: public, LEAN: lean}, (*goals, _outside(0.007))
    return _group(f"BoundaryAttack {preset}", batch, draw, ours, rivals, truth, verify, extras, goals)


def pgd(norm: str) -> Group:
    """:class:`PGD` on pixels in [0, 1], by a network that normalises them, as attack libraries need it."""
    eps, _ = RADII[norm]

    def draw() -> tuple[Tensor, ...]:
        setting = of_environment("cpu")
        lower, upper = (part.view(-1, 1, 1) for part in setting.bounds.values())
        return ((setting.images[:BATCH] - lower) / (upper - lower)).clamp(0, 1), setting.labels[:BATCH]

    def ours(images: Tensor, labels: Tensor) -> Tensor:
        # The libraries judge no images either.
        return our_pgd(norm, images.device.type).perturb(images, labels)

    def on_network(loop: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda images, labels: loop(in_pixels(images.device.type), images, labels)

    @torch.no_grad()
    def fooled(images: Tensor, labels: Tensor) -> Tensor:
        return in_pixels(images.device.type)(images).argmax(1) != labels

    def truth(_: Callable, given: tuple[Tensor, ...]) -> Tensor:
        """Which images of the loop fool the network."""
        with without_tf32():
            return fooled(rivals[LOOP](*given), given[1])

    def verify(entry: Contestant, given: tuple[Tensor, ...], expected: Tensor) -> Errors:
        images, labels = given
        with without_tf32(), entry.chosen():
            moved = entry.call(*given)
            away = torch.linalg.vector_norm((moved - images).flatten(1), float("inf") if norm == "linf" else 2, dim=1)
            if away.max() > eps + 1e-5 or moved.min() < 0 or moved.max() > 1:
                raise WrongResult(f"{entry.name}: outside of the ball, or no pixels")
            return same_ends(entry, fooled(moved, labels), expected)

    rivals = {name: on_network(loop) for name, loop in PGD_LOOPS[norm].items() if name == LOOP or there(name)}
    goals = (Goal("speed-up", 2.0, TORCHATTACKS, "forward"), _outside(0.007)) if norm == "linf" else ()
    return _group(f"PGD {norm} 10 steps", BATCH, draw, ours, rivals, truth, verify, partial(accounts, ours), goals)


def _group(operation, batch, draw, ours, rivals, truth, verify, extras, goals) -> Group:
    sizes = {"B": batch, "C": 3, "H": 32, "W": 32}
    more = {"reference": False, "verify": verify, "truth": truth, "extras": extras, "goals": goals}
    more["others"] = lambda: [Contestant(*rival) for rival in rivals.items()]
    return Group("whole_attack", operation, sizes, torch.float32, draw, ours, **more)


def _outside(most: float) -> Goal:
    return Goal(OUTSIDE, most, direction="forward")


def same_ends(entry: Contestant, got: Tensor, expected: Tensor) -> Errors:
    """The share of images that end otherwise; more than rounding makes of them is wrong."""
    return within(
        entry, (got != expected).double().mean().item(), OTHERS, "of the images end otherwise than the loop's"
    )


def accounts(attack: Callable[..., Any], given: tuple[Tensor, ...]) -> dict[str, Any]:
    """What it ran on, and its time outside of the network."""
    share = outside.kernel_share if given[0].is_cuda else partial(outside.time_share, times=RUNS)
    found = share(lambda: attack(*given))
    return {"setting": of_environment(given[0].device.type).about, OUTSIDE: found["share"], "outside": found}


@cache
def our_boundary(preset: str, device: str) -> BoundaryAttack:
    setting = of_environment(device)
    return boundary_attack(setting.network, preset, setting.bounds)


@cache
def our_pgd(norm: str, device: str) -> PGD:
    eps, step_size = RADII[norm]
    return PGD(in_pixels(device), norm=norm, eps=eps, step_size=step_size, steps=STEPS, lower=0.0, upper=1.0)


@cache
def in_pixels(device: str) -> nn.Module:
    return InPixels(of_environment(device)).to(device).eval()


@cache
def loud(device: str) -> nn.Module:
    """For the public loop, which leaves gradients in the weights."""
    return attack_loops.loud(of_environment(device).network)


def on_digits(preset: str) -> Group:
    """:class:`BoundaryAttack` on the digits' teacher, the smallest network that anybody attacks: what is outside of it
    weighs most."""

    def draw() -> tuple[Tensor, ...]:
        data, teacher, _ = digits.networks("cpu")
        images = teacher.network.normalise(data.test.images[:BATCH])
        with torch.no_grad():
            logits = teacher.network.network.eval()(images)
        return images, logits.argmax(1), draw_targets(logits, logits.argmax(1), seed=0)

    def ours(images: Tensor, base: Tensor, target: Tensor) -> Any:
        return attack_on_digits(preset, images.device.type)(images, base, target)

    def lean(images: Tensor, *classes: Tensor) -> attack_loops.LoopSamples:
        return attack_loops.bss_loop_lean(quiet_teacher(images.device.type), images, *classes)

    def truth(_: Callable, given: tuple[Tensor, ...]) -> dict[bool, Tensor]:
        with without_tf32(), backends.backend("reference"):
            return {True: ours(*given).status, False: lean(*given).status}

    def verify(entry: Contestant, given: tuple[Tensor, ...], expected: dict[bool, Tensor]) -> Errors:
        with without_tf32(), entry.chosen():
            return same_ends(entry, entry.call(*given).status, expected[entry.ours])

    def extras(given: tuple[Tensor, ...]) -> dict[str, Any]:
        share = outside.kernel_share if given[0].is_cuda else partial(outside.time_share, times=3 * RUNS)
        found = share(lambda: ours(*given))
        return {OUTSIDE: found["share"], "outside": found}

    more = {"reference": False, "verify": verify, "truth": truth, "extras": extras}
    more |= {"others": lambda: [Contestant(LEAN, lean)], "goals": (Goal(OUTSIDE, 0.03, direction="forward"),)}
    sizes = {"B": BATCH, "C": 1, "H": 8, "W": 8}
    return Group("whole_attack", f"BoundaryAttack {preset} digits", sizes, torch.float32, draw, ours, **more)


@cache
def quiet_teacher(device: str) -> nn.Module:
    """The digits' teacher without its normalisation; its weights want no gradient."""
    return copy.deepcopy(digits.networks(device)[1].network.network).eval().requires_grad_(False)


@cache
def attack_on_digits(preset: str, device: str) -> BoundaryAttack:
    lower, upper, _ = pixel_bounds(*digits.networks(device)[1].network.normalisation)
    bounds = {"lower": lower, "upper": upper}
    return boundary_attack(quiet_teacher(device), preset, bounds)
