"""What a comparison reports: statistics, qualities, files, plots and the page, each against an independent count."""

from __future__ import annotations

import copy
import csv
import doctest
import functools
import io
import json
import math
import re
import subprocess
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the extra `train` is not installed")

import scipy.stats

from amkd_fast.attacks import PGD, BoundaryAttack, Status, frozen
from amkd_fast.distill import data as datasets
from amkd_fast.distill import metrics, networks, report
from amkd_fast.distill.attack_examples import attack_examples
from amkd_fast.distill.data import subsets
from amkd_fast.distill.fit import Run
from amkd_fast.distill.metrics import METRICS, OF_DROPPED_LABELS, Metric
from amkd_fast.distill.networks import Spec
from amkd_fast.distill.report import (
    charts,
    curves,
    finding,
    page,
    panels,
    plots,
    provenance,
    samples,
    screen,
    sizes,
    statistics,
    style,
    summary,
    tables,
)
from amkd_fast.distill.settings import METHODS, Settings

NAMES = ("student", "kd", "bss-official", "bss-paper", "bss-zoo", "bss-near_boundary", "amkd")
EVIL = "<script>alert('x')</script>&\"$\\frac{"
SMALL = Settings(teacher_images=128, student_images=48)


@functools.cache
def digits():
    return datasets.load(SMALL)


pytestmark = pytest.mark.usefixtures("one_thread")


def run(method, seed, **changed):
    """Made-up results of a run, other ones for every method and seed."""
    draws = np.random.default_rng([NAMES.index(method) if method in NAMES else 99, seed])
    rows = []
    for epoch in range(4):
        row = {"epoch": epoch, "lr": 0.1, "accuracy": 80.0 + 10.0 * draws.random(), "ms_per_step": 5.0}
        row |= {"total": 2.0, "ce": 1.0 + draws.random()}
        if method != "student":
            row["kl"] = draws.random()
        if method.startswith(("bss", "amkd")) and epoch < 3:
            row |= {"boundary": draws.random(), "attacked": 40, "accepted": 30, "crossed": 20, "third": 4}
        rows.append(row)
    found = {name: float(draws.random()) for name in METRICS}
    found["accuracy"] = rows[-1]["accuracy"]
    return Run(None, rows, {**found, **changed})


NEIGHBOURING = {
    "tald": "particles",
    "jda-ccd": "augmented",
    "rkd": "angle",
    "extended-kd": "segments",
}  # parts of theirs


def made_up(names=NAMES, seeds=5):
    return {(method, seed): run(method, seed) for method in names for seed in range(seeds)}


def result_of(runs, **changed):
    """A results.json as `compare` writes it."""
    result = {
        "kind": "compare",
        "environment": {**report.environment(), "device": "cpu"},
        "settings": Settings().as_dict(),
        "jobs": 1,
        "data": {"classes": list("0123456789"), "dropped": [], "shape": [1, 8, 8]},
        "images": {"teacher": 128, "student": 48, "test": 797},
        "networks": {
            "teacher": {"name": "small-2-1", "parameters": 900},
            "teacher_source": "trained here",
            "student": {"name": "small-2-1", "parameters": 900},
        },
        "teacher_accuracy": 97.5,
        "methods": summary.summarise(runs),
        "qualities": {
            "protocol": metrics.protocol(digits(), SMALL),
            "teacher": {"accuracy": 97.5, "ece": 1.25, "nll": 0.125, "pgd_accuracy": 44.5},
        },
        "tests": summary.paired_tests(runs),
        "runs": [
            {"method": method, "seed": seed, "last": run.last, "best": run.best, "diverged": None, "epochs": run.rows}
            for (method, seed), run in runs.items()
        ],
        "seconds": 12.0,
        **changed,
    }
    return json.loads(report.to_json(result))


# --- statistics


def test_interval_of_the_mean_by_hand_and_by_scipy():
    found = statistics.describe([1.0, 2.0, 3.0, 4.0, None, 5.0])
    # sd = √2.5, t(0.975, 4) = 2.776445
    assert (found["mean"], found["n"], found["reason"]) == (3.0, 5, None)
    assert found["sd"] == pytest.approx(math.sqrt(2.5))
    half = 2.7764451051977987 * math.sqrt(2.5) / math.sqrt(5.0)
    assert (found["low"], found["high"]) == pytest.approx((3.0 - half, 3.0 + half))
    values = [0.3, 0.7, 0.1, 0.45]
    expected = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
    found = statistics.describe(values)
    assert (found["low"], found["high"]) == pytest.approx(expected)


def test_what_cannot_be_computed_is_none_and_says_why():
    empty = {"mean": None, "sd": None, "low": None, "high": None, "n": 0}
    assert statistics.describe([]) == statistics.describe([None, None]) == {**empty, "reason": "not measured"}
    single = statistics.describe([None, 4.0])
    assert single == {**empty, "mean": 4.0, "n": 1, "reason": "a single seed has no spread"}
    for value in (0.0, 0.1, 97.11417):
        equal = statistics.describe([value] * 3)
        assert equal["mean"] == pytest.approx(value)
        assert equal["sd"] == pytest.approx(0.0, abs=1e-12)
        assert equal["low"] is equal["high"] is None
        assert equal["reason"].startswith("all values are equal")
    assert statistics.describe([97.1, 97.1 + 1e-4, 97.1])["low"] is not None  # small is not equal
    two = statistics.describe([97.0, 98.0])
    assert (two["mean"], two["low"], two["high"]) == (97.5, None, None)
    assert two["reason"] == "fewer than 3 seeds: no interval"


