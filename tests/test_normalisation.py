"""Networks that normalise their pixels: what they compute, attacks on them, and where mean and std come from."""

from __future__ import annotations

import copy
import functools
import re

import pytest
import torch
from torch import nn

pytest.importorskip("lightning", reason="the extra `train` is not installed")

from folders import picture_folder

import amkd_fast as af
from amkd_fast.attacks import PGD, PRESETS, BoundaryAttack, boundary_similarity, frozen
from amkd_fast.attacks.particles import ParticleAttack
from amkd_fast.distill import build, checkpoint, networks, normalisation, training_runs
from amkd_fast.distill import data as datasets
from amkd_fast.distill.cli import main
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.networks import Spec
from amkd_fast.distill.networks.normalised import Normalisation, Normalised, normalisation_of
from amkd_fast.distill.settings import CompareSettings, Settings, TrainSettings
from amkd_fast.distill.teacher import predict
from amkd_fast.methods import AT, Batch, StepContext

pytestmark = pytest.mark.usefixtures("one_thread")

RGB = Normalisation((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
SMALL = Settings(teacher_images=300, student_images=40, student_network="small-2-1", teacher_network="small-2-1")


@functools.cache
def digits():
    return datasets.load(SMALL)


@functools.cache
def taught():
    """A network of normalised digits that knows something, in float64."""
    data = digits()
    network = networks.build(Spec("small-4-1", 1, 10), 0)
    images = (data.teacher.images - data.mean[0]) / data.std
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(25):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(images), data.teacher.labels).backward()
        optimiser.step()
    return network.double().eval().requires_grad_(False)


def coloured(dtype=torch.float64):
    network = networks.build(Spec("small-4-1", 3, 10), 1).to(dtype).eval()
    with torch.no_grad():
        network.head.weight.mul_(4.0)  # so that boundaries are near
    return network


def column(numbers, dtype=torch.float64):
    return torch.tensor(numbers, dtype=dtype).view(-1, 1, 1)


# --- the module


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_pixels_are_normalised_by_channel_in_the_networks_dtype(dtype):
    network = Normalised(nn.Conv2d(3, 2, 1, dtype=dtype), *RGB)
    pixels = torch.rand(5, 3, 4, 4)
    want = (pixels.double() - column(RGB.mean)) / column(RGB.std)
    seen = network.normalise(pixels)
    assert seen.dtype == network(pixels).dtype == dtype
    eps = torch.finfo(dtype if dtype == torch.bfloat16 else torch.float32).eps if dtype != torch.float64 else 1e-16
    torch.testing.assert_close(seen.double(), want, rtol=4 * eps, atol=8 * eps)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("last", [False, True])
def test_the_memory_format_is_kept(channels, count, last):
    pixels = torch.rand(count, channels, 5, 6)
    if last:
        pixels = torch.empty_like(pixels, memory_format=torch.channels_last).copy_(pixels)
    assert Normalised(nn.Identity(), [0.5] * channels, 0.2)(pixels).stride() == pixels.stride()


def test_gradients_go_through_to_the_pixels():
    network = Normalised(nn.Flatten(), *RGB)
    pixels = torch.rand(2, 3, 2, 2, requires_grad=True)
    network(pixels).sum().backward()
    torch.testing.assert_close(pixels.grad, (1.0 / column(RGB.std, torch.float32)).expand(2, 3, 2, 2))


def test_the_state_dict_is_the_networks_own():
    class Holder(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

    inner = coloured(torch.float32)
    held, other = Holder(Normalised(inner, *RGB)), Holder(Normalised(coloured(torch.float32), [0.1] * 3, 1.0))
    assert list(held.network.state_dict()) == list(inner.state_dict())
    assert list(held.state_dict()) == [f"network.{name}" for name in inner.state_dict()]
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(held.state_dict())
    assert all(torch.equal(*pair) for pair in zip(held.parameters(), other.parameters(), strict=True))
    other.network.load_state_dict(inner.state_dict())
    assert other.network.normalisation == ((0.1, 0.1, 0.1), (1.0, 1.0, 1.0))
    with pytest.raises(RuntimeError, match=r"Missing.*head\.bias"):
        other.load_state_dict({name: part for name, part in held.state_dict().items() if name != "network.head.bias"})


def test_embed_and_head_are_there_where_the_network_has_them():
    network, pixels = Normalised(coloured(torch.float32), *RGB), torch.rand(2, 3, 8, 8)
    assert torch.equal(network.head(network.embed(pixels)), network(pixels))
    other = Normalised(nn.Flatten(), *RGB)
    assert not hasattr(other, "embed")
    assert not hasattr(other, "head")


def test_the_view_of_attacks_folds_it():
    network, pixels = Normalised(coloured(torch.float32), *RGB), torch.rand(6, 3, 8, 8)
    view = frozen(network)
    torch.testing.assert_close(view(pixels), network(pixels), rtol=1e-5, atol=1e-5)
    assert view.folded
    network.network.conv.weight.data.mul_(0.5)
    torch.testing.assert_close(view(pixels), network(pixels), rtol=1e-5, atol=1e-5)
    network.scale.mul_(2.0)
    torch.testing.assert_close(view(pixels), network(pixels), rtol=1e-5, atol=1e-5)


def test_copies_are_the_same():
    network, pixels = Normalised(coloured(torch.float32), *RGB), torch.rand(2, 3, 8, 8)
    assert torch.equal(copy.deepcopy(network)(pixels), network(pixels))
    assert normalisation_of(network) == RGB
    assert normalisation_of(network.network) == ((0.0,), (1.0,))


def test_what_it_refuses():
    network = nn.Flatten()
    for mean, std, said in (
        ([0.5, 0.5], [0.2], r"std=\(0\.2,\): must have 2 numbers"),
        ([], 1.0, "mean"),
        ([float("inf")], 1.0, "mean=inf"),
        ([0.5], 0.0, r"std=0\.0: must be a finite number above 0"),
        ([0.5], [float("nan")], "std=nan"),
    ):
        with pytest.raises(ValueError, match=said):
            Normalised(network, mean, std)
    with pytest.raises(TypeError, match="mean is a str"):
        Normalised(network, ["x"], 1.0)
    for shape in ((2, 1, 4, 4), (2, 4, 4), (3,)):
        with pytest.raises(ValueError, match=r"must be \[B, 3, H, W\]"):
            Normalised(network, *RGB)(torch.zeros(shape))


# --- attacks on pixels are those on normalised images, in fp64


@pytest.mark.parametrize("bounds", ["pixel", "preset"])
@pytest.mark.parametrize("preset", list(PRESETS))
def test_boundary_samples_of_one_std_are_those_of_normalised_images(preset, bounds):
    data, inner = digits(), taught()
    mean, std = data.mean[0], data.std
    pixels, labels = data.test.images[:60].double(), data.test.labels[:60]
    options = {"preset": preset, "steps": 10}
    near, far = ((-mean / std, (1.0 - mean) / std), (0.0, 1.0)) if bounds == "pixel" else ((None,) * 2,) * 2
    if bounds == "preset" and preset != "official":
        near = far = (float("-inf"), float("inf"))  # which it asks for
    before = BoundaryAttack(inner, lower=near[0], upper=near[1], **options)(
        (pixels - mean) / std, labels, seed=3, record_gaps=True
    )
    network = Normalised(inner, [mean], std)
    attack = BoundaryAttack(network, lower=far[0], upper=far[1], normalisation=network.normalisation, **options)
    after = attack(pixels, labels, seed=3, record_gaps=True)
    assert int((before.steps > 0).sum()) > 30  # they have something to do
    assert len(before.status.unique()) > 1
    for name in ("status", "target", "steps", "accepted"):
        assert torch.equal(getattr(after, name), getattr(before, name))
    torch.testing.assert_close((after.images - mean) / std, before.images, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(after.gaps, before.gaps, rtol=1e-7, atol=1e-7)
    without = attack(pixels, labels, seed=3)  # by the calls that search on a CPU
    torch.testing.assert_close(without.images, after.images, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bounds", [True, False])
@pytest.mark.parametrize("preset", ["official", "paper", "zoo"])
def test_unit_steps_and_bounds_are_converted_by_channel(preset, bounds):
    inner = coloured()
    mean, std = column(RGB.mean), column(RGB.std)
    pixels = torch.rand(20, 3, 8, 8, dtype=torch.float64)
    lower, upper = ((0.0 - mean) / std).flatten(), ((1.0 - mean) / std).flatten()
    near = {"lower": lower, "upper": upper} if bounds else {}
    far = {"lower": 0.0, "upper": 1.0} if bounds else {}
    if not bounds and preset != "official":
        near = far = {"lower": float("-inf"), "upper": float("inf")}
    before = BoundaryAttack(inner, preset=preset, **near)((pixels - mean) / std, seed=1)
    network = Normalised(inner, *RGB)
    after = BoundaryAttack(network, preset=preset, normalisation=RGB, **far)(pixels, seed=1)
    assert torch.equal(after.status, before.status)
    assert float((after.images - pixels).abs().max()) > 1e-3
    torch.testing.assert_close((after.images - mean) / std, before.images, rtol=1e-9, atol=1e-9)


def test_presets_bounds_in_pixels_clip_as_they_did():
    inner, narrow = taught(), Normalisation((0.1,), (0.2,))  # white is 4.5, beyond official's 2.5
    pixels = digits().test.images[:30].double()
    before = BoundaryAttack(inner, preset="official")((pixels - 0.1) / 0.2, seed=1)
    after = BoundaryAttack(Normalised(inner, *narrow), preset="official", normalisation=narrow)(pixels, seed=1)
    assert float(after.images[after.steps > 0].max()) == pytest.approx(0.6)
    torch.testing.assert_close((after.images - 0.1) / 0.2, before.images, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_pgd_and_particles_of_one_std_are_those_of_normalised_images(norm):
    data, inner = digits(), taught()
    mean, std, eps = data.mean[0], data.std, {"linf": 0.1, "l2": 0.5, "l1": 3.0}[norm]
    pixels, labels = data.test.images[:40].double(), data.test.labels[:40]
    near = {"lower": -mean / std, "upper": (1.0 - mean) / std, "eps": eps / std}
    far = {"lower": 0.0, "upper": 1.0, "eps": eps}
    attacks = [functools.partial(PGD, norm=norm, steps=6, random_start=True, restarts=2)]
    attacks += [functools.partial(ParticleAttack, particles=3, steps=4)] if norm == "linf" else []
    for attack in attacks:
        before = attack(inner, **near)((pixels - mean) / std, labels, seed=5).images
        after = attack(Normalised(inner, [mean], std), **far)(pixels, labels, seed=5).images
        torch.testing.assert_close((after - mean) / std, before, rtol=1e-9, atol=1e-9)


def test_a_radius_in_pixels_reaches_every_channel():
    pixels = torch.rand(10, 3, 8, 8)
    attack = PGD(Normalised(coloured(torch.float32), *RGB), eps=8 / 255, steps=5, lower=0.0, upper=1.0)
    moved = (attack(pixels, torch.zeros(10, dtype=torch.int64)).images - pixels).abs().amax((0, 2, 3))
    torch.testing.assert_close(moved, torch.full((3,), 8 / 255), rtol=1e-5, atol=1e-6)


def test_similarity_takes_the_presets_to_pixels():
    data, inner = digits(), taught()
    student = copy.deepcopy(inner)
    student.head.weight.mul_(0.9)
    mean, std = data.mean[0], data.std
    pixels, labels = data.test.images[:40].double(), data.test.labels[:40]
    options = {"preset": "official", "targets": "runner_up", "steps": 20}
    before = boundary_similarity(student, inner, ((pixels - mean) / std, labels), **options)
    networks_ = (Normalised(network, [mean], std) for network in (student, inner))
    after = boundary_similarity(*networks_, (pixels, labels), normalisation=((mean,), (std,)), **options)
    assert after.count == before.count
    torch.testing.assert_close(after.pairs.student_distance * 1.0 / std, before.pairs.student_distance)


def test_what_becomes_of_the_presets():
    with pytest.raises(ValueError, match="must be one per channel"):
        BoundaryAttack(nn.Flatten(), preset="official", normalisation=([0.5, 0.5], 0.2))
    with pytest.raises(ValueError, match="must be two, mean and std"):
        BoundaryAttack(nn.Flatten(), preset="official", normalisation=[0.5])
    with pytest.raises(ValueError, match="must be above 0"):
        BoundaryAttack(nn.Flatten(), preset="official", normalisation=(0.5, 0.0))
    own = BoundaryAttack(nn.Flatten(), preset="official", normalisation=(0.5, 0.2), step_size=0.1, lower=-1.0)
    assert (own.settings.step_size, own.settings.lower, own.settings.upper) == (0.1, -1.0, pytest.approx(1.0))


# --- settings


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, lambda data: (data.mean, (data.std,) * 3)),
        ({"mean": "data"}, lambda data: (data.mean, (data.std,) * 3)),
        ({"std": "data-per-channel"}, lambda data: (data.mean, data.stds)),
        ({"mean": "data", "std": "data-per-channel"}, lambda data: (data.mean, data.stds)),
        ({"mean": "imagenet"}, lambda data: normalisation.PUBLISHED["imagenet"]),
        ({"std": "cifar10"}, lambda data: normalisation.PUBLISHED["cifar10"]),
        ({"mean": "0.5, 0.25,0", "std": "cifar100"}, lambda data: ((0.5, 0.25, 0.0), (0.2675, 0.2565, 0.2761))),
        ({"mean": "0,0,0", "std": "1,1,1e-3"}, lambda data: ((0.0,) * 3, (1.0, 1.0, 0.001))),
    ],
)
def test_normalisation_of_settings(tmp_path, given, expected):
    data = datasets.load(Settings(data=str(picture_folder(tmp_path / "pets")), image_size=8))
    assert normalisation.of_student(Settings(**given), data) == expected(data)
    teacher = TrainSettings(teacher="x.ckpt", **{f"teacher_{name}": word for name, word in given.items()})
    wanted = expected(data) if given else RGB
    assert normalisation.of_teacher(teacher, data, RGB) == wanted
    assert normalisation.of_teacher(TrainSettings(**given), data, None) == expected(data)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mean": "Imagenet"}, "--mean Imagenet: must be data, data-per-channel, imagenet, cifar10, cifar100, or one"),
        ({"mean": "0.5,,0.5"}, "--mean 0.5,,0.5: must be"),
        ({"mean": "nan", "std": "1"}, "--mean nan: must be"),
        ({"mean": "0.5"}, "--mean 0.5: needs --std, too"),
        ({"std": "0.5"}, "--std 0.5: needs --mean, too"),
        ({"mean": "0.5", "std": "0"}, "--std 0: must be"),
        ({"mean": "0.5", "std": "-1"}, "each above 0"),
        ({"teacher_mean": "imagenet"}, "--teacher-mean, --teacher-std: are for --teacher"),
        ({"teacher_std": "0.5", "teacher": "x.ckpt"}, "--teacher-std 0.5: needs --teacher-mean, too"),
    ],
)
@pytest.mark.parametrize("kind", [TrainSettings, CompareSettings])
def test_words_that_are_no_normalisation(kind, given, said):
    with pytest.raises(UserError, match=re.escape(said)):
        normalisation.check(kind(**given))


