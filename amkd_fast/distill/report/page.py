"""A comparison as one HTML file that needs nothing beside itself."""

from __future__ import annotations

import base64
import functools
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template

from amkd_fast.distill.metrics import EVERY, METRICS, Metric
from amkd_fast.distill.report.charts import chart, strips
from amkd_fast.distill.report.curves import ACCURACY, LOGARITHMIC, Log, curves, losses, title, window_of
from amkd_fast.distill.report.finding import finding
from amkd_fast.distill.report.sizes import sizes
from amkd_fast.distill.report.statistics import EQUAL, FEW, FEWEST, LEVEL
from amkd_fast.distill.report.style import colours
from amkd_fast.distill.report.tables import chance, worst
from amkd_fast.distill.settings import ALL, METHODS

TEMPLATE = "page.html.jinja"
LONG = 12  # epochs whose last third has a chart of its own


class Plot(NamedTuple):
    """Heading, how to read it, and what somebody who cannot see it is told."""

    title: str
    reading: str
    alt: str


PLOTS = {
    "gaps": Plot(
        "The attack's path",
        "How far attacked test images are from the teacher's decision boundary after every step: above zero they still "
        "are in their class, below zero they have crossed.",
        "Median and quartiles of the gap by attack step for each preset; the numbers are in results.json.",
    ),
    "samples": Plot(
        "Boundary samples",
        "Test images, what the attack makes of them and the difference (red: brighter, blue: darker), with the "
        "teacher's probabilities of the classes before and after.",
        "A few test images in columns with their boundary samples and differences in rows.",
    ),
}


class Running(NamedTuple):
    """How far a comparison is whose page is shown while it runs."""

    done: int  # trainings
    of: int
    left: str  # time, in words; empty: nobody knows yet
    at: str
    final: str  # where the finished page is going to be, from this one
    reload: int  # seconds
    now: list[dict[str, Any]]  # the trainings that run: name, epoch, epochs, accuracy


def page(result: dict[str, Any], pictures: Mapping[str, bytes | list[bytes]], running: Running | None = None) -> str:
    """The report: every number in it is one of ``result``.

    Args:
        result: What goes to results.json. Of a comparison that runs: the same, as far as it is known.
        pictures: A PNG or several by name, of :data:`PLOTS`; others are not shown.
        running: Given while the comparison runs.
    """
    methods = result["methods"]
    measured = {name: EVERY[name] for name in next(iter(methods.values()))["qualities"]} if methods else {}
    said = finding(result if running is None else _whole_seeds(result))
    seeds = max((len(found["last"]["values"]) for found in methods.values()), default=0)
    names = _names(result)
    shown = list(dict.fromkeys(method for method, _ in _logs(result))) or names
    return _template().render(
        result=result,
        running=running,
        finding=said,
        sizes=sizes(result, said.best),
        charts=_charts(result, measured),
        tones=_tones(shown),
        window=window_of(_logs(result)),
        best=_best(methods, measured, told=running is None and len(methods) > 1),
        worst={
            name: worst(found["classes"], result["data"]["classes"])
            for name, found in result["methods"].items()
            if found.get("classes")  # not of runs of earlier versions
        },
        methods=names,
        planned=result["settings"].get("seeds", seeds),
        pictures={
            name: [base64.b64encode(part).decode() for part in ([content] if isinstance(content, bytes) else content)]
            for name, content in pictures.items()
        },
        plots={name: plot for name, plot in PLOTS.items() if name in pictures},
        qualities={name: quality for name, quality in measured.items() if name != "accuracy"},
        every_quality=measured,
        tests={name: [test for test in result["tests"] if test["quality"] == name] for name in measured},
        seeds=seeds,
        diverged={name: found["diverged"] for name, found in methods.items() if found.get("diverged")},
        level=100.0 * LEVEL,
        fewest=FEWEST,
        few=FEW,
        equal=EQUAL,
    )


@functools.cache
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_text)
    )
    environment.filters.update(number=number, chance=chance, named=named, network=network, radius=radius)
    return environment.get_template(TEMPLATE)