def test_paired_test_by_hand_and_by_scipy():
    method, baseline = {0: 3.0, 1: 5.0, 2: 4.0, 3: 8.0}, {0: 2.0, 1: 3.0, 2: 3.0, 3: 4.0}
    found = statistics.paired(method, baseline)
    # differences 1, 2, 1, 4: mean 2, sd √2, t = 2/(√2/2) = 2√2 with 3 degrees of freedom
    assert found["differences"] == {0: 1.0, 1: 2.0, 2: 1.0, 3: 4.0}
    assert (found["mean"], found["sd"], found["n"]) == (2.0, pytest.approx(math.sqrt(2.0)), 4)
    assert found["p"] == pytest.approx(2.0 * scipy.stats.t.sf(2.0 * math.sqrt(2.0), 3))
    expected = scipy.stats.ttest_rel(list(method.values()), list(baseline.values()))
    assert found["p"] == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
    reverse = statistics.paired(baseline, method)
    assert (reverse["mean"], reverse["p"]) == (-2.0, found["p"])


def test_pairs_need_both_seeds_and_a_spread():
    found = statistics.paired({0: 1.0, 1: None, 2: 5.0, 3: 2.0}, {0: 2.0, 1: 1.0, 2: 4.0, 7: 0.0})
    assert found["differences"] == {0: -1.0, 2: 1.0}
    assert found["p"] is None
    assert found["reason"] == "fewer than 3 seeds: no interval"
    assert statistics.paired({0: 1.0}, {0: 3.0}) == {
        "mean": -2.0,
        "sd": None,
        "low": None,
        "high": None,
        "n": 1,
        "reason": "a single seed has no spread",
        "p": None,
        "differences": {0: -2.0},
    }
    assert statistics.paired({0: 1.0}, {1: 3.0})["reason"] == "not measured"
    # Equal but for float32's rounding, once with differences of 0 and once with others.
    for shift in (0.0, 0.12547):
        baseline = {seed: float(np.float32(91.3 + seed / 7)) for seed in range(4)}
        method = {seed: float(np.float32(91.3 + seed / 7 + shift)) for seed in range(4)}
        found = statistics.paired(method, baseline)
        assert found["mean"] == pytest.approx(shift, abs=1e-5)
        assert found["p"] is found["low"] is found["high"] is None
        assert found["reason"].startswith("all values are equal")


def test_holm():
    assert statistics.holm([]) == []
    assert statistics.holm([None]) == [None]
    assert statistics.holm([0.2]) == [0.2]
    # Sorted 0.005, 0.01, 0.03, 0.04; times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04, the last no less than the one before.
    assert statistics.holm([0.01, 0.04, 0.03, None, 0.005]) == pytest.approx([0.03, 0.06, 0.06, None, 0.02])
    assert statistics.holm([0.6, 0.5, 0.9]) == [1.0, 1.0, 1.0]
    assert statistics.holm([0.02, 0.02]) == [0.04, 0.04]


def test_examples_in_the_docstrings():
    for module in (statistics, curves, page, sizes):
        found = doctest.testmod(module)
        assert found.failed == 0
        assert found.attempted > 0


def test_which_pairs_are_compared():
    assert statistics.pairs(["student", "kd", "bss-zoo", "amkd", "new"]) == [
        ("student", "kd"),
        ("bss-zoo", "kd"),
        ("amkd", "kd"),
        ("new", "kd"),
        ("amkd", "bss-zoo"),
    ]
    assert statistics.pairs(["student", "bss-zoo", "amkd"]) == [("amkd", "bss-zoo")]
    assert statistics.pairs(["student", "bss-zoo"]) == statistics.pairs(["kd"]) == statistics.pairs([]) == []


def test_tests_of_a_comparison():
    runs = made_up()
    rows = summary.paired_tests(runs)
    assert len(rows) == len(METRICS) * (6 + 4)
    for quality in METRICS:
        part = [row for row in rows if row["quality"] == quality]
        for row in part:
            sides = [[runs[row[side], seed].qualities[quality] for seed in range(5)] for side in ("method", "baseline")]
            assert row["p"] == pytest.approx(scipy.stats.ttest_rel(*sides).pvalue)
        assert [row["p_holm"] for row in part] == statistics.holm([row["p"] for row in part])
    runs["kd", 0] = runs["kd", 0]._replace(qualities=None)
    runs["kd", 1].qualities["ece"] = None
    counts = {row["quality"]: row["n"] for row in summary.paired_tests(runs) if row["method"] == "student"}
    assert counts == {quality: 3 if quality == "ece" else 4 for quality in METRICS}
    assert summary.summarise(runs)["kd"]["qualities"]["ece"]["values"][:2] == [None, None]


# --- qualities


def tiny(seed, width=2):
    """A network that has learnt a little, so that it has boundaries."""
    return copy.deepcopy(taught(seed, width))


@functools.cache
def taught(seed, width):
    data = digits()
    network = networks.build(Spec(f"small-{width}-1", 1, 10), seed).train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    images = data.teacher.images
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(images), data.teacher.labels).backward()
        optimiser.step()
    return network.eval()


def few(data, count=90):
    return replace(data, test=data.test.take(slice(count)))


