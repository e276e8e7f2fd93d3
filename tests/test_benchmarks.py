"""The reports: tables are those of the files and nothing else, on made-up times; the harness, on a small group."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks import compare, contest, machine, roofline, scaling
from benchmarks.group import Goal
from benchmarks.groups import kl
from benchmarks.report import goals, markers, pages, rule, tables, words
from benchmarks.report import load as loading
from benchmarks.report.__main__ import main as report
from benchmarks.report.load import load, shortened
from benchmarks.timing import QUICK

OURS, EAGER, COMPILED = "amkd_fast cpu", "eager log target", "compile log target"
MACHINE = {
    **{
        "date": "2026-01-02T03:04:05+00:00",
        "commit": "abcdef1",
        "cpu": "A chip",
        "cores": 2,
        "threads": 2,
        "load": 0.1,
    },
    **{"gpu": None, "platform": "Linux", "python": "3.11.7", "torch": "2.13.0", "amkd_fast": "0.1.0", "build": {}},
}
PAGE = "# A page\n\nBefore.\n\n<!-- benchmarks: summary -->\nold\n<!-- /benchmarks -->\n\nAfter 7 µs.\n"


def around(value: float, part: float = 0.05) -> dict[str, float]:
    return {"median": value, "p10": (1 - part) * value, "p90": (1 + part) * value}


def row(classes: int = 10, us: dict[str, float] | None = None, part: float = 0.05) -> dict:
    """Made up: a row of the KL family as benchmarks.compare writes it, every spread ``part`` of its median."""
    us = us or {"reference": 400.0, EAGER: 300.0, COMPILED: 250.0, OURS: 100.0}
    ratios = {title: around(time / us[OURS], part) for title, time in us.items() if title != OURS}
    return {
        **{"family": "kl", "operation": "kl_div", "sizes": {"B": 128, "K": classes}, "dtype": "fp32"},
        **{"direction": "both", "rounds": 21, "left_out": {"liger-kernel": "it failed"}},
        "contestants": {
            title: {
                **{"ours": title == OURS, "form": "", "us": around(time, part), "calls_a_block": 5, "value": 1e-7},
                **{"grad": 2e-7, "share_of_limit": 50 / time, "peak_bytes": 5120},
            }
            for title, time in us.items()
        },
        "ratios": {OURS: ratios},
        "limit": {
            **{
                "bytes": 25600,
                "exponentials": 5120,
                "products": 0,
                "launches": 2,
                "seconds": 5e-5,
                "bound": "launches",
            },
            **{"copy": 1e10, "product": 1e11, "launch": 1e-6},
        },
        "extras": {},
    }


def judged(found: dict) -> dict:
    """A row as the report has it, of a group without goals."""
    return loading.judged(found, kl.loss("kl_div", 128, 10, torch.float32))


def comparison(*rows: dict, **about: object) -> dict:
    found = {"kind": "comparison", "family": "kl", "device": "cpu", "machine": {**MACHINE, **about}, "groups": [*rows]}
    return {**found, "wrong": [], "absent": {"torchattacks": "not installed"}, "seconds": 1.0}


def grown(**about: object) -> dict:
    """A scaling file: ours linear, another quadratic, which stops."""
    points = [
        {
            **{"size": size, "sizes": {"N": size}, "dtype": "fp32", "direction": "both", "rounds": 9, "left_out": {}},
            "limit": {"seconds": 1e-8 * size, "bound": "bytes", "copy": 1e10, "product": 1e11, "launch": 1e-6},
            "contestants": {
                title: {"ours": title == OURS, "us": around(us), "peak_bytes": memory, "value": 0.0, "grad": 0.0}
                for title, us, memory in (
                    ("reference", 90 + size**2 / 100, 8 * size**2),
                    (EAGER, 80 + size**2 / 200, 5 * size**2),
                    (COMPILED, 70 + size**2 / 400, 4 * size**2),
                    ("pytorch-metric-learning", 400 + size**2 / 50, 12 * size**2),
                    (OURS, 30 + size / 10, 8 * size),
                )
                if title in (OURS, EAGER) or size < 5000
            },
        }
        for size in (64, 256, 1024, 4096, 16384)
    ]
    axis = {
        "name": "kl_div-N",
        "title": "kl_div, made up",
        "family": "kl",
        "letter": "N",
        "sizes": [64],
        "points": points,
    }
    axis["stopped"] = {"reference": {"size": 16384, "reason": "stopped before N = 16384: 3 s a call foretold"}}
    found = {"kind": "scaling", "device": "cpu", "machine": {**MACHINE, **about}, "quick": False, "axes": [axis]}
    return {**found, "most": {"seconds": 1.0, "bytes": 2e9}, "wrong": [], "seconds": 1.0}


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder with a page and results; returns a call that writes results and runs the report."""
    asks(monkeypatch)
    (tmp_path / "results").mkdir()
    (tmp_path / "docs" / "benchmarks").mkdir(parents=True)
    for page in markers.PAGES:
        (tmp_path / page).write_text(PAGE)

    def run(*options: str, **files: dict) -> int:
        for name, content in files.items():
            (tmp_path / "results" / f"{name.replace('_', '-')}.json").write_text(json.dumps(content))
        return report([*options, "--results", str(tmp_path / "results"), "--root", str(tmp_path)])

    run.path = tmp_path
    return run