def _whole_seeds(result: dict[str, Any]) -> dict[str, Any]:
    """The result with those runs alone whose seed all methods of it have finished."""
    methods = set(result["methods"])
    have: dict[int, set[str]] = {}
    for run in result["runs"]:
        if run["last"] is not None or run["diverged"]:
            have.setdefault(run["seed"], set()).add(run["method"])
    return {**result, "runs": [run for run in result["runs"] if have.get(run["seed"]) == methods]}


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _tones(names: Iterable[str]) -> dict[str, str]:
    """The methods' colours; black is the page's ink, which is light where the page is dark."""
    return {name: "var(--ink)" if tone == "#000000" else tone for name, tone in colours(names).items()}


def _logs(result: dict[str, Any]) -> list[Log]:
    return [(run["method"], run["epochs"]) for run in result.get("runs", ()) if not run.get("diverged")]


def _names(result: dict[str, Any]) -> list[str]:
    """All methods of a comparison, whether they have begun or not."""
    chosen = result["settings"].get("methods", "")
    planned = METHODS if chosen == ALL else chosen.split(",") if chosen else ()
    return list(dict.fromkeys((*result["methods"], *planned)))


def _charts(result: dict[str, Any], measured: dict[str, Metric]) -> dict[str, Any]:
    logs, methods = _logs(result), result["methods"]
    tones = _tones(dict.fromkeys((*_names(result), *(method for method, _ in logs))))
    window = window_of(logs)
    if max((len(rows) for _, rows in logs), default=0) < 2:
        logs = []  # a point is no curve
    found = curves(logs, ACCURACY)
    teacher = result["qualities"]["teacher"]
    differences = []
    for quality, metric in measured.items():
        tests = [test for test in result["tests"] if test["quality"] == quality]
        rows = {f"{t['method']} − {t['baseline']}": {**t, "values": list(t["differences"].values())} for t in tests}
        heading = f"{metric.heading_of_differences} ({metric.better} is better)"
        differences.append(strips(heading, rows, [tones[test["method"]] for test in tests], 0.0))
    epochs = max((len(curve.mean) for curve in found), default=0)
    late = 2 * epochs // 3 + 1
    # A run that has just begun, or has not been tested there, is not among them.
    lasting = [curve for curve in found if epochs >= LONG and curve.mean[late - 1 :].count() > 1]
    return {
        "accuracy": chart("test accuracy, %", found, tones, mark=result["teacher_accuracy"]) if found else None,
        "late": chart("the last third of the epochs", lasting, tones, since=late) if lasting else None,
        "losses": [chart(title(part), curves(logs, part, window), tones, part in LOGARITHMIC) for part in losses(logs)],
        "qualities": [
            strips(
                f"{metric.heading} ({metric.better} is better)",
                {name: of["qualities"][quality] for name, of in methods.items()},
                [tones[name] for name in methods],
                teacher.get(quality),
            )
            for quality, metric in measured.items()
        ],
        "differences": differences,
    }


def _best(methods: dict[str, dict[str, Any]], measured: dict[str, Metric], told: bool) -> dict[str, set[str]]:
    """The methods that are best in each column of the results, as far as its digits tell; none unless ``told``."""
    columns = {name: (metric, [of["qualities"][name] for of in methods.values()]) for name, metric in measured.items()}
    columns |= {kind: (METRICS["accuracy"], [of[kind] for of in methods.values()]) for kind in ("last", "best")}
    found = {}
    for name, (metric, numbers) in columns.items():
        shown = {
            method: round(of["mean"], metric.digits)
            for method, of in zip(methods, numbers, strict=True)
            if of["mean"] is not None
        }
        end = (max if metric.better == "higher" else min)(shown.values(), default=None)
        found[name] = {method for method, value in shown.items() if value == end} if told else set()
    return found


def radius(value: float | None) -> str:
    """A radius in pixels of 0 to 1, in levels of 255 where it is a whole number of those.

    Example:
        >>> from amkd_fast.distill.report.page import radius
        >>> radius(8 / 255), radius(0.1), radius(None)
        ('8/255', '0.1', '–')
    """
    if value is None:
        return "–"
    levels = round(255.0 * value)
    return f"{levels}/255" if levels and abs(255.0 * value - levels) < 1e-4 else f"{value:.4g}"


def number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """A number with that many digits after the point, and a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def network(described: dict[str, Any]) -> str:
    """A network by name and, where it is known, size."""
    size = described.get("parameters")
    return described["name"] + ("" if size is None else f", {size:,} parameters")


def named(names: Iterable[str], values: dict[str, Any]) -> str:
    """Names with their values, without those that have none."""
    return ", ".join(f"{name} {values[name]}" for name in names if values.get(name) is not None)
