"""Robust accuracy against the attacks counted by hand: who is attacked, whose logits count, what is left alone."""

import copy
import math

import pytest
import torch
from torch import nn

from amkd_fast.attacks import PGD, BoundaryAttack, frozen, robust_accuracy, wilson_interval

BOUNDS = {"lower": -2.0, "upper": 2.0}


class Counting(nn.Module):
    """Counts the images that pass through it."""

    def __init__(self, net):
        super().__init__()
        self.net, self.seen = net, 0

    def forward(self, x):
        self.seen += x.shape[0]
        return self.net(x)


def make_net(seed=0, classes=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(12, 24), nn.BatchNorm1d(24), nn.Tanh(), nn.Dropout(0.5), nn.Linear(24, classes)
        ).double()


def make_set(net, count=40, wrong=6):
    """Images that the network classifies as labelled, but for the last few."""
    draws = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, 2, 2, generator=draws, dtype=torch.float64).clamp(-2, 2)
    labels = copy.deepcopy(net).eval()(images).argmax(1)
    labels[count - wrong :] = (labels[count - wrong :] + 1) % 3
    return images, labels


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def net():
    return make_net()


@pytest.mark.parametrize("keep", ["last", "best", "first"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_counts_what_the_attack_leaves_right(net, norm, keep):
    images, labels = make_set(net)
    eps = {"linf": 0.08, "l2": 0.2, "l1": 0.5}[norm]
    attack = PGD(net, eps=eps, norm=norm, keep=keep, random_start=True, restarts=2, **BOUNDS)
    got = robust_accuracy(net, (images, labels), attack, seed=3)
    samples = attack(images, labels, seed=3 * 100_003)
    held = copy.deepcopy(net).eval()(samples.images).argmax(1) == labels
    assert got.correct.tolist() == [True] * 34 + [False] * 6
    assert torch.equal(got.survived, held & got.correct)
    assert torch.equal(got.survived, ~samples.adversarial & got.correct)
    assert torch.equal(got.broken_by == 0, got.correct & ~got.survived)
    assert 0 < got.survived.sum() < 34
    assert got.clean == 34 / 40
    assert got.robust == int(got.survived.sum()) / 40
    assert got.count == 40
    assert got.after == {"0": got.robust}


def test_the_worst_of_several_attacks(net):
    images, labels = make_set(net)
    attacks = {
        "fgsm": PGD(net, eps=0.05, steps=1, **BOUNDS),
        "pgd": PGD(net, eps=0.08, **BOUNDS),
        "l2": PGD(net, eps=0.25, norm="l2", **BOUNDS),
    }
    alone = {name: robust_accuracy(net, (images, labels), attack) for name, attack in attacks.items()}
    got = robust_accuracy(net, (images, labels), attacks)
    assert torch.equal(got.survived, torch.stack([each.survived for each in alone.values()]).all(0))
    assert got.attacks == ("fgsm", "pgd", "l2")
    for position, each in enumerate(alone.values()):  # the first that breaks an image is named
        before = torch.stack([got.correct, *(other.survived for other in list(alone.values())[:position])]).all(0)
        assert torch.equal(got.broken_by == position, before & ~each.survived)
    assert list(got.after.values()) == sorted(got.after.values(), reverse=True)
    assert got.after["l2"] == got.robust < got.after["fgsm"]
    listed = robust_accuracy(net, (images, labels), list(attacks.values()))
    assert listed.attacks == ("0", "1", "2")
    assert torch.equal(listed.survived, got.survived)


def test_only_rightly_classified_survivors_cost_anything(net):
    images, labels = make_set(net)
    counting = Counting(net)
    view = frozen(counting, fold_batchnorm=False, channels_last=False)
    view(images)  # built
    counting.seen = 0
    attacks = [PGD(view, eps=0.08, steps=5, **BOUNDS), PGD(view, eps=0.25, norm="l2", steps=3, **BOUNDS)]
    got = robust_accuracy(view, (images, labels), attacks)
    right, left = int(got.correct.sum()), int((got.broken_by != 0).sum() - (~got.correct).sum())
    assert 0 < left < right < 40
    assert counting.seen == 40 + right * 6 + left * 4
    nobody = robust_accuracy(view, (images, torch.full((40,), -1)), attacks)
    assert counting.seen == 40 + right * 6 + left * 4 + 40
    assert (nobody.clean, nobody.robust) == (0.0, 0.0)
    assert nobody.broken_by.tolist() == [-1] * 40


def test_transferred_attacks_are_judged_by_the_model_itself(net):
    images, labels = make_set(net)
    surrogate = make_net(1)
    transferred = PGD(surrogate, eps=0.5, **BOUNDS)
    got = robust_accuracy(net, (images, labels), transferred)
    samples = transferred(images, labels)
    held = copy.deepcopy(net).eval()(samples.images).argmax(1) == labels
    assert torch.equal(got.survived, held & got.correct)
    assert not torch.equal(got.survived, ~samples.adversarial & got.correct)
    coarse = frozen(net, dtype=torch.bfloat16)
    attack = PGD(coarse, eps=0.08, **BOUNDS)
    held = copy.deepcopy(net).eval()(attack(images, labels).images).argmax(1) == labels
    assert torch.equal(robust_accuracy(net, (images, labels), attack).survived, held & got.correct)


def test_batches_do_not_matter(net):
    images, labels = make_set(net)
    attack = PGD(net, eps=0.08, **BOUNDS)
    whole = robust_accuracy(net, (images, labels), attack)
    parts = list(zip(images.split(7), labels.int().split(7), strict=True))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 16)
    empty = (images[:0], labels[:0])
    for batches in (parts, iter(parts), loader, [empty, *parts], [(*part, "name") for part in parts]):
        got = robust_accuracy(net, batches, attack)
        assert torch.equal(got.survived, whole.survived)
        assert got[:3] == whole[:3]


def test_random_starts_follow_the_seed_and_not_the_neighbours(net):
    images, labels = make_set(net)
    attack = PGD(net, eps=0.1, steps=1, step_size=0.01, random_start=True, **BOUNDS)
    one, same, other = (robust_accuracy(net, (images, labels), attack, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.survived, same.survived)
    assert not torch.equal(one.survived, other.survived)
    labels = labels.clone()
    labels[0] = -1  # is left alone now
    assert torch.equal(robust_accuracy(net, (images, labels), attack, seed=1).survived[1:], one.survived[1:])
    twice = robust_accuracy(net, (images, labels), [attack, attack], seed=1)  # with a start of its own each
    assert twice.robust < one.robust


def test_nothing_to_count(net):
    attack = PGD(net, eps=0.1)
    for batches in ([], (torch.zeros(0, 3, 2, 2), torch.zeros(0).long())):
        got = robust_accuracy(net, batches, attack)
        assert math.isnan(got.clean)
        assert math.isnan(got.robust)
        assert math.isnan(got.after["0"])
        assert (got.count, got.correct.numel(), got.broken_by.dtype) == (0, 0, torch.int64)
        assert got.robust_interval == (0.0, 1.0)


def test_a_prediction_with_a_nan_is_wrong():
    class Broken(nn.Module):
        def forward(self, x):  # NaN in class 0 where the first pixel is large
            z = torch.stack([torch.where(x[:, 0] > 1.0, torch.nan, 1.0), x[:, 1]], 1)
            return z + 0.0 * x.sum(1, keepdim=True)

    images = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.99, 0.0]])
    got = robust_accuracy(Broken(), (images, torch.zeros(3).long()), PGD(Broken(), eps=0.0))
    assert got.correct.tolist() == [True, False, True]
    assert got.survived.tolist() == [True, False, True]


