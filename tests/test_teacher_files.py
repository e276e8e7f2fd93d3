"""Teachers from anywhere: files of others in every layout, what does not fit, and whether they are as good as told."""

from __future__ import annotations

import argparse
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("lightning", reason="the extra `train` is not installed")

from amkd_fast.distill import build as choices
from amkd_fast.distill import data as datasets
from amkd_fast.distill import pool, state_dict_file, state_dict_fit, teacher_check, teacher_file
from amkd_fast.distill.checkpoint import load_network, read
from amkd_fast.distill.cli import main
from amkd_fast.distill.data import Split
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.networks import Spec, build, in_published_layout
from amkd_fast.distill.networks.normalised import Normalisation, Normalised
from amkd_fast.distill.normalisation import PUBLISHED
from amkd_fast.distill.settings import Settings, TrainSettings
from amkd_fast.distill.state_dict_file import Claim, find

pytestmark = pytest.mark.usefixtures("one_thread")

NAME = "small-2-1"
SPEC = Spec(NAME, 1, 10)
# Per channel, and far from the digits' own: with another one this teacher knows nothing.
MEAN, STD = 4.0, 0.25
MINE = """
from torch import nn

def my_network(channels, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, 32), nn.ReLU(), nn.Linear(32, classes))
"""


def weights(seed=3):
    return build(SPEC, seed).state_dict()


def named(prefix, tensors):
    return {f"{prefix}{name}": value for name, value in tensors.items()}


# How trainers write a state dict; what of the file is told to have been taken.
LAYOUTS = {
    "plain": (lambda w: w, ""),
    "parameters": (lambda w: {n: nn.Parameter(v) if v.is_floating_point() else v for n, v in w.items()}, ""),
    "mdistiller": (lambda w: {"model": w, "epoch": 240, "best_acc": 79.4}, " (model)"),
    "repdistiller": (lambda w: {"opt": argparse.Namespace(lr=0.05, steps=[1]), "model": w}, " (model)"),
    "data parallel": (lambda w: named("module.", w), " (names without module.)"),
    "lightning": (
        lambda w: {"state_dict": named("model.", w), "pytorch-lightning_version": "2.4", "loops": {}},
        " (state_dict; names without model.)",
    ),
    "compiled": (
        lambda w: {"net": named("module._orig_mod.", w), "acc": np.float64(71.5)},
        " (net; names without module._orig_mod.)",
    ),
    "nested": (
        lambda w: {"teacher": {"state_dict": named("backbone.", w)}, "optimizer": {"state": {0: {"x": torch.ones(1)}}}},
        " (teacher.state_dict; names without backbone.)",
    ),
    "averaged": (
        lambda w: {"state_dict_ema": named("module.", w), "state_dict": w, "arch": "resnet"},
        " (state_dict; not state_dict_ema)",
    ),
    "own words": (lambda w: {"epoch": 3, "the weights": w}, " (the weights)"),
}


@pytest.fixture(scope="module")
def digits():
    return datasets.load(Settings())


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty current folder, whose modules can be imported for the length of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    (tmp_path / "mine_of_teachers.py").write_text(MINE)
    yield tmp_path
    sys.modules.pop("mine_of_teachers", None)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads_the_same_weights(layout, digits, tmp_path):
    write, part = LAYOUTS[layout]
    torch.save(write(weights()), tmp_path / "x.pth")
    settings = Settings(teacher_network=NAME)
    teacher_file.check(tmp_path / "x.pth", NAME)
    found = teacher_file.load(tmp_path / "x.pth", digits, settings)
    assert found.source == f"{tmp_path / 'x.pth'}{part}"
    assert found.spec == SPEC
    assert not found.network.training
    state = found.network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in weights().items())


def test_safetensors(digits, tmp_path, monkeypatch):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    path = tmp_path / "x.safetensors"
    safetensors.save_file(named("module.", weights()), path)
    state = teacher_file.load(path, digits, Settings(teacher_network=NAME)).network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in weights().items())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"x\.safetensors: cannot be read, damaged or no checkpoint"):
        state_dict_file.read(path)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match="needs safetensors: run `pip install safetensors`"):
        state_dict_file.read(path)


