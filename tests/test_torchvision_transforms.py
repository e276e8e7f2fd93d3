"""RandAugment, mixup and CutMix: how torchvision is asked, by which draws; a stand-in answers."""

from __future__ import annotations

import importlib
import sys
import types

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("lightning", reason="the extra `train` is not installed")
pytest.importorskip("sklearn", reason="the extra `train` is not installed")

from folders import picture_folder

from amkd_fast.distill import build
from amkd_fast.distill import data as datasets
from amkd_fast.distill.cli import main
from amkd_fast.distill.data import Batches, torchvision_transforms
from amkd_fast.distill.data.torchvision_transforms import Mixing, RandAugment
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.settings import CompareSettings, Settings, TrainSettings
from amkd_fast.distill.teacher import Teacher
from amkd_fast.distill.training_runs import train_teacher
from amkd_fast.methods import Batch, StepContext, StudentAlone

CPU = torch.device("cpu")


class RolledImage:
    """In RandAugment's place: ``num_ops`` times moved to the right, by what is drawn."""

    def __init__(self, num_ops=2, magnitude=9):
        self.num_ops, self.magnitude = num_ops, magnitude

    def __call__(self, image):
        assert image.dtype == torch.uint8
        assert image.dim() == 3
        for _ in range(self.num_ops):
            image = image.roll(int(torch.randint(self.magnitude + 1, ())), -1)
        return image


class MixUp:
    """As torchvision's is called: one share for the batch, partners are the images before."""

    def __init__(self, *, alpha, num_classes):
        self.draw, self.classes = torch.distributions.Beta(torch.tensor(alpha), torch.tensor(alpha)), num_classes

    def __call__(self, images, labels):
        share = float(self.draw.sample())
        shares = F.one_hot(labels, self.classes).float()
        return tuple(share * part + (1.0 - share) * part.roll(1, 0) for part in (images, shares))


class CutMix(MixUp):
    """Likewise, the left part of the image is the partner's."""

    def __call__(self, images, labels):
        width = int(float(self.draw.sample()) * images.shape[-1])
        shares, share = F.one_hot(labels, self.classes).float(), width / images.shape[-1]
        mixed = torch.cat([images.roll(1, 0)[..., :width], images[..., width:]], -1)
        return mixed, share * shares.roll(1, 0) + (1.0 - share) * shares


class RandomChoice:
    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, *inputs):
        return self.transforms[int(torch.multinomial(torch.ones(len(self.transforms)), 1))](*inputs)


@pytest.fixture
def torchvision(monkeypatch):
    module = types.ModuleType("torchvision.transforms.v2")
    module.RandAugment, module.MixUp, module.CutMix, module.RandomChoice = RolledImage, MixUp, CutMix, RandomChoice
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    root = picture_folder(tmp_path_factory.mktemp("pictures") / "pets", count=9)
    return datasets.load(Settings(data=str(root), image_size=12)).teacher  # 18 of them


def batches(split, epoch=2, seed=3, **options):
    found = Batches(split, 5, seed, options.pop("augment", "crop+flip"), **options)
    found.set_epoch(epoch)
    return list(found)


def same(ones, others):
    return all(
        torch.equal(want, found)
        for one, other in zip(ones, others, strict=True)
        for want, found in zip(one[:3], other[:3], strict=True)
    )


# --- what cannot be had


@pytest.mark.parametrize("words", [{"rand_augment": 2}, {"mixup": 0.2}, {"cutmix": 1.0}])
def test_without_torchvision_it_is_asked_for_by_name(words, monkeypatch):
    settings, option = TrainSettings(method="student", **words), "--" + next(iter(words)).replace("_", "-")
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)

    real = importlib.import_module

    def fails(error):
        def import_module(name, *rest):
            if name.startswith("torchvision"):
                raise error
            return real(name, *rest)

        monkeypatch.setattr(importlib, "import_module", import_module)

    fails(ModuleNotFoundError("No module named 'torchvision'"))
    with pytest.raises(UserError, match=rf"^{option} [0-9.]+: torchvision is not installed: run `pip install"):
        build.check(settings, CPU)
    fails(RuntimeError("operator torchvision::nms\n does not exist"))
    with pytest.raises(UserError, match=r"cannot be imported \(RuntimeError: operator torchvision::nms does not"):
        build.check(settings, CPU)
    monkeypatch.setitem(sys.modules, "torchvision", None)  # put aside
    with pytest.raises(UserError, match=rf"^{option} [0-9.]+: needs a torchvision that matches your torch"):
        build.check(settings, CPU)