def test_models_and_images_stay_as_they_are(net):
    images, labels = make_set(net)
    images.requires_grad_()
    before, kept, random = copy.deepcopy(net.state_dict()), images.detach().clone(), torch.get_rng_state()
    attack = PGD(net, eps=0.1, random_start=True, **BOUNDS)
    got = robust_accuracy(net, (images, labels), attack)
    assert torch.equal(images, kept)
    assert images.grad is None
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    with torch.inference_mode():
        assert torch.equal(robust_accuracy(net, (images, labels), attack).survived, got.survived)


def test_networks_with_several_outputs(net):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x), x

    def first(outputs):
        return outputs[0]

    images, labels = make_set(net)
    pair = Pair()
    want = robust_accuracy(net, (images, labels), PGD(net, eps=0.08, **BOUNDS))
    got = robust_accuracy(pair, (images, labels), PGD(pair, eps=0.08, logits_of=first, **BOUNDS), logits_of=first)
    assert torch.equal(got.survived, want.survived)
    with pytest.raises(ValueError, match="logits_of can pick them"):
        robust_accuracy(pair, (images, labels), PGD(pair, eps=0.08, logits_of=first))


def test_progress_is_called_after_every_batch(net):
    images, labels = make_set(net)
    calls = []
    parts = list(zip(images.split(16), labels.split(16), strict=True))
    for batches in (parts, iter(parts)):
        robust_accuracy(net, batches, PGD(net, eps=0.1), progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3), (1, None), (2, None), (3, None)]


