"""README's tables, by the names of their markers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from benchmarks.report import targets, words
from benchmarks.report.load import DEVICES, Results, Row

_RATIO = f"Ratios are those of the medians, theirs over ours; {words.SPREAD} of the ratio within a round."


class Column(NamedTuple):
    """How many times longer the fastest of those takes whose title starts with one of ``titles``.

    Attributes:
        form: Of ours: the operator alone instead of the public function.
        inverse: Ours over theirs instead.
    """

    name: str
    titles: tuple[str, ...]
    form: str = ""
    inverse: bool = False


COLUMNS = {
    "triplet": (
        Column("pytorch-metric-learning", ("pytorch-metric-learning",)),
        Column("sentence-transformers", ("sentence-transformers",)),
        Column("compiled", ("compile", "max-autotune")),
        Column("eager", ("eager",)),
    ),
    "attack": (
        Column("eager PyTorch", ("eager",)),
        Column("eager, against the operator alone", ("eager",), form="kernel alone"),
        Column("`torch.compile`", ("compile", "max-autotune")),
        Column("public code", ("public",)),
    ),
    "images": (
        Column("eager PyTorch", ("eager",)),
        Column("`torch.compile`", ("compile", "max-autotune")),
        Column("public code", ("public", "torchvision")),
    ),
    "whole_attack": (
        Column("public loop", ("public",)),
        Column("careful loop", ("careful", "lean")),
        Column("torchattacks", ("torchattacks",)),
        Column("adversarial-library", ("adversarial-library",)),
        Column("eager PGD loop", ("PGD loop", "eager")),
    ),
    "training": (
        Column("eager loop", ("eager", "public")),
        Column("of its bare passes", ("bare passes",), inverse=True),
        Column("over our KD", ("our KD", "plain KD", "KD of ours"), inverse=True),
    ),
}
METHODS = {
    "student": "student alone",
    "kd": "KD",
    "bss-official": "BSS, `official`",
    "bss-paper": "BSS, `paper`",
    "bss-zoo": "BSS, `zoo`",
    "bss-near_boundary": "BSS, `near_boundary`",
    "amkd": "AMKD",
}


def summary(results: Results) -> str:
    """The cases that issues set a speed for; of a family without one, its first case."""
    header = ("case", "amkd_fast", "best of the others", "ratio", "of the limit")

    def line(row: Row) -> tuple[str, ...]:
        ours = row["contestants"][row["ours"]]
        best = ratio = ""
        if row["best"] is not None:
            best = f"{words.time(row['contestants'][row['best']]['us']['median'])} ({row['best']})"
            ratio = words.ratio(row["ratios"][row["ours"]][row["best"]])
        return f"{case(row)}{_way(row)}", words.time(ours["us"]["median"]), best, ratio, limit(row)

    def headlines(device: str, family: str) -> list[Row]:
        rows = [row for row in results.rows(device, family) if row["ours"] is not None]
        asked = [row for row in rows if any(target["kind"] in ("speed-up", "time") for target in row["targets"])]
        return asked or last_directions(rows)[:1]

    def section(device: str) -> str:
        families = [family for family, on in results.comparisons if on == device]
        if not families:
            return words.NOT_YET
        lines = [line(row) for family in families for row in headlines(device, family)]
        notes = "<br>\n".join(f"`{family}`: {made(results, family, device)}" for family in families)
        return f"{words.table(header, lines)}\n\n{_RATIO} The limit: the least work at this machine's rates.\n\n{notes}"

    return _by_device(section)


def against(family: str) -> Callable[[Results], str]:
    """A table of ours, and how many times longer each kind of rival takes; the last direction of every case."""

    def section(results: Results, device: str) -> str:
        rows = [row for row in last_directions(results.rows(device, family)) if row["ours"] is not None]
        if not rows:
            return words.NOT_YET
        cells = {column: [compared(row, column) for row in rows] for column in COLUMNS[family]}
        shown = [column for column in COLUMNS[family] if any(cells[column])]
        lines = [
            (case(row), words.time(row["contestants"][row["ours"]]["us"]["median"]),
             *(cells[column][place] for column in shown), *_outside(row, rows))
            for place, row in enumerate(rows)
        ]  # fmt: skip
        header = ("case", "amkd_fast", *(column.name for column in shown), *_outside(None, rows))
        return f"{words.table(header, lines)}\n\n{_RATIO} {made(results, family, device)}"

    return lambda results: _by_device(lambda device: section(results, device))


def compared(row: Row, column: Column) -> str:
    """The ratio of a column, with the rival's name where it is one of several; empty where nobody is there."""
    forms = {entry["form"]: title for title, entry in row["contestants"].items() if entry["ours"]}
    own = forms.get(column.form) if column.form else row["ours"]
    rivals = [title for title in row["ratios"].get(own, {}) if title.startswith(column.titles)]
    if not rivals:
        return ""
    spread = row["ratios"][own][min(rivals, key=lambda title: row["ratios"][own][title]["median"])]
    return words.ratio(words.inverse(spread) if column.inverse else spread)


