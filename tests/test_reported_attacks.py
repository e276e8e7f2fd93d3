"""Faults that people reported of libraries like this one, for attacks and data: the input, the right value, its source.

The cases are ours; what is right is stated by the model itself, by a plain loop, or by what the documentation promises.
"""

import copy
import types

import numpy as np
import pytest
import torch
from torch import nn

from amkd_fast.attacks import PGD, BoundaryAttack, ParticleAttack, frozen, robust_accuracy
from amkd_fast.distill.methods import BSS, KD, Batch, Moment

OPERATION = "attack"
GLOBAL = 1.0


def images_of(count, seed=0, size=6):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


# A network that changes without a trace: what the network itself says is right


class Net(nn.Module):
    """Folds, and reads whatever a forward can read."""

    on_the_class = 1.0

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.second, self.second_norm = nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8, affine=False)
        self.act, self.pool = nn.LeakyReLU(0.1), nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(32, 5)
        self.flag, self.numbers, self.table = 1.0, [1.0], {"a": {"b": 1.0}}
        self.config = types.SimpleNamespace(scale=1.0)
        self.shift = torch.full((8, 1, 1), 0.1)  # neither parameter nor buffer
        self.register_buffer("mean", torch.full((3,), 0.2))
        factor = 1.0

        def scaled(x):
            return x * factor

        def rescale(value):
            nonlocal factor
            factor = value

        self.scaled, self.rescale = scaled, rescale

    def forward(self, x):
        x = self.act(self.norm(self.conv(x - self.mean.view(-1, 1, 1)))) + self.shift
        x = self.scaled(self.pool(self.act(self.second_norm(self.second(x)))))
        x = x * (self.flag * self.numbers[0] * self.table["a"]["b"] * self.config.scale * self.on_the_class * GLOBAL)
        return self.head(x.flatten(1))


def make_net(cls=Net):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = cls()
        net(images_of(64, 1))  # statistics of its own
    return net.eval()


def numpy_view(net):
    net.conv.weight.detach().numpy()[...] *= 1.5


def moved_average(net):
    for p in net.parameters():
        p.data.mul_(0.9).add_(torch.full_like(p, 0.01))  # as teachers that are moving averages are updated


def other_storage(net):
    net.conv.weight.data = net.conv.weight.data * 2.0
    net.head.weight.data = net.head.weight.data * 2.0


def other_dtype(net):
    net.double().float()


def replaced(net):
    net.act = nn.ReLU()


def doubled_forward(self, x):
    return 2.0 * Net.forward(self, x)


CHANGES = {
    "data": moved_average,
    "data_copy": lambda net: net.norm.weight.data.copy_(torch.linspace(0.5, 2, 8)),
    "numpy": numpy_view,
    "storage": other_storage,
    "dtype": other_dtype,
    "buffer": lambda net: net.norm.running_var.data.mul_(4.0),
    "used_buffer": lambda net: net.mean.data.add_(1.0),
    "attribute_tensor": lambda net: net.shift.data.add_(1.0),
    "other_attribute_tensor": lambda net: setattr(net, "shift", torch.ones(8, 1, 1)),
    "eps": lambda net: setattr(net.norm, "eps", 0.5),
    "unfolded_parameter": lambda net: net.head.bias.data.add_(1.0),
    "slope": lambda net: setattr(net.act, "negative_slope", 0.9),
    "flag": lambda net: setattr(net, "flag", 2.0),
    "list": lambda net: net.numbers.__setitem__(0, 2.0),
    "nested": lambda net: net.table["a"].update(b=2.0),
    "object": lambda net: setattr(net.config, "scale", 2.0),
    "closure": lambda net: net.rescale(2.0),
    "layer": replaced,
    "stride": lambda net: setattr(net.second, "stride", (2, 2)),
    "forward": lambda net: setattr(net, "forward", types.MethodType(doubled_forward, net)),
    "hook": lambda net: net.act.register_forward_hook(lambda module, inputs, output: output + 1.0),
}


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_a_view_is_what_the_model_is_now(change, fold):
    net, images = make_net(), images_of(6)
    view = frozen(net, fold_batchnorm=fold)
    before = view(images)
    assert view.folded == fold, view.reason
    torch.testing.assert_close(before, net(images), rtol=0, atol=1e-5)
    CHANGES[change](net)
    want = net(images).detach()
    assert change == "dtype" or not torch.allclose(before, want, atol=1e-3)
    torch.testing.assert_close(view(images), want, rtol=0, atol=1e-5)
    torch.testing.assert_close(view(images), want, rtol=0, atol=1e-5)
    assert view.folded == (fold and change not in ("hook", "forward"))


@pytest.mark.parametrize("where", ["class", "global", "method"])
def test_a_view_sees_what_is_outside_of_the_model(where, monkeypatch):
    net, images = make_net(), images_of(6)
    view = frozen(net)
    before = view(images)
    if where == "class":
        monkeypatch.setattr(Net, "on_the_class", 3.0)
    elif where == "global":
        monkeypatch.setitem(globals(), "GLOBAL", 3.0)
    else:
        plain = Net.forward
        monkeypatch.setattr(Net, "forward", lambda self, x: 3.0 * plain(self, x))
    torch.testing.assert_close(view(images), net(images), rtol=0, atol=1e-5)
    assert not torch.allclose(view(images), before, atol=1e-3)