def test_mixed_labels_are_for_the_cross_entropy_alone(torchvision):
    for words in ({"mixup": 0.2}, {"cutmix": 1.0}):
        for name, settings in (
            ("kd", TrainSettings(method="kd", **words)),
            ("amkd", CompareSettings(methods="student,amkd", **words)),
            ("mine:Loss", TrainSettings(method="mine:Loss", **words)),
        ):
            message = rf"--(mixup 0\.2|cutmix 1): mixes labels, .* not the losses of {name};"
            with pytest.raises(UserError, match=message):
                torchvision_transforms.check(settings, (name,))
        build.check(TrainSettings(method="student", **words), CPU)
    with pytest.raises(UserError, match=r"--mixup 0\.5: mixes labels, .* not the losses of kd"):
        build.check(CompareSettings(methods="student,kd", mixup=0.5), CPU)
    build.check(TrainSettings(method="kd", rand_augment=2), CPU)
    with pytest.raises(UserError, match=r"--rand-augment-magnitude 5: is for --rand-augment"):
        build.check(TrainSettings(rand_augment_magnitude=5), CPU)


# --- RandAugment


def test_an_image_has_the_draws_of_its_row_and_the_seed(torchvision):
    images = (torch.arange(60 * 32) % 256).view(60, 1, 2, 16) * (1.0 / 255)
    every, state = torch.arange(60), torch.get_rng_state()
    found = RandAugment(1)(images, every, 7)
    assert torch.equal(torch.get_rng_state(), state)
    moved = [
        next(by for by in range(16) if torch.allclose(one, image.roll(by, -1), atol=1e-6))
        for one, image in zip(found, images, strict=True)
    ]
    assert set(moved) == set(range(10))  # torchvision's magnitude, images apart
    some = torch.tensor([31, 7, 31])
    assert torch.equal(RandAugment(1)(images[some], some, 7), found[some])
    assert not torch.equal(RandAugment(1)(images, every, 8), found)
    assert torch.equal(RandAugment(3, 0)(images, every, 7), images)
    assert RandAugment(2)(images[:0], every[:0], 7).shape == (0, 1, 2, 16)


def test_batches_are_augmented_between_crop_and_rectangle(torchvision, split):
    plain = batches(split)
    assert same(batches(split, rand_augment=RandAugment(1, 0)), plain)  # not a bit of a byte is lost
    found = batches(split, rand_augment=RandAugment(1))
    assert not same(found, plain)
    for one, other in zip(found, plain, strict=True):
        assert torch.equal(one.images.sort(-1).values, other.images.sort(-1).values)  # rolled, row by row
        assert torch.equal(one.labels, other.labels)
    assert same(batches(split, rand_augment=RandAugment(1)), found)
    by_row = [
        {int(row): image for batch in part for row, image in zip(batch.index, batch.images, strict=True)}
        for part in (batches(split, epoch, augment="none", rand_augment=RandAugment(1)) for epoch in (2, 3))
    ]
    assert any(not torch.equal(image, by_row[1][row]) for row, image in by_row[0].items())  # another in every epoch
    erased = batches(split, rand_augment=RandAugment(1), erase=1.0)
    for one, other in zip(found, erased, strict=True):
        assert ((other.images == one.images) | (other.images == 0.0)).all()


def test_the_levels_of_digits_are_augmented_as_bytes(torchvision):
    data = datasets.load(Settings(rand_augment=1, rand_augment_magnitude=0))
    assert data.rand_augment == RandAugment(1, 0)
    found = batches(data.student, rand_augment=data.rand_augment, augment="none")
    for one, other in zip(found, batches(data.student, augment="none"), strict=True):
        assert (one.images - other.images).abs().max() <= 0.5 / 255 + 1e-6


# --- mixtures


