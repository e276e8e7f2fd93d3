"""Images that are held out: validation and test sets of folders, and fractions of training images."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
import torch

pytest.importorskip("lightning", reason="the extra `train` is not installed")
pytest.importorskip("sklearn", reason="the extra `train` is not installed")

from folders import picture_folder

from amkd_fast.distill import attack_examples
from amkd_fast.distill import data as datasets
from amkd_fast.distill.checkpoint import load_network
from amkd_fast.distill.cli import main
from amkd_fast.distill.data import subsets
from amkd_fast.distill.epoch_log import EpochLog
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.fit import Run
from amkd_fast.distill.report import panels, plots, samples
from amkd_fast.distill.resume import stored
from amkd_fast.distill.settings import Settings, TrainSettings
from amkd_fast.distill.teacher import accuracy


def load(root, **settings):
    return datasets.load(Settings(data=str(root), image_size=12, **settings))


def complaint(root, **settings):
    with pytest.raises(UserError) as caught:
        load(root, **settings)
    return str(caught.value)


def images_of(split):
    return {tuple(image.flatten().tolist()) for image in split.pixels}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    return picture_folder(tmp_path_factory.mktemp("held") / "pets", parts=("train", "test", "val"))


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_a_validation_folder_beside_a_test_folder(everything, tmp_path, name):
    root = shutil.copytree(everything, tmp_path / "pets")
    (root / "val").rename(root / name)
    data = load(root)
    assert [len(split) for split in (data.teacher, data.test, data.validation)] == [12, 12, 12]
    found = [images_of(split) for split in (data.teacher, data.test, data.validation)]
    assert len(set.union(*found)) == 36
    assert data.validation.labels.tolist() == [0] * 6 + [1] * 6
    assert data.chosen_on == "12 validation images"
    shutil.rmtree(root / "test")
    data = load(root)  # where it is alone it is the test set
    assert data.validation is None
    assert images_of(data.test) == found[2]
    assert data.chosen_on == "the test set"


def test_a_validation_folder_can_be_left_alone(everything):
    data, whole = load(everything, val_fraction=0.0), load(everything)
    assert data.validation is None
    assert torch.equal(data.test.pixels, whole.test.pixels)
    assert torch.equal(data.teacher.pixels, whole.teacher.pixels)
    assert data.tested_on == (data.test,)


def test_folders_with_training_images_alone(everything, tmp_path):
    data = load(everything)
    root = shutil.copytree(everything / "train", tmp_path / "flat")
    (tmp_path / "pets").mkdir()
    nested = shutil.copytree(everything / "train", tmp_path / "pets" / "train").parent
    for place in (root, nested):
        split = load(place, test_fraction=0.34, val_fraction=0.25)
        assert split.classes == ("cat", "dog")
        parts = [split.teacher, split.test, split.validation]
        assert [torch.bincount(part.labels).tolist() for part in parts] == [[3, 3], [2, 2], [1, 1]]
        assert set.union(*(images_of(part) for part in parts)) == images_of(data.teacher)
        assert "--test-fraction 0.2 takes that share" in complaint(place)
    assert "or of <class>/ where there is no train/" in complaint(root)
    shutil.copytree(everything / "val", nested / "val")
    split = load(nested, test_fraction=0.5)
    assert images_of(split.validation) == images_of(data.validation)
    assert (len(split.teacher), len(split.test)) == (6, 6)


def test_fractions_of_what_has_them_already(everything):
    assert "--test-fraction 0.5: " in complaint(everything, test_fraction=0.5)
    assert "val is the validation set already" in complaint(everything, val_fraction=0.5)
    with pytest.raises(UserError, match=r"--test-fraction 0.1: digits has a test set already"):
        datasets.load(Settings(test_fraction=0.1))


def test_two_validation_folders(everything, tmp_path):
    root = shutil.copytree(everything, tmp_path / "pets")
    shutil.copytree(root / "val", root / "valid")
    assert "val and valid: must be one of them" in complaint(root)


def test_a_fraction_holds_every_class_out_in_its_share():
    labels = torch.tensor([0] * 40 + [1] * 10 + [2] * 2)
    names = ("a", "b", "c")
    rest, out = subsets.held_out(labels, 0.1, names, 3, "--val-fraction")
    assert torch.bincount(labels[out]).tolist() == [4, 1, 1]
    assert torch.equal(torch.cat([rest, out]).sort().values, torch.arange(52))
    assert torch.equal(rest, rest.sort().values)
    assert torch.equal(out, subsets.held_out(labels, 0.1, names, 3, "")[1])
    assert not torch.equal(out, subsets.held_out(labels, 0.1, names, 4, "")[1])
    assert torch.bincount(labels[subsets.held_out(labels, 0.9, names, 0, "")[0]]).tolist() == [4, 1, 1]
    with pytest.raises(UserError, match=r"--val-fraction 0.5: class 'b' has 1 images: must have at least 2"):
        subsets.held_out(torch.tensor([0, 0, 1]), 0.5, ("a", "b"), 0, "--val-fraction")


def test_a_fraction_of_a_named_set():
    data = datasets.load(Settings(val_fraction=0.1))
    assert [len(split) for split in (data.teacher, data.student, data.test, data.validation)] == [900, 200, 797, 100]
    assert not images_of(data.validation) & images_of(data.teacher)
    assert torch.equal(data.test.pixels, datasets.load(Settings()).test.pixels)
    assert torch.bincount(data.validation.labels).min() >= 9


def test_validation_images_are_as_the_others(everything):
    for data in (
        load(everything),
        datasets.load(Settings(val_fraction=0.1)),
    ):
        for split in data.tested_on:
            assert split.level == data.teacher.level == data.level
            assert 0.9 < split.images.max() <= 1.0


def test_the_best_is_the_test_accuracy_of_the_epoch_that_validation_chooses():
    rows = [{"accuracy": a, "validation": v} for a, v in ((90.0, 70.0), (80.0, 85.0), (95.0, 85.0), (99.0, 60.0))]
    assert Run(None, rows).best == 80.0
    assert Run(None, [{"accuracy": 90.0}, {"accuracy": 95.0}, {"accuracy": 95.0}]).best == 95.0


def train(output, *words):
    return main(
        ["train", "--method", "student", "--epochs", "4", "--val-fraction", "0.1", "--output", str(output), *words]
    )


def test_training_chooses_on_validation_and_reports_on_test(tmp_path, capsys):
    assert train(tmp_path / "out") == 0
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = result["epochs"]
    best = max(rows, key=lambda row: row["validation"])
    assert (
        torch.load(tmp_path / "out" / "best.ckpt", weights_only=True)["epoch"] == best["epoch"] == result["best_epoch"]
    )
    assert (result["best"], result["last"]) == (best["accuracy"], rows[-1]["accuracy"])
    assert result["chosen_on"] == "100 validation images"
    assert f"best {best['accuracy']:.1f} % (chosen on 100 validation images)" in capsys.readouterr().out
    logged = list(csv.DictReader((tmp_path / "out" / "log.csv").open()))
    assert [float(row["validation"]) for row in logged] == [row["validation"] for row in rows]
    assert all(row["validation"] == pytest.approx(round(row["validation"]), abs=1e-4) for row in rows)  # of 100 images
    network = load_network(tmp_path / "out" / "last.ckpt")[0]
    found = accuracy(network, datasets.load(Settings(val_fraction=0.1)).validation)
    assert found == pytest.approx(rows[-1]["validation"])
    assert main(["evaluate", str(tmp_path / "out" / "last.ckpt")]) == 0
    assert f"{result['last']:.2f} % on 797 clean test images" in capsys.readouterr().out


def test_a_resumed_run_chooses_the_same(tmp_path, monkeypatch):
    assert train(tmp_path / "whole") == 0
    ending = EpochLog.on_train_epoch_end

    def interrupted(self, trainer, module):
        ending(self, trainer, module)
        if len(self.rows) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EpochLog, "on_train_epoch_end", interrupted)
        assert train(tmp_path / "parts") == 130
    assert main(["train", "--resume", "--output", str(tmp_path / "parts")]) == 0
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "parts")]
    whole, parts = ([(row["accuracy"], row["validation"]) for row in result["epochs"]] for result in results)
    assert whole == parts
    assert results[0]["best_epoch"] == results[1]["best_epoch"]
    best = [torch.load(tmp_path / name / "best.ckpt", weights_only=True)["epoch"] for name in ("whole", "parts")]
    assert best == [results[0]["best_epoch"]] * 2


@pytest.fixture
def small_comparison(monkeypatch):
    """A comparison without its plots, which take most of the time of a small one."""
    for module, names in (
        (plots, "accuracy loss_curves gaps"),
        (panels, "qualities differences"),
        (samples, "samples"),
    ):
        for name in names.split():
            monkeypatch.setattr(module, name, lambda *_: b"")
    monkeypatch.setattr(attack_examples, "IMAGES", 4)


@pytest.mark.usefixtures("small_comparison")
def test_compare_chooses_on_validation_and_names_the_worst_classes(tmp_path, capsys):
    words = "--methods student --seeds 2 --epochs 2 --teacher-epochs 1 --val-fraction 0.1 --quality-images 4"
    assert main(["compare", *words.split(), "--jobs", "1", "--output", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["images"] == {"teacher": 900, "student": 200, "test": 797, "validation": 100}
    for run in result["runs"]:
        assert run["best"] == max(run["epochs"], key=lambda row: row["validation"])["accuracy"]
        counts = datasets.load(Settings(val_fraction=0.1)).test.labels.bincount().double()
        assert float((torch.tensor(run["classes"]).double() * counts).sum() / 797) == pytest.approx(
            run["last"], abs=1e-4
        )
    assert "* chosen on 100 validation images" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "* Chosen on 100 validation images. All" in page
    assert "100 for the validation" in page
    assert "optimistic" not in page
    means = torch.tensor([run["classes"] for run in result["runs"]]).double().mean(0)
    order = sorted(range(10), key=lambda label: float(means[label]))
    worst = ", ".join(f"{label} {means[label]:.1f} %" for label in order[:3])
    assert f'<td class="text">{worst}</td>' in page


def test_a_run_of_an_earlier_version_goes_on_choosing_on_the_test_set(tmp_path):
    settings = Settings().as_dict()
    (tmp_path / "run.json").write_text(json.dumps({"command": "train", "settings": settings}))
    assert stored(tmp_path, "train", TrainSettings(), {}).val_fraction is None
    del settings["val_fraction"]
    (tmp_path / "run.json").write_text(json.dumps({"command": "train", "settings": settings}))
    assert stored(tmp_path, "train", TrainSettings(), {}).val_fraction == 0.0