@pytest.mark.parametrize(
    ("successes", "count", "want"),  # by the formula in exact rational steps, z = 1.959963984540054
    [
        (0, 10, (0.0, 0.2775328)),
        (9, 10, (0.5958500, 0.9821238)),
        (10, 10, (0.7224672, 1.0)),
        (50, 100, (0.4038315, 0.5961685)),
        (0, 0, (0.0, 1.0)),
    ],
)
def test_wilson_interval(successes, count, want):
    assert wilson_interval(successes, count) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("count", [1, 7, 797, 10**6])
def test_wilson_interval_is_closed_at_its_extremes(count):
    assert wilson_interval(0, count)[0] == 0.0
    assert wilson_interval(count, count)[1] == 1.0


def test_wilson_interval_holds_its_share_at_its_ends():
    """The ends are where the share lies z standard deviations of the null hypothesis away."""
    for successes, count in ((3, 17), (400, 1000)):
        for end in wilson_interval(successes, count):
            distance = abs(successes / count - end) / math.sqrt(end * (1 - end) / count)
            assert distance == pytest.approx(1.959963984540054, rel=1e-9)


def test_intervals_belong_to_the_shares(net):
    got = robust_accuracy(net, make_set(net), PGD(net, eps=0.08, **BOUNDS))
    assert got.clean_interval == wilson_interval(34, 40)
    low, high = got.robust_interval
    assert low < got.robust < high


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"attack": BoundaryAttack(make_net())}, TypeError, "attack is a BoundaryAttack"),
        ({"attack": [BoundaryAttack(make_net())]}, TypeError, r"attack\['0'\] is a BoundaryAttack"),
        ({"attack": {}}, ValueError, "at least one"),
        ({"attack": {"t": PGD(make_net(), eps=1.0, targeted=True)}}, ValueError, r"attack\['t'\] is targeted"),
        ({"model": lambda x: x}, TypeError, "model is a function"),
        ({"batches": torch.zeros(2, 3, 2, 2)}, ValueError, "without labels"),
        ({"batches": 1}, TypeError, "batches is a int"),
        ({"batches": [(torch.zeros(2, 3, 2, 2), torch.zeros(3).long())]}, ValueError, "labels.shape"),
        ({"seed": 0.5}, TypeError, "seed is a float"),
        ({"progress": "bar"}, TypeError, "progress is a str"),
    ],
)
def test_errors_name_the_argument(net, change, error, words):
    arguments = {"model": net, "batches": make_set(net), "attack": PGD(net, eps=0.1), **change}
    with pytest.raises(error, match=words):
        robust_accuracy(arguments.pop("model"), arguments.pop("batches"), arguments.pop("attack"), **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [((3, 2), ValueError, "at most count=2"), ((-1, 2), ValueError, "successes=-1"), ((1.0, 2), TypeError, "float")],
)
def test_wilson_errors(arguments, error, words):
    with pytest.raises(error, match=words):
        wilson_interval(*arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("compact", [False, True])
def test_images_are_brought_to_the_model(net, compact):
    images, labels = make_set(net)
    want = robust_accuracy(net, (images, labels), PGD(net, eps=0.08, random_start=True, **BOUNDS))
    net = net.cuda()
    attack = PGD(net, eps=0.08, random_start=True, compact=compact, **BOUNDS)
    got = robust_accuracy(net, (images, labels), [attack])
    assert torch.equal(got.survived, want.survived)
    assert got.broken_by.device.type == "cpu"