def methods(results: Results) -> str:
    """Accuracy and more of every method over the seeds of ``amkd-distill compare``."""
    found = results.digits
    if found is None:
        return words.NOT_YET

    def mean(numbers: dict[str, Any]) -> str:
        half = "" if numbers["low"] is None else f" ± {(numbers['high'] - numbers['low']) / 2:.1f}"
        return f"{numbers['mean']:.1f}{half}"

    over_kd = {
        test["method"]: test for test in found["tests"] if (test["quality"], test["baseline"]) == ("accuracy", "kd")
    }
    teacher = found["qualities"]["teacher"]
    lines = [
        (
            "teacher",
            *(
                f"{teacher[name]:.1f}" if name else ""
                for name in ("accuracy", "", "", "pgd_accuracy", "ece", "", "", "")
            ),
        )
    ]
    for name, about in found["methods"].items():
        qualities, more = about["qualities"], over_kd.get(name)
        gain = (
            ""
            if more is None
            else f"{more['mean']:+.1f} ({more['low']:+.1f} to {more['high']:+.1f}), p {more['p_holm']:.3f}"
        )
        crossed = "" if about["crossed_share"] is None else words.share(about["crossed_share"])
        lines.append(
            (METHODS.get(name, f"`{name}`"), mean(about["last"]), mean(about["best"]), gain, mean(qualities["pgd_accuracy"]),
             f"{qualities['ece']['mean']:.1f}", f"{qualities['agreement']['mean']:.1f}", crossed, f"{about['ms_per_step']:.0f}")
        )  # fmt: skip
    header = ("method", "last epoch", "best epoch*", "more than KD", "PGD", "ECE", "agreement", "crossed", "ms a step")
    about, images, seeds = found["environment"], found["images"], found["settings"]["seeds"]
    note = (
        f"Per cent of {images['test']} test images, mean of {seeds} seeds ± half the 95 % interval; the teacher has {images['teacher']} "
        f"training images, the students {images['student']} of them. p: paired t-test, Holm-corrected over all pairs. "
        f"\\* chosen on the test set. {words.made(_as_machine(about), results.doubts.get('digits.json'))}"
    )
    return f"{words.table(header, lines)}\n\n{note}"