def test_qualities_by_direct_computation():
    data = few(digits())
    images, labels = data.test.images, data.test.labels
    student, teacher = tiny(1), tiny(2, width=4)
    state = torch.get_rng_state()
    found = metrics.measure(student, teacher, data, SMALL)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(found) == list(METRICS)
    assert found == metrics.measure(student, teacher, data, SMALL)
    with torch.no_grad():
        p, q = student(images).double().softmax(1), teacher(images).double().softmax(1)
    right = p.argmax(1) == labels
    assert 30.0 < found["accuracy"] < 100.0
    assert found["accuracy"] == pytest.approx(100.0 * float(right.double().mean()))
    assert found["agreement"] == pytest.approx(100.0 * float((p.argmax(1) == q.argmax(1)).double().mean()))
    assert found["nll"] == pytest.approx(-float(p[range(90), labels].log().mean()))
    assert found["fidelity_kl"] == pytest.approx(float((q * (q / p).log()).sum(1).mean()))
    confidence, error = p.max(1).values, 0.0
    for place in range(15):
        inside = (confidence > place / 15) & (confidence <= (place + 1) / 15)
        if inside.any():
            error += float(inside.double().mean() * (confidence[inside].mean() - right[inside].double().mean()).abs())
    assert found["ece"] == pytest.approx(100.0 * error, rel=1e-5)

    bounds = {"lower": 0.0, "upper": 1.0}
    attack = PGD(frozen(student), eps=0.1, steps=10, random_start=True, compact=True, **bounds)
    held = attack(images, torch.where(right, labels, 0), valid=right, seed=0).logits.argmax(1) == labels
    assert found["pgd_accuracy"] == pytest.approx(100.0 * float((held & right).double().mean()))
    assert found["pgd_accuracy"] < found["accuracy"]

    both = right & (q.argmax(1) == labels)
    target = q.scatter(1, labels[:, None], -1.0).argmax(1)
    moved = []
    for network in (student, teacher):
        attack = BoundaryAttack(network, preset="near_boundary", steps=10, retarget=False, **bounds)
        ends = attack(images[both], labels[both], target[both])
        moved.append(((ends.images - images[both]).double().flatten(1), ends.status == Status.CROSSED))
        assert ends.images.min() >= 0.0
    (one, crossed), (other, met) = moved
    one, other = one[crossed & met], other[crossed & met]
    lengths = torch.stack([one.norm(dim=1), other.norm(dim=1)])
    assert len(one) > 20
    assert found["magsim"] == pytest.approx(float((lengths.min(0).values / lengths.max(0).values).mean()))
    assert found["angsim"] == pytest.approx(float(((one * other).sum(1) / lengths.prod(0)).mean()))


def test_qualities_of_a_network_and_itself():
    data = few(digits())
    teacher = tiny(2)
    alone, itself = metrics.measure(teacher, None, data, SMALL), metrics.measure(teacher, teacher, data, SMALL)
    assert tuple(alone) == metrics.OF_THE_TEACHER
    assert {name: itself[name] for name in alone} == alone
    assert (itself["agreement"], itself["fidelity_kl"]) == (100.0, 0.0)
    assert (itself["magsim"], itself["angsim"]) == pytest.approx((1.0, 1.0))


def test_accuracy_on_dropped_labels_by_direct_computation():
    data, network = few(digits()), tiny(1)
    with torch.no_grad():
        network.head.bias[[3, 7]] -= 100.0  # as training on labels does to those that it never names
        logits = network(data.test.images)
    of_these = [row for row, label in enumerate(data.test.labels.tolist()) if label in (3, 7)]
    right = sum((3 if logits[row, 3] > logits[row, 7] else 7) == data.test.labels[row] for row in of_these)
    found = metrics.measure(network, None, replace(data, dropped=(3, 7)), SMALL)
    assert list(found) == [*metrics.OF_THE_TEACHER, *OF_DROPPED_LABELS]
    assert found["unseen_accuracy"] == 0.0
    assert found["unseen_choice_accuracy"] == pytest.approx(100.0 * int(right) / len(of_these))
    assert 50.0 < found["unseen_choice_accuracy"] < 100.0
    one = metrics.measure(network, None, replace(data, dropped=(3,)), SMALL)  # with nothing to choose from
    assert list(one) == [*metrics.OF_THE_TEACHER, "unseen_accuracy"]
    with torch.no_grad():
        network.head.bias.fill_(math.nan)
    broken = metrics.measure(network, None, replace(data, dropped=(3, 7)), SMALL)
    assert (broken["unseen_accuracy"], broken["unseen_choice_accuracy"]) == (0.0, 0.0)


def test_qualities_that_cannot_be_measured_are_none():
    data = few(digits(), 20)
    student, teacher = tiny(1), tiny(2)
    with torch.no_grad():
        student.head.bias.fill_(math.nan)
    found = metrics.measure(student, teacher, data, SMALL)
    assert found == {**dict.fromkeys(METRICS), "accuracy": 0.0}
    with torch.no_grad():  # always wrong, so that there is no pair of boundary samples
        student.head.weight.zero_()
        student.head.bias.copy_(torch.arange(10.0))
    nines = data.test.labels != 9
    found = metrics.measure(student, teacher, replace(data, test=data.test.take(nines)), SMALL)
    assert (found["accuracy"], found["pgd_accuracy"], found["magsim"], found["angsim"]) == (0.0, 0.0, None, None)
    assert found["nll"] > 1.0


