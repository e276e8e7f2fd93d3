"""The runs of the evidence: what is finished is kept as lines, and gone on with."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("lightning", reason="the extra `train` is not installed")

from amkd_fast.distill import data as datasets
from amkd_fast.distill import networks, normalisation
from amkd_fast.distill.checkpoint import load_network, save_network
from amkd_fast.distill.cli import main as distill
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.networks import Spec
from amkd_fast.distill.networks.normalised import Normalised
from amkd_fast.distill.options import to_yaml
from amkd_fast.distill.report import provenance
from amkd_fast.distill.result_folder import partial_of
from amkd_fast.distill.settings import CompareSettings, Settings, TrainSettings
from benchmarks import machine
from benchmarks.evidence import __main__ as evidence_runs
from benchmarks.evidence import margins, protocol, search, store
from benchmarks.report import evidence, words
from benchmarks.report.load import Results, load

SETTINGS = CompareSettings(
    methods="student,kd", seeds=2, epochs=1, teacher_epochs=1, student_images=50, quality_images=20, keep_students=False
)


def all_but_the_last_run(path):
    """Lines of runs by :data:`SETTINGS` that diverged; ``kd`` with seed 1 is missing."""
    row = {"epoch": 0, "lr": 0.1, "accuracy": 77.0, "total": 1.0, "ce": 1.0, "ms_per_step": 1.0}
    for method, seed in (("student", 0), ("kd", 0), ("student", 1)):
        run = {"rows": [row], "qualities": None, "diverged": {"epoch": 2, "what": "the loss"}}
        store.add(path, {"method": method, "seed": seed, **run})


def test_the_protocol_is_of_settings_that_there_are():
    found = protocol.read("pictures", "teacher.ckpt")
    assert found.teacher.data == "pictures"
    assert {part.settings.teacher for part in found.parts} == {"teacher.ckpt"}
    for part in found.parts:
        assert set(part.minutes) == set(part.settings.names())
        assert len(part.runs()) == len(set(part.runs())) == part.settings.seeds * len(part.minutes)
    assert all(point.settings.val_fraction for point in found.search)
    tried = [(point.group, point.settings.seed, *sorted(point.tried.items())) for point in found.search]
    assert len(set(tried)) == len(tried) > 0
    seeds = {point.settings.seed for point in found.search if point.tried == {"space": "features"}}
    assert seeds == {0, 1, 2}
    assert {point.settings.seed for point in found.search if point.tried == {"margin": 5.0}} == {0}  # not repeated
    for point in found.search:
        assert all(getattr(point.settings, name) == value for name, value in point.tried.items())


def test_a_setting_that_breaks_its_rule_is_told(tmp_path):
    path = tmp_path / "protocol.yaml"
    path.write_text(protocol.FILE.read_text().replace("epochs: 20\n    schedule", "epochs: 0\n    schedule"))
    with pytest.raises(UserError, match="teacher: epochs=0: must be at least 1"):
        protocol.read("pictures", "teacher.ckpt", path)


def test_lines_become_a_comparison_again(tmp_path):
    path, output = tmp_path / "new" / "part.jsonl", tmp_path / "out"
    assert not store.restore(output, path, SETTINGS)
    run = {"rows": [{"epoch": 0, "accuracy": 12.345678912}], "qualities": {"ece": 1.0}, "diverged": None}
    store.add(path, {"method": "kd", "seed": 1, **run})
    store.add(path, {"method": "dkd", "seed": 0, **run})
    store.add(path, {"method": "kd", "seed": 7, **run})
    assert store.restore(output, path, SETTINGS)
    kept = partial_of(output) / "runs"
    assert [file.name for file in kept.iterdir()] == ["kd-1.json"]
    assert json.loads((kept / "kd-1.json").read_text())["rows"][0]["accuracy"] == 12.346
    assert store.collect(output, path) == 0
    (kept / "student-0.json").write_text(json.dumps(run))
    assert store.collect(output, path) == 1
    assert [(line["method"], line["seed"]) for line in store.lines(path)][-1] == ("student", 0)


def test_a_restored_comparison_runs_only_what_is_missing(tmp_path, capsys):
    path, output = tmp_path / "part.jsonl", tmp_path / "out"
    all_but_the_last_run(path)
    config = tmp_path / "config.yaml"
    config.write_text(to_yaml(SETTINGS))
    assert store.restore(output, path, SETTINGS)
    assert distill(["compare", "--config", str(config), "--output", str(output), "--resume", "--jobs", "1"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert {tuple(line.split()[1:3]) for line in said if line.startswith("seed")} == {("1", "kd")}
    assert len(json.loads((output / "results.json").read_text())["runs"]) == 4


def test_a_part_goes_on_beside_lines_that_are_not_committed(tmp_path, monkeypatch):
    """Lines of the part before make the checkout differ, but not the code that a result is of."""
    monkeypatch.setattr(evidence_runs, "LINES", tmp_path)
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    monkeypatch.setattr(provenance, "commit", lambda folder, but=(): "0" * 40 + "-dirty" * (but != machine.WRITTEN))
    monkeypatch.setattr(evidence_runs.subprocess, "run", lambda call, check: distill(call[3:]))
    all_but_the_last_run(tmp_path / "part.jsonl")
    part = protocol.Part("part", SETTINGS, {"student": 1.0, "kd": 1.0}, ["methods"])
    evidence_runs._compare(part, tmp_path / "out" / "part", jobs=1)
    assert json.loads((tmp_path / "cifar10-part.json").read_text())["environment"]["commit"] == "0" * 40
    assert [(line["method"], line["seed"]) for line in store.lines(tmp_path / "part.jsonl")][-1] == ("kd", 1)


def test_the_search_trains_what_has_no_line_and_writes_what_the_validation_images_say(tmp_path, capsys):
    teacher = tmp_path / "teacher.ckpt"
    small = {"teacher_network": "small-2-1", "student_network": "small-2-1"}
    spec, values = Spec("small-2-1", 1, 10), {"classes": list(map(str, range(10))), "method": "teacher", "seed": 0}
    data = datasets.load(Settings(), torch.device("cpu"))
    network = Normalised(networks.build(spec, 0), *normalisation.of_student(Settings(), data))
    save_network(teacher, network, spec, {**values, "settings": Settings(**small).as_dict()})
    group = TrainSettings(
        method="kd", teacher=str(teacher), val_fraction=0.2, student_images=40, epochs=2, test_every=2, **small
    )
    points = [protocol.Point("lr", {"lr": lr}, replace(group, lr=lr), group, minutes=1.0) for lr in (0.1, 0.2, 1e30)]
    path = tmp_path / "search.jsonl"
    store.add(path, {**points[1].key, "method": "kd", "validation": 50.0, "minutes": 1.0})
    search.run(points, path, jobs=1)
    found = {line["tried"]["lr"]: line for line in store.lines(path)}
    assert sorted(found) == [0.1, 0.2, 1e30]
    assert found[0.2]["validation"] == 50.0
    assert 0.0 < found[0.1]["validation"] < 100.0
    assert found[1e30]["validation"] is None  # it diverged
    search.run(points, path, jobs=1)
    assert len(store.lines(path)) == 3


def test_a_teacher_is_kept_without_its_training_and_its_place(tmp_path):
    trained, kept = tmp_path / "last.ckpt", tmp_path / "new" / "teacher.ckpt"
    spec, settings = Spec("small-2-1", 1, 10), Settings(data=str(tmp_path), cache=str(tmp_path)).as_dict()
    network = Normalised(networks.build(spec, 0), mean=[0.0], std=1.0)
    save_network(trained, network, spec, {"classes": [], "method": "student", "seed": 0, "settings": settings})
    store.keep_network(trained, kept)
    found, spec_found, about = load_network(kept)
    assert spec_found == spec
    assert str(tmp_path) not in str(about)
    for name, value in network.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)


def test_what_is_missing_is_told_and_students_without_their_teacher_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evidence_runs, "LINES", tmp_path)
    monkeypatch.setattr(evidence_runs, "TEACHER", tmp_path / "teacher.ckpt")
    store.add(tmp_path / "few-1000.jsonl", {"method": "kd", "seed": 0})
    store.add(tmp_path / "few-1000.jsonl", {"method": "kd", "seed": 4})  # of a seed that is not asked for
    assert evidence_runs.main(["--data", "pictures", "--seeds", "1", "--list"]) == 0
    (part,) = [part for part in protocol.read("pictures", "").parts if part.name == "few-1000"]
    hours = (sum(part.minutes.values()) - part.minutes["kd"]) / 60
    said = capsys.readouterr().out.splitlines()
    assert f"few-1000: 1 of 7 runs are there; the others take {hours:.1f} hours of a core" in said
    assert said[0].startswith("teacher: 0 of 1 runs are there")
    with pytest.raises(SystemExit):
        evidence_runs.main(["--data", "pictures", "few-1000"])
    assert "has students, but not teacher.ckpt" in capsys.readouterr().err


def test_margins_are_of_the_classes_that_are_not_the_samples_own():
    clean = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]])  # sides 4, 3 and 5
    moved = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    found = margins.margins(clean, torch.arange(3), moved, base=torch.tensor([0, 0]), target=torch.tensor([1, 1]))
    assert found["margin"] == pytest.approx(((13**0.5 - 2.0) + (1.0 - 2.0)) / 2.0 / 4.0)
    assert found["nearer"] == 0.5


def test_tables_of_the_evidence():
    lines = [
        {"group": "amkd", "tried": tried, "seed": seed, "method": "amkd", "validation": value + seed, "minutes": 2.0}
        for seed in range(3)
        for tried, value in (({"margin": 5.0}, 51.0 + seed * seed), ({"triplet_weight": 0.3}, 50.0))
    ]
    lines.append({**lines[0], "tried": {"space": "features"}, "validation": None})
    kept = [
        {"method": method, "seed": seed, "margin": always + (0.1 + more) * seed, "nearer": 0.5}
        for method, always, more in (("bss-near_boundary", 0.0, 0.0), ("amkd", 0.0, 0.02), ("dkd", 0.5, 0.001))
        for seed in range(3)
    ]
    results = Results(lines={"search": lines, "margins-few-1000": kept})
    table = evidence.tables()["search-amkd"](results)
    assert "| `triplet_weight` 0.3 | 3 | 51.0 ± 2.5 |  |" in table  # first in the protocol
    assert "| `margin` 5.0 | 3 | 53.7 ± 7.6 | +2.7 (-2.5 to +7.8), p 0.157 |" in table
    assert "7 runs of 2.0 minutes" in table
    assert "| `space` features | 1 | diverged |  |" in table
    table = evidence.tables()["few-1000-margins"](results)
    assert "| AMKD | 0.120 ± 0.298 | +0.020, p 0.225 | 50.0 |" in table
    assert "| DKD | 0.601 ± 0.251 | +0.501, p < 0.001 | 50.0 |" in table
    assert table.endswith("Mean of 3 seeds ± half the 95 % interval; p: paired t-test, not corrected.")
    reached = {"bss-official": (50.0, 50.0, 50.0), "bss-near_boundary": (51.0, 51.0, 51.0), "amkd": (52.0, 53.0, 52.0)}
    runs = [
        {"method": method, "seed": seed, "qualities": {"accuracy": value}}
        for method, values in reached.items()
        for seed, value in enumerate(values)
    ]
    runs[2]["qualities"] = None  # it diverged
    table = evidence.tables()["cifar10-pairs"](Results(lines={"full": runs, "resnet14-1000": runs[3:]}))
    assert "| `full` | 3 | +1.0 | +1.3 (-0.1 to +2.8), p 0.057 |" in table
    assert "| `resnet14-1000` | 3 |  | +1.3 (-0.1 to +2.8), p 0.057 |" in table
    assert evidence.tables()["cifar10-pairs"](results) == words.NOT_YET
    assert evidence.tables()["full-methods"](results) == evidence.tables()["full-gains"](results) == words.NOT_YET


def test_tables_of_the_evidence_tell_what_time_was_taken_and_what_it_buys():
    results = load(machine.RESULTS)
    found = results.evidence["resnet14-1000"]
    assert (found["settings"]["seeds"], found["settings"]["epochs"], len(found["methods"])) == (3, 60, 5)
    for about in found["methods"].values():
        about["ms_per_step"] = 100.0  # sixteen steps an epoch: 1,000 images in batches of 64
    table = evidence.tables()["resnet14-1000-methods"](results)
    assert table.endswith(" All runs' steps took 0.4 hours of one core.")
    found["methods"]["kd"]["ms_per_step"] = 40.0
    (test,) = [test for test in found["tests"] if (test["quality"], test["method"]) == ("accuracy", "amkd")]
    test["mean"] = 0.75
    assert "| AMKD | 100 | 2.50 | +0.75 | +0.5 |" in evidence.gains("resnet14-1000")(results)