@pytest.mark.parametrize("name", ["resnet8-b", "wrn-10-1", "vgg8"])
def test_files_in_mdistillers_layout(name, digits, tmp_path):
    spec = Spec(name, 1, 10)
    state = build(spec, 3).state_dict()
    published = dict(sorted(in_published_layout(name, state).items()))  # safetensors sorts them
    assert published.keys() != state.keys()
    torch.save({"epoch": 240, "model": named("module.", published)}, tmp_path / "ckpt_epoch_240.pth")
    found = teacher_file.load(tmp_path / "ckpt_epoch_240.pth", digits, Settings(teacher_network=name))
    assert all(torch.equal(found.network.state_dict()[key], value) for key, value in state.items())
    with pytest.raises(UserError, match=rf"names and shapes are those of {name}\b"):
        teacher_file.check(tmp_path / "ckpt_epoch_240.pth", "auto")


def test_weights_of_half_precision_and_without_counts(digits, tmp_path):
    halves = {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in weights().items()
        if not name.endswith("num_batches_tracked")
    }
    torch.save(halves, tmp_path / "x.pt")
    state = teacher_file.load(tmp_path / "x.pt", digits, Settings(teacher_network=NAME)).network.state_dict()
    assert len(state) > len(halves)
    for name, value in halves.items():
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name], value.float())


def test_a_prefix_may_be_the_networks_own():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Linear(2, 3)

    network = Wrapped()
    given = named("module.model.", nn.Linear(2, 3).state_dict())
    assert state_dict_fit.load(network, given, Spec("mine:x", 1, 3), "x") == "module."
    assert torch.equal(network.model.weight, given["module.model.weight"])


# --- what is refused


def whole_module(folder):
    """A module of a class that the file names."""
    home = types.ModuleType("home_of_teachers")
    home.Net = type("Net", (nn.Linear,), {"__module__": "home_of_teachers"})
    sys.modules["home_of_teachers"] = home
    torch.save(home.Net(2, 2), folder / "x.pth")
    del sys.modules["home_of_teachers"]


CODE = {
    "home_of_teachers.Net": whole_module,
    "print": lambda folder: torch.save({"model": weights(), "call": print}, folder / "x.pth"),
    "TorchScript": lambda folder: torch.jit.script(nn.Linear(2, 2)).save(folder / "x.pth"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("what", CODE)
def test_nothing_of_a_file_is_executed(what, tmp_path, recwarn):
    CODE[what](tmp_path)
    recwarn.clear()
    with pytest.raises(UserError) as caught:
        teacher_file.check(tmp_path / "x.pth", NAME)
    assert f"holds more than tensors and plain values ({what}), which is code" in str(caught.value)
    assert "torch.save(model.state_dict(), FILE)" in str(caught.value)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"epoch": 3, "optimizer": {}}, "holds 'epoch', 'optimizer'"),
        ([1, 2], "holds a list"),
        ({}, "no state dict in it"),
        ({"model": "resnet8", "loss": 1.0}, "holds 'model', 'loss'"),
        ({"a": {"x": torch.ones(1), 3: torch.ones(1)}}, "no state dict in it"),
    ],
)
def test_files_without_weights(content, words, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match="was not written by amkd-distill, and has no state dict in it") as caught:
        teacher_file.check(tmp_path / "x.pth", NAME)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["resnet8", "wrn-10-2", NAME])
def test_a_state_dict_needs_a_network_and_ours_are_recognised(name, tmp_path):
    torch.save({"model": named("module.", build(Spec(name, 3, 7), 0).state_dict())}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="give --teacher-network, a name, module:factory or timm:NAME") as caught:
        teacher_file.check(tmp_path / "x.pth", "auto")
    assert f"(names and shapes are those of {name})" in str(caught.value)


def test_a_state_dict_of_somebody_elses_network(tmp_path):
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 10)).state_dict(), tmp_path / "x.pth")
    with pytest.raises(UserError, match="it is none of ours"):
        teacher_file.check(tmp_path / "x.pth", "auto")