class Loose(Net):
    """Holds what a trace bakes in and nobody can follow: it must not be folded."""

    def __init__(self, kind):
        super().__init__()
        self.parts = {"array": np.ones(1), "tensor": [torch.ones(1)], "module": [nn.Linear(1, 1)]}[kind]

    def forward(self, x):
        part = self.parts[0]
        return super().forward(x) * (part.weight.detach().item() if isinstance(part, nn.Module) else float(part))


@pytest.mark.parametrize("kind", ["array", "tensor", "module"])
def test_what_cannot_be_followed_is_not_folded(kind):
    net, images = make_net(lambda: Loose(kind)), images_of(4)
    view = frozen(net)
    view(images)
    assert not view.folded
    assert "whose changes nobody would see" in view.reason
    part = net.parts[0]
    if kind == "module":
        part.weight.data.fill_(7.0)
    else:
        net.parts[0] = part * 7
    torch.testing.assert_close(view(images), net(images), rtol=0, atol=1e-5)


class Counting(Net):
    """Changes itself whenever it runs, which is no change of what it computes."""

    seen = 0

    def forward(self, x):
        type(self).seen += 1
        self.table["last"], self.last = x, x
        return super().forward(x)


@pytest.mark.parametrize("fold", [True, False])
def test_a_model_that_keeps_notes_is_not_built_anew_in_every_call(fold):
    net, images = make_net(Counting), images_of(4)
    view = frozen(net, fold_batchnorm=fold)
    view(images)
    run = view._run
    for _ in range(3):
        view(images + 1)
        net(images)
    assert view._run is run
    net.flag = 2.0
    torch.testing.assert_close(view(images), net(images), rtol=0, atol=1e-5)
    assert view._run is not run


def test_training_mode_is_no_change():
    net, images = make_net(), images_of(4)
    view = frozen(net)
    view(images)
    run = view._run
    net.train()
    view(images)
    net.eval()
    view(images)
    assert view._run is run


@pytest.mark.parametrize("fold", [True, False])
def test_two_passes_of_a_view_have_one_backward(fold):
    """As in TRADES; the second pass takes the weights over anew, which the first pass's graph must not notice."""
    net, images = make_net(), images_of(4)
    view, leaf = frozen(net, fold_batchnorm=fold), images.clone().requires_grad_()
    (view(leaf).square().sum() + view(leaf + 0.1).sum()).backward()
    other = images.clone().requires_grad_()
    (net(other).square().sum() + net(other + 0.1).sum()).backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("user", ["pgd", "boundary", "particles", "accuracy"])
def test_attacks_see_an_averaged_teacher(user):
    net, images, labels = make_net(), images_of(12), torch.arange(12) % 5
    runs = {
        "pgd": (PGD(net, eps=0.3), lambda attack: attack(images, labels)),
        "boundary": (BoundaryAttack(net, lower=-4.0, upper=4.0), lambda attack: attack(images)),
        "particles": (ParticleAttack(net, eps=0.3), lambda attack: attack(images, labels, seed=1)),
        "accuracy": (PGD(net, eps=0.3), lambda attack: robust_accuracy(attack.model, (images, labels), attack)),
    }
    attack, run = runs[user]
    before = run(attack)
    moved_average(net)
    net.head.weight.data.neg_()
    got, want = run(attack), runs[user][1](type(attack)(copy.deepcopy(net), **options_of(user)))
    if user == "accuracy":
        assert torch.equal(got.correct, want.correct)
        assert torch.equal(got.survived, want.survived)
        assert not torch.equal(got.correct, before.correct)
    else:
        torch.testing.assert_close(got.images, want.images, rtol=0, atol=1e-5)
        assert not torch.allclose(got.logits, before.logits, atol=1e-2)


def options_of(user):
    return {"lower": -4.0, "upper": 4.0} if user == "boundary" else {"eps": 0.3}


@pytest.mark.parametrize("make", [KD, lambda: BSS(limit=4, attack={"lower": -4.0, "upper": 4.0})])
def test_methods_learn_from_an_averaged_teacher(make):
    teacher, student, images = make_net(), make_net(), images_of(8)
    batch, moment = Batch(images, teacher(images).argmax(1)), Moment(0, 60, draw=1)
    method = make()
    first = method(batch, teacher, student, moment).parts["kl"]
    moved_average(teacher)
    got = method(batch, teacher, student, moment).parts["kl"]
    torch.testing.assert_close(got, make()(batch, copy.deepcopy(teacher), student, moment).parts["kl"])
    assert (got - first).abs() > 1e-4


@pytest.mark.parametrize("fold", [True, False])
def test_recordings_get_new_numbers_in_their_own_tensors(fold):
    """What a CUDA graph reads are addresses: they stay, and the generation tells when they do not."""
    net, images = make_net(), images_of(4)
    view = frozen(net, fold_batchnorm=fold)
    view.network(images, recorded=True)
    generation, kept = view.generation, view._kept
    addresses = [value.data_ptr() for value in kept]
    moved_average(net)
    net.norm.running_mean.data.add_(1.0)
    view(images)  # an eager call between takes tensors of its own
    got = view.network(images, recorded=True)(images)
    assert view.generation == generation
    assert [value.data_ptr() for value in view._kept] == addresses
    torch.testing.assert_close(got, net(images), rtol=0, atol=1e-5)
    for change in (
        lambda: setattr(net, "flag", 2.0),
        lambda: setattr(net.head, "weight", nn.Parameter(torch.ones(5, 32))),
    ):
        change()
        torch.testing.assert_close(view.network(images, recorded=True)(images), net(images), rtol=0, atol=1e-5)
        assert view.generation > generation
        generation = view.generation
