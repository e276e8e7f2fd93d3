"""The runs of the evidence: what is finished is kept as lines, and gone on with."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("lightning", reason="the extra `train` is not installed")

from amkd_fast.distill.cli import main as distill
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.options import to_yaml
from amkd_fast.distill.result_folder import partial_of
from amkd_fast.distill.settings import CompareSettings
from benchmarks.evidence import protocol, store

SETTINGS = CompareSettings(
    methods="student,kd", seeds=2, epochs=1, teacher_epochs=1, student_images=50, quality_images=20, keep_students=False
)


def test_the_protocol_is_of_settings_that_there_are():
    found = protocol.read("pictures", "teacher.ckpt")
    assert found.teacher.data == "pictures"
    assert {part.settings.teacher for part in found.parts} == {"teacher.ckpt"}
    for part in found.parts:
        assert set(part.minutes) == set(part.settings.names())
        assert part.hours == pytest.approx(part.settings.seeds * sum(part.minutes.values()) / 60)
    assert all(point.settings.val_fraction for point in found.search)
    tried = [(point.group, point.settings.seed, *sorted(point.tried.items())) for point in found.search]
    assert len(set(tried)) == len(tried) > 0
    for point in found.search:
        assert all(getattr(point.settings, name) == value for name, value in point.tried.items())


def test_a_setting_that_breaks_its_rule_is_told(tmp_path):
    path = tmp_path / "protocol.yaml"
    path.write_text(protocol.FILE.read_text().replace("epochs: 20", "epochs: 0"))
    with pytest.raises(UserError, match="teacher: epochs=0: must be at least 1"):
        protocol.read("pictures", "teacher.ckpt", path)


def test_lines_become_a_comparison_again(tmp_path):
    path, output = tmp_path / "part.jsonl", tmp_path / "out"
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
    row = {"epoch": 0, "lr": 0.1, "accuracy": 77.0, "total": 1.0, "ce": 1.0, "ms_per_step": 1.0}
    for method, seed in (("student", 0), ("kd", 0), ("student", 1)):
        run = {"rows": [row], "qualities": None, "diverged": {"epoch": 2, "what": "the loss"}}
        store.add(path, {"method": method, "seed": seed, **run})
    config = tmp_path / "config.yaml"
    config.write_text(to_yaml(SETTINGS))
    assert store.restore(output, path, SETTINGS)
    assert distill(["compare", "--config", str(config), "--output", str(output), "--resume", "--jobs", "1"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert {tuple(line.split()[1:3]) for line in said if line.startswith("seed")} == {("1", "kd")}
    assert len(json.loads((output / "results.json").read_text())["runs"]) == 4
