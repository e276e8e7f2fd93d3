"""Random erasing: which pixels, how many, drawn by what."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("lightning", reason="the extra `train` is not installed")
pytest.importorskip("sklearn", reason="the extra `train` is not installed")

from amkd_fast.distill import data as datasets
from amkd_fast.distill.data import Batches
from amkd_fast.distill.data.erasing import AREA, RATIO, erase
from amkd_fast.distill.settings import Settings
from amkd_fast.distill.teacher import Teacher


def erased(count, height, width, probability=1.0, seed=3, channels=1):
    return erase(torch.ones(count, channels, height, width), torch.arange(count), probability, seed) == 0.0


def test_a_rectangle_of_the_published_sizes():
    found = erased(2000, 40, 60, channels=2)
    assert torch.equal(found[:, 0], found[:, 1])
    found = found[:, 0]
    rows, columns = found.any(2), found.any(1)
    assert torch.equal(found, rows[:, :, None] & columns[:, None, :])
    for lines in (rows, columns):  # without a gap
        assert int((lines[:, 1:] != lines[:, :-1]).sum(1).max()) <= 2
    heights, widths = rows.sum(1).double(), columns.sum(1).double()
    share = heights * widths / 2400
    assert share.min() > AREA[0] * 0.8
    assert share.max() < AREA[1] * 1.05
    assert share.mean() == pytest.approx(sum(AREA) / 2, abs=0.01)
    whole = (heights < 40) & (widths < 60)  # not cut
    ratio = (heights / widths)[whole]
    assert ratio.min() > RATIO[0] * 0.8
    assert ratio.max() < RATIO[1] * 1.2
    assert ratio.log().mean().abs() < 0.1
    corners = torch.stack([found[:, y, x] for y, x in ((0, 0), (0, 59), (39, 0), (39, 59))]).sum(1)
    assert corners.min() > 0  # everywhere
    assert found.double().mean(0).max() < 0.5


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_so_many_images(probability):
    share = erased(4000, 8, 8, probability).any(3).any(2).any(1).double().mean()
    assert share == pytest.approx(probability, abs=0.03 if 0.0 < probability < 1.0 else 0.0)


def test_the_draw_is_the_rows_and_the_seeds():
    whole = erased(50, 16, 16)
    rows = torch.tensor([7, 31, 7])
    some = erase(torch.ones(3, 1, 16, 16), rows, 1.0, 3) == 0.0
    assert torch.equal(some, whole[rows])
    assert not torch.equal(erased(50, 16, 16, seed=4), whole)
    assert erased(5, 1, 1).all()
    assert erased(0, 4, 4).shape == (0, 1, 4, 4)


def test_batches_erase_after_the_crop():
    data = datasets.load(Settings(erase=0.5))
    assert data.augmented
    assert not datasets.load(Settings()).augmented

    def batches(epoch=1, **options):
        found = Batches(data.student, 32, 0, "none", **options)
        found.set_epoch(epoch)
        return list(found)

    plain, some, other = batches(), batches(erase=0.5), batches(2, erase=0.5)
    for want, found in zip(plain, some, strict=True):
        assert torch.equal(want.index, found.index)
        kept = found.images == want.images
        assert (found.images[~kept] == 0.0).all()
        assert 0 < int((~kept).any(3).any(2).any(1).sum()) < len(kept)
    masks = [
        {int(row): image == 0 for b in part for row, image in zip(b.index, b.images, strict=True)}
        for part in (some, other)
    ]
    assert any(not torch.equal(masks[0][row], masks[1][row]) for row in masks[0])  # another in every epoch
    parts = zip(some, batches(erase=0.5, rank=0, world=2), batches(erase=0.5, rank=1, world=2), strict=True)
    for whole, first, second in parts:
        assert torch.equal(whole.images, torch.cat([first.images, second.images]))
    with pytest.raises(ValueError, match=r"erase=1\.5"):
        batches(erase=1.5)


def test_the_teacher_is_asked_about_erased_images():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    assert Teacher(network, datasets.load(Settings(erase=0.1))).known is None
    assert Teacher(network, datasets.load(Settings())).known is not None
