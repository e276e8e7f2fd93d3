"""Tables of what the methods achieve on CIFAR-10: benchmarks.evidence has run them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import yaml

from amkd_fast.distill.report.statistics import describe, paired
from amkd_fast.distill.report.tables import chance
from benchmarks.evidence.protocol import FILE
from benchmarks.report import quality, words
from benchmarks.report.load import EVIDENCE, MARGINS, Results

Table = Callable[[Results], str]
PAIRS = (("bss-near_boundary", "bss-official"), ("amkd", "bss-near_boundary"))  # of methods that differ in one thing
_WORDS = {"margin": ("mean margin", 1.0, 3), "nearer": ("margin above 0, %", 100.0, 1)}


def tables() -> dict[str, Table]:
    """All of them, by name: those of the parts and of the search's groups of the protocol."""
    found = yaml.safe_load(FILE.read_text())
    kinds = {"methods": methods, "unseen": unseen, "gains": gains, "margins": margins}
    of_parts = {
        f"{part}-{kind}": kinds[kind](part) for part, about in found["parts"].items() for kind in about["tables"]
    }
    of_groups = {f"search-{group}": search(group, about["tries"]) for group, about in found["search"].items()}
    compared = [part for part, about in found["parts"].items() if "methods" in about["tables"]]
    return {**of_parts, **of_groups, "cifar10-pairs": pairs(compared)}


def methods(part: str) -> Table:
    """Accuracy and more of every method of a part."""
    return _with_hours(part, quality.methods_of)


def unseen(part: str) -> Table:
    """Accuracy on the labels that the students of a part never saw."""
    return _with_hours(part, quality.dropped_of)


def gains(part: str) -> Table:
    """What a method's time buys over KD."""

    def table(results: Results) -> str:
        found = results.evidence.get(part)
        if found is None:
            return words.NOT_YET
        over = {test["method"]: test["mean"] for test in found["tests"] if test["quality"] == "accuracy"}
        times = {name: about["ms_per_step"] for name, about in found["methods"].items()}
        lines = []
        for name, more in over.items():
            longer = times[name] / times["kd"]
            each = f"{more / (longer - 1.0):+.1f}" if longer > 1.05 else ""
            lines.append((quality.METHODS[name], f"{times[name]:.0f}", f"{longer:.2f}", f"{more:+.2f}", each))
        header = ("method", "ms a step", "times KD's", "points over KD", "for each further time of KD's")
        note = f"Points: mean of {found['settings']['seeds']} seeds, after the last epoch."
        return f"{words.table(header, lines)}\n\n{note}"

    return table


def pairs(parts: list[str]) -> Table:
    """One method over another, seed by seed, in every part that has both: what their difference is worth."""

    def table(results: Results) -> str:
        rows = []
        for part in (part for part in parts if part in results.lines):
            reached: dict[str, dict[int, float | None]] = {}
            for line in results.lines[part]:
                reached.setdefault(line["method"], {})[line["seed"]] = (line["qualities"] or {}).get("accuracy")
            tests = [paired(reached.get(method, {}), reached.get(other, {})) for method, other in PAIRS]
            rows.append((f"`{part}`", str(max(test["n"] for test in tests)), *map(_uncorrected, tests)))
        if not rows:
            return words.NOT_YET
        header = (f"{quality.METHODS[method]}, more than {quality.METHODS[other]}" for method, other in PAIRS)
        note = "Points on the test images after the last epoch; p: paired t-test over the seeds, not corrected."
        return f"{words.table(('part', 'seeds', *header), rows)}\n\n{note}"

    return table


def search(group: str, tries: list[dict[str, Any]]) -> Table:
    """What was tried in a group of the search, on the validation images, against the first line of the group."""
    order = {_told(tried): place for place, tried in enumerate(tries)}

    def table(results: Results) -> str:
        lines = [line for line in results.lines.get("search", []) if line["group"] == group]
        if not lines:
            return words.NOT_YET
        by_try: dict[str, dict[int, float | None]] = {}
        for line in sorted(lines, key=lambda line: order.get(_told(line["tried"]), len(order))):
            by_try.setdefault(_told(line["tried"]), {})[line["seed"]] = line["validation"]
        first = next(iter(by_try))
        rows = []
        for tried, values in by_try.items():
            about = describe(list(values.values()))
            apart = "" if tried == first else _uncorrected(paired(values, by_try[first]))
            reached = "diverged" if about["mean"] is None else quality.mean(about)
            rows.append((tried, str(len(values)), reached, apart))
        minutes = statistics.fmean(line["minutes"] for line in lines)
        note = (
            "Per cent of the validation images after the last epoch, mean over the seeds ± half the 95 % interval; p: "
            f"paired t-test, not corrected. {len(lines)} runs of {minutes:.1f} minutes each on one core."
        )
        return f"{words.table(('tried', 'seeds', 'validation', 'more than the first'), rows)}\n\n{note}"

    return table


def margins(part: str) -> Table:
    """How far the students of a part keep the teacher's boundary samples from classes that are not theirs."""

    def table(results: Results) -> str:
        lines = results.lines.get(f"{MARGINS}-{part}", [])
        if not lines:
            return words.NOT_YET
        by_method: dict[str, dict[int, dict[str, float]]] = {}
        for line in lines:
            by_method.setdefault(line["method"], {})[line["seed"]] = line
        rows = []
        for method in [name for name in quality.METHODS if name in by_method]:
            cells: list[str] = []
            for name, (_, scale, digits) in _WORDS.items():
                values, others = (
                    {seed: scale * line[name] for seed, line in by_method.get(one, {}).items()}
                    for one in (method, "bss-near_boundary")
                )
                about = describe(list(values.values()))
                cells.append(quality.mean(about, digits))
                if name == "margin":
                    test = paired(values, others)
                    told = test["p"] is not None and method != "bss-near_boundary"
                    cells.append(f"{test['mean']:+.{digits}f}, p {chance(test['p'])}" if told else "")
            rows.append((quality.METHODS[method], *cells))
        header = ("method", _WORDS["margin"][0], "more than BSS, `near_boundary`", _WORDS["nearer"][0])
        seeds = max(len(values) for values in by_method.values())
        note = f"Mean of {seeds} seeds ± half the 95 % interval; p: paired t-test, not corrected."
        return f"{words.table(header, rows)}\n\n{note}"

    return table


def _with_hours(part: str, table_of: Callable[[Results, dict[str, Any] | None, str], str]) -> Table:
    """A table of the part's result, and how long its training steps took."""

    def table(results: Results) -> str:
        found = results.evidence.get(part)
        written = table_of(results, found, EVIDENCE.format(part))
        if found is None:
            return written
        settings = found["settings"]
        steps = settings["epochs"] * -(-found["images"]["student"] // settings["batch_size"])
        hours = settings["seeds"] * sum(about["ms_per_step"] for about in found["methods"].values()) * steps / 3.6e6
        return f"{written} All runs' steps took {hours:.1f} hours of one core."

    return table


def _uncorrected(test: dict[str, Any]) -> str:
    """A paired difference, its interval and p as it is; nothing where the two share no seed."""
    return quality.gain({**test, "p_holm": test["p"]}) if test["n"] else ""


def _told(tried: dict[str, Any]) -> str:
    return ", ".join(f"`{name}` {value}" for name, value in tried.items()) or "as they are"
