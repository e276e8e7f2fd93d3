"""Recorded attacks. Without a GPU a stand-in replays the recorded function, and traps whatever would wait for one."""

import copy

import pytest
import torch
from torch import nn
from traps import NothingWaits

from amkd_fast import backends
from amkd_fast.attacks import PGD, PRESETS, BoundaryAttack, Status, capture, frozen
from amkd_fast.ops.attack import select_boundary_bases


class Rehearsed:
    """In place of a CUDA graph: the function itself, in which nothing may wait."""

    made = replayed = 0

    def __init__(self, function):
        type(self).made += 1
        self._function = function
        self.replay()

    def replay(self):
        type(self).replayed += 1
        with NothingWaits():
            self._function()


class Told:
    """In place of a message from the device."""

    def __init__(self, value):
        self._value = value.clone()

    def read(self):
        return int(self._value)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).amax((2, 3)))


def make_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
        net(torch.randn(64, 3, 6, 6))  # statistics
    return net.double()


def make_images(count, seed=1):
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed)).clamp(-3, 3).double()


@pytest.fixture(autouse=True)
def _count_anew():
    Rehearsed.made = Rehearsed.replayed = 0


def rehearsed(attack):
    """The attack with a stand-in for the GPU."""
    attack.capture, attack.graphs = True, capture.Graphs(Rehearsed, Told)
    return attack


def assert_same(one, two):
    for name, a, b in zip(one._fields, one, two, strict=True):
        if a is None:
            assert b is None
        elif a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9, equal_nan=True, msg=name)
        else:
            assert torch.equal(a, b), name


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("given", [False, True])
def test_boundary_samples_are_those_of_an_eager_attack(preset, given):
    net = make_net()
    options = {"preset": preset, "step_size": 0.4, "lower": -3.0, "upper": 3.0}
    recorded, eager = rehearsed(BoundaryAttack(net, **options)), BoundaryAttack(net, compact=False, **options)
    for count in (1, 16, 37, 150):
        images = make_images(count, count)
        base = frozen(net)(images).argmax(1)
        named = {"base": base, "target": (base + 1) % 5} if given else {"seed": 4}
        valid = torch.arange(count) % 7 != 3
        assert_same(recorded(images, valid=valid, **named), eager(images, valid=valid, **named))
    assert recorded.graphs.reason == ""
    per_size = 2 if PRESETS[preset].refine else 1
    assert Rehearsed.made == 3 * per_size  # 1 and 16 share theirs


@pytest.mark.parametrize("keep", ["last", "best", "first"])
@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("targeted", [False, True])
def test_pgd_samples_are_those_of_an_eager_attack(keep, momentum, targeted):
    net, images = make_net(), make_images(21)
    options = {"keep": keep, "momentum": momentum, "targeted": targeted, "random_start": True, "restarts": 2}
    options |= {"eps": torch.linspace(0.1, 0.6, 21).double(), "step_size": 0.1, "steps": 5}
    labels = frozen(net)(images).argmax(1)
    call = {"labels": labels, "target": (labels + 1) % 5, "valid": torch.arange(21) != 4, "seed": 3}
    recorded, eager = rehearsed(PGD(net, **options)), PGD(net, compact=False, **options)
    assert_same(recorded(images, **call), eager(images, **call))
    assert Rehearsed.made == 1


def test_it_ends_one_step_after_the_last_has_finished():
    net, images = make_net(), make_images(16)
    attack = rehearsed(BoundaryAttack(net, preset="official", steps=10, step_size=3.0, lower=-9.0, upper=9.0))
    needed = int(attack(images, seed=1).steps.max())
    assert needed < 8
    Rehearsed.replayed = 0
    attack(images, seed=1)
    assert Rehearsed.replayed <= needed + 2  # the one that sees the end, and the one launched before it is read


def test_similar_batches_share_a_recording_and_few_are_kept():
    net = make_net()
    attack = rehearsed(PGD(net, eps=0.1, steps=2))
    for count in (1, 5, 16):
        attack(make_images(count))
    assert Rehearsed.made == 1
    for count in range(17, 400, 16):
        attack(make_images(count))
    assert len(attack.graphs._kept) == 8


