"""Classes of unequal size: batches that show them equally often, losses that weigh them, accuracies of each."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("lightning", reason="the extra `train` is not installed")
pytest.importorskip("sklearn", reason="the extra `train` is not installed")

from folders import noise

from amkd_fast.distill import build, metrics
from amkd_fast.distill import data as datasets
from amkd_fast.distill.cli import main
from amkd_fast.distill.data import Batches, Split
from amkd_fast.distill.data.sampling import balanced, class_weights
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.settings import CompareSettings, Settings, TrainSettings
from amkd_fast.methods import Batch, StepContext, StudentAlone

CONTEXT = StepContext(0, 1)


def draws(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def uneven():
    """23 images of class 0, 2 of class 1, none of class 2, 6 of class 3."""
    labels = torch.tensor([0] * 23 + [1] * 2 + [3] * 6)
    return Split(torch.from_numpy(noise(31)).permute(0, 3, 1, 2).contiguous(), labels)


def test_every_class_is_shown_as_often(uneven):
    labels = uneven.labels
    for seed in range(8):
        rows = balanced(labels, draws(seed))
        assert len(rows) == 31
        assert sorted(labels[rows].bincount().tolist()) == [0, 10, 10, 11]
        counts = rows.bincount(minlength=31)
        for label in (0, 1, 3):
            assert int(counts[labels == label].max() - counts[labels == label].min()) <= 1  # none twice before all once
        assert torch.equal(rows, balanced(labels, draws(seed)))
    more = [balanced(labels, draws(seed)) for seed in range(40)]
    assert torch.stack([rows.bincount(minlength=31) for rows in more]).sum(0).min() >= 8  # none is left out for long
    longer = {int(labels[rows].bincount().argmax()) for rows in more}
    assert longer == {0, 1, 3}  # the odd image goes to another class each time
    first = torch.stack([labels[rows[:10]] for rows in more]).flatten().bincount()
    assert first[[0, 1, 3]].min() > 90  # of 400 / 3: shuffled, too


def test_of_equal_classes_every_image_once():
    assert balanced(torch.arange(12) % 3, draws(0)).sort().values.tolist() == list(range(12))
    assert balanced(torch.zeros(0, dtype=torch.int64), draws(0)).tolist() == []


@pytest.mark.parametrize("world", [2, 3])
def test_the_ranks_together_are_one_process(uneven, world):
    def batches(**share):
        found = Batches(uneven, 7, 5, "crop+flip", balance=True, **share)
        found.set_epoch(3)
        return list(found)

    whole, parts = batches(), [batches(rank=rank, world=world) for rank in range(world)]
    assert len(whole) == 5
    for batch, *shares in zip(whole, *parts, strict=True):
        for name in ("images", "labels", "index"):
            assert torch.equal(getattr(batch, name), torch.cat([getattr(share, name) for share in shares]))
        assert torch.equal(batch.labels, uneven.labels[batch.index])


def test_an_image_that_comes_again_is_augmented_in_another_way(uneven):
    seen = [
        (number, image)
        for number, batch in enumerate(Batches(uneven, 4, 5, "crop+flip", balance=True))
        for image, row in zip(batch.images, batch.index.tolist(), strict=True)
        if row == 23
    ]
    images = {number: tuple(image.flatten().tolist()) for number, image in seen}
    assert len(images) >= 3
    assert len(set(images.values())) >= 3


def test_weights_make_classes_count_the_same(uneven):
    weights = class_weights(uneven.labels, 4)
    assert weights[2] == 0.0
    torch.testing.assert_close(weights[uneven.labels].mean(), torch.tensor(1.0))
    sums = weights * uneven.labels.bincount()
    torch.testing.assert_close(sums[[0, 1, 3]], torch.full((3,), 31 / 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_weighted_loss_is_the_mean_over_the_classes(uneven, dtype):
    logits = torch.randn(31, 4, generator=draws(0), dtype=torch.float64)
    each = torch.nn.functional.cross_entropy(logits, uneven.labels, reduction="none")
    want = torch.stack([each[uneven.labels == label].mean() for label in (0, 1, 3)]).mean()
    method = StudentAlone(class_weights=class_weights(uneven.labels, 4)).to(dtype)
    found = method(Batch(logits.to(dtype), uneven.labels), None, torch.nn.Identity(), CONTEXT)
    torch.testing.assert_close(found.total.double(), want, rtol=1e-6, atol=0)
    assert method.state_dict() == {}  # earlier checkpoints go on


def test_methods_whose_loss_is_not_weighted():
    device = torch.device("cpu")
    for settings in (TrainSettings(balance="loss"), CompareSettings(balance="loss", methods="student,kd")):
        name = "amkd" if isinstance(settings, TrainSettings) else "kd"
        with pytest.raises(UserError, match=rf"--balance loss: .*not of {name}; --balance sampling"):
            build.check(settings, device)
    build.check(TrainSettings(balance="loss", method="student"), device)
    build.check(CompareSettings(balance="sampling"), device)


def test_the_labels_that_are_learnt_from_give_the_weights():
    settings = Settings(balance="loss", drop_labels="3")
    data = datasets.load(settings)
    student, teacher = (
        build.method("student", settings, data),
        build.method("student", settings, data, labels=data.teacher.labels),
    )
    assert torch.equal(student.class_weights, class_weights(data.student.labels, 10))
    assert torch.equal(teacher.class_weights, class_weights(data.teacher.labels, 10))
    assert student.class_weights[3] == 0.0
    assert teacher.class_weights[3] > 0.0
    assert build.method("student", Settings(), data).class_weights is None


@pytest.mark.parametrize("balance", ["sampling", "loss"])
def test_training(tmp_path, balance, capsys):
    words = f"train --method student --epochs 2 --balance {balance} --precision 64 --output {tmp_path / 'out'}"
    assert main(words.split()) == 0
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(result["classes"]) == [str(label) for label in range(10)]
    shares = torch.tensor(list(result["classes"].values())).double()
    counts = datasets.load(Settings()).test.labels.bincount()
    assert float((shares * counts).sum() / 797) == pytest.approx(result["last"], abs=1e-4)


def test_accuracy_of_each_class():
    pixels = torch.tensor([[0, 9], [0, 9], [9, 0], [0, 9]], dtype=torch.uint8).view(4, 2, 1, 1)
    test = Split(pixels, torch.tensor([0, 1, 1, 1]))
    data = replace(datasets.load(Settings()), test=test, classes=("a", "b"))
    assert metrics.class_accuracies(torch.nn.Flatten(), data) == pytest.approx([0.0, 200 / 3])
