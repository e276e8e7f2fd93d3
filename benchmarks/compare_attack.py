"""The attack family against what people use, interleaved: ``python -m benchmarks.compare_attack``.

Steps, objective and selection of bases against eager PyTorch and torch.compile; whole attacks on a trained ResNet26
against the public loops and the attack libraries; the share of an attack outside the network; a table of the presets.
The ratio is that of the medians; its spread is that of the ratio within a round.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import attack_cases, attack_rivals, cases, contest, machine, roofline, whole_attack
from benchmarks.attack_cases import Case
from benchmarks.compare_triplet import verdict
from benchmarks.contest import Contestant, WrongResult
from benchmarks.interleave import interleave, spread
from benchmarks.measure import block_length

NAME = "amkd_fast cpu"
BLOCK = 10e-3  # seconds
ROUNDS, SECONDS = 30, 3.0
WHOLE_ROUNDS = 7
BSS, LEAN, LOOP = "public loop", "lean loop", "PGD loop"
BSS_TARGET, PGD_TARGET, OUTSIDE_LIMIT = 3.0, 2.0, 0.01
AGREEMENT_SAMPLES, PRESET_SAMPLES, SHARE_RUNS = 1024, 512, 9
PARTS = ("kernels", "whole")


class Finished:
    """The result of a call that has no backward pass; interleave() takes one of everything that it times."""

    @staticmethod
    def backward() -> None:
        """Nothing."""


def forward_only(entry: Contestant) -> Contestant:
    def call(*inputs: Any) -> type[Finished]:
        entry.call(*inputs)
        return Finished

    return entry._replace(call=call)


def stand_in() -> str:
    """Why the reference stands in for the CPU kernels; empty where it does not."""
    return contest.missing("attack").get("amkd_fast cpu (attack)", "")


def race(
    entries: list[Contestant], inputs: tuple[Any, ...], rounds: int, seconds: float, block: float
) -> dict[str, list[float]]:
    """Seconds of a call by name, a value a round; ``block`` = 0 times single calls, which must have run before."""
    runners = {entry.name: forward_only(entry) for entry in entries}
    gc.collect()
    gc.disable()
    try:
        lengths = {runner: block_length(runner, inputs, block) if block else 1 for runner in runners.values()}
        times = interleave(list(runners.values()), inputs, lengths, rounds, seconds)
    finally:
        gc.enable()
    return {name: times[runner] for name, runner in runners.items()}


def against(times: dict[str, list[float]], ours: str, targets: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Ratios of everybody's times over ours."""
    found = {}
    for name, theirs in times.items():
        if name != ours:
            ratio = statistics.median(theirs) / statistics.median(times[ours])
            paired = [their / mine for their, mine in zip(theirs, times[ours], strict=True)]
            found[name] = {"ratio": ratio, **spread(paired, "ratio_in_a_round", 1.0), "target": targets.get(name)}
    return found


def compare(case: Case, rounds: int, seconds: float) -> dict[str, Any]:
    """Check and time one call of the family."""
    torch._dynamo.reset()
    inputs = attack_cases.inputs(case, "cpu")
    mine = [Contestant(f"{NAME}{form}", call, "cpu") for form, call in attack_cases.forms(case).items()]
    if stand_in():
        mine = [Contestant("STAND-IN: reference", attack_cases.call(case), "reference")]
    entries = [contest.reference(attack_cases.call(case)), *attack_cases.rivals(case), *mine]
    expected = attack_cases.truth(case, inputs)
    errors = {entry.name: attack_cases.verify(entry, inputs, expected).value for entry in entries}
    times = race(entries, inputs, rounds, seconds, BLOCK)
    ours = [entry.name for entry in mine]
    others = {name: values for name, values in times.items() if name not in ours}
    result = {
        "case": str(case),
        "rounds": len(times[ours[0]]),
        "contestants": {name: {**spread(values, "us", 1e6), "error": errors[name]} for name, values in times.items()},
        "ours": ours,
        "against": {name: against({**others, name: times[name]}, name, case.targets) for name in ours},
    }
    return {**result, "roofline": None if case.passes is None else limit(case, statistics.median(times[ours[-1]]))}


def limit(case: Case, seconds: float) -> dict[str, float]:
    """Bytes that a step has to move, at the rate it moved them, against PyTorch's copy of a tensor of its size."""
    size = cases.Case("step", case.shape[0], inner(case), torch.float32, 0.0)
    copy = roofline.rates(size).copy
    rate = case.passes * 4 * case.shape[0] * inner(case) / seconds
    return {"passes": case.passes, "gb_per_s": rate / 1e9, "copy_gb_per_s": copy / 1e9, "of_copy": rate / copy}


