"""Trainings that look at the test images in some epochs only."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("lightning", reason="the extra `train` is not installed")

from amkd_fast.distill.cli import main
from amkd_fast.distill.report import live
from amkd_fast.distill.report.curves import curves
from amkd_fast.distill.report.page import LONG

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = [
    *("--teacher-network", "small-2-1", "--student-network", "small-2-1", "--teacher-epochs", "1"),
    *("--teacher-images", "128", "--student-images", "48", "--quality-images", "16", "--batch-size", "16"),
]


@pytest.mark.parametrize(("every", "tested"), [(1, [0, 1, 2, 3, 4]), (2, [0, 1, 3, 4]), (99, [0, 4])])
def test_epochs_between_tests(tmp_path, every, tested):
    words = ["train", "--method", "kd", *SMALL, "--epochs", "5", "--test-every", str(every), "--val-fraction", "0.1"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    for name in ("accuracy", "validation"):
        assert [row["epoch"] for row in result["epochs"] if name in row] == tested
    assert result["best_epoch"] in tested
    best = torch.load(tmp_path / "out" / "best.ckpt", weights_only=True)
    assert best["epoch"] == result["best_epoch"]


def test_a_comparison_that_tests_seldom_is_drawn(tmp_path, capsys):
    words = ["compare", "--methods", "student,kd", "--seeds", "2", *SMALL, "--epochs", "5", "--test-every", "3"]
    assert main([*words, "--output", str(tmp_path / "whole"), "--jobs", "1", "--log-every", "0"]) == 0
    assert "epoch 2/5  total" in capsys.readouterr().out  # no accuracy, not an old one
    whole = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert [sorted(row["epoch"] for row in run["epochs"] if "accuracy" in row) for run in whole["runs"]] == [
        [0, 2, 4]
    ] * 4
    assert 'id="epochs"' in (tmp_path / "whole" / "report.html").read_text()


def test_the_page_of_a_running_comparison_has_epochs_without_a_test_in_its_last_third(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "RELOAD", 0)
    monkeypatch.setattr(live, "SHARE", 1e9)
    epochs = str(LONG + 6)
    words = [
        "compare",
        "--methods",
        "kd",
        "--seeds",
        "1",
        *SMALL,
        "--epochs",
        epochs,
        "--test-every",
        epochs,
        "--quiet",
    ]
    assert main([*words, "--output", str(tmp_path / "out"), "--jobs", "1"]) == 0


def test_a_curve_goes_straight_over_epochs_without_a_test():
    rows = [{"accuracy": 10.0}, {}, {"accuracy": 20.0}, {"accuracy": None}, {"accuracy": 50.0}, {}]
    (curve,) = curves([("kd", rows)], "accuracy")
    assert curve.mean.tolist() == [10.0, 15.0, 20.0, 35.0, 50.0, None]


def test_a_stop_within_an_epoch_that_has_no_test_is_tested(tmp_path):
    words = ["train", "--method", "kd", *SMALL, "--epochs", "9", "--test-every", "9", "--max-steps", "7"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(result["epochs"]) > 1
    assert result["last"] == result["epochs"][-1]["accuracy"]