def asks(monkeypatch, bounds: dict[int, float] | None = None, **more: object) -> None:
    """What the groups of the made-up rows ask for: by classes at least so many times the speed of the best."""
    goals = {classes: (Goal("speed-up", bound),) for classes, bound in {10: 1.5, 100: 1.5, **(bounds or {})}.items()}
    made = [replace(kl.loss("kl_div", 128, *case), goals=asked, **more) for asked, *case in (
        (asked, classes, torch.float32) for classes, asked in goals.items())]  # fmt: skip
    monkeypatch.setattr(loading, "described", lambda family, device: made if family == "kl" else [])


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures of one byte: what draws them needs a while to be imported."""
    fake = SimpleNamespace(drawn=lambda results: ((name, b"x") for name in pages.pictures(results)))
    monkeypatch.setitem(sys.modules, "benchmarks.report.plots", fake)
    monkeypatch.setattr("benchmarks.report.plots", fake, raising=False)


def test_report_writes_what_check_wants(site, undrawn):
    assert site(kl_cpu=comparison(row()), scaling_cpu=grown()) == 0
    text = (site.path / markers.PAGES[0]).read_text()
    assert text.startswith("# A page\n\nBefore.\n")
    assert text.endswith("<!-- /benchmarks -->\n\nAfter 7 µs.\n")
    assert (
        "| kl_div [128, 10] fp32 | 100 µs | 250 µs (compile log target) | 2.50 (2.38–2.62) | 50 % (launches) |" in text
    )
    assert "old" not in text
    assert "A chip, 2 threads; torch 2.13.0, Python 3.11.7, amkd_fast 0.1.0 at abcdef1, 2026-01-02" in text
    assert "On a GPU: not measured yet." in text
    assert site("--check") == 0
    before = {path: path.read_bytes() for path in site.path.rglob("*") if path.is_file()}
    assert site() == 0
    assert before == {path: path.read_bytes() for path in site.path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("spoil", ["marked", "page", "picture", "surplus", "result"])
def test_check_finds_what_differs(site, undrawn, spoil, capsys):
    site(kl_cpu=comparison(row()))
    docs = site.path / "docs" / "benchmarks"
    if spoil == "marked":
        path = site.path / markers.PAGES[0]
        path.write_text(path.read_text().replace("100 µs", "99 µs"))
    elif spoil == "page":
        (docs / "kl.md").write_text("nothing")
    elif spoil == "picture":
        (docs / "kl-cpu.png").unlink()
    elif spoil == "surplus":
        (docs / "gone.md").write_text("of an older run")
    changed = {"kl_cpu": comparison(row(us={EAGER: 300.0, OURS: 101.0}))} if spoil == "result" else {}
    capsys.readouterr()
    assert site("--check", **changed) == 1
    wanted = {
        "marked": "accuracy.md",
        "page": "kl.md",
        "picture": "kl-cpu.png",
        "surplus": "gone.md",
        "result": "accuracy.md",
    }
    assert wanted[spoil] in capsys.readouterr().out


def test_check_ignores_what_stands_outside_of_markers(site, undrawn):
    site(kl_cpu=comparison(row()))
    path = site.path / markers.PAGES[0]
    path.write_text(path.read_text().replace("After 7 µs.", "After 8 µs."))
    assert site("--check") == 0


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (comparison({**row(), "rounds": 2}), "made with --quick"),
        (comparison(row(), commit="abcdef1+"), "made at abcdef1+"),
        (comparison(row(), commit=None), "made at None"),
        ({"kind": "kl", "cases": []}, "no file of kind comparison"),
        (comparison({name: part for name, part in row().items() if name != "ratios"}), "lacks ratios"),
    ],
)
def test_unfit_files_are_refused(site, undrawn, file, reason, capsys):
    assert site(kl_cpu=file) == 1
    assert reason in capsys.readouterr().out
    assert (site.path / markers.PAGES[0]).read_text() == PAGE
    assert site("--draft") == 0
    text = (site.path / markers.PAGES[0]).read_text()
    assert "**Draft" in text if reason.startswith("made") else "*Not measured yet.*" in text


def test_a_quick_scaling_file_is_refused(site, undrawn):
    assert site(scaling_cpu={**grown(), "quick": True}) == 1


def test_a_miss_needs_its_analysis(site, undrawn, capsys, monkeypatch):
    name = "cpu: kl_div, B = 128, K = 10, fp32, both: speed-up 3"
    asks(monkeypatch, {10: 3.0})
    site(kl_cpu=comparison(row()))
    assert f"goal missed without an analysis in misses.md: {name}" in capsys.readouterr().out
    assert site("--check") == 1
    (site.path / "misses.md").write_text(f"# Why\n\n## {name}\n\nCalls cost\nmore than that.\n")
    site()
    assert site("--check") == 0
    index = (site.path / "docs" / "benchmarks" / "README.md").read_text()
    assert "| ≥ 3× | compile log target | 2.50× (2.38–2.62) | **missed**: Calls cost more than that. |" in index
    (site.path / "misses.md").write_text("## cpu: kl_div, B = 1, K = 10, fp32, both: speed-up 3\n\nLost.\n")
    site()
    assert "explains what is neither a goal nor under the rule: cpu: kl_div, B = 1," in capsys.readouterr().out


@pytest.mark.parametrize(
    ("theirs", "share", "keeps"),
    [
        (250.0, 0.1, True),  # fast enough
        (150.0, 0.8, True),  # near enough to the limit
        (150.0, 0.4, False),
        (199.0, 0.69, False),
        (109.0, 0.9, False),  # below the least, however near to the limit
        (None, 0.8, True),  # nobody else is there
        (None, 0.6, False),
        (250.0, None, True),  # no limit is known
        (150.0, None, False),
    ],
)
def test_the_rule_wants_speed_or_nearness_or_an_analysis(site, undrawn, theirs, share, keeps, capsys):
    """In each direction that was measured, with goals or without."""
    found = {**row(1000, us={**({EAGER: theirs} if theirs else {}), OURS: 100.0}), "direction": "backward"}
    found["contestants"][OURS]["share_of_limit"] = share
    found["limit"] = found["limit"] if share else None
    name = "cpu: kl_div, B = 128, K = 1000, fp32, backward"
    complaint = f"rule broken without an analysis in misses.md: {name}\n"
    site(kl_cpu=comparison(found))
    assert (complaint in capsys.readouterr().out) is not keeps
    assert site("--check") == (0 if keeps else 1)
    (site.path / "misses.md").write_text(f"## {name}\n## cpu: kl_div, B = 128, K = 10, fp32, both\n\nWhy.\n")
    capsys.readouterr()
    site(kl_cpu=comparison(found, row()))  # the second heading is known, and both have the text
    assert complaint not in capsys.readouterr().out
    assert site("--check") == 0
    index = (site.path / "docs" / "benchmarks" / "README.md").read_text()
    assert ("| Why. |" in index) is not keeps


def test_yardsticks_are_nobodys_best(site, undrawn, capsys, monkeypatch):
    """Who computes less may be faster than ours; who alone is slower saves nobody from the rule."""
    found = row(us={EAGER: 50.0, COMPILED: 250.0, OURS: 100.0})
    site(kl_cpu=comparison(found))
    assert "rule broken" in capsys.readouterr().out
    asks(monkeypatch, yardsticks=(EAGER,))
    site(kl_cpu=comparison(found))
    assert capsys.readouterr().out == ""
    asks(monkeypatch, yardsticks=(f"{EAGER}: both", f"{COMPILED}: backward"))
    site(kl_cpu=comparison(found))
    assert capsys.readouterr().out == ""
    asks(monkeypatch, yardsticks=(EAGER, COMPILED))
    site(kl_cpu=comparison(found))
    assert "rule broken" in capsys.readouterr().out


def test_where_networks_are_run_their_passes_are_the_limit():
    """As a contestant that the group names, or as what is left of a measured share of the time."""
    found = {**row(us={EAGER: 150.0, "bare passes": 80.0, OURS: 100.0}), "limit": None}
    group = replace(kl.loss("kl_div", 128, 10, torch.float32), yardsticks=("bare passes",), floor="bare passes")
    passes = loading.judged(found, group)
    assert (passes["best"], passes["share"], passes["bound"]) == (EAGER, 0.8, "passes")
    assert rule.Standing("cpu", passes).kept
    attack = judged({**row(us={EAGER: 150.0, OURS: 100.0}), "limit": None, "extras": {"outside the network": 0.4}})
    assert (attack["share"], attack["bound"]) == (0.6, "passes")
    assert not rule.Standing("cpu", attack).kept


def test_the_index_begins_with_the_worst(site, undrawn):
    rows = [row(classes, us={EAGER: 100.0 + classes, OURS: 50.0}) for classes in range(12, 0, -1)]
    site(kl_cpu=comparison(*rows))
    index = (site.path / "docs" / "benchmarks" / "README.md").read_text()
    shown = re.findall(r"^\| kl_div \[128, (\d+)\]", index.split("## Exceptions")[0], re.MULTILINE)
    assert shown == [str(classes) for classes in range(1, 11)]
    assert index.index("## The worst") < index.index("## Exceptions") < index.index("## Goals")


def test_misses_come_first(site, undrawn, monkeypatch):
    asks(monkeypatch, {10: 1.5, 100: 9.0, 1000: 1.5})
    site(kl_cpu=comparison(row(10), row(100), row(1000)))
    found = goals.judged(load(site.path / "results"), "cpu")
    assert [one.goal["reached"] for one in found] == [False, True, True]


def test_pages_have_every_contestant_and_who_is_not_there(site, undrawn):
    site(kl_cpu=comparison(row()), scaling_cpu=grown())
    page = (site.path / "docs" / "benchmarks" / "kl.md").read_text()
    assert "| **amkd_fast cpu** | 100 µs (95.0–105) |  | 5.12 kB | 1e-07 / 2e-07 | 50 % |" in page
    assert "| reference | 400 µs (380–420) | 4.00 (3.80–4.20) | 5.12 kB | 1e-07 / 2e-07 | 12 % |" in page
    assert "Left out: liger-kernel: it failed" in page
    assert "reference: stopped before N = 16384: 3 s a call foretold" in page
    assert "Goal: ≥ 1.5× against compile log target; 2.50× (2.38–2.62), reached." in page
    for picture in re.findall(r"\]\((\S+\.png)\)", page):
        assert (site.path / "docs" / "benchmarks" / picture).exists()
    index = (site.path / "docs" / "benchmarks" / "README.md").read_text()
    assert "| torchattacks | cpu: not installed | kl |" in index


def test_results_of_the_methods_become_tables():
    """On the files that are in the repository."""
    results = load(machine.RESULTS)
    assert results.digits is not None
    assert results.presets is not None
    methods = tables.TABLES["methods"](results)
    last = results.digits["methods"]["amkd"]["last"]
    assert f"| AMKD | {last['mean']:.1f} ± {(last['high'] - last['low']) / 2:.1f} |" in methods
    assert results.dropped is not None
    (labels,) = tables.TABLES["dropped"](results).splitlines()[:1]
    assert labels.startswith(f"| method, labels {' and '.join(results.dropped['data']['dropped'])} dropped |")
    unseen = results.dropped["methods"]["extended-kd"]["qualities"]["unseen_accuracy"]
    assert f"| Extended-KD | {unseen['mean']:.1f} ± {(unseen['high'] - unseen['low']) / 2:.1f} |" in tables.TABLES[
        "dropped"
    ](results)
    assert tables.TABLES["presets"](results).count("\n| `") == len(results.presets["presets"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- benchmarks: summary -->\n", "has no end"),
        ("<!-- /benchmarks -->\n", "line 1"),
        ("\n<!-- benchmarks: summary -->\n<!-- benchmarks: summary -->\n", "line 3"),
        ("<!-- benchmarks: sumary -->\n<!-- /benchmarks -->\n", "there are summary"),
    ],
)
def test_broken_markers_are_errors(text, message):
    with pytest.raises(ValueError, match=message):
        markers.filled(text, {"summary": "a table"})


def test_the_committed_reports_are_those_of_the_committed_results():
    assert report(["--check"]) == 0


def test_every_table_has_its_marker_once():
    text = "".join((machine.ROOT / page).read_text() for page in markers.PAGES)
    names = re.findall(r"<!-- benchmarks: (\S+) -->", text)
    assert sorted(names) == sorted(tables.TABLES)


@pytest.mark.parametrize(
    ("us", "text"), [(0.5, "0.500 µs"), (52.06, "52.1 µs"), (217.4, "217 µs"), (999.6, "1.00 ms"), (1.5e6, "1.50 s")]
)
def test_times_have_three_digits(us, text):
    assert words.time(us) == text


def test_pictures_are_png_and_the_same_every_time(site):
    pytest.importorskip("lightning", reason="the extra `train` is not installed")
    assert site(kl_cpu=comparison(row(), row(100)), scaling_cpu=grown()) == 0
    folder = site.path / "docs" / "benchmarks"
    first = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    assert set(first) == {"kl-cpu.png", "scaling-kl_div-N-cpu.png"}
    assert all(png.startswith(b"\x89PNG") for png in first.values())
    assert site() == 0
    assert first == {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_of_runs_of_methods_the_tables_parts_are_kept(site, undrawn):
    digits = load(machine.RESULTS).digits
    assert shortened(digits) == digits
    other = {**digits["tests"][0], "baseline": "mkd"}
    page = site.path / markers.PAGES[0]
    page.write_text("<!-- benchmarks: methods -->\n<!-- /benchmarks -->\n")
    assert site("--draft", digits={**digits, "runs": [1, 2], "tests": [*digits["tests"], other]}) == 0
    text = page.read_text()
    assert json.loads((site.path / "results" / "digits.json").read_text()) == digits
    assert site("--draft", "--check") == 0
    assert page.read_text() == text


@pytest.mark.usefixtures("one_thread")
class TestCompare:
    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch):
        """One group, nothing compiled; measuring the rates takes long."""
        if not contest.backend_names("kl", "cpu"):
            pytest.skip("the CPU kernels are not built")
        limit = roofline.Limit(1e-6, "launches", 1e10, 1e11, 1e11, 1e-6)
        monkeypatch.setattr(roofline, "limit", lambda work, dtype, device: limit)
        monkeypatch.setattr(compare, "PATIENCE", {"cpu": QUICK})
        monkeypatch.setattr(torch, "compile", lambda call, **options: call)

    def small(self, **more):
        return [replace(kl.loss("kl_div", 4, 3, torch.float32, 0.1), **more)]

    def test_a_file_has_what_the_report_reads(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(compare, "groups", lambda family, device: self.small())
        assert compare.main(["kl", "--output", str(tmp_path)]) == 0
        assert "kl_div" in capsys.readouterr().out
        found = json.loads((tmp_path / "kl-cpu.json").read_text())
        assert [row["direction"] for row in found["groups"]] == ["forward", "backward", "both"]
        last = found["groups"][-1]
        assert set(last["ratios"][OURS]) == set(last["contestants"]) - {OURS}
        monkeypatch.setattr(loading, "described", lambda family, device: self.small())
        read = load(tmp_path).rows("cpu", "kl")
        assert [{**one, **raw} for one, raw in zip(read, found["groups"], strict=True)] == read
        assert read[-1]["goals"][0]["measured"] == last["ratios"][OURS][read[-1]["best"]]["median"]

    def test_a_wrong_result_is_not_timed(self, tmp_path, monkeypatch, capsys):
        wrong = self.small(ours=lambda student, teacher: (student - teacher).square().sum(), reference=False)
        truth = contest.truth(lambda student, teacher: student.sum(), self.small()[0].inputs("cpu"))
        wrong[0] = replace(wrong[0], truth=lambda call, inputs: truth)
        monkeypatch.setattr(compare, "groups", lambda family, device: wrong)
        assert compare.main(["kl", "--output", str(tmp_path)]) == 1
        assert "WRONG, not timed: kl_div, B = 4, K = 3, fp32" in capsys.readouterr().out
        assert json.loads((tmp_path / "kl-cpu.json").read_text())["groups"] == []

    def test_what_is_not_reached_in_time_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setattr(compare, "groups", lambda family, device: self.small())
        assert compare.main(["kl", "--output", str(tmp_path), "--seconds", "1e-9"]) == 0
        found = json.loads((tmp_path / "kl-cpu.json").read_text())
        assert found["not_reached"] == ["kl_div, B = 4, K = 3, fp32"]


@pytest.mark.usefixtures("one_thread")
class TestScaling:
    def test_power_laws_are_followed(self):
        assert scaling.extrapolated([(4, 3.0)], 8) == 6.0
        assert scaling.extrapolated([(2, 1.0), (4, 4.0)], 16) == pytest.approx(64.0)
        assert scaling.extrapolated([(2, 4.0), (4, 4.0)], 8) == 8.0

    def test_who_would_pass_a_limit_stops(self, monkeypatch):
        points = grown()["axes"][0]["points"][:4]
        assert scaling.beyond(points, OURS, 16384) is None
        assert scaling.beyond(points, "reference", 16384) == "2.5 s a call foretold, 1 s allowed"
        monkeypatch.setattr(scaling, "SECONDS", 100.0)
        assert scaling.beyond(points, "reference", 16384) == "2.1 GB a call foretold, 2 GB allowed"
        assert scaling.beyond(points, "nobody", 16384) is None

    def test_an_axis_goes_on_without_those_that_stopped(self, monkeypatch):
        """The reference's fp64 form would be slower still: the truth is then ours in fp64, and says so."""
        if not contest.backend_names("kl", "cpu"):
            pytest.skip("the CPU kernels are not built")
        axis = next(axis for axis in scaling.AXES if axis.name == "kl_div-K")
        axis = axis._replace(sizes=(4, 8, 16), left_out=("max-autotune", "softmax target", "compile"))
        limit = roofline.Limit(1e-6, "launches", 1e10, 1e11, 1e11, 1e-6)
        monkeypatch.setattr(roofline, "limit", lambda work, dtype, device: limit)  # measuring the rates takes long
        stop = {("eager log target", 8): "too slow", ("reference", 16): "too slow"}
        monkeypatch.setattr(scaling, "beyond", lambda points, title, size: stop.get((title, size)))
        wrong: list[str] = []
        found = scaling.along(axis, "cpu", QUICK, wrong)
        there = [set(point["contestants"]) for point in found["points"]]
        assert wrong == []
        assert there == [{"reference", "eager log target", OURS}, {"reference", OURS}, {OURS}]
        assert found["stopped"]["eager log target"] == {"size": 8, "reason": "stopped before K = 8: too slow"}
        assert [point["truth"] for point in found["points"]] == ["reference", "reference", "ours"]
        json.dumps(found)

    def test_a_wrong_kernel_is_no_point(self, monkeypatch):
        if not contest.backend_names("kl", "cpu"):
            pytest.skip("the CPU kernels are not built")
        axis = scaling.AXES[0]._replace(sizes=(4,), left_out=("max-autotune", "softmax target", "compile"))
        real = contest.truth
        monkeypatch.setattr(
            contest, "truth", lambda call, inputs: real(call, inputs)._replace(value=torch.tensor(1.0).double())
        )
        wrong: list[str] = []
        build = axis.build
        axis = axis._replace(build=lambda size: scaling.replace(build(size), truth=contest.truth))
        assert scaling.along(axis, "cpu", QUICK, wrong)["points"] == []
        assert len(wrong) == 1