def presets(results: Results) -> str:
    """How each preset's boundary samples end, on the digits' teacher and on the network of the whole attacks."""
    digits = {} if results.parity is None else results.parity["presets"]
    whole = dict(preset_extras(results))
    if not digits and not whole:
        return words.NOT_YET

    def cells(found: dict[str, Any] | None) -> tuple[str, ...]:
        if found is None:
            return "", "", ""
        ends = " / ".join(words.share(found[name]) for name in ("crossed", "third", "accepted"))
        return ends, words.digits(found["gap_over_start"]), words.digits(found["gradients"])

    names = dict.fromkeys([*digits, *whole])
    lines = [(f"`{name}`", *cells(digits.get(name)), *cells(whole.get(name))) for name in names]
    header = ("preset", "digits", "gap", "gradients", "CIFAR-10", "gap", "gradients")
    notes = [
        "Crossed / third class / accepted; median final gap over starting gap; gradients a sample; one run, no spread."
    ]
    if results.parity is not None:
        apart = max(network["float32"]["largest"] for network in results.parity["parity"].values())
        doubt = results.doubts.get("attack-parity.json")
        notes.append(
            f"Digits: {words.made(results.parity['machine'], doubt)} There `official` is at most {apart:.0e} from the public loop in fp32."
        )
    if whole:
        notes.append(f"CIFAR-10: {made(results, 'whole_attack', 'cpu')}")
    return f"{words.table(header, lines)}\n\n{' '.join(notes)}"


def preset_extras(results: Results) -> Iterator[tuple[str, dict[str, Any]]]:
    """How the presets fare, from the extras of the whole attacks: of the one that the row runs, or of all."""
    for row in results.rows("cpu", "whole_attack"):
        extras = row["extras"]
        yield from extras.get("presets", {}).items()
        if "gap_over_start" in extras:
            yield row["operation"].split()[-1], extras


def misses(results: Results) -> str:
    """How many targets are reached, and those that are not."""
    known = targets.analyses()

    def section(device: str) -> str:
        found = targets.judged(results, device)
        if not found:
            return words.NOT_YET
        reached = sum(one.target["reached"] is True for one in found)
        missed = [one for one in found if one.missed]
        unjudged = len(found) - reached - len(missed)
        text = f"{reached} of {len(found)} targets reached, {len(missed)} missed, {unjudged} not judged; all of them, machine and date are in [docs/benchmarks](docs/benchmarks/README.md)."
        return f"{text}\n\n{targets.table(missed, known)}" if missed else text

    return _by_device(section)


TABLES: dict[str, Callable[[Results], str]] = {
    "summary": summary,
    **{family: against(family) for family in COLUMNS},
    "methods": methods,
    "presets": presets,
    "targets": misses,
}


def last_directions(rows: list[Row]) -> list[Row]:
    """Of every case the row that has all of it: both directions where there are two."""
    return list({(row["operation"], str(row["sizes"]), row["dtype"]): row for row in rows}.values())


def case(row: Row) -> str:
    return f"{row['operation']} {words.shape(row)} {row['dtype']}"


def limit(row: Row) -> str:
    """Ours in the share of the least time, and what bounds that."""
    if row["limit"] is None or row["ours"] is None:
        return ""
    return f"{words.share(row['contestants'][row['ours']]['share_of_limit'])} ({row['limit']['bound']})"


def made(results: Results, family: str, device: str) -> str:
    doubt = results.doubts.get(f"{family}-{device}.json")
    return words.made(results.comparisons[family, device]["machine"], doubt)


def _way(row: Row) -> str:
    return "" if row["direction"] == "both" else f", {row['direction']}"


def _outside(row: Row | None, rows: list[Row]) -> tuple[str, ...]:
    """The share of the time outside the network, where a family measures it; of ``None`` the column's name."""
    name = next((name for other in rows for name in other["extras"] if name.startswith("outside")), None)
    if name is None:
        return ()
    if row is None:
        return ("outside the network",)
    value = row["extras"].get(name)
    return ("" if value is None else words.share(value),)


def _by_device(section: Callable[[str], str]) -> str:
    """The CPU's part as it is, the GPU's behind a line that says so."""
    cpu, gpu = (section(device) for device in DEVICES)
    return f"{cpu}\n\nOn a GPU: not measured yet." if gpu == words.NOT_YET else f"{cpu}\n\nOn a GPU:\n\n{gpu}"


def _as_machine(about: dict[str, Any]) -> dict[str, Any]:
    """A provenance of amkd_fast.distill with the names of benchmarks.machine."""
    short = about["commit"].removesuffix("-dirty")[:7] + ("+" if about["commit"].endswith("-dirty") else "")
    return {"load": None, **about, "commit": short}
