"""What a comparison found, in a sentence or two."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

from amkd_fast.distill.report.statistics import FEWEST, LEVEL, paired
from amkd_fast.distill.report.tables import chance

BASELINE = "kd"


class Finding(NamedTuple):
    """``best``, and what is said of it; ``more`` on the next one. Empty where there is nothing to say."""

    best: str
    says: str
    more: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (f"{self.best} {self.says}".strip(), self.more) if part)


def finding(result: dict[str, Any]) -> Finding:
    """Which method reaches most, by how much, and whether that can be told from chance.

    Judged by the accuracy after the last epoch, against ``kd`` where it is among the methods, and the next best. The
    tests of pairs that ``result`` holds keep the p that is corrected there; of others it is the paired t-test's own.

    Args:
        result: What goes to results.json; of a comparison that runs, only seeds that all its methods have count.
    """
    values = _values(result)
    known = {method: [value for value in of.values() if value is not None] for method, of in values.items()}
    means = {method: statistics.fmean(of) for method, of in known.items() if of}
    if not means:
        return Finding("", "Every run diverged." if known else "no seed is complete yet.")
    order = sorted(means, key=lambda method: -means[method])
    best, others = order[0], order[1:]
    seeds = len(known[best])
    over = "one seed" if seeds == 1 else f"{seeds} seeds"
    if not others:
        return Finding(best, f"reaches {means[best]:.2f} % after the last epoch ({over}).")

    def against(other: str) -> str:
        return _verdict(_test(result["tests"], best, other, values))

    reference = BASELINE if BASELINE in others else others[0]
    ahead = means[best] - means[reference]
    verdict = against(reference)
    verb = "is best" if verdict.startswith("significant") else "leads"
    said = f"{verb} with {means[best]:.2f} %, {ahead:.2f} points above {reference}: {verdict}."
    if reference == others[0]:
        return Finding(best, said)
    behind = means[best] - means[others[0]]
    return Finding(best, said, f"Next is {others[0]}, {behind:.2f} points behind: {against(others[0])}.")


def _values(result: dict[str, Any]) -> dict[str, dict[int, float | None]]:
    """Accuracies by method and seed."""
    if "runs" not in result:  # it was cut down to what is told of the methods
        return {method: dict(enumerate(found["last"]["values"])) for method, found in result["methods"].items()}
    values: dict[str, dict[int, float | None]] = {}
    for run in result["runs"]:
        values.setdefault(run["method"], {})[run["seed"]] = run["last"]
    return values


def _test(
    tests: list[dict[str, Any]], best: str, other: str, values: dict[str, dict[int, float | None]]
) -> dict[str, Any]:
    for test in tests:
        if (test["quality"], test["method"], test["baseline"]) == ("accuracy", best, other):
            return test
    return paired(values[best], values[other])


def _verdict(test: dict[str, Any]) -> str:
    n = test["n"]
    if n < FEWEST:
        return f"too few seeds ({n}) to tell that from chance"
    if test["p"] is None:  # there is no spread
        return f"the same with each of {n} seeds"
    p = test.get("p_holm", test["p"])
    word = "significant" if p < 1.0 - LEVEL else "not significant"
    said = chance(p)
    return f"{word} (p {said if said.startswith('<') else f'= {said}'}, paired t-test over {n} seeds)"
