"""``--method module:Class``, a method of the user's own, and the feature methods in the trainer."""

from __future__ import annotations

import csv
import json
import os
import sys

import pytest
import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg

from amkd_fast.distill.checkpoint import load_network
from amkd_fast.distill.cli import main
from amkd_fast.distill.settings import METHODS, file_name, known_method, named_value, plain_options

SMALL = ["--teacher-network", "small-2-1", "--student-network", "small-2-1", "--teacher-epochs", "1", "--epochs", "2"]
SMALL += ["--teacher-images", "128", "--student-images", "48", "--quality-images", "16", "--threads", "1"]
CODE = """
import torch
from amkd_fast.methods import Losses, Method


class Mine(Method):
    def __init__(self, *, weight, layers=(), what="losses", **more):
        super().__init__(**more)
        self.weight, self.what = weight, what
        self.scale = torch.nn.Parameter(torch.randn(()))

    def forward(self, batch, teacher, student, moment):
        apart = (student(batch.images) - self.scale * self.taught(batch, teacher)).square().mean()
        parts = {"lr" if self.what == "clash" else "apart": apart.detach()}
        return apart if self.what == "tensor" else Losses(self.weight * apart, parts)


class Deaf(Method):
    def __init__(self):
        super().__init__()


class Other:
    pass


number = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module beside the user."""
    (tmp_path / "my_methods.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    yield tmp_path
    sys.modules.pop("my_methods", None)


def stopped(module, *_):
    """In the second epoch, which has no checkpoint yet."""
    if module.current_epoch == 1:
        raise KeyboardInterrupt


def line(capsys):
    (found,) = capsys.readouterr().err.splitlines()
    return found


def test_a_method_of_ones_own_is_trained_resumed_and_evaluated(mine, monkeypatch, capsys):
    words = ["train", "--method", "my_methods:Mine", *SMALL]
    options = ["--method-option", "weight=0.5", "--method-option", "layers=[1, 2]"]
    assert main([*words, *options, "--output", "straight"]) == 0
    (mine / "s.yaml").write_text("method: my_methods:Mine\nmethod_option: {weight: 0.5, layers: [1, 2]}\n")
    assert yaml.safe_load((mine / "straight/config.yaml").read_text())["method_option"] == {
        "weight": 0.5,
        "layers": [1, 2],
    }
    rows = list(csv.DictReader((mine / "straight/log.csv").open()))
    assert float(rows[1]["total"]) == pytest.approx(0.5 * float(rows[1]["apart"]))

    with monkeypatch.context() as patch:
        patch.setattr("amkd_fast.distill.lightning_module.Distillation.on_train_epoch_end", stopped, raising=False)
        assert main(["train", "--config", "s.yaml", *SMALL, "--output", "broken"]) == 130
    assert main(["train", "--resume", "--output", "broken"]) == 0
    states = [torch.load(f"{name}/last.ckpt", weights_only=True)["state_dict"] for name in ("straight", "broken")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert "method.scale" in states[0]
    assert main([*words, "--resume", "--method-option", "weight=2", "--output", "straight"]) == 2
    assert "the run was started with --method-option" in capsys.readouterr().err
    assert main(["evaluate", "straight/best.ckpt"]) == 0


def test_a_comparison_with_it(mine, monkeypatch):
    monkeypatch.setattr(FigureCanvasAgg, "print_figure", lambda self, file, **_: file.write(b"\x89PNG"))
    words = ["compare", "--methods", "student,my_methods:Mine", "--method-option", "weight=1", *SMALL]
    assert main([*words, "--seeds", "1", "--jobs", "1", "--output", "both"]) == 0
    result = json.loads((mine / "both/results.json").read_text())
    assert list(result["methods"]) == ["student", "my_methods:Mine"]
    (header, *_) = (mine / "both/results.csv").read_text().splitlines()
    assert "apart" in header.split(",")
    assert not any(":" in name for _, folders, files in os.walk(mine / "both") for name in (*folders, *files))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--method", "nothing"], "--method 'nothing': must be one of student, kd"),
        (["--method", "a b:C"], "or module:Class"),
        (["--method", "my_methods:Absent"], "--method my_methods:Absent: module my_methods has no Absent"),
        (["--method", "not_there:Mine"], "there is no module not_there"),
        (["--method", "my_methods:Other"], "Other must be a subclass of amkd_fast.methods.Method"),
        (["--method", "my_methods:number"], "a int must be a subclass"),
        (["--method", "my_methods:Mine"], "Mine() raised TypeError"),
        (["--method", "my_methods:Mine", "--method-option", "weight=x", "--method-option", "no=1"], "no=1) raised"),
        (["--method", "my_methods:Mine", "--method-option", "weight"], "must be name=value"),
        (["--method", "my_methods:Mine", "--method-option", "a b=1"], "must have names as in Python"),
        (["--method", "my_methods:Mine", "--method-option", "w=1", "--method-option", "w=2"], "must not name w twice"),
        (["--method", "my_methods:Deaf", "--method-option", "weight=1"], "Deaf(weight=1) raised TypeError"),
        (["--method", "my_methods:Mine", "--method-option", "weight=1", "--whole-step"], "--whole-step: "),
        (["--method-option", "weight=1"], "--method-option: is for module:Class"),
        (["--method", "my_methods:Mine", "--method-option", "weight=1", "--method-option", "what=tensor", *SMALL],
         "returned a Tensor: must be amkd_fast.methods.Losses"),
        (["--method", "my_methods:Mine", "--method-option", "weight=1", "--method-option", "what=clash", *SMALL],
         "a part is called lr"),
        (["--method", "fitnet", "--fitnet-stage", "4", *SMALL], "fitnet: stage=4: must be at most 3"),
        (["--method", "at", "--student-stages", "a", "--teacher-stages", "b", *SMALL], "at: stages: ResNet has no"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_one_line(mine, words, expected, capsys):
    assert main(["train", *words, "--output", "out"]) == 2
    assert expected in line(capsys)
    assert not (mine / "out").exists()


def test_names_and_values():
    for name in (*METHODS, "a:B", "a.b_1:C"):
        assert known_method(name) == name
        assert not set(file_name(name)) & set(':/\\*?"<>| ')
    for name in ("", "a", "a:", ":B", "a:B.c", "a/b:C", "..:C", "a:B:C"):
        with pytest.raises(ValueError, match="must be one of student"):
            known_method(name)
    assert [named_value(f"a={text}")["a"] for text in ("1", "1e-3", "true", "null", '"1"', "x=y", "")] == [
        1, 1e-3, True, None, "1", "x=y", "",
    ]  # fmt: skip
    for value in (float("inf"), {"b": 1}, object()):
        with pytest.raises(ValueError, match="must have numbers, text"):
            plain_options({"a": value})


@pytest.mark.parametrize("method", ["fitnet", "at", "sp", "crd", "reviewkd"])
def test_feature_methods_resume_bit_for_bit(method, tmp_path, monkeypatch, capsys):
    """What a method trains and remembers goes on, too."""
    words = ["train", "--method", method, *SMALL, "--crd-features", "8", "--weight-decay", "0.001", "--lr", "0.01"]
    assert main([*words, "--output", str(tmp_path / "straight")]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("amkd_fast.distill.lightning_module.Distillation.on_train_epoch_end", stopped, raising=False)
        assert main([*words, "--output", str(tmp_path / "broken")]) == 130
    assert main(["train", "--resume", "--output", str(tmp_path / "broken")]) == 0
    states = [
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("straight", "broken")
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    own = [name for name in states[0] if name.startswith("method.")]
    assert bool(own) == (method not in ("at", "sp"))
    load_network(tmp_path / "broken" / "best.ckpt")
