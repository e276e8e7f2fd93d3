"""Whole attacks on a trained network: what they are run on, whether they agree with the loops, where their time goes.

Boundary attacks see normalised images, as in distillation. PGD sees pixels in [0, 1] and a network that normalises
them itself, because that is all that the attack libraries know.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import amkd_fast as af
from amkd_fast.attacks import PGD, PRESETS, BoundaryAttack, BoundarySamples, Status, engine, frozen
from amkd_fast.distill.networks import build
from amkd_fast.ops.attack import draw_targets
from benchmarks import attack_rivals, cifar_teacher
from benchmarks.cifar_teacher import LOWER, MEAN, RESNET26, STD, UPPER
from benchmarks.contest import WrongResult

EPS, STEP_SIZE, STEPS = 8 / 255, 2 / 255, 10
BATCH = 64
SAME_FP64 = 1e-9
SAME_PIXELS = 1e-5  # fp32, before the network has had a chance to amplify a rounding
SAME_STATUS = 0.999  # of the samples, with BatchNorm folded and finished samples taken out


class Setting(NamedTuple):
    """A trained network in eval mode, and images that it was not trained on."""

    network: nn.Module
    pixels: Tensor  # uint8 [N, 3, 32, 32]
    labels: Tensor  # [N]
    about: dict[str, Any]

    def images(self, first: int, count: int) -> Tensor:
        """Normalised images [count, 3, 32, 32]."""
        return cifar_teacher.normalise(self.pixels[first : first + count])

    def to(self, device: str) -> Setting:
        return Setting(self.network.to(device), self.pixels.to(device), self.labels.to(device), self.about)


class InPixels(nn.Module):
    """The network behind its normalisation, for images in [0, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", MEAN.view(3, 1, 1).clone())
        self.register_buffer("std", STD.view(3, 1, 1).clone())

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)


def setting(cifar: Path | None, teacher: Path | None) -> Setting:
    """CIFAR-10's test images and the network of a file; without either, patterns and a network trained on them now."""
    if (cifar is None) != (teacher is None):
        raise ValueError("--cifar and --teacher: must be given together")
    if cifar is not None:
        network = cifar_teacher.load(teacher)
        pixels, labels = cifar_teacher.read(cifar, "test")
        kind = "CIFAR-10 (JPEG re-encoding), test images"
    else:
        network = trained_on_patterns()
        pixels, labels = patterns(1024, 2)
        kind = "synthetic patterns: the statistics of the attacks mean nothing"
    network.eval()
    some = slice(0, 1000)
    about = {"images": kind, "accuracy": cifar_teacher.accuracy(network, pixels[some], labels[some])}
    return Setting(network, pixels, labels, about)


def trained_on_patterns() -> nn.Module:
    """Trained for seconds."""
    network, (pixels, labels) = build(RESNET26, 0), patterns(1024, 1)
    cifar_teacher.train(network, pixels, labels, epochs=1, batch=32)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # so few steps leave the running statistics behind the weights
    with torch.no_grad():
        network.train()(cifar_teacher.normalise(pixels[:256]))
    return network