# What is done to a state dict, and what is said of it.
MISFITS = {
    "missing": (lambda w: w.pop("bn.weight"), "1 missing (bn.weight)"),
    "unexpected": (lambda w: w.update({"projector.weight": torch.ones(1)}), "1 unexpected (projector.weight)"),
    "shape": (
        lambda w: w.update({"bn.bias": torch.ones(3)}),
        "1 of another shape (bn.bias 3 instead of 2)",
    ),
    "dtype": (
        lambda w: w.update({"bn.bias": torch.ones(2, dtype=torch.int8)}),
        "1 of another shape (bn.bias int8 instead of float32)",
    ),
    "classes": (
        lambda w: w.update(build(SPEC._replace(classes=100), 0).state_dict()),
        "the file's head has 100 classes, the data 10: give it the data that it was trained on; 2 of another shape "
        "(head.weight 100 × 8 instead of 10 × 8, head.bias 100 instead of 10)",
    ),
    "channels": (
        lambda w: w.update(build(SPEC._replace(channels=3), 0).state_dict()),
        "the file's first layer takes 3 channels, the data has 1; 1 of another shape",
    ),
    "renamed": (
        lambda w: [w.update({f"the {name}": w.pop(name)}) for name in list(w)],
        "and 41 more); 56 unexpected (the conv.weight,",
    ),
    "another": (
        lambda w: (w.clear(), w.update(build(Spec("small-2-2", 1, 10), 0).state_dict())),
        "; its names and shapes are those of small-2-2",
    ),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_what_does_not_fit_is_listed_and_nothing_is_loaded(kind):
    change, words = MISFITS[kind]
    given = dict(weights(3))
    change(given)
    network = build(SPEC, 5)
    with pytest.raises(UserError) as caught:
        state_dict_fit.load(network, given, SPEC, "--teacher x.pth")
    assert str(caught.value).startswith(f"--teacher x.pth: does not fit {NAME}: ")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert all(torch.equal(value, weights(5)[name]) for name, value in network.state_dict().items())


# --- what a file says of itself


@pytest.mark.parametrize(
    ("content", "percent", "name"),
    [
        ({"acc": 71.5}, 71.5, "acc"),
        ({"best_acc": 0.715}, 71.5, "best_acc"),
        ({"test_acc": torch.tensor([71.5]), "best_acc": 80.0}, 71.5, "test_acc"),
        ({"accuracy": np.float32(0.5)}, 50.0, "accuracy"),
        ({"acc": 0, "best_acc": 60}, 60.0, "best_acc"),
        *(({"acc": value}, None, None) for value in (0.0, 100.1, float("nan"), True, "71", [71.5], torch.ones(2))),
        ({"val_loss": 1.0, "train_acc": 99.0}, None, None),
    ],
)
def test_accuracies_that_files_claim(content, percent, name):
    claim = find({**content, "model": weights()}, "x.pth").claim
    assert claim == (None if percent is None else Claim(pytest.approx(percent), f"{name} in x.pth"))


def test_a_claim_beside_the_weights_goes_before_one_further_out():
    assert find({"acc": 1.5, "model": {"acc": 70.0, "state_dict": weights()}}, "x").claim == Claim(70.0, "acc in x")


def test_a_network_called_acc_is_no_claim():
    assert find({"acc": torch.ones(1), "fc": torch.ones(1)}, "x").claim is None


# --- whether it is true

LABELS = torch.arange(10).repeat(20)  # [200]


def one_hot(labels, classes=10):
    return nn.functional.one_hot(labels, classes).float()


def checked(logits, claim, labels=LABELS):
    """A teacher with these answers, whatever the images and their normalisation are."""
    network = Normalised(nn.Flatten(), [0.0], 1.0)
    network.forward = lambda images: logits[: len(images)]
    teacher_check.check(network, Split(torch.zeros(len(labels), 1, 1, 1), labels), logits, claim, "--teacher x")


def test_two_points_below_are_let_pass_and_no_more():
    logits = one_hot(LABELS).roll(1, 1)
    logits[:150] = one_hot(LABELS)[:150]  # 75 %
    checked(logits, Claim(77.0, "--expect-teacher"))
    with pytest.raises(UserError) as caught:
        checked(logits, Claim(77.1, "--expect-teacher"))
    told = str(caught.value)
    assert told.startswith("--teacher x: 75.0 % on 200 test images, and 77.1 % by --expect-teacher; likely causes: ")
    for cause in ("another normalisation than mean 0 and std 1", "classes in another order", "another network"):
        assert cause in told
    assert told.endswith("; --expect-teacher 75.0 accepts that")


@pytest.mark.parametrize("classes", [2, 10])
def test_classes_in_another_order_are_recognised(classes):
    labels = LABELS % classes
    with pytest.raises(UserError, match=r"in another order than the data's \(renamed, 100\.0 % are right\)"):
        checked(one_hot((labels + 1) % classes, classes), Claim(90.0, "acc in x"), labels)


def test_what_is_not_finite_is_no_question_of_normalisation():
    with pytest.raises(
        UserError, match=r"50\.0 % by --expect-teacher; its logits are not finite; --expect-teacher 0.0"
    ):
        checked(one_hot(LABELS) * float("nan"), Claim(50.0, "--expect-teacher"))


def test_by_chance_another_order_is_no_cause():
    logits = torch.rand(200, 10, generator=torch.Generator().manual_seed(0))
    assert teacher_check.best_renaming(logits, LABELS) > 13.0
    with pytest.raises(UserError, match="likely causes"):
        checked(logits, Claim(18.0, "acc in x"))


@pytest.mark.parametrize(
    ("right", "words"), [((0.5, 0.5), "0.5,0.5,0.5 --teacher-std 0.5,0.5,0.5"), (None, "imagenet")]
)
def test_a_usual_normalisation_is_found(right, words):
    """By a network that knows an image by its third channel, whose levels it takes to be normalised so."""
    right = PUBLISHED["imagenet"] if right is None else Normalisation.of([right[0]] * 3, right[1])
    pixels = torch.zeros(200, 3, 1, 1, dtype=torch.uint8)
    pixels[:, 2, 0, 0] = (25 * LABELS + 12).to(torch.uint8)
    test = Split(pixels, LABELS, level=1 / 255)

    class Network(nn.Module):
        def forward(self, images):
            levels = (images[:, 2, 0, 0] * right.std[2] + right.mean[2]) * 255
            return one_hot(((levels - 12) / 25).round().long().clamp(0, 9))

    network = Normalised(Network(), (0.4, 0.4, 0.4), (0.1, 0.1, 0.1))
    with pytest.raises(UserError) as caught:
        teacher_check.check(network, test, network(test.images), Claim(99.0, "acc in x"), "--teacher x")
    assert (
        f"it has learnt with another normalisation than {network.normalisation}: --teacher-mean {words} has 100.0 %"
        in (str(caught.value))
    )


def test_no_better_than_guessing(capsys):
    teacher_check.warn_of_chance(14.2, 200, 10)  # two standard errors: 4.24
    told = "WARNING: this teacher knows nothing of these images: 14.2 % are right, guessing has 10.0 %\n"
    assert capsys.readouterr().out == told
    teacher_check.warn_of_chance(14.3, 200, 10)
    assert capsys.readouterr().out == ""


# --- pretrained weights of timm


@pytest.fixture
def timm(monkeypatch):
    """A package of one model, whose weights lie where the test puts them."""
    torch.manual_seed(7)
    asked = []

    def create_model(name, pretrained, in_chans, num_classes, pretrained_cfg_overlay=None):
        import os

        asked.append((pretrained, os.environ.get("HF_HUB_OFFLINE")))
        network = nn.Sequential(nn.Flatten(), nn.Linear(in_chans * 64, num_classes))
        if pretrained:
            network.load_state_dict(pretrained_cfg_overlay["state_dict"])
        return network

    about = types.SimpleNamespace(has_weights=True, hf_hub_id=None, hf_hub_filename=None, url="https://x/tiny.pth")
    fake = types.SimpleNamespace(
        create_model=create_model,
        is_model=lambda name: name == "tiny",
        get_pretrained_cfg=lambda name: about,
        about=about,
        asked=asked,
    )
    monkeypatch.setitem(sys.modules, "timm", fake)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return fake


def test_pretrained_weights_only_where_they_are_on_this_machine(timm, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    spec = Spec("timm:tiny@pretrained", 1, 10)
    with pytest.raises(UserError, match="its pretrained weights are not on this machine") as caught:
        choices.networks.check(spec.name, "--teacher-network")
    assert "timm.create_model('tiny', pretrained=True)" in str(caught.value)
    state = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict()
    (tmp_path / "checkpoints").mkdir()
    torch.save(state, tmp_path / "checkpoints" / "tiny.pth")
    choices.networks.check(spec.name, "--teacher-network")
    assert torch.equal(build(spec, 0)[1].weight, state["1.weight"])
    assert not torch.equal(build(spec._replace(name="timm:tiny"), 0)[1].weight, state["1.weight"])
    assert timm.asked == [(True, "1"), (False, "1")]
    with pytest.raises(UserError, match="nothing but @pretrained may stand behind a model"):
        build(spec._replace(name="timm:tiny@other"), 0)
    timm.about.has_weights = False
    with pytest.raises(UserError, match="timm has no pretrained weights of tiny"):
        build(spec, 0)


def test_pretrained_weights_in_hugging_faces_cache(timm, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    timm.about.hf_hub_id = "timm/tiny"
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--timm--tiny" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0")
    state = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict()
    safetensors.save_file(state, snapshot / "model.safetensors")
    assert torch.equal(build(Spec("timm:tiny@pretrained", 1, 10), 0)[1].weight, state["1.weight"])
    assert not hub.constants.HF_HUB_OFFLINE


# --- on the command line


def trained(digits):
    """Somebody's training loop on the digits' pixels; the accuracy on its own test images."""
    sys.path.insert(0, "")
    from mine_of_teachers import my_network

    torch.manual_seed(0)
    network = my_network(1, 10)

    def pixels(split):
        return (split.pixels.float() * digits.level - MEAN) / STD

    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(150):
        loss = nn.functional.cross_entropy(network(pixels(digits.teacher)), digits.teacher.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network, 100.0 * float((network(pixels(digits.test)).argmax(1) == digits.test.labels).float().mean())


RUN = ["--teacher", "mine.pth", "--teacher-network", "mine_of_teachers:my_network", "--student-network", NAME]
RUN += ["--student-images", "48", "--epochs", "1", "--quality-images", "20"]
RIGHT = ["--teacher-mean", str(MEAN), "--teacher-std", str(STD)]


def test_from_a_file_of_ones_own_to_a_student(digits, place, capsys):
    network, correct = trained(digits)
    torch.save({"model": named("module.", network.state_dict())}, "mine.pth")
    right = [*RUN, *RIGHT]
    assert main(["train", "--method", "kd", *right, "--expect-teacher", f"{correct:.1f}", "--output", "a"]) == 0
    told = capsys.readouterr().out
    line = f"teacher from mine.pth (model; names without module.): {correct:.1f} % on {len(digits.test)} test images"
    assert f"{line}, normalised by mean 4 and std 0.25" in told
    assert json.loads(Path("a/results.json").read_text())["teacher_accuracy"] == pytest.approx(correct)

    # What is kept is one of our checkpoints, for evaluate, for resume and for the processes of compare.
    kept, spec, about = load_network("a/teacher.ckpt", "mine_of_teachers:my_network")
    assert spec == Spec("mine_of_teachers:my_network", 1, 10)
    assert (about["mean"], about["std"]) == ([MEAN], [STD])
    assert about["accuracy"] == pytest.approx(correct)
    assert torch.equal(kept.network[1].weight, network[1].weight)
    assert main(["evaluate", "a/teacher.ckpt", "--network", spec.name, "--mean", "0", "--std", "1"]) == 2
    assert "--mean: is for a state dict; checkpoint a/teacher.ckpt has its own" in capsys.readouterr().err
    assert main(["evaluate", "a/teacher.ckpt", "--network", spec.name]) == 0
    assert f"{correct:.2f} %" in capsys.readouterr().out
    settings = TrainSettings(
        teacher_network=spec.name, teacher="mine.pth", teacher_mean=str(MEAN), teacher_std=str(STD)
    )
    _, _, teacher = pool._subject.__wrapped__(settings, Path("a/teacher.ckpt"), torch.device("cpu"), 1)
    assert torch.equal(teacher.network.network[1].weight, network[1].weight)

    # What a training's own checkpoint reached, and not on other images.
    student = teacher_file.load("a/last.ckpt", digits, TrainSettings(student_images=7))
    assert student.claim == Claim(json.loads(Path("a/results.json").read_text())["last"], "accuracy in a/last.ckpt")
    assert teacher_file.load("a/last.ckpt", digits, TrainSettings(data_seed=1)).claim is None
    trained_otherwise = TrainSettings(rand_augment=1, mixup=1.0, erase=0.5, student_images=20)
    assert teacher_file.load("a/last.ckpt", digits, trained_otherwise).claim == student.claim

    # With the kept one as the file, what it reached is what is expected of it on the same images.
    again = ["train", "--method", "kd", *RUN, "--teacher", "a/teacher.ckpt", "--output", "b"]
    assert main(again) == 0
    assert f"teacher from a/teacher.ckpt: {correct:.1f} %" in capsys.readouterr().out
    assert main([*again, "--teacher-mean", "0", "--teacher-std", "1", "--output", "c"]) == 2
    assert f"and {correct:.1f} % by accuracy in a/teacher.ckpt" in capsys.readouterr().err
    assert main([*again, "--classes", "0-9", "--teacher-mean", "0", "--teacher-std", "1", "--output", "d"]) == 0


def test_evaluate_takes_such_files(digits, place, capsys):
    network, correct = trained(digits)
    torch.save({"net": network.state_dict()}, "mine.pth")
    words = ["evaluate", "mine.pth", "--network", "mine_of_teachers:my_network", "--data", "digits"]
    assert main([*words, "--mean", str(MEAN), "--std", str(STD), "--output", "a.json"]) == 0
    told = capsys.readouterr().out
    assert f"mine.pth (net): {correct:.2f} % on {len(digits.test)} clean test images" in told
    assert json.loads(Path("a.json").read_text())["clean"]["accuracy"] == pytest.approx(correct / 100)
    for wrong, line in (
        (words[:4], "do not say of which network and data they are: give --network and --data"),
        ([*words[:3], "resnet8", *words[4:]], "checkpoint mine.pth: does not fit resnet8: "),
        ([*words, "--mean", "x", "--std", "1"], "--mean x: must be data"),
    ):
        assert main(wrong) == 2
        (told,) = capsys.readouterr().err.splitlines()
        assert line in told


@pytest.mark.parametrize("command", ["train", "compare"])
def test_the_wrong_normalisation_is_caught(command, digits, place, capsys):
    network, correct = trained(digits)
    torch.save({"net": network.state_dict(), "acc": correct}, "mine.pth")
    words = [command, *RUN, "--output", "a"] + (["--methods", "kd", "--seeds", "1"] if command == "compare" else [])
    assert main(words) == 2
    told = capsys.readouterr()
    assert "teacher from mine.pth (net): " in told.out  # the accuracy line comes first
    (line,) = told.err.splitlines()
    assert (
        f"and {correct:.1f} % by acc in mine.pth; likely causes: it has learnt with another normalisation than" in line
    )
    assert not Path("a").exists()
    assert not list(place.glob("**/teacher.ckpt"))
    if command == "train":
        assert main([*words, "--expect-teacher", "0", "--method", "kd", "--overwrite"]) == 0  # as the user wishes


def test_a_file_goes_on_where_a_run_was_interrupted(digits, place, capsys, monkeypatch):
    network, correct = trained(digits)
    torch.save(network.state_dict(), "mine.pth")
    words = ["train", "--method", "kd", *RUN, *RIGHT, "--output", "a"]

    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("amkd_fast.distill.training_runs.fit", stopped)
        assert main(words) == 130
    assert main([*words, "--resume"]) == 0
    assert f"teacher.ckpt: {correct:.1f} % on" in capsys.readouterr().out
    assert read("a/teacher.ckpt")["amkd_fast"]["network"]["name"] == "mine_of_teachers:my_network"


def test_what_the_command_line_refuses(place, capsys):
    torch.save(weights(), "x.pth")
    for words, line in (
        (["--teacher", "x.pth"], "its weights do not say of which network they are"),
        (["--expect-teacher", "75"], "--expect-teacher: is for --teacher"),
        (["--teacher", "x.pth", "--expect-teacher", "101"], "must be at most 100"),
        (["--teacher", "x.pth", "--teacher-network", "resnet8"], "--teacher x.pth: does not fit resnet8: "),
    ):
        assert main(["train", *words]) == 2
        (told,) = capsys.readouterr().err.splitlines()
        assert line in told


def test_a_teacher_that_is_trained_here_is_told(timm, place, capsys):
    words = ["train", "--method", "kd", "--student-network", NAME, "--student-images", "48", "--epochs", "1"]
    words += ["--teacher-epochs", "1", "--teacher-images", "64", "--teacher-network"]
    assert main([*words, "timm:tiny", "--output", "a"]) == 0
    assert "teacher timm:tiny: is trained here, 1 epochs from random weights (timm:tiny@pretrained has" in (
        capsys.readouterr().out
    )
    assert main([*words, "mine_of_teachers:my_network", "--output", "b"]) == 0
    assert "is trained here, 1 epochs from the weights that it is built with" in capsys.readouterr().out
