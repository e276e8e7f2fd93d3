"""A comparison as one HTML file that needs nothing beside itself."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined

from amkd_fast.distill.metrics import EVERY
from amkd_fast.distill.report.statistics import LEVEL
from amkd_fast.distill.report.tables import chance, worst

TEMPLATE = "page.html.jinja"


class Plot(NamedTuple):
    """Heading, how to read it, and what somebody who cannot see it is told."""

    title: str
    reading: str
    alt: str


PLOTS = {
    "accuracy": Plot(
        "Accuracy",
        "Each dot is one seed (filled: last epoch, hollow: best epoch); the bar is mean and 95 % interval over the "
        "seeds, the dotted line the teacher.",
        "Test accuracy of every method, single seeds with mean and interval; the numbers are in the first table.",
    ),
    "qualities": Plot(
        "Qualities",
        "One panel a quality, after the last epoch: each dot is one seed, the bar is mean and 95 % interval, the "
        "dotted line the teacher; the panel's title says which direction is better.",
        "A panel for every quality with all methods; the numbers are in the first table.",
    ),
    "differences": Plot(
        "Differences",
        "Each dot is what the method has more than the baseline with the same seed; an interval off the zero line "
        "speaks for a difference, before the correction for many comparisons.",
        "A panel for every quality with the paired differences; the numbers are in the tables of the paired tests.",
    ),
    "loss_curves": Plot(
        "Losses",
        "Each part of the training loss by epoch: the line is the mean over the seeds, the band reaches from the "
        "lowest to the highest seed; methods without a part are not in its panel.",
        "Training losses by epoch in four panels; the numbers are in results.csv.",
    ),
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


def page(result: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """The report: every number in it is one of ``result``.

    Args:
        result: What goes to results.json.
        pictures: PNGs by name, of :data:`PLOTS`.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=number, chance=chance, named=named, network=network)
    measured = {name: EVERY[name] for name in next(iter(result["methods"].values()))["qualities"]}
    template = environment.from_string(files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        result=result,
        pictures={name: base64.b64encode(content).decode() for name, content in pictures.items()},
        plots={name: plot for name, plot in PLOTS.items() if name in pictures},
        qualities={name: quality for name, quality in measured.items() if name != "accuracy"},
        every_quality=measured,
        tests={name: [test for test in result["tests"] if test["quality"] == name] for name in measured},
        seeds=max(len(found["last"]["values"]) for found in result["methods"].values()),
        diverged={name: found["diverged"] for name, found in result["methods"].items() if found["diverged"]},
        worst={
            name: worst(found["classes"], result["data"]["classes"])
            for name, found in result["methods"].items()
            if found.get("classes")  # not of runs of earlier versions
        },
        level=100.0 * LEVEL,
    )


def number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """A number with that many digits after the point, and a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def network(described: dict[str, Any]) -> str:
    """A network by name and size."""
    return f"{described['name']}, {described['parameters']:,} parameters"


def named(names: Iterable[str], values: dict[str, Any]) -> str:
    """Names with their values, without those that have none."""
    return ", ".join(f"{name} {values[name]}" for name in names if values.get(name) is not None)