def patterns(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ten classes, each a smooth pattern of its own under noise: uint8 [N, 3, 32, 32] and labels [N]."""
    coarse = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(coarse, size=32, mode="bilinear")
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=draws)
    noisy = 0.5 + 0.1 * smooth[labels] + 0.15 * torch.randn(count, 3, 32, 32, generator=draws)
    return (noisy.clamp(0, 1) * 255).to(torch.uint8), labels


class Chase(NamedTuple):
    """A batch with the network's predictions as bases, and a target drawn for each."""

    images: Tensor
    base: Tensor
    target: Tensor


@torch.no_grad()
def chase(network: nn.Module, images: Tensor, seed: int = 0) -> Chase:
    logits = network(images)
    base = logits.argmax(1)
    return Chase(images, base, draw_targets(logits, base, seed=seed))


def boundary_attack(network: nn.Module, preset: str) -> BoundaryAttack:
    """As a user calls it: normalised images, the pixels' range as bounds where the preset has none."""
    bounds = {} if PRESETS[preset].lower is not None else {"lower": LOWER, "upper": UPPER}
    return BoundaryAttack(network, preset=preset, **bounds)


def pgd(network: nn.Module) -> PGD:
    """``network`` takes pixels in [0, 1]."""
    return PGD(network, eps=EPS, step_size=STEP_SIZE, steps=STEPS, lower=0.0, upper=1.0)


def plain(network: nn.Module) -> af.attacks.FrozenModel:
    """A view with the arithmetic of the network itself."""
    return frozen(network, fold_batchnorm=False, channels_last=False)


def check_boundary(setting: Setting, count: int) -> dict[str, float]:
    """The official preset and the public loops agree: in fp64, after one step in fp32, and in how the samples end.

    In fp32 a later step can differ by more than rounding, where a network is at a kink of its ReLUs; such samples are
    counted (``kinked``) and not bounded.

    Raises:
        WrongResult: They do not agree.
    """
    network, quiet = setting.network, attack_rivals.quiet(setting.network)
    wide = attack_rivals.quiet(network).double()
    exact = Chase(*(part[:8] for part in chase(wide, setting.images(0, 8).double())))
    ours = BoundaryAttack(plain(wide), preset="official")(*exact)
    found = {"fp64": _largest(ours.images, attack_rivals.bss_loop_lean(wide, *exact).images)}

    first = chase(network, setting.images(0, BATCH))
    public = attack_rivals.bss_loop(network, *first)
    network.zero_grad()
    found["lean"] = _largest(attack_rivals.bss_loop_lean(quiet, *first).images, public.images)
    for steps, name in ((1, "first_step"), (STEPS, "kinked")):
        unfolded = BoundaryAttack(plain(network), preset="official", compact=False, steps=steps)(*first)
        loop = attack_rivals.bss_loop_lean(quiet, *first, steps=steps)
        away = (unfolded.images - loop.images).abs().flatten(1).amax(1)
        found[name] = away.max().item() if steps == 1 else (away > SAME_PIXELS).float().mean().item()

    folded, same = boundary_attack(network, "official"), 0
    for start in range(0, count, BATCH):
        batch = chase(network, setting.images(start, min(BATCH, count - start)), seed=start)
        same += (folded(*batch).status == attack_rivals.bss_loop_lean(quiet, *batch).status).sum().item()
    found |= {"same_status": same / count, "samples": count}
    limits = {"fp64": SAME_FP64, "lean": SAME_PIXELS, "first_step": SAME_PIXELS}
    if any(not found[name] <= limit for name, limit in limits.items()) or found["same_status"] < SAME_STATUS:
        raise WrongResult(f"official preset against the public loops: {found}")
    return found


def check_pgd(setting: Setting, count: int) -> dict[str, float]:
    """PGD, the loop and the libraries agree: in fp64, and in which images fool the network.

    A gradient that rounds to another sign moves a pixel by two steps, so fp32 pixels are counted (``turned``) and not
    bounded.

    Raises:
        WrongResult: They do not agree.
    """
    network = InPixels(setting.network).eval()
    options = {"eps": EPS, "step_size": STEP_SIZE}
    images, labels = setting.pixels[:count].float() / 255, setting.labels[:count]
    wide = attack_rivals.quiet(network).double()
    exact = images[:8].double(), labels[:8]
    loop = attack_rivals.pgd_loop(wide, *exact, **options)
    found = {"samples": count, "fp64": _largest(pgd(plain(wide))(*exact).images, loop)}
    for name, steps in ((attack_rivals.TORCHATTACKS, STEPS), (attack_rivals.ADV_LIB, STEPS + 1)):
        # adv_lib returns the latest iterate that fools the network, and looks at the last one in a step more.
        attack = attack_rivals.pgd_libraries(wide, **options, steps=steps).get(name)
        if attack is not None:
            rows = _fooled(wide, loop, exact[1])
            found[name] = _largest(attack(*exact)[rows], loop[rows])
    exactly = [name for name in found if name != "samples"]

    same = turned = 0.0
    view = pgd(network)
    for start in range(0, count, BATCH):
        part = images[start : start + BATCH], labels[start : start + BATCH]
        result, loop = view(*part), attack_rivals.pgd_loop(network, *part, **options)
        same += (_fooled(network, loop, part[1]) == result.adversarial).sum().item()
        turned += ((loop - result.images).abs() > SAME_PIXELS).float().sum().item()
    found |= {"same_success": same / count, "turned": turned / images.numel()}

    if any(not found[name] <= SAME_FP64 for name in exactly) or found["same_success"] < SAME_STATUS:
        raise WrongResult(f"PGD against the loops: {found}")
    return found


@torch.no_grad()
def _fooled(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return network(images).argmax(1) != labels


@contextmanager
def network_passes(around: Callable[[Callable, tuple, dict], Any]) -> Iterator[None]:
    """Send every forward and backward pass that the attacks make through ``around(function, arguments, options)``."""

    def wrap(function: Callable) -> Callable:
        return lambda *arguments, **options: around(function, arguments, options)

    names = ("evaluate", "input_gradient")
    with mock.patch.multiple(engine, **{name: wrap(getattr(engine, name)) for name in names}):
        yield


def outside_share(attack: Callable[[], object], times: int) -> dict[str, float]:
    """Share of an attack's time on a CPU that is not inside the network; median and extremes over ``times`` runs."""
    inside = 0.0

    def timed(function: Callable, arguments: tuple, options: dict) -> Any:
        nonlocal inside
        start = time.perf_counter()
        result = function(*arguments, **options)
        inside += time.perf_counter() - start
        return result

    shares, totals = [], []
    attack()
    with network_passes(timed):
        for _ in range(times):
            inside, start = 0.0, time.perf_counter()
            attack()
            totals.append(time.perf_counter() - start)
            shares.append(1.0 - inside / totals[-1])
    total, share = statistics.median(totals), statistics.median(shares)
    return {
        "ms": 1e3 * total,
        "outside_ms": 1e3 * share * total,
        "share": share,
        "share_least": min(shares),
        "share_most": max(shares),
    }


def presets_on(
    model: nn.Module, images: Tensor, lower: float | Tensor, upper: float | Tensor
) -> dict[str, dict[str, float]]:
    """What every preset makes of the images: how the samples end, how near to the boundary, and at what cost.

    Bases are the network's predictions, targets are drawn. ``lower`` and ``upper`` are the pixels' range in the units
    of the images, for the presets that bring no bounds.
    """
    found = {}
    for preset, settings in PRESETS.items():
        bounds = {} if settings.lower is not None else {"lower": lower, "upper": upper}
        forwards = 0

        def count(function: Callable, arguments: tuple, options: dict) -> Any:
            nonlocal forwards
            forwards += arguments[2].shape[0] if "grad" in options else 0  # x of evaluate()
            return function(*arguments, **options)

        attack = BoundaryAttack(model, preset=preset, compact=True, **bounds)
        attack(images[:1])  # builds the view, which evaluates the network as well
        with network_passes(count):
            parts = [attack(part, seed=number, record_gaps=True) for number, part in enumerate(images.split(BATCH))]
        found[preset] = {**_statistics(parts, images), "forwards": forwards / len(images)}
    return found


def print_presets(presets: dict[str, dict[str, float]]) -> None:
    """The table of :func:`presets_on`."""
    print("preset          crossed  third accepted |gap|/start gradients forwards     L2")
    for name, row in presets.items():
        print(
            f"{name:15}{row['crossed']:8.1%}{row['third']:7.1%}{row['accepted']:9.1%}{row['gap_over_start']:12.4f}"
            f"{row['gradients']:10.2f}{row['forwards']:9.2f}{row['distance']:7.2f}"
        )


def _statistics(parts: list[BoundarySamples], images: Tensor) -> dict[str, float]:
    status, accepted, steps, gap = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("status", "accepted", "steps", "gap")
    )
    moved = torch.cat([part.images for part in parts]) - images
    start = torch.cat([part.gaps[0] for part in parts])
    searched = status <= Status.THIRD
    return {
        "crossed": (status == Status.CROSSED).float().mean().item(),
        "third": (status == Status.THIRD).float().mean().item(),
        "uncrossed": (status == Status.UNCROSSED).float().mean().item(),
        "accepted": accepted.float().mean().item(),
        "gap_over_start": (gap.abs() / start)[searched].median().item(),
        "gap": gap[searched].median().item(),
        "start": start[searched].median().item(),
        "gradients": steps.float().mean().item(),
        "distance": moved.flatten(1).norm(dim=1).median().item(),
    }


def _largest(got: Tensor, want: Tensor) -> float:
    return (got - want).abs().max().item()