def inner(case: Case) -> int:
    """Numbers in one sample."""
    return torch.Size(case.shape[1:]).numel()


def kernels(quick: bool, wrong: list[str]) -> list[dict[str, Any]]:
    """The calls of the family; ``wrong`` receives what was not timed."""
    found = []
    for case in attack_cases.CASES:
        print(f"{case} …", file=sys.stderr, flush=True)
        try:
            found.append(compare(case, *((3, 0.0) if quick else (ROUNDS, SECONDS))))
        except WrongResult as error:
            wrong.append(f"{case}: {error}")
    return found


def whole(setting: whole_attack.Setting, quick: bool, wrong: list[str]) -> dict[str, Any]:
    """Whole attacks on 64 images, each after it was found to agree with the loops; and a table of the presets."""
    found: dict[str, Any] = {"setting": setting.about, "whole": {}}
    samples, rounds = (whole_attack.BATCH, 2) if quick else (AGREEMENT_SAMPLES, WHOLE_ROUNDS)
    for name, check, run in (("boundary", whole_attack.check_boundary, boundary), ("pgd", whole_attack.check_pgd, pgd)):
        print(f"whole attack, {name} …", file=sys.stderr, flush=True)
        try:
            agreement = check(setting, samples)
            found["whole"][name] = {**run(setting, rounds), "agreement": agreement}
        except WrongResult as error:
            wrong.append(str(error))
    found["outside"] = outside(setting, 2 if quick else SHARE_RUNS)
    found["preset_samples"] = whole_attack.BATCH if quick else PRESET_SAMPLES
    images = setting.images(0, found["preset_samples"])
    found["presets"] = whole_attack.presets_on(setting.network, images, whole_attack.LOWER, whole_attack.UPPER)
    return found


def boundary(setting: whole_attack.Setting, rounds: int) -> dict[str, Any]:
    network = setting.network
    quiet = attack_rivals.quiet(network)
    batch = whole_attack.chase(network, setting.images(0, whole_attack.BATCH))
    entries = [
        Contestant(BSS, lambda *inputs: attack_rivals.bss_loop(network, *inputs)),
        Contestant(LEAN, lambda *inputs: attack_rivals.bss_loop_lean(quiet, *inputs)),
        Contestant("official", whole_attack.boundary_attack(network, "official"), "auto"),
        Contestant("near_boundary", whole_attack.boundary_attack(network, "near_boundary"), "auto"),
    ]
    times = warm_race(entries, batch, rounds)
    network.zero_grad()
    return {
        "contestants": {name: spread(values, "ms", 1e3) for name, values in times.items()},
        "rounds": rounds,
        "against": {
            "official": against(times, "official", {BSS: BSS_TARGET}),
            "near_boundary": against(times, "near_boundary", {}),
        },
    }


def pgd(setting: whole_attack.Setting, rounds: int) -> dict[str, Any]:
    network = whole_attack.InPixels(setting.network).eval()
    some = slice(0, whole_attack.BATCH)
    inputs = setting.pixels[some].float() / 255, setting.labels[some]
    options = {"eps": whole_attack.EPS, "step_size": whole_attack.STEP_SIZE, "steps": whole_attack.STEPS}
    entries = [
        Contestant(LOOP, lambda *inputs: attack_rivals.pgd_loop(network, *inputs, **options)),
        *(Contestant(name, call) for name, call in attack_rivals.pgd_libraries(network, **options).items()),
        Contestant("PGD", whole_attack.pgd(network), "auto"),
    ]
    times = warm_race(entries, inputs, rounds)
    targets = {entry.name: PGD_TARGET for entry in entries}
    return {
        "contestants": {name: spread(values, "ms", 1e3) for name, values in times.items()},
        "rounds": rounds,
        "against": {"PGD": against(times, "PGD", targets)},
    }


def warm_race(entries: list[Contestant], inputs: tuple[Any, ...], rounds: int) -> dict[str, list[float]]:
    """Every call once before the clock starts: views of networks are built then."""
    for entry in entries:
        with entry.chosen():
            entry.call(*inputs)
    return race(entries, inputs, rounds, 0.0, 0.0)


