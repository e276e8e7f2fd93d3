"""Whether our whole attacks end where the loops end, and how near.

In fp32 without TF32: a rounding that the network amplifies parts any two ways to compute the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amkd_fast import backends
from amkd_fast.attacks import BoundaryAttack, Status
from benchmarks.contest import WrongResult
from benchmarks.peers import attack_loops
from benchmarks.whole_attack import (
    BATCH,
    EPS,
    STEP_SIZE,
    STEPS,
    Chase,
    InPixels,
    Setting,
    boundary_attack,
    chase,
    pgd,
    plain,
)

SAME_FP64 = 1e-9
SAME_PIXELS = 1e-5  # fp32, before the network has had a chance to amplify a rounding
SAME_STATUS = 0.999  # of the samples, with BatchNorm folded and finished samples taken out


def check_boundary(setting: Setting, count: int) -> dict[str, float]:
    """The official preset and the public loops agree: in fp64, after one step in fp32, and in how the samples end.

    In fp32 a later step can differ by more than rounding, where a network is at a kink of its ReLUs; such samples are
    counted (``kinked``) and not bounded.

    Raises:
        WrongResult: They do not agree.
    """
    network, quiet = setting.network, attack_loops.quiet(setting.network)
    wide = attack_loops.quiet(network).double()
    exact = Chase(*(part[:8] for part in chase(wide, setting.images(0, 8).double())))
    ours = BoundaryAttack(plain(wide), preset="official")(*exact)
    found = {"fp64": _largest(ours.images, attack_loops.bss_loop_lean(wide, *exact).images)}

    first = chase(network, setting.images(0, BATCH))
    public = attack_loops.bss_loop(network, *first)
    network.zero_grad()
    found["lean"] = _largest(attack_loops.bss_loop_lean(quiet, *first).images, public.images)
    for steps, name in ((1, "first_step"), (STEPS, "kinked")):
        unfolded = BoundaryAttack(plain(network), preset="official", compact=False, steps=steps)(*first)
        loop = attack_loops.bss_loop_lean(quiet, *first, steps=steps)
        away = (unfolded.images - loop.images).abs().flatten(1).amax(1)
        found[name] = away.max().item() if steps == 1 else (away > SAME_PIXELS).float().mean().item()

    folded, same = boundary_attack(network, "official"), 0
    for start in range(0, count, BATCH):
        batch = chase(network, setting.images(start, min(BATCH, count - start)), seed=start)
        same += (folded(*batch).status == attack_loops.bss_loop_lean(quiet, *batch).status).sum().item()
    found |= {"same_status": same / count, "samples": count}
    limits = {"fp64": SAME_FP64, "lean": SAME_PIXELS, "first_step": SAME_PIXELS}
    if any(not found[name] <= limit for name, limit in limits.items()) or found["same_status"] < SAME_STATUS:
        raise WrongResult(f"official preset against the public loops: {found}")
    return found


def check_near_boundary(setting: Setting, count: int) -> dict[str, float]:
    """In fp64 the preset does on the fast operators what it does on the reference, and its samples are where it says.

    Raises:
        WrongResult: It does not, or they are not.
    """
    wide = attack_loops.quiet(setting.network).double()
    batch = chase(wide, setting.images(0, count).double())
    attack = boundary_attack(plain(wide), "near_boundary")
    with backends.backend("reference"):
        expected = attack(*batch)
    samples = attack(*batch)
    predicted = torch.where(samples.status == Status.UNCROSSED, batch.base, samples.target)
    found = {
        "samples": count,
        "fp64": _largest(samples.images, expected.images),
        "same_class": (wide(samples.images).argmax(1) == predicted).float().mean().item(),
    }
    if not found["fp64"] <= SAME_FP64 or found["same_class"] < 1.0:
        raise WrongResult(f"near_boundary against the reference: {found}")
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
    wide = attack_loops.quiet(network).double()
    exact = images[:8].double(), labels[:8]
    loop = attack_loops.pgd_loop(wide, *exact, **options)
    found = {"samples": count, "fp64": _largest(pgd(plain(wide))(*exact).images, loop)}
    for name, steps in ((attack_loops.TORCHATTACKS, STEPS), (attack_loops.ADV_LIB, STEPS + 1)):
        # adv_lib returns the latest iterate that fools the network, and looks at the last one in a step more.
        attack = attack_loops.pgd_libraries(wide, **options, steps=steps).get(name)
        if attack is not None:
            rows = fooled(wide, loop, exact[1])
            found[name] = _largest(attack(*exact)[rows], loop[rows])
    exactly = [name for name in found if name != "samples"]

    same = turned = 0.0
    view = pgd(network)
    for start in range(0, count, BATCH):
        part = images[start : start + BATCH], labels[start : start + BATCH]
        result, loop = view(*part), attack_loops.pgd_loop(network, *part, **options)
        same += (fooled(network, loop, part[1]) == result.adversarial).sum().item()
        turned += ((loop - result.images).abs() > SAME_PIXELS).float().sum().item()
    found |= {"same_success": same / count, "turned": turned / images.numel()}

    if any(not found[name] <= SAME_FP64 for name in exactly) or found["same_success"] < SAME_STATUS:
        raise WrongResult(f"PGD against the loops: {found}")
    return found


@torch.no_grad()
def fooled(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return network(images).argmax(1) != labels


def _largest(got: Tensor, want: Tensor) -> float:
    return (got - want).abs().max().item()