@pytest.mark.parametrize("mixing", [Mixing(0.7, None), Mixing(None, 1.0), Mixing(1.0, 1.0)])
def test_images_and_labels_are_mixed_alike(torchvision, split, mixing):
    state = torch.get_rng_state()
    found, plain = batches(split, mixing=mixing, classes=2), batches(split)
    assert torch.equal(torch.get_rng_state(), state)
    shares = []
    for one, other in zip(found, plain, strict=True):
        assert torch.equal(one.index, other.index)
        hard = F.one_hot(other.labels, 2).float()
        before, labels = other.images.roll(1, 0), hard.roll(1, 0)
        differs = (hard != labels).any(1)
        share = ((one.labels - labels) / (hard - labels))[differs].mean()
        torch.testing.assert_close(one.labels, torch.lerp(labels, hard, share))
        blended = torch.lerp(before, other.images, share)
        width = round(12 * (1.0 - float(share)))
        cut = torch.cat([before[..., :width], other.images[..., width:]], -1)
        kinds = [bool((one.images - way).abs().max() < 1e-5) for way in (blended, cut)]
        assert any(kinds)
        shares.append((round(float(share), 4), kinds.index(True)))
    assert len(set(shares)) == len(shares)  # of each batch its own
    if None not in (mixing.mixup, mixing.cutmix):
        assert {kind for _, kind in shares} == {0, 1}


@pytest.mark.parametrize("mixing", [Mixing(0.7, None), Mixing(None, 1.0), Mixing(1.0, 1.0)])
@pytest.mark.parametrize("balance", [False, True])
def test_shares_of_ranks_are_the_batch_of_one_process(torchvision, split, mixing, balance):
    options = {"mixing": mixing, "classes": 2, "rand_augment": RandAugment(2), "balance": balance}
    whole = batches(split, **options)
    assert same(batches(split, **options), whole)  # as after a resume
    for world in (2, 5):
        ranks = [batches(split, rank=rank, world=world, **options) for rank in range(world)]
        joined = [
            [torch.cat(field) for field in zip(*(part[:3] for part in parts), strict=True)]
            for parts in zip(*ranks, strict=True)
        ]
        assert same(joined, whole)


def test_cross_entropy_of_mixtures_is_the_mixture_of_cross_entropies():
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(6, 4, generator=draws, dtype=torch.float64)
    own, others = torch.randint(3, (2, 6), generator=draws)
    student, share = torch.nn.Linear(4, 3).double(), 0.3
    mixed = share * F.one_hot(own, 3) + (1.0 - share) * F.one_hot(others, 3).double()
    for weights in (None, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)):
        method, context = StudentAlone(class_weights=weights), StepContext(0, 1)
        found, *parts = (method(Batch(images, labels), None, student, context).total for labels in (mixed, own, others))
        torch.testing.assert_close(found, share * parts[0] + (1.0 - share) * parts[1])


# --- training


def test_the_teacher_is_asked_about_augmented_images(torchvision):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    for settings in (Settings(rand_augment=2), Settings(mixup=0.2), Settings(cutmix=0.2)):
        assert Teacher(network, datasets.load(settings), "32").known is None


def test_students_and_teachers_learn_from_mixtures(torchvision, tmp_path, monkeypatch):
    seen, forward = [], StudentAlone.forward

    def noted(self, batch, *rest):
        seen.append(batch.labels)
        return forward(self, batch, *rest)

    monkeypatch.setattr(StudentAlone, "forward", noted)
    network = ["--student-network", "small-4-1", "--threads", "1", "--max-steps", "2"]
    words = ["train", "--method", "student", *network, "--rand-augment", "1", "--mixup", "0.5", "--cutmix", "1"]
    assert main([*words, "--output", str(tmp_path / "student")]) == 0
    assert len(seen) == 2
    settings = Settings(teacher_network="small-4-1", teacher_epochs=1, max_steps=2, mixup=0.5)
    train_teacher(datasets.load(settings), settings)
    assert len(seen) == 4
    assert all(labels.shape[1:] == (10,) and labels.dtype == torch.float32 for labels in seen)
    checkpoint = str(tmp_path / "student" / "last.ckpt")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision.transforms.v2")
    assert main(["evaluate", checkpoint, "--limit", "20"]) == 0  # needs no torchvision