def outside(setting: whole_attack.Setting, times: int) -> dict[str, dict[str, float]]:
    """Share of the time that our attacks on 64 images spend outside of the network."""
    network, some = setting.network, slice(0, whole_attack.BATCH)
    batch = whole_attack.chase(network, setting.images(0, whole_attack.BATCH))
    official, near = (whole_attack.boundary_attack(network, preset) for preset in ("official", "near_boundary"))
    pgd = whole_attack.pgd(whole_attack.InPixels(network).eval())
    pixels, labels = setting.pixels[some].float() / 255, setting.labels[some]
    calls = {
        "official": lambda: official(*batch),
        "near_boundary": lambda: near(*batch),
        "PGD": lambda: pgd(pixels, labels),
    }
    return {name: {**whole_attack.outside_share(call, times), "limit": OUTSIDE_LIMIT} for name, call in calls.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare_attack", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--quick", action="store_true", help="few rounds and samples: shows that it runs")
    parser.add_argument("--cifar", type=Path, help="CIFAR-10 as JPEG files, an archive or a folder")
    parser.add_argument("--teacher", type=Path, help="what benchmarks.cifar_teacher saved")
    options = parser.parse_args(arguments)
    machine.use_threads()
    start, wrong = time.perf_counter(), []
    report: dict[str, Any] = {"kind": "compare_attack", "machine": machine.describe(), "stand_in": stand_in()}
    if options.only != "whole":
        report["cases"] = kernels(options.quick, wrong)
    if options.only != "kernels":
        report |= whole(whole_attack.setting(options.cifar, options.teacher), options.quick, wrong)
    report |= {"wrong": wrong, "absent": attack_rivals.missing(), "seconds": time.perf_counter() - start}
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    print_report(report)
    return 1 if wrong else 0


def print_report(report: dict[str, Any]) -> None:
    about = report["machine"]
    print(
        f"{about['threads']} threads, {about['cpu']}, torch {about['torch']}, commit {about['commit']}, load "
        f"{about['load']}, {report['seconds']:.0f} s"
    )
    if report["stand_in"]:
        print(
            f"NO CPU KERNELS, the reference stands in for them and no target of theirs is judged: {report['stand_in']}"
        )
    for result in report.get("cases", ()):
        roof = result["roofline"]
        moved = f", {roof['gb_per_s']:.1f} of {roof['copy_gb_per_s']:.1f} GB/s ({roof['of_copy']:.0%})" if roof else ""
        print(f"\n{result['case']}, {result['rounds']} rounds{moved}")
        for name in result["ours"]:
            ours = result["contestants"][name]
            print(
                f" {name} {ours['us_median']:.1f} µs ({ours['us_p10']:.1f}–{ours['us_p90']:.1f}), "
                f"error {ours['error']:.0e}"
            )
            print_ratios(result["against"][name], result["contestants"], "us", judged=not report["stand_in"])
    for name, result in report.get("whole", {}).items():
        print(f"\nwhole attack, {name}, B = {whole_attack.BATCH}, {result['rounds']} rounds: {result['agreement']}")
        for ours, ratios in result["against"].items():
            print(f"{ours}: {result['contestants'][ours]['ms_median']:.1f} ms")
            print_ratios(ratios, result["contestants"], "ms", judged=True)
    for name, row in report.get("outside", {}).items():
        print(
            f"outside of the network, {name}: {row['outside_ms']:.1f} of {row['ms']:.1f} ms, {row['share']:.2%} "
            f"({row['share_least']:.2%}–{row['share_most']:.2%}) " + verdict(row["share"], row["limit"], "≤", "")
        )
    if "presets" in report:
        about = report["setting"]
        print(f"\n{report['preset_samples']} images: {about['images']}; the network's accuracy {about['accuracy']:.1%}")
        whole_attack.print_presets(report["presets"])
    for name, reason in report["absent"].items():
        print(f"not in the comparison: {name}: {reason}")
    for line in report["wrong"]:
        print(f"WRONG, not timed: {line}")


def print_ratios(
    ratios: dict[str, dict[str, Any]], contestants: dict[str, dict[str, float]], unit: str, *, judged: bool
) -> None:
    for name, row in ratios.items():
        span = "({ratio_in_a_round_p10:.2f}–{ratio_in_a_round_p90:.2f})".format(**row)
        print(
            f"  {name:24}{contestants[name][unit + '_median']:11.1f} {unit} {row['ratio']:8.2f}× {span:18}"
            + verdict(row["ratio"], row["target"] if judged else None, "≥", "×")
        )


if __name__ == "__main__":
    sys.exit(main())
