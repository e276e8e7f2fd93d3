"""Whole attacks on images [B, C, H, W] by a trained ResNet26: ours against the loops and the libraries.

A call takes seconds. Before the clock starts ours are held against the loops in fp64 and over many more images
(benchmarks/attack_checks.py), and everybody's images of this batch must fool the network as those of the loop do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from amkd_fast import backends
from amkd_fast.attacks import PGD, BoundaryAttack
from benchmarks import attack_checks, outside, presets, whole_attack
from benchmarks.contest import Contestant, Errors, WrongResult
from benchmarks.group import Group, Target
from benchmarks.peers import attack_loops, there
from benchmarks.precision import tf32
from benchmarks.whole_attack import BATCH, EPS, STEP_SIZE, STEPS, of_environment

PUBLIC, LEAN, LOOP = "public loop", "lean loop", "PGD loop"
OUTSIDE, OUTSIDE_LIMIT = "outside the network", 0.01  # of the attack's time
AGREEMENT, PRESETS, RUNS = 256, 256, 5  # images, images, runs whose share outside is looked at
SAME = 0.98  # of the timed images: one may end otherwise by rounding
OPTIONS = {"eps": EPS, "step_size": STEP_SIZE, "steps": STEPS}


def groups() -> list[Group]:
    return [boundary("official", Target(4, "speed-up", 3.0, PUBLIC, "forward")), boundary("near_boundary"), pgd()]


def boundary(preset: str, *targets: Target, batch: int = BATCH) -> Group:
    """:class:`BoundaryAttack` from the network's predictions to targets that were drawn before."""

    def ours(images: Tensor, base: Tensor, target: Tensor) -> Any:
        return our_boundary(preset, images.device.type)(images, base, target)

    def inputs(device: str) -> tuple[Tensor, ...]:
        setting = of_environment(device)
        return tuple(whole_attack.chase(setting.network, setting.images(0, batch)))

    def truth(_: Callable, given: tuple[Tensor, ...]) -> dict[bool, Tensor]:
        """How the images end, by whether the attack is ours."""
        device = given[0].device.type
        agreement(preset, device)
        with tf32(False):
            loop = attack_loops.bss_loop_lean(quiet(device), *given).status
            if preset == "official":
                return {True: loop, False: loop}
            with backends.backend("reference"):
                return {True: our_boundary(preset, device)(*given).status, False: loop}

    def verify(entry: Contestant, given: tuple[Tensor, ...], expected: dict[bool, Tensor]) -> Errors:
        with tf32(False), entry.chosen():
            status = entry.call(*given).status
        return same_ends(entry, status, expected[entry.ours])

    def extras(device: str) -> dict[str, Any]:
        setting, given = of_environment(device), inputs(device)
        found = accounts(lambda: ours(*given), preset, device)
        if preset == "near_boundary":
            images = setting.images(0, PRESETS if setting.real else BATCH)
            table = presets.presets_on(setting.network, images, whole_attack.LOWER, whole_attack.UPPER)
            found |= {"preset_images": len(images), "presets": table}
        return found

    return _group(f"BoundaryAttack {preset}", batch, inputs, ours, boundary_loops, truth, verify, extras, targets)


def pgd() -> Group:
    """:class:`PGD`, linf, on pixels in [0, 1], by a network that normalises them, as attack libraries need it."""

    def ours(images: Tensor, labels: Tensor) -> Any:
        return our_pgd(images.device.type)(images, labels)

    def inputs(device: str) -> tuple[Tensor, ...]:
        setting = of_environment(device)
        return setting.pixels[:BATCH].float() / 255, setting.labels[:BATCH]

    def truth(_: Callable, given: tuple[Tensor, ...]) -> Tensor:
        """Which images of the loop fool the network."""
        device = given[0].device.type
        agreement("PGD", device)
        with tf32(False):
            return attack_checks.fooled(in_pixels(device), pgd_loop(*given), given[1])

    def verify(entry: Contestant, given: tuple[Tensor, ...], expected: Tensor) -> Errors:
        images, labels = given
        with tf32(False), entry.chosen():
            moved = entry.call(*given)
            moved = moved if isinstance(moved, Tensor) else moved.images
            if (moved - images).abs().max() > EPS + 1e-6 or moved.min() < 0 or moved.max() > 1:
                raise WrongResult(f"{entry.name}: outside of the ball, or no pixels")
            return same_ends(entry, attack_checks.fooled(in_pixels(images.device.type), moved, labels), expected)

    def extras(device: str) -> dict[str, Any]:
        given = inputs(device)
        return accounts(lambda: ours(*given), "PGD", device)

    targets = (
        Target(4, "speed-up", 2.0, name, "forward") for name in (LOOP, attack_loops.TORCHATTACKS, attack_loops.ADV_LIB)
    )
    return _group("PGD linf 10 steps", BATCH, inputs, ours, pgd_rivals, truth, verify, extras, tuple(targets))


