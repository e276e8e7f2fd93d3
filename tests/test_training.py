"""Trainings as people start them: over two processes, killed, in low precision, compiled, with summed gradients."""

from __future__ import annotations

import csv
import os

import kills
import pytest
import soak
import torch
import torch.nn.functional as F

pytest.importorskip("lightning", reason="the extra `train` is not installed")

from processes import torchrun

from amkd_fast.distill.checkpoint import load_network
from amkd_fast.distill.cli import main
from amkd_fast.distill.lr_schedule import cosine

SMALL = [
    *("--teacher-network", "small-2-1", "--student-network", "small-2-1", "--teacher-images", "256"),
    *("--student-images", "100", "--epochs", "3", "--batch-size", "32", "--boundary-samples", "6", "--lr", "0.03"),
]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    words = [*SMALL, "--method", "kd", "--epochs", "1", "--teacher-epochs", "20", "--lr", "0.1"]
    assert main(["train", *words, "--output", str(folder)]) == 0
    return str(folder / "teacher.ckpt")


def log(folder):
    with (folder / "log.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v and k != "ms_per_step"} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("words", "limit"),
    [
        (("--method", "amkd", "--memory", "48", "--precision", "64"), 1e-9),
        (("--method", "bss-official", "--bn", "concatenated", "--augment", "crop+flip", "--precision", "64"), 1e-9),
        (("--method", "amkd", "--epochs", "1"), 1e-5),
    ],
    ids=["amkd", "official", "single precision"],
)
def test_two_processes_have_the_loss_curve_of_one(teacher, tmp_path, words, limit):
    words = [*SMALL, *words, "--teacher", teacher]
    assert main(["train", *words, "--output", str(tmp_path / "one")]) == 0
    (tmp_path / "told").mkdir()
    well, printed, errors = torchrun(["train", *words, "--output", str(tmp_path / "two")], tmp_path / "told")
    assert well, errors
    assert [text.count("last epoch") for text in printed] == [1, 0]
    assert [text.count("images/s") > 0 for text in printed] == [True, False]  # lines of epochs
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert len(one) == len(two) > 0
    for mine, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(mine, rel=limit, abs=limit)
    weights = [load_network(tmp_path / name / "last.ckpt")[0].state_dict() for name in ("one", "two")]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=10 * limit, atol=10 * limit)
    assert sorted(os.listdir(tmp_path / "two")) == sorted(os.listdir(tmp_path / "one"))


def test_two_processes_stop_when_the_first_cannot_write(tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "dear.txt").write_text("dear")
    (tmp_path / "told").mkdir()
    well, _, errors = torchrun(["train", *SMALL, "--output", str(tmp_path / "foreign")], tmp_path / "told")
    assert not well
    assert "holds files that are no result of amkd-distill" in errors[0]
    assert "see what process 0 says" in errors[1]


def test_killed_and_resumed_ends_where_it_would_have(tmp_path):
    shorter = ("--teacher-epochs", "16", "--epochs", "12")
    told = kills.run(tmp_path, 2, 2, int.from_bytes(os.urandom(2), "little"), *shorter)
    assert len(told) == 2


def test_struck_down_and_resumed_a_comparison_is_the_same_and_leaves_no_process(tmp_path, monkeypatch):
    monkeypatch.setitem(soak.WORDS, "compare", [*soak.WORDS["compare"], "--teacher-epochs", "8", "--epochs", "3"])
    assert len(soak.run(tmp_path, 2, int.from_bytes(os.urandom(2), "little"), ("compare",))) == 2


FEATURES = ("--method", "amkd", "--variant", "student_space", "--space", "features")


@pytest.mark.parametrize(
    "words",
    [
        ("--precision", "bf16", "--method", "amkd"),
        ("--accumulate", "2", "--method", "bss-near_boundary"),
        (*FEATURES, "--memory", "16", "--student-network", "wrn-10-1"),
        ("--method", "amkd", "--student-network", "resnet8", "--classes", "0-4", "--student-shots", "9"),
    ],
    ids=lambda words: "-".join(words).strip("-"),
)
def test_other_trainings_learn(tmp_path, words):
    words = [*SMALL, "--teacher-epochs", "8", "--lr", "0.1", "--epochs", "4", *words]
    if "--student-shots" in words:
        words.remove("--student-images")
        words.remove("100")
    assert main(["train", *words, "--output", str(tmp_path / "out")]) == 0
    rows = log(tmp_path / "out")
    assert rows[-1]["ce"] < rows[0]["ce"]
    if "--accumulate" in words:  # four batches an epoch, two steps
        assert [row["lr"] for row in rows] == pytest.approx([0.1 * cosine(epoch / 4) for epoch in range(4)])


def test_a_compiled_student_is_the_student(teacher, tmp_path, monkeypatch):
    backend = torch.compile  # the C++ that inductor would make takes a minute
    monkeypatch.setattr(torch, "compile", lambda network: backend(network, backend="aot_eager"))
    words = [*SMALL, "--method", "amkd", "--teacher", teacher, "--precision", "64", "--epochs", "2"]
    for name, more in (("eager", []), ("compiled", ["--compile"])):
        assert main(["train", *words, *more, "--output", str(tmp_path / name)]) == 0
    one, other = log(tmp_path / "eager"), log(tmp_path / "compiled")
    for mine, theirs in zip(one, other, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-9, abs=1e-9)


def test_channels_last_is_the_same_training(teacher, tmp_path, monkeypatch):
    formats = []
    convolve = F.conv2d

    def looked_at(images, weight, *more):
        if weight.requires_grad and torch.is_grad_enabled():
            formats.append(images.stride(1) == 1)  # of one channel, too
        return convolve(images, weight, *more)

    monkeypatch.setattr(F, "conv2d", looked_at)
    words = [*SMALL, "--method", "amkd", "--teacher", teacher, "--precision", "64", "--augment", "crop"]
    states = []
    for name, more in (("contiguous", []), ("last", ["--channels-last"])):
        formats.clear()
        assert main(["train", *words, *more, "--output", str(tmp_path / name)]) == 0
        assert formats
        assert set(formats) == {bool(more)}
        states.append(torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"])
    one, other = log(tmp_path / "contiguous"), log(tmp_path / "last")
    for mine, theirs in zip(one, other, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-9, abs=1e-9)
    for key, value in states[1].items():
        assert value.is_contiguous(), key
        torch.testing.assert_close(value, states[0][key], rtol=1e-9, atol=1e-9)


def test_a_network_of_the_users_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine_for_a_test.py").write_text(
        "from torch import nn\n"
        "def make(channels, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, 16), nn.ReLU(), nn.Linear(16, classes))\n"
    )
    words = [*SMALL, "--method", "kd", "--teacher-epochs", "1", "--student-network", "mine_for_a_test:make"]
    assert main(["train", *words, "--output", "out"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "out/last.ckpt"]) == 2  # the name is in the file alone
    assert "its network is code; --network mine_for_a_test:make allows it to run" in capsys.readouterr().err
    assert main(["evaluate", "out/last.ckpt", "--network", "mine_for_a_test:make"]) == 0
