"""Time and memory against one size, everybody else's fixed: ``python -m benchmarks.scaling``.

Every point is checked and timed as in ``benchmarks.compare``, with fewer rounds and without max-autotune. A contestant
goes along an axis until it would take longer or more memory than the limits, and is named where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import contest, machine
from benchmarks.compare import US, peak_bytes, timed
from benchmarks.contest import WrongResult
from benchmarks.group import Group, prepare
from benchmarks.groups import attack, images, kl, triplet
from benchmarks.timing import QUICK, Patience

SECONDS, BYTES = 1.0, 2e9  # of a call; who would take more stops
PATIENCE = Patience(block=7e-3, rounds=9, seconds=0.0, most=3.0, fewest=5)


class Axis(NamedTuple):
    """A size that grows."""

    name: str
    title: str
    family: str
    letter: str
    sizes: tuple[int, ...]
    build: Callable[[int], Group]  # the group of a size
    left_out: tuple[str, ...] = ("max-autotune",)  # whose title has one of these in it does not take part


LOG_TARGET = ("max-autotune", "softmax target")
AXES = (
    Axis("kl_div-K", "kl_div, B = 128, fp32", "kl", "K", (10, 100, 1000, 10_000, 32_768, 131_072),
         lambda size: kl.loss("kl_div", 128, size, torch.float32), LOG_TARGET),
    Axis("kl_div-B", "kl_div, K = 1000, fp32", "kl", "B", (16, 128, 1024, 8192),
         lambda size: kl.loss("kl_div", size, 1000, torch.float32), LOG_TARGET),
    Axis("triplet_hard-N", "triplet hard, D = 128, 16 classes, fp32", "triplet", "N", (64, 256, 1024, 4096),
         triplet.hard),
    Axis("triplet_hard-D", "triplet hard, N = 1024, 16 classes, fp32", "triplet", "D", (16, 128, 512, 2048),
         partial(triplet.hard, 1024)),
    Axis("triplet_all-N", "triplet all, D = 128, 16 classes, fp32", "triplet", "N", (64, 256, 512, 1024),
         triplet.every),
    *(Axis(f"attack_{rule}-B", f"attack_step {rule}, [B, 3, 32, 32], fp32", "attack", "B", (16, 64, 256, 2048),
           partial(attack.step, rule)) for rule in ("linf", "boundary")),
    Axis("crop_flip-B", "crop_flip, [B, 3, 32, 32]", "images", "B", (16, 64, 256, 2048), images.crop_flip),
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=machine.RESULTS, help="folder of scaling-<device>.json")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", default="", help="axes whose name contains this; the file is not written")
    parser.add_argument("--quick", action="store_true", help="two rounds: shows that it runs, not how fast")
    options = parser.parse_args(arguments)
    machine.use_threads()
    found: dict[str, Any] = {
        **{"kind": "scaling", "device": options.device, "machine": machine.describe(), "quick": options.quick},
        **{"most": {"seconds": SECONDS, "bytes": BYTES}, "axes": [], "wrong": []},
    }
    print(f"scaling: {machine.in_words(found['machine'])}", flush=True)
    for axis in AXES:
        if options.only not in axis.name:
            continue
        found["axes"].append(along(axis, options.device, QUICK if options.quick else PATIENCE, found["wrong"]))
        if not (options.only or options.quick):  # after each axis, so that a run which is stopped leaves what it has
            machine.write(options.output / f"scaling-{options.device}.json", found)
    for line in found["wrong"]:
        print(f"WRONG, not timed: {line}")
    return 1 if found["wrong"] else 0


def along(axis: Axis, device: str, patience: Patience, wrong: list[str]) -> dict[str, Any]:
    """All points of an axis; a point where one of ours is wrong is named in ``wrong``."""
    found: dict[str, Any] = {**axis._asdict(), "points": [], "stopped": {}}
    del found["build"], found["left_out"]
    for size in axis.sizes:
        group = axis.build(size)
        here = {entry.title for entry in group.contestants(device)}
        seen = {title: entry["ours"] for before in found["points"] for title, entry in before["contestants"].items()}
        for title in [title for title in seen if title not in found["stopped"]]:
            reason = beyond(found["points"], title, size) if title in here else "its group leaves it out from there on"
            if reason:
                found["stopped"][title] = {"size": size, "reason": f"stopped before {axis.letter} = {size}: {reason}"}
        if any(title in found["stopped"] for title, own in seen.items() if own):
            break
        try:
            smaller = reduced(group, axis, found["stopped"], device)
            truth = "reference" if smaller.truth is group.truth else "ours"
            found["points"].append({**point(smaller, size, device, patience), "truth": truth})
        except WrongResult as error:
            wrong.append(f"{group}: {error}")
            continue
        times = {title: entry["us"]["median"] for title, entry in found["points"][-1]["contestants"].items()}
        print(f"{axis.name:18}{size:8} " + ", ".join(f"{title} {us:.0f} µs" for title, us in times.items()), flush=True)
    return found


def reduced(group: Group, axis: Axis, stopped: dict[str, Any], device: str) -> Group:
    """The public functions alone, without those that stopped or are left out.

    Where the reference has stopped, its fp64 form would need even more: there the truth is our own result in fp64.
    """

    def absent(title: str) -> bool:
        return title in stopped or any(part in title for part in axis.left_out)

    def own_truth(call: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
        return contest.answer(contest.ours(group.family, call, device)[0], contest.wide(inputs))

    lost = group.reference and "reference" in stopped and group.truth is contest.truth
    return replace(group, absent=absent, forms={}, truth=own_truth if lost else group.truth)


def point(group: Group, size: int, device: str, patience: Patience) -> dict[str, Any]:
    """Everybody at one size: time of both directions where there are two, peak of memory, errors."""
    field = prepare(group, device)
    peaks = {entry: peak_bytes(entry, group, field, device) for entry in field.errors}
    row, _ = timed(group, device, group.directions[-1], field, patience, peaks)
    names = ("sizes", "dtype", "direction", "rounds", "limit", "contestants", "left_out")
    return {"size": size, **{name: row[name] for name in names}}


def beyond(points: list[dict[str, Any]], title: str, size: int) -> str | None:
    """Why a contestant should not be tried at ``size``: the power law through its last two points passes a limit."""
    known = [(point["size"], point["contestants"][title]) for point in points if title in point["contestants"]]
    if not known:
        return None
    for most, unit, value in (
        (SECONDS, "s", lambda entry: entry["us"]["p10"] / US),
        (BYTES / 1e9, "GB", lambda entry: entry["peak_bytes"] / 1e9),
    ):
        foretold = extrapolated([(at, value(entry)) for at, entry in known[-2:]], size)
        if foretold > most:
            return f"{foretold:.2g} {unit} a call foretold, {most:g} {unit} allowed"
    return None


def extrapolated(points: list[tuple[int, float]], size: int) -> float:
    """At ``size``, by the power law through two points, at least a proportional one; of a single point that."""
    (near, value), power = points[-1], 1.0
    if len(points) == 2 and points[0][1] > 0 and value > 0:
        before, less = points[0]
        power = max(power, log(value / less) / log(near / before))
    return value * (size / near) ** power


if __name__ == "__main__":
    sys.exit(main())
