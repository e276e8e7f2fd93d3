"""The KL family against PyTorch, interleaved: ``python -m benchmarks.compare_kl``.

Every contestant of a case takes its turn in short blocks, round after round, in an order that changes, so that whatever
else the machine does meets all of them alike. Measured are forward and ``.backward()`` on a leaf student whose gradient
was reset to None. The ratio is that of the medians, ours against the fastest of all others; its spread is that of the
ratio within a round.
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

from benchmarks import contest, machine, peers, roofline
from benchmarks.cases import CASES, TEMPERATURE, Case, prepare
from benchmarks.contest import WrongResult
from benchmarks.interleave import interleave, spread
from benchmarks.measure import block_length

BLOCK = 7e-3  # seconds
ROUNDS = 30
SECONDS = 3.0  # that a case may take beyond its first ROUNDS
QUICK_ROUNDS = 5


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare_kl", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds: shows that it runs, not how fast")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    machine.use_threads()
    about = machine.describe()
    results, wrong = [], []
    for case in CASES:
        print(f"{case} …", file=sys.stderr, flush=True)
        try:
            results.append(compare(case, QUICK_ROUNDS if options.quick else ROUNDS, 0.0 if options.quick else SECONDS))
        except WrongResult as error:
            wrong.append(f"{case}: {error}")
    absent = {**peers.missing(), **contest.missing("kl")}
    if options.output is not None:
        report = {
            "kind": "compare_kl",
            "quick": options.quick,
            "machine": about,
            "seconds": time.perf_counter() - start,
            "block_seconds": BLOCK,
            "temperature": TEMPERATURE,
            "cases": results,
            "wrong": wrong,
            "absent": absent,
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    for result in results:
        print_contestants(result)
    for name, reason in absent.items():
        print(f"not in the comparison: {name}: {reason}")
    print_table(results, about, time.perf_counter() - start, options.quick)
    for line in wrong:
        print(f"WRONG, not timed: {line}")
    return 1 if wrong else 0


def compare(case: Case, rounds: int, seconds: float) -> dict[str, Any]:
    """Check and time one case on the CPU: at least ``rounds`` rounds, more for as long as ``seconds`` last."""
    field = prepare(case, "cpu")
    entries = list(field.errors)
    gc.collect()
    gc.disable()
    try:
        rates = roofline.rates(case)
        lengths = {entry: block_length(entry, field.inputs, BLOCK) for entry in entries}
        times = interleave(entries, field.inputs, lengths, rounds, seconds)
    finally:
        gc.enable()
    limit = roofline.limit(case, rates)
    result: dict[str, Any] = {
        "case": str(case),
        "operation": case.operation,
        "rows": case.rows,
        "classes": case.classes,
        "dtype": str(case.dtype).removeprefix("torch."),
        "direction": "both",
        "rounds": len(times[entries[0]]),
        "contestants": {
            entry.name: {
                "ours": entry.ours,
                **spread(times[entry], "us", 1e6),
                "calls_a_block": lengths[entry],
                "value_error": field.errors[entry].value,
                "grad_error": field.errors[entry].grad,
                "passes": roofline.passes(case, rates, statistics.median(times[entry])),
                "share_of_limit": limit.share(statistics.median(times[entry])),
            }
            for entry in entries
        },
        "left_out": field.left_out,
        "roofline": {**rates._asdict(), **limit._asdict(), "floor_passes": roofline.FLOOR_PASSES},
        "target": case.target,
    }
    fast = [entry for entry in entries if entry.ours]
    if fast:
        ours = min(fast, key=lambda entry: statistics.median(times[entry]))
        peer = min((entry for entry in entries if not entry.ours), key=lambda entry: statistics.median(times[entry]))
        ratio = statistics.median(times[peer]) / statistics.median(times[ours])
        paired = [theirs / mine for theirs, mine in zip(times[peer], times[ours], strict=True)]
        result |= {"ours": ours.name, "peer": peer.name, "ratio": ratio, **spread(paired, "ratio_in_a_round", 1.0)}
        result["reached"] = ratio >= case.target
    return result


def print_contestants(result: dict[str, Any]) -> None:
    print(f"\n{result['case']}, {result['rounds']} rounds: median (p10–p90) in µs, passes at the copy rate, errors")
    for name, row in result["contestants"].items():
        span = f"({row['us_p10']:.1f}–{row['us_p90']:.1f})"
        errors = f"{row['value_error']:.0e} {row['grad_error']:.0e}"
        print(f"  {name:24}{row['us_median']:12.1f} {span:24}{row['passes']:8.1f}   {errors}")
    for name, reason in result["left_out"].items():
        print(f"  {name:24}not timed: {reason}")


def print_table(results: list[dict[str, Any]], about: dict[str, Any], seconds: float, quick: bool) -> None:
    print(
        f"\nforward + backward, {about['threads']} threads of {about['cores']} cores, {about['cpu']}, "
        f"torch {about['torch']}, commit {about['commit']}, load {about['load']}, {seconds:.0f} s"
        + (f"; --quick: {QUICK_ROUNDS} rounds judge nothing" if quick else "")
    )
    print(
        f"{'case':33}{'ours µs':>10}{'best µs':>10}  {'best of the others':24}{'ratio':>7} {'(p10–p90)':13}"
        f"{'target':>7}{'':6}{'passes':>7}{'of limit':>9}"
    )
    for result in results:
        if "ratio" not in result:
            print(f"{result['case']:33}the compiled backend is not there")
            continue
        ours, peer = result["contestants"][result["ours"]], result["contestants"][result["peer"]]
        span = f"({result['ratio_in_a_round_p10']:.2f}–{result['ratio_in_a_round_p90']:.2f})"
        print(
            f"{result['case']:33}{ours['us_median']:10.1f}{peer['us_median']:10.1f}  {result['peer']:24}"
            f"{result['ratio']:6.2f}× {span:13}{result['target']:6.1f}×{' pass' if result['reached'] else ' MISS':6}"
            f"{ours['passes']:7.1f}{100 * ours['share_of_limit']:7.0f} %"
        )
    print(
        f"passes: time in passes over one tensor at the copy rate of its size, floor {roofline.FLOOR_PASSES}, "
        f"with recomputation {roofline.RECOMPUTE_PASSES}; of limit: roofline.py"
    )


if __name__ == "__main__":
    sys.exit(main())