@pytest.mark.parametrize("fold", [True, False])
def test_recordings_follow_the_model(fold):
    net, images = make_net(), make_images(16)
    view = frozen(net, fold_batchnorm=fold)
    attack = rehearsed(PGD(view, eps=0.2, steps=3))
    before = attack(images)
    with torch.no_grad():
        for value in (*net.parameters(), net.norm.running_mean):
            value.mul_(1.3)
    after = attack(images)
    assert not torch.equal(before.logits, after.logits)
    assert_same(after, PGD(copy.deepcopy(net), eps=0.2, steps=3, compact=False)(images))
    assert Rehearsed.made == 1  # new numbers come into the tensors that the recording reads


def test_results_do_not_live_in_the_buffers():
    attack = rehearsed(PGD(make_net(), eps=0.2, steps=3))
    first = attack(make_images(16))
    kept = [part.clone() for part in first]
    attack(make_images(16, seed=9))
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


@pytest.mark.parametrize(
    ("obstacle", "words"),
    [("device", "on 'cpu', not on a CUDA device"), ("gaps", "record_gaps"), ("autocast", "autocast"), ("raises", "no")],
)
def test_what_cannot_be_recorded_runs_eagerly_and_says_so_once(obstacle, words):
    class Refusing(Rehearsed):
        def __init__(self, function):
            raise RuntimeError("no")

    net, images = make_net().float(), make_images(16).float()
    attack = rehearsed(BoundaryAttack(net, compact=False))
    if obstacle == "device":
        attack.graphs = capture.Graphs()
    elif obstacle == "raises":
        attack.graphs = capture.Graphs(Refusing, Told)
    options = {"record_gaps": obstacle == "gaps", "seed": 1}
    with torch.autocast("cpu", enabled=obstacle == "autocast"):
        with pytest.warns(RuntimeWarning, match=words) as warned:
            got, again = attack(images, **options), attack(images, **options)
        assert len(warned) == 1
        assert words in attack.graphs.reason
        want = BoundaryAttack(net, compact=False)(images, **options)
    assert_same(got, want)
    assert_same(again, want)


def test_auto_records_only_what_a_gpu_has_confirmed():
    attack = BoundaryAttack(make_net())
    attack(make_images(4))
    assert attack.graphs.reason == ""
    assert not attack.graphs._kept
    with pytest.raises(ValueError, match="capture='yes'"):
        BoundaryAttack(make_net(), capture="yes")


def test_choosing_bases_waits_for_nothing():
    teacher = torch.randn(256, 10, generator=torch.Generator().manual_seed(0))
    with backends.backend("reference"), NothingWaits():  # a compiled operator would hide what it does
        chosen = select_boundary_bases(teacher * 0.9, teacher, teacher.argmax(1), 64, seed=torch.tensor(3))
    assert chosen.valid.all()


def test_the_trap_sees_what_waits():
    for waits in (lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: bool(x.any())):
        with pytest.raises(AssertionError, match="waits for the device"), NothingWaits():
            waits(torch.ones(3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_gpu_records_and_replays(preset):
    net, images = make_net().cuda().float(), make_images(48).cuda().float()
    options = {"preset": preset, "lower": -3.0, "upper": 3.0}
    recorded, eager = BoundaryAttack(net, capture=True, **options), BoundaryAttack(net, capture=False, **options)
    for seed in (1, 2):
        got, want = recorded(images, seed=seed), eager(images, seed=seed)
        assert recorded.graphs.reason == ""
        torch.testing.assert_close(got.images, want.images, rtol=0, atol=1e-4)
        assert (got.status == want.status).double().mean() >= 0.95
    assert (got.status == Status.CROSSED).any()
    base = eager(images).base
    torch.cuda.set_sync_debug_mode("error")
    try:
        recorded.graphs.recording(True, images, recorded.model.generation)
        recorded(images, base=base, target=(base + 1) % 5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