def _group(operation, batch, inputs, ours, rivals, truth, verify, extras, targets) -> Group:
    return Group(
        "whole_attack",
        operation,
        {"B": batch, "C": 3, "H": 32, "W": 32},
        torch.float32,
        inputs,
        ours,
        rivals,
        directions=("forward",),
        reference=False,
        verify=verify,
        truth=truth,
        extras=extras,
        targets=(*targets, Target(4, OUTSIDE, OUTSIDE_LIMIT, direction="forward")),
    )


def boundary_loops() -> list[Contestant]:
    """The public one leaves gradients in the weights, so it has a network of its own."""

    def public(images: Tensor, base: Tensor, target: Tensor) -> attack_loops.LoopSamples:
        return attack_loops.bss_loop(loud(images.device.type), images, base, target)

    def lean(images: Tensor, base: Tensor, target: Tensor) -> attack_loops.LoopSamples:
        return attack_loops.bss_loop_lean(quiet(images.device.type), images, base, target)

    return [Contestant(PUBLIC, public), Contestant(LEAN, lean)]


def pgd_rivals() -> list[Contestant]:
    """The loop, and the libraries that are there."""

    def by(name: str, images: Tensor, labels: Tensor) -> Tensor:
        network = in_pixels(images.device.type)
        return attack_loops.pgd_libraries(network, **OPTIONS)[name](images, labels)

    names = (name for name in (attack_loops.TORCHATTACKS, attack_loops.ADV_LIB) if there(name))
    return [Contestant(LOOP, pgd_loop), *(Contestant(name, partial(by, name)) for name in names)]


def same_ends(entry: Contestant, got: Tensor, expected: Tensor) -> Errors:
    """The share of images that end otherwise; more than rounding makes of them is wrong."""
    other = (got != expected).float().mean().item()
    if other > 1 - SAME:
        raise WrongResult(f"{entry.name}: {other:.1%} of the images end otherwise than those of the loop")
    return Errors(other, None)


def accounts(attack: Callable[[], Any], name: str, device: str) -> dict[str, Any]:
    """What it ran on, how it agrees, and its time outside of the network."""
    found = outside.time_share(attack, RUNS) if device == "cpu" else outside.kernel_share(attack)
    return {
        "setting": of_environment(device).about,
        "agreement": agreement(name, device),
        OUTSIDE: found["share"],
        "outside": found,
    }


@cache
def agreement(name: str, device: str) -> dict[str, float]:
    """Once in a process."""
    setting = of_environment(device)
    check, count = {
        "official": (attack_checks.check_boundary, AGREEMENT),
        "near_boundary": (attack_checks.check_near_boundary, BATCH),
        "PGD": (attack_checks.check_pgd, AGREEMENT),
    }[name]
    with tf32(False):
        return check(setting, count if setting.real else BATCH)


@cache
def our_boundary(preset: str, device: str) -> BoundaryAttack:
    return whole_attack.boundary_attack(of_environment(device).network, preset)


@cache
def our_pgd(device: str) -> PGD:
    return whole_attack.pgd(in_pixels(device))


@cache
def in_pixels(device: str) -> nn.Module:
    return whole_attack.InPixels(of_environment(device).network).to(device).eval()


@cache
def quiet(device: str) -> nn.Module:
    return attack_loops.quiet(of_environment(device).network)


@cache
def loud(device: str) -> nn.Module:
    """As the public trainer leaves it."""
    return attack_loops.quiet(of_environment(device).network).requires_grad_()


def pgd_loop(images: Tensor, labels: Tensor) -> Tensor:
    network = in_pixels(images.device.type)
    return attack_loops.pgd_loop(network, images, labels, **OPTIONS)
