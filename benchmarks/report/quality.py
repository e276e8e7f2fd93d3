"""Tables of what the methods and the attacks achieve, not how fast they are."""

from __future__ import annotations

from typing import Any

from amkd_fast.distill.report.tables import chance
from benchmarks.report import words
from benchmarks.report.load import Results

METHODS = {
    "student": "student alone",
    "kd": "KD",
    "bss-official": "BSS, `official`",
    "bss-paper": "BSS, `paper`",
    "bss-zoo": "BSS, `zoo`",
    "bss-near_boundary": "BSS, `near_boundary`",
    "amkd": "AMKD",
    "triplet-ce": "triplet KD",
    "triplet-kd": "triplet KD with KL",
    "extended-kd": "Extended-KD",
    "jda-ccd": "JDA + CCD",
    "tald": "TALD",
    "mkd": "MKD",
    "dkd": "DKD",
    "rkd": "RKD",
    "fitnet": "FitNet",
    "at": "AT",
    "sp": "SP",
    "crd": "CRD",
    "reviewkd": "ReviewKD",
}


_TEST = "p: paired t-test, Holm-corrected over all pairs."


def methods(results: Results) -> str:
    """Accuracy and more of every method on the digits."""
    return methods_of(results, results.digits, "digits.json")


def methods_of(results: Results, found: dict[str, Any] | None, file: str) -> str:
    """Accuracy and more of every method over the seeds of ``amkd-distill compare``."""
    if found is None:
        return words.NOT_YET
    over_kd, teacher = _over_kd(found, "accuracy"), found["qualities"]["teacher"]
    first = (f"{teacher[name]:.1f}" if name else "" for name in ("accuracy", "", "", "pgd_accuracy", "ece", "", "", ""))
    lines = [("teacher", *first)]
    for name, about in found["methods"].items():
        qualities, crossed = about["qualities"], about["crossed_share"]
        line = [METHODS.get(name, f"`{name}`"), mean(about["last"]), mean(about["best"]), gain(over_kd.get(name))]
        line += [mean(qualities["pgd_accuracy"]), f"{qualities['ece']['mean']:.1f}"]
        line += [f"{qualities['agreement']['mean']:.1f}", "" if crossed is None else words.share(crossed)]
        lines.append((*line, f"{about['ms_per_step']:.0f}"))
    header = ("method", "last epoch", "best epoch*", "more than KD", "PGD", "ECE", "agreement", "crossed", "ms a step")
    images, seeds = found["images"], found["settings"]["seeds"]
    note = (
        f"Per cent of {images['test']} test images, mean of {seeds} seeds ± half the 95 % interval; the teacher has "
        f"{images['teacher']} training images, the students {images['student']} of them. {_TEST} \\* chosen on the "
        f"test set. {words.made(results, file)}"
    )
    return f"{words.table(header, lines)}\n\n{note}"


def dropped(results: Results) -> str:
    """Accuracy on labels that the student never saw, and on all, of every method on the digits."""
    return dropped_of(results, results.dropped, "digits-dropped.json")


def dropped_of(results: Results, found: dict[str, Any] | None, file: str) -> str:
    """Accuracy on labels that the student never saw, and on all, over the seeds of ``amkd-distill compare``."""
    if found is None:
        return words.NOT_YET
    told = ("unseen_accuracy", "unseen_choice_accuracy")
    over_kd, teacher = [_over_kd(found, name) for name in told], found["qualities"]["teacher"]
    lines = [("teacher", f"{teacher[told[0]]:.1f}", "", f"{teacher[told[1]]:.1f}", "", f"{teacher['accuracy']:.1f}")]
    for name, about in found["methods"].items():
        cells = [
            cell
            for quality, over in zip(told, over_kd, strict=True)
            for cell in (mean(about["qualities"][quality]), gain(over.get(name)))
        ]
        lines.append((METHODS.get(name, f"`{name}`"), *cells, mean(about["last"])))
    header = (
        f"method, labels {' and '.join(found['data']['dropped'])} dropped",
        *("on these", "more than KD", "choosing among these", "more than KD", "on all labels"),
    )
    note = (
        f"Per cent of the test images after the last epoch, mean of {found['settings']['seeds']} seeds ± half the 95 % "
        f"interval; the students have {found['images']['student']} training images. Choosing among these labels alone, "
        f"chance has {100 / len(found['data']['dropped']):.0f}. {_TEST} {words.made(results, file)}"
    )
    return f"{words.table(header, lines)}\n\n{note}"


def _over_kd(found: dict[str, Any], quality: str) -> dict[str, dict[str, Any]]:
    """The paired tests against KD, by method."""
    return {test["method"]: test for test in found["tests"] if (test["quality"], test["baseline"]) == (quality, "kd")}


def mean(numbers: dict[str, Any], digits: int = 1) -> str:
    """Mean over the seeds ± half its interval."""
    half = "" if numbers["low"] is None else f" ± {(numbers['high'] - numbers['low']) / 2:.{digits}f}"
    return f"{numbers['mean']:.{digits}f}{half}"


def gain(test: dict[str, Any] | None) -> str:
    """A paired difference, its interval and p."""
    if test is None:
        return ""
    if test["low"] is None or test["p_holm"] is None:
        return f"{test['mean']:+.1f}"
    return f"{test['mean']:+.1f} ({test['low']:+.1f} to {test['high']:+.1f}), p {chance(test['p_holm'])}"


def presets(results: Results) -> str:
    """How each preset's boundary samples end, on the digits' teacher and on the network of the whole attacks."""
    digits, rows = (results.presets or {"presets": {}})["presets"], results.rows("cpu", "whole_attack")
    whole = dict(item for row in rows for item in row["extras"].get("presets", {}).items())
    if not digits and not whole:
        return words.NOT_YET

    def cells(found: dict[str, Any] | None) -> tuple[str, ...]:
        if found is None:
            return "", "", ""
        ends = " / ".join(words.share(found[name]) for name in ("crossed", "third", "accepted"))
        return ends, words.digits(found["gap_over_start"]), words.digits(found["gradients"])

    lines = [(f"`{name}`", *cells(digits.get(name)), *cells(whole.get(name))) for name in {**digits, **whole}]
    header = ("preset", "digits", "gap", "gradients", "CIFAR-10", "gap", "gradients")
    notes = [
        "Crossed / third class / accepted; median final gap over starting gap; gradients a sample; one run, no spread."
    ]
    notes += [f"Digits: {words.made(results, 'presets-digits.json')}"] * bool(digits)
    notes += [f"CIFAR-10: {words.made(results, 'whole_attack-cpu.json')}"] * bool(whole)
    return f"{words.table(header, lines)}\n\n{' '.join(notes)}"