def test_radius_and_number_of_attacked_images():
    data = digits()
    assert metrics.radius(Settings()) == 0.1
    assert metrics.radius(Settings(data="pets")) == 8 / 255
    assert metrics.protocol(data, Settings())["attacked_images"] == 500
    assert metrics.protocol(data, Settings(quality_images=7))["attacked_images"] == 7
    assert metrics.radius(Settings(pgd_eps=0.0)) == 0.0
    assert subsets.evenly(10, 5).tolist() == [0, 2, 4, 6, 8]
    assert subsets.evenly(3, 5).tolist() == subsets.evenly(3, 0).tolist() == [0, 1, 2]
    assert subsets.evenly(0, 5).tolist() == []


def test_measuring_the_digits_takes_seconds():
    data = digits()
    student, teacher = (networks.build(Spec(name, 1, 10), 0) for name in ("small-4-1", "small-16-2"))
    start = time.process_time()  # which other processes take nothing of
    metrics.measure(student, teacher, data, SMALL)
    assert time.process_time() - start < 20.0  # 2 s on an idle machine


# --- environment


def git(folder, *words):
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_of_a_checkout(tmp_path, monkeypatch):
    assert provenance.commit(tmp_path) is None
    assert provenance.commit(tmp_path / "nowhere") is None
    git(tmp_path, "init", "-q")
    assert provenance.commit(tmp_path) is None  # nothing committed yet
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "untracked").write_text("x")
    assert provenance.commit(tmp_path) == head
    (tmp_path / "file").write_text("two")
    assert provenance.commit(tmp_path) == head + "-dirty"
    with monkeypatch.context() as patch:
        patch.setenv("GIT_DIR", str(tmp_path / ".git"))
        assert provenance.commit(tmp_path.parent) is None
    (tmp_path / "site-packages").mkdir()
    assert provenance.commit(tmp_path / "site-packages") is None  # installed inside somebody's checkout
    for failure in (FileNotFoundError("git"), subprocess.TimeoutExpired("git", 5.0), PermissionError("git")):

        def fail(*_, failure=failure, **__):
            raise failure

        with monkeypatch.context() as patch:
            patch.setattr(provenance.subprocess, "run", fail)
            assert provenance.commit(tmp_path) is None


def test_environment_is_plain(tmp_path):
    found = report.environment()
    assert json.loads(json.dumps(found)) == found
    assert {"amkd_fast", "commit", "torch", "lightning", "triton", "numpy", "cpu", "date", "threads"} <= set(found)
    assert found["numpy"] == np.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["date"])
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A fine CPU: fast\n")
    assert provenance._cpu(tmp_path / "cpuinfo") == "A fine CPU: fast"
    provenance._cpu(tmp_path / "nowhere")
    assert provenance._version("no-such-package") is None


# --- files


def test_strict_json():
    assert json.loads(report.to_json({"a": [math.nan, math.inf, (1.0, None)], "ä": {"b": -math.inf}})) == {
        "a": [None, None, [1.0, None]],
        "ä": {"b": None},
    }


def test_summary_csv():
    runs = made_up(("kd", "amkd"), 3)
    runs["kd", 0].qualities["ece"] = runs["kd", 1].qualities["ece"] = runs["kd", 2].qualities["ece"] = None
    methods = summary.summarise(runs)
    rows = list(csv.DictReader(io.StringIO(tables.summary_csv(methods))))
    assert [(row["method"], row["quality"]) for row in rows] == [
        (method, quality) for method in ("kd", "amkd") for quality in ("best_accuracy", *METRICS)
    ]
    for row in rows:
        found = methods[row["method"]]
        numbers = found["best"] if row["quality"] == "best_accuracy" else found["qualities"][row["quality"]]
        for name in ("mean", "sd", "low", "high", "n"):
            assert (float(row[name]) if row[name] else None) == numbers[name]
    assert next(row for row in rows if row["quality"] == "ece")["mean"] == ""


# --- plots


def test_colours_know_every_method_and_take_any_name():
    found = style.colours([*METHODS, "new", "newer"])
    assert len(set(found.values())) == len(METHODS) + 2
    assert style.colours(["new"]) == {"new": style.OTHERS[0]}
    many = style.colours([f"method {n}" for n in range(20)])
    assert len(set(many.values())) == len(style.OTHERS)
    assert style.colours(["near_boundary"])["near_boundary"] == style.COLOURS["bss-near_boundary"]