def test_normalisations_of_other_channels():
    data = digits()
    for given, said in (
        ({"mean": "imagenet"}, "--mean imagenet: has 3 numbers, the data 1 channels"),
        ({"mean": "0.5", "std": "0.1,0.1"}, "--std 0.1,0.1: has 2 numbers"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            normalisation.of_student(Settings(**given), data)
    red = datasets.Data(*[None] * 4, (0.5, 0.0, 0.0), 0.2, (0.3, 0.0, 0.0), "none", 1.0)
    object.__setattr__(red, "test", datasets.Split(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.zeros(1)))
    with pytest.raises(UserError, match="channel 1 of the data is of one colour"):
        normalisation.of_student(Settings(std="data-per-channel"), red)


def test_methods_attack_in_the_teachers_units():
    data = digits()
    made = build.method("bss-official", Settings(bounds="preset"), data, normalisation=Normalisation((0.5,), (0.25,)))
    attack = BoundaryAttack(taught(), preset="official", **made.attack_options)
    assert attack.settings[2:6] == (0.3 * 0.25, "all", 0.5 - 2.5 * 0.25, 0.5 + 2.5 * 0.25)
    usual = build.boundary_attack(Settings(), Normalised(taught(), [0.5], 0.25), "zoo")
    assert usual.settings[2:6] == (0.3 * 0.25, "all", 0.0, 1.0)


# --- checkpoints


def test_checkpoints_of_one_std_give_the_same_logits(tmp_path):
    data, inner = digits(), copy.deepcopy(taught()).float()
    spec, path = Spec("small-4-1", 1, 10), tmp_path / "net.ckpt"
    checkpoint.save_network(path, Normalised(inner, data.mean, data.std), spec, {"method": "kd"})
    held = torch.load(path, weights_only=True)
    assert list(held["state_dict"]) == [f"network.{name}" for name in inner.state_dict()]
    assert (held["amkd_fast"]["mean"], held["amkd_fast"]["std"]) == (list(data.mean), [data.std])
    held["amkd_fast"]["std"] = data.std
    torch.save(held, tmp_path / "old.ckpt")
    want = inner((data.test.images - data.mean[0]) / data.std)
    for name in ("net.ckpt", "old.ckpt"):
        network, found, about = checkpoint.load_network(tmp_path / name)
        assert (found, about["method"], network.training) == (spec, "kd", False)
        assert network.normalisation == (data.mean, (data.std,))
        torch.testing.assert_close(predict(network, data.test), want, rtol=1e-5, atol=1e-5)
    del held["amkd_fast"]["std"], held["amkd_fast"]["mean"]
    torch.save(held, tmp_path / "silent.ckpt")
    with pytest.raises(UserError, match="mean None is not one number for each of 1 channels"):
        checkpoint.load_network(tmp_path / "silent.ckpt")
    other = Normalisation((0.25,), (0.5,))
    assert checkpoint.load_network(tmp_path / "silent.ckpt", otherwise=other)[0].normalisation == other


def test_a_training_goes_on_from_a_checkpoint_of_one_std(tmp_path):
    data = digits()
    about = training_runs.describe("student", 0, data, SMALL)
    run = training_runs.train_student(
        "student", 0, None, data, SMALL, epochs=1, about=about, folder=tmp_path, progress=False
    )
    assert run.network.normalisation == (data.mean, (data.std,))
    path = tmp_path / "last.ckpt"
    held = torch.load(path, weights_only=True)
    assert all(name.startswith("network.") and ".network." not in name for name in held["state_dict"])
    assert held["amkd_fast"]["std"] == [data.std]
    spec = Spec("small-2-1", 1, 10)
    about |= {"mean": list(data.mean), "std": [data.std]}
    for std in ([data.std], data.std):
        held["amkd_fast"]["std"] = std
        torch.save(held, path)
        checkpoint.read_training(path, about, spec)
    with pytest.raises(UserError, match="of another run"):
        checkpoint.read_training(path, {**about, "std": [0.5]}, spec)
    del held["amkd_fast"]["std"], held["amkd_fast"]["mean"]
    torch.save(held, path)
    checkpoint.read_training(path, about, spec)


def test_teacher_and_student_may_differ(tmp_path, capsys):
    small = ["--teacher-images", "300", "--student-images", "40", "--epochs", "1"]
    small += ["--student-network", "small-2-1", "--teacher-network", "small-4-1"]
    data, file = digits(), tmp_path / "teacher.ckpt"
    teacher = Normalised(copy.deepcopy(taught()).float(), data.mean, data.std)
    checkpoint.save_network(file, teacher, Spec("small-4-1", 1, 10), {"method": "teacher"})
    right = f"{100.0 * float((predict(teacher, data.test).argmax(1) == data.test.labels).float().mean()):.1f} %"

    def trained(name, *words):
        words = ["train", "--method", "bss-official", "--teacher", str(file), *small, *words]
        assert main([*words, "--output", str(tmp_path / name)]) == 0
        return capsys.readouterr().out.splitlines()[0]

    line = trained("usual", "--mean", "0", "--std", "1")
    assert line.endswith(f"{right} on 797 test images, normalised by {Normalisation(data.mean, (data.std,))}")
    kept = checkpoint.load_network(tmp_path / "usual" / "teacher.ckpt")[0]
    student = checkpoint.load_network(tmp_path / "usual" / "last.ckpt")[0]
    assert (kept.normalisation, student.normalisation) == (teacher.normalisation, ((0.0,), (1.0,)))
    line = trained("wrong", "--teacher-mean", "0.9", "--teacher-std", "0.05")
    assert right not in line
    assert line.endswith("normalised by mean 0.9 and std 0.05")
    assert checkpoint.load_network(tmp_path / "wrong" / "teacher.ckpt")[0].normalisation == ((0.9,), (0.05,))
    assert main(["evaluate", str(tmp_path / "usual" / "last.ckpt"), "--limit", "30", "--attack", "boundary"]) == 0
    assert main(["train", "--mean", "imagenet", "--output", str(tmp_path / "no")]) == 2
    assert "--mean imagenet: has 3 numbers, the data 1 channels" in capsys.readouterr().err


def test_crop_and_flip_leave_pixels():
    split = digits().teacher
    for augment in ("none", "crop+flip"):
        batch = next(iter(datasets.Batches(split, 64, 0, augment)))
        assert (batch.images.min(), batch.images.max()) == (0.0, 1.0)
        assert batch.images.dtype == torch.float32
    assert torch.equal(af.crop_flip(split.pixels, scale=1 / 16, shift=[0.0]), split.images)


def test_stages_go_by_the_networks_own_names():
    images = torch.rand(4, 3, 8, 8)
    student, teacher = (Normalised(coloured(torch.float32), *numbers) for numbers in (RGB, ([0.0] * 3, 1.0)))
    method = AT(student_stages=["stages.0", "stages.2"], teacher_stages=["stages.0", "network.stages.2"])
    method(Batch(images, torch.zeros(4).long()), teacher, student, StepContext(0, 60)).total.backward()
    assert float(student.network.conv.weight.grad.abs().sum()) > 0.0
    with pytest.raises(ValueError, match="ResNet has no module 'layer9'"):
        AT(student_stages=["layer9"], teacher_stages=["stages.0"])(
            Batch(images, torch.zeros(4).long()), teacher, student, StepContext(0, 60)
        )