def overlaps(figure):
    """Labels of rows or ticks of a figure that lie on each other, and texts outside of it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    outside, found = figure.bbox, []
    for axes in figure.axes:
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            shown = [label for label in labels if label.get_visible() and label.get_text()]
            boxes = [(label.get_text(), label.get_window_extent(renderer)) for label in shown]
            inside = [(name, box) for name, box in boxes if box.width > 0]
            found += [(a, b) for n, (a, x) in enumerate(inside) for b, y in inside[n + 1 :] if x.overlaps(y)]
        title = axes.title.get_window_extent(renderer)
        if title.x0 < 0 or title.x1 > outside.x1:
            found.append(axes.title.get_text())
        found += [
            name for name, box in boxes if axes.get_visible() and box.width > 0 and (box.x0 < 0 or box.x1 > outside.x1)
        ]
    titles = [(axes.get_title(), axes.title.get_window_extent(renderer)) for axes in figure.axes if axes.get_title()]
    found += [(a, b) for n, (a, x) in enumerate(titles) for b, y in titles[n + 1 :] if x.overlaps(y)]
    return found


@pytest.mark.parametrize("names", [("kd", "amkd"), (*NAMES, "a-method-with-quite-a-long-name"), METHODS])
@pytest.mark.parametrize("dropped", [False, True])
def test_labels_of_the_plots_do_not_overlap(names, dropped):
    runs = made_up(names)
    for found in runs.values() if dropped else ():
        found.qualities.update(dict.fromkeys(OF_DROPPED_LABELS, 40.0 + 0.01 * found.rows[0]["accuracy"]))
    for (method, _), found in runs.items():
        for row in found.rows if method in NEIGHBOURING else ():
            row[NEIGHBOURING[method]] = 0.5 * row["ce"]
    result = result_of(runs)
    with style.look():
        figures = {
            "qualities": panels.qualities.__wrapped__(result["methods"], result["qualities"]["teacher"]),
            "differences": panels.differences.__wrapped__(result["tests"]),
        }
        if not dropped:  # nothing in these knows of dropped labels
            figures["accuracy"] = plots.accuracy.__wrapped__(result["methods"], 97.5)
            figures["accuracy_curves"] = plots.accuracy_curves.__wrapped__(runs, 97.5)
            figures["loss_curves"] = plots.loss_curves.__wrapped__(runs)
        assert {name: overlaps(figure) for name, figure in figures.items()} == {name: [] for name in figures}


@pytest.mark.parametrize("seeds", [1, 2])
def test_plots_of_what_is_missing_and_of_odd_names(seeds, recwarn):
    runs = made_up(("kd", EVIL, "bss-x", "amkd"), seeds)
    for (_, seed), found in runs.items():
        found.qualities["magsim"] = None
        found.qualities["nll"] = None if seed else 0.5
    result = result_of(runs)
    for png in (
        plots.accuracy(result["methods"], 97.5),
        panels.qualities(result["methods"], {}),
        panels.differences(result["tests"]),
        plots.loss_curves(runs),
        plots.gaps({}),
        plots.gaps(
            {name: {"steps": [[1.0, 2.0, 3.0]] * 3, "final": [0.0, 0.1, 0.2]} for name in ("paper", "x", "zoo")}
        ),
    ):
        assert png.startswith(b"\x89PNG")
    assert [str(warning.message) for warning in recwarn] == []


def test_samples_of_odd_classes_and_of_none():
    data = few(digits(), 40)
    data = replace(data, classes=tuple(f"{EVIL}{n}" for n in range(10)))
    look = attack_examples(tiny(2), data, SMALL)
    assert samples.samples(look, data).startswith(b"\x89PNG")
    assert len(look.quartiles()) == 2
    labels = (tiny(2)(data.test.images).argmax(1) + 1) % 10
    wrong = replace(data, test=replace(data.test, labels=labels))
    look = attack_examples(tiny(2), wrong, SMALL)
    assert look.quartiles() == {}
    assert samples.samples(look, wrong).startswith(b"\x89PNG")


# --- page


class Reader(HTMLParser):
    """Checks the nesting, and collects tags, texts and the cells of tables by id or quality."""

    VOID = ("meta", "img", "br", "hr", "link", "input")

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.texts, self.tables, self.cells = [], [], [], {}, None
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        assert len(found) == len(attributes), f"an attribute twice in <{tag}>"
        self.tags.append((tag, found))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.cells = self.tables.setdefault(found.get("id") or found.get("data-quality") or len(self.tables), [])
        elif tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th"):
            self.cells[-1].append("")
        elif tag == "small" and "td" in self.open:
            self.cells[-1][-1] += "|"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, content):
        self.texts.append(content)
        if "td" in self.open or "th" in self.open:
            self.cells[-1][-1] += content.strip()


def make_page(result, pictures=None):
    return Reader(page.page(result, pictures or dict.fromkeys(page.PLOTS, b"\x89PNG")))


def as_number(cell):
    return None if cell == "–" else float(cell.replace("−", "-"))


def close(cell, value, digits):
    if value is None:
        return as_number(cell) is None
    return as_number(cell) == pytest.approx(value, abs=0.5001 * 10.0**-digits)


def test_page_is_well_formed_and_stands_alone():
    result = result_of(made_up())
    source = page.page(result, dict.fromkeys(page.PLOTS, b"\x89PNG"))
    assert source.startswith("<!doctype html>")
    found = Reader(source)
    tags = [tag for tag, _ in found.tags]
    assert {tag: tags.count(tag) for tag in ("html", "head", "body", "h1")} == dict.fromkeys(
        ("html", "head", "body", "h1"), 1
    )
    assert "<title>amkd-distill compare: digits, 5 seeds</title>" in source
    assert ("html", {"lang": "en"}) in found.tags
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & set(tags)
    assert "http-equiv" not in source
    images = [attributes for tag, attributes in found.tags if tag == "img"]
    assert len(images) == len(page.PLOTS)
    assert all(image["src"].startswith("data:image/png;base64,") and len(image["alt"]) > 20 for image in images)
    for tag, attributes in found.tags:
        assert tag == "img" or not {"src", "srcset", "background", "data"} & set(attributes)
        assert attributes.get("href", "#")[0] == "#"
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"https?://|url\(|@import|javascript:", source)
    places = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(set(places)) == len(places)
    targets = [attributes["href"][1:] for tag, attributes in found.tags if tag == "a"]
    assert len(targets) > 8
    assert set(targets) <= set(places)
    assert "prefers-color-scheme: dark" in source
    assert "max-width: 1100px" in source


def test_every_number_of_the_page_is_one_of_the_results():
    runs = made_up()
    runs["student", 0].qualities["magsim"] = None
    for seed in range(5):
        runs["kd", seed].qualities["nll"] = 0.25
    result = result_of(runs)
    found = make_page(result)
    header, teacher, *rows = found.tables["results"]
    others = [name for name in METRICS if name != "accuracy"]
    assert len(header) == 3 + len(others)
    assert close(teacher[1], result["teacher_accuracy"], 2)
    for cell, name in zip(teacher[3:], others, strict=True):
        assert close(cell, result["qualities"]["teacher"].get(name), METRICS[name].digits)
    assert [row[0] for row in rows] == list(result["methods"])
    for method, *cells in rows:
        numbers = result["methods"][method]
        columns = [(numbers["last"], 2), (numbers["best"], 2)]
        columns += [(numbers["qualities"][name], METRICS[name].digits) for name in others]
        for cell, (values, digits) in zip(cells, columns, strict=True):
            mean, *notes = cell.split("|")
            assert close(mean, values["mean"], digits)
            if values["low"] is None:
                assert notes[0] == "all equal"
            else:
                assert notes[0].startswith("± ")
                assert close(notes[0][2:], (values["high"] - values["low"]) / 2.0, digits)
            assert notes[1:] == ([] if values["n"] == 5 else ["4 of 5"])

    for method, *cells in found.tables["costs"][1:]:
        numbers = result["methods"][method]
        shares = [numbers[f"{name}_share"] for name in ("crossed", "third", "accepted")]
        times = [numbers["ms_per_step"], numbers["ms_per_attacking_step"]]
        expected = [numbers["attacked"], *(None if share is None else 100.0 * share for share in shares), *times]
        assert all(close(cell, value, 1) for cell, value in zip(cells, expected, strict=True))

    for name, quality in METRICS.items():
        tests = [test for test in result["tests"] if test["quality"] == name]
        rows = found.tables[name][1:]
        assert [row[0] for row in rows] == [f"{test['method']} − {test['baseline']}" for test in tests]
        for (_, seeds, mean, *rest), test in zip(rows, tests, strict=True):
            assert int(seeds) == test["n"]
            assert close(mean, test["mean"], quality.digits)
            if test["reason"] is not None:
                assert rest == [test["reason"]]
                continue
            low, high = rest[0].split(" to ")
            assert close(low, test["low"], quality.digits)
            assert close(high, test["high"], quality.digits)
            for cell, p in zip(rest[1:], (test["p"], test["p_holm"]), strict=True):
                assert (p < 0.001) if cell == "< 0.001" else close(cell, p, 3)


def values_of(result, method, seed, value):
    """Let a run have reached another accuracy."""
    for run in result["runs"]:
        if (run["method"], run["seed"]) == (method, seed):
            run["last"] = value
            result["methods"][method]["last"]["values"][seed] = value


@pytest.mark.parametrize(
    ("names", "seeds", "values", "said"),
    [
        # kd: 80, 81, 82; amkd each 5 more but for 0.1: the interval of the differences is off zero.
        (("kd", "amkd"), 3, {"amkd": (85.0, 86.1, 87.0)}, r"amkd is best with 86.03 %, 5.03 points above kd: signif"),
        (("kd", "amkd"), 3, {"amkd": (90.0, 81.0, 75.0)}, r"amkd leads with 82.00 %, 1.00 points above kd: not signif"),
        (("kd", "amkd"), 3, {"amkd": (79.0, 81.0, 75.0)}, r"kd leads with 81.00 %, 2.67 points above amkd: not signif"),
        (("kd", "amkd"), 3, {"amkd": (81.0, 82.0, 83.0)}, r"1.00 points above kd: the same with each of 3 seeds"),
        (("kd", "amkd"), 2, {"amkd": (85.0, 86.0)}, r"amkd leads .* too few seeds \(2\) to tell that from chance"),
        (("kd", "amkd"), 1, {"amkd": (85.0,)}, r"amkd leads .* too few seeds \(1\)"),
        (("kd",), 3, {}, r"kd reaches 81.00 % after the last epoch \(3 seeds\)\.$"),
        (("kd", "amkd"), 3, {"kd": (None,) * 3, "amkd": (None,) * 3}, r"^Every run diverged\.$"),
        (
            ("kd", "amkd", "x"),
            3,
            {"amkd": (85.0, 86.1, 87.0), "x": (86.0, 84.0, 87.0)},
            r"^amkd is best .* Next is x, 0.37 points behind: not significant \(p = 0\.\d{3}, paired t-test over 3 ",
        ),
    ],
)
def test_finding(names, seeds, values, said):
    result = result_of(made_up(names, seeds))
    for method in names:
        for seed in range(seeds):
            values_of(result, method, seed, values.get(method, (80.0, 81.0, 82.0))[seed])
    result["tests"] = []
    assert re.search(said, str(finding.finding(result)))
    del result["runs"]  # of results that were cut down to what is told of the methods
    assert re.search(said, str(finding.finding(result)))


def test_finding_has_the_corrected_p_of_the_table():
    result = result_of(made_up(("kd", "amkd", "bss-paper")))
    for seed in range(5):
        values_of(result, "amkd", seed, 99.0 + 0.1 * seed)
    (test,) = (t for t in result["tests"] if (t["quality"], t["method"], t["baseline"]) == ("accuracy", "amkd", "kd"))
    test["p_holm"] = 0.0432
    assert "amkd is best" in str(finding.finding(result))
    assert "(p = 0.043, paired t-test over 5 seeds)" in str(finding.finding(result))
    test["p_holm"] = 0.051
    assert "amkd leads" in str(finding.finding(result))


def test_best_cells_are_marked():
    result = result_of(made_up(("kd", "amkd", "dkd"), 3))
    for place, method in enumerate(("kd", "amkd", "dkd")):
        result["methods"][method]["last"]["mean"] = 90.0 + place
        result["methods"][method]["qualities"]["ece"]["mean"] = (1.0, 2.0, 1.001)[place]  # as good in two digits
    source = page.page(result, {})
    rows = source[source.index('id="results"') :].split("<tr>")[3:6]
    marked = [re.findall(r'data-label="([^"]*)" class="best"', row) for row in rows]
    assert ["last epoch, %" in of for of in marked] == [False, False, True]
    assert ["ECE, %" in of for of in marked] == [True, False, True]
    assert sum(map(len, marked)) >= 9
    alone = page.page(result_of(made_up(("kd",), 3)), {})
    assert 'class="best" title="the best' not in alone


def test_sizes_beside_accuracy():
    result = result_of(made_up(("kd", "amkd")))
    found = make_page(result).tables["networks"]
    assert [row[2] for row in found[1:]] == ["900", "900", "equal"]
    result["networks"]["teacher"] |= {"parameters": 369_498, "multiply_adds": 55_100_000, "images_per_second": 1000.0}
    result["networks"]["student"] |= {"parameters": 78_042, "multiply_adds": 12_800_000, "images_per_second": 4600.0}
    header, teacher, student, both = make_page(result).tables["networks"]
    assert [cell.rstrip(" ↑↓") for cell in header] == [
        "network", "accuracy%", "parameters", "multiply-addsan image", "images a second"
    ]  # fmt: skip
    assert teacher[1:] == ["97.50", "369 k", "55.1 M", "1 k"]
    assert student[2:] == ["78 k", "12.8 M", "4.6 k"]
    assert both[2:] == ["1/4.73", "1/4.3", "4.6 × as many"]


def test_worst_classes():
    result = result_of(made_up(("kd", "amkd"), 1))
    assert "classes" not in make_page(result).tables
    result["methods"]["kd"]["classes"] = [90.0 - label for label in range(10)]
    assert make_page(result).tables["classes"][1] == ["kd", "9 81.0 %, 8 82.0 %, 7 83.0 %"]


def test_results_of_earlier_versions_still_have_a_page():
    result = result_of(made_up(("kd", "amkd"), 2))
    for test in result["tests"]:  # intervals and p of two seeds
        test |= {"low": -9.0, "high": 9.0, "p": 0.5, "p_holm": 0.5, "reason": None}
    for method in result["methods"].values():
        del method["diverged"]
        method["last"] |= {"low": 1.0, "high": 99.0, "reason": None}
    for run in result["runs"]:
        del run["diverged"]
    found = make_page(result)
    assert any("2 seeds: too few to test" in text for text in found.texts)
    assert not any("±" in cell for row in found.tables["results"] for cell in row)


def test_page_of_a_comparison_that_runs():
    runs = made_up(("kd", "amkd"), 2)
    done = {task: runs[task] for task in (("kd", 0), ("amkd", 0), ("kd", 1))}
    result = result_of(done, settings={**Settings().as_dict(), "methods": "kd,amkd", "seeds": 2}, tests=[])
    whole = result_of({task: runs[task] for task in (("kd", 0), ("amkd", 0))}, tests=[])
    result["runs"].append(
        {**result["runs"][0], "method": "amkd", "seed": 1, "last": None, "epochs": runs["amkd", 1].rows}
    )
    now = [{"name": "amkd, seed 1", "epoch": 3, "epochs": 60, "accuracy": 91.5}]
    running = page.Running(3, 4, "5 min", "12:00:00", "../digits/report.html", 15, now)
    source = page.page(result, {}, running)
    found = Reader(source)
    assert ("meta", {"http-equiv": "refresh", "content": "15"}) in found.tags
    assert found.tables["now"][1][:3] == ["amkd, seed 1", "3/60", "91.50"]
    text = " ".join(" ".join(found.texts).split())
    assert "3 of 4 trainings are done ; about 5 min left" in text.replace("done; ", "done ; ")
    assert "So far:" in text
    assert 'class="best"' not in source  # means over different seeds
    for word in str(finding.finding(whole)).split():  # of the one seed that both have finished
        assert word in text


def test_radii_are_told_in_levels():
    settings = {**Settings().as_dict(), "pgd_eps": 8 / 255, "tald_eps": 0.1}
    source = page.page(result_of(made_up(("kd",), 1), settings=settings), {})
    assert "<td>8/255</td>" in source
    assert "<td>0.1</td>" in source
    assert page.radius(0.03) == "0.03"


def test_curves_and_charts_by_hand():
    logs = [("kd", [{"x": 1.0}, {"x": 3.0}, {"x": None}]), ("kd", [{"x": 3.0}, {"x": 5.0}]), ("amkd", [{}] * 3)]
    (curve,) = curves.curves(logs, "x")
    assert curve.mean.tolist() == [2.0, 4.0, None]
    assert (curve.low.tolist()[:2], curve.high.tolist()[:2]) == ([1.0, 3.0], [3.0, 5.0])
    assert curves.window_of([("kd", [{}] * count) for count in (10, 60)]) == 3
    assert [curves.window_of([("kd", [{}] * count)]) for count in (1, 39, 40, 240)] == [1, 1, 3, 13]
    found = charts.chart("x", [curve], {"kd": "red"}, mark=3.0)
    (line,) = found.lines
    # 1 to 5 and a twentieth of that beyond: 2 lies at (2 − 0.8)/4.4 from below.
    assert line.points == ["0,72.73 50,27.27"]
    assert line.bands == ["0,95.45 50,50 50,4.545 0,50"]
    assert found.mark == pytest.approx(50.0)
    assert [tick.text for tick in found.epochs] == ["1", "2", "3"]
    (late,) = charts.chart("x", [curve], {"kd": "red"}, since=2).lines
    assert late.points == ["0,50"]
    two = {"values": [1.0, None, 3.0], "mean": 2.0, "low": 0.0, "high": 4.0, "n": 2}
    (upright,) = charts.strips("x", {"kd": two}, ["red"], None).rows
    assert upright.ends is None  # two seeds
    assert upright.mean == 50.0
    assert upright.dots == pytest.approx([4.545, 95.455])


def test_accuracy_on_dropped_labels_is_told_where_labels_were_dropped():
    runs = made_up(("kd", "extended-kd"))
    assert "unseen_accuracy" not in result_of(runs)["methods"]["kd"]["qualities"]
    for (method, seed), found in runs.items():
        found.qualities["unseen_accuracy"] = 10.0 * seed + (method == "extended-kd") * 30.0
    result = result_of(runs, data={"classes": list("0123456789"), "dropped": ["3", "7"], "shape": [1, 8, 8]})
    found = make_page(result)
    header, _, *rows = found.tables["results"]
    assert "unseen" in header[-1]
    assert [row[-1].split("|")[0] for row in rows] == ["20.00", "50.00"]
    assert found.tables["unseen_accuracy"][1][2] == "+30.00"
    assert "3, 7: the students saw no image of them" in found.texts


def test_page_escapes_what_it_is_told():
    classes = [EVIL, "b"]
    runs = made_up(("kd", EVIL))
    settings = {**Settings().as_dict(), "data": EVIL}
    clean = result_of(runs)
    result = {**clean, "settings": settings, "data": {"classes": classes, "dropped": [EVIL], "shape": [1, 8, 8]}}
    result["environment"] = {**clean["environment"], "cpu": EVIL, "commit": EVIL}
    result["networks"] = {**clean["networks"], "teacher_source": f"from {EVIL}"}
    source = page.page(result, {"accuracy": b""})
    assert "<script" not in source
    found = Reader(source)
    assert not [tag for tag, _ in found.tags if tag == "script"]
    for start in ("from ", ""):
        assert any(start + EVIL in content for content in found.texts)
    assert found.tables["results"][-1][0] == EVIL


@pytest.mark.parametrize(
    ("names", "seeds", "said"),
    [
        (NAMES, 1, "One seed: nothing to test."),
        (("student",), 3, "None: there is no baseline"),
        (("student", "bss-x"), 1, "One seed: nothing to test."),
    ],
)
def test_page_without_tests(names, seeds, said):
    result = result_of(made_up(names, seeds))
    found = make_page(result)
    assert any(said in content for content in found.texts)
    assert not set(METRICS) & set(found.tables)
    if seeds == 1:
        assert not any("±" in cell for row in found.tables["results"] for cell in row)


def test_page_of_runs_without_qualities():
    runs = {key: value._replace(qualities=None) for key, value in made_up(("kd", "amkd")).items()}
    result = result_of(runs)
    rows = make_page(result).tables["results"][2:]
    assert [row[3:] for row in rows] == [["–"] * 7] * 2
    assert "NaN" not in report.to_json(result)


def test_numbers_as_text():
    assert page.number(None) == "–"
    assert page.number(-1.25, 1, True) == "−1.2"
    assert page.number(0.5, 2, True) == "+0.50"
    assert page.chance(0.0004) == "< 0.001"
    assert page.chance(0.04) == "0.040"


# --- screen


@pytest.mark.parametrize(("names", "seeds"), [(NAMES, 5), (NAMES, 1), (("student",), 2), (("kd", "[bold]x"), 2)])
def test_tables_on_the_screen_stay_narrow(names, seeds, capsys, monkeypatch):
    for columns in ("60", "80", "300"):
        monkeypatch.setenv("COLUMNS", columns)
        screen.show(result_of(made_up(names, seeds)))
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 100
        printed = "\n".join(lines)
        if columns != "60":
            assert all(name in printed for name in names)
            assert "…" not in printed
    assert ("amkd − bss-near_boundary" in printed) == (len(names) > 2 and seeds > 1)
    assert ("±" in printed.replace("± half", "")) == (seeds > 2)


def test_heading_of_a_quality():
    assert Metric("x", "", "higher", 2, "").heading == "x"
    assert METRICS["nll"].heading == METRICS["nll"].heading_of_differences == "NLL, nat"
    assert METRICS["ece"].heading_of_differences == "ECE, % points"


def test_runs_are_copied_nowhere():
    runs = made_up(("kd", "amkd"), 2)
    before = copy.deepcopy(runs)
    result_of(runs)
    assert runs == before


def test_losses_of_any_method_are_drawn():
    runs = made_up(("kd", "amkd"), 1)
    for row in runs["amkd", 0].rows:
        row["mine"] = 0.5
    assert curves.losses([(method, run.rows) for (method, _), run in runs.items()]) == ["ce", "kl", "boundary", "mine"]
    assert "<h4>mine</h4>" in page.page(result_of(runs), {})
