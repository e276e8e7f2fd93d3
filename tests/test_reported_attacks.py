"""Faults that people reported of libraries like this one, for attacks and data: the input, the right value, its source.

The cases are ours; what is right is stated by the model itself, by a plain loop, or by what the documentation promises.
"""

import copy
import io
import math
import struct
import types
import warnings
import zlib

import numpy as np
import pytest
import torch
from torch import nn
from traps import NothingWaits

pytest.importorskip("PIL", reason="the extra `train` is not installed")

from PIL import Image, ImageOps

from amkd_fast import backends, philox
from amkd_fast.attacks import PGD, BoundaryAttack, ParticleAttack, frozen, pixel_bounds, robust_accuracy
from amkd_fast.attacks.boundary import _warn_of_bounds
from amkd_fast.distill.data import pictures
from amkd_fast.distill.errors import UserError
from amkd_fast.losses import Adversarial, AMKDLoss
from amkd_fast.methods import BSS, CCD, KD, MKD, TALD, Batch, StepContext
from amkd_fast.methods.batchnorm import statistics_of
from amkd_fast.methods.outputs import with_features
from amkd_fast.ops.attack import attack_step, draw_targets, operators, select_boundary_bases, svgd_step
from amkd_fast.ops.images import crop_flip, joint_augment

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
        "boundary": (BoundaryAttack(net, lower=-9.0, upper=9.0), lambda attack: attack(images)),
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
    return {"lower": -9.0, "upper": 9.0} if user == "boundary" else {"eps": 0.3}


@pytest.mark.parametrize("make", [KD, lambda: BSS(limit=4, attack={"lower": -9.0, "upper": 9.0})])
def test_methods_learn_from_an_averaged_teacher(make):
    teacher, student, images = make_net(), make_net(), images_of(8)
    batch, moment = Batch(images, teacher(images).argmax(1)), StepContext(0, 60, draw=1)
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


# A radius per channel. Right: the same attack on pixels, whose channels the images are multiples of


CHANNELS = torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64).view(1, 3, 1, 1)


def pixel_step(x, grad, x0, *, eta, eps, norm, velocity=None, mu=1.0, gap=None, low=None, high=None, project=False):
    """One step of every image of a batch, written out for images whose lengths are all in one unit."""
    moved, velocities = [], []
    for i in range(len(x)):
        g = grad[i]
        if velocity is not None:
            g = mu * velocity[i] + g / g.abs().mean()
            velocities.append(g)
        if project:
            blocked = ((x[i] <= low) & (g < 0)) | ((x[i] >= high) & (g > 0))
            g = torch.where(blocked, 0.0, g)
        if norm == "linf":
            way = g.sign()
        elif norm == "l1":
            largest = g.abs().flatten().topk(round(0.2 * g.numel())).values[-1]
            way = torch.where(g.abs() >= largest, g.sign(), 0.0)
            way = way / (way != 0).sum()
        else:
            way = g / g.norm()
        new = x[i] + eta * (1.0 if gap is None else gap[i] + 1e-4) * way
        if eps is not None:
            d = new - x0[i]
            if norm == "linf":
                d = d.clamp(-eps, eps)
            elif norm == "l2":
                d = d * min(1.0, float(eps / d.norm()))
            elif d.abs().sum() > eps:  # on the simplex by bisection of the threshold
                few, many = 0.0, float(d.abs().max())
                for _ in range(100):
                    middle = (few + many) / 2
                    few, many = (middle, many) if (d.abs() - middle).clamp(min=0).sum() > eps else (few, middle)
                d = d.sign() * (d.abs() - many).clamp(min=0)
            new = x0[i] + d
        if low is not None:
            new = torch.minimum(torch.maximum(new, low), high)
        moved.append(new)
    return torch.stack(moved), torch.stack(velocities) if velocities else None


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "boundary"])
@pytest.mark.parametrize("more", ["", "momentum", "project", "momentum project"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_sizes_by_channel_are_a_step_on_pixels(backend, device, norm, more, layout):
    if norm == "boundary" and "momentum" in more:
        pytest.skip("refused")
    random = torch.Generator().manual_seed(3)
    pixels, clean, grad, old = (torch.randn(3, 3, 4, 4, generator=random, dtype=torch.float64) for _ in range(4))
    low, high = torch.tensor(-1.0), torch.tensor(1.2)
    pixels, clean = pixels.clamp(low, high), clean.clamp(low, high)
    gap = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64) if norm == "boundary" else None
    eps = None if norm == "boundary" else {"linf": 0.3, "l2": 2.0, "l1": 5.0}[norm]
    options = {"norm": norm, "gap": gap}
    velocity = old.clone() if "momentum" in more else None
    want, moved = pixel_step(
        pixels, grad * CHANNELS, clean, eta=0.7, eps=eps, velocity=velocity, mu=0.9, low=low, high=high,
        project="project" in more, **options,
    )  # fmt: skip
    own = None if velocity is None else velocity.to(device)
    ball = {} if eps is None else {"x0": (clean * CHANNELS).to(device), "eps": (eps * CHANNELS).to(device)}
    bounds = {"lower": (low * CHANNELS).flatten().to(device), "upper": (high * CHANNELS).flatten().to(device)}
    x = (pixels * CHANNELS).to(device).contiguous(memory_format=layout)
    got = attack_step(
        x, grad.to(device), step_size=(0.7 * CHANNELS).to(device), momentum=own, decay=0.9, top=0.2,
        project="project" in more, **bounds, **ball, **{**options, "gap": None if gap is None else gap.to(device)},
    )  # fmt: skip
    torch.testing.assert_close(got.cpu() / CHANNELS, want, rtol=0, atol=1e-9)
    if own is not None and norm != "linf":
        # gradients are taken in shares of the largest channel's unit, which the mean over a sample divides out
        torch.testing.assert_close(own.cpu(), moved, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_sizes_by_channel_in_every_dtype(backend, device, norm, dtype):
    """Against the same call in fp64; the ball holds for what is returned."""
    x0 = images_of(4, size=5).to(dtype)
    x, grad = (x0 + 0.05 * images_of(4, 1, 5)).to(dtype), images_of(4, 2, 5).to(dtype)
    sizes = {"eps": CHANNELS * torch.linspace(0, 0.2, 4).view(-1, 1, 1, 1), "step_size": CHANNELS * 0.1, "top": 0.3}
    if norm != "linf":
        sizes["eps"] = sizes["eps"] * 10
    sizes = {name: part.to(device) if isinstance(part, torch.Tensor) else part for name, part in sizes.items()}
    call = [part.to(device) for part in (x, grad)]
    got = attack_step(*call, x0=x0.to(device), norm=norm, **sizes)
    want = attack_step(*(part.double() for part in call), x0=x0.double().to(device), norm=norm, **sizes)
    assert torch.equal(got[0].cpu(), x0[0])  # a radius of 0
    torch.testing.assert_close(got.double(), want, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


def test_a_channel_of_radius_zero_stays(backend, device):
    x0, grad = images_of(2, size=4).to(device), images_of(2, 1, 4).to(device)
    eps = torch.tensor([0.0, 0.1, 0.2], device=device).view(1, 3, 1, 1)
    for norm in ("linf", "l2", "l1"):
        moved = attack_step(x0, grad, x0=x0, step_size=0.5, eps=eps, norm=norm)
        assert torch.equal(moved[:, 0], x0[:, 0])
        assert not torch.equal(moved[:, 1:], x0[:, 1:])


def test_a_size_per_image_written_in_four_dimensions(backend, device):
    x0, grad = images_of(3, size=4).to(device), images_of(3, 1, 4).to(device)
    sizes = torch.tensor([0.1, 0.2, 0.3], device=device)
    want = attack_step(x0, grad, x0=x0, step_size=sizes, eps=sizes, norm="l2")
    assert torch.equal(
        attack_step(x0, grad, x0=x0, step_size=sizes.view(-1, 1, 1, 1), eps=sizes.view(-1, 1, 1, 1), norm="l2"), want
    )
    for one in (torch.tensor(0.1, device=device), torch.full((1, 1, 1, 1), 0.1, device=device)):
        assert torch.equal(attack_step(x0, grad, step_size=one), attack_step(x0, grad, step_size=float(one)))
    by_channel = torch.tensor([0.1, 0.2, 0.4], device=device)
    rows = attack_step(x0, grad, step_size=by_channel)  # B = C: per image, as documented
    torch.testing.assert_close(rows, x0 + by_channel.view(-1, 1, 1, 1) * grad.sign())
    channels = attack_step(x0, grad, step_size=by_channel.view(-1, 1, 1))
    torch.testing.assert_close(channels, x0 + by_channel.view(1, -1, 1, 1) * grad.sign())


def test_sizes_of_another_shape_say_how_to_write_channels(backend, device):
    x = images_of(5, size=4).to(device)
    for shape in ((3,), (4,), (5, 3), (5, 3, 4, 4), (2, 3, 1, 1), (1, 3, 1), (1, 1, 3, 1, 1)):
        sizes = torch.full(shape, 0.1, device=device)
        with pytest.raises(ValueError, match=r"eps\.view\(1, -1, 1, 1\)" if shape == (3,) else r"eps\.shape="):
            attack_step(x, x, x0=x, step_size=0.1, eps=sizes)
        with pytest.raises(ValueError, match=r"step_size\.shape="):
            attack_step(x, x, step_size=sizes)
    with pytest.raises(ValueError, match="norm_power=2"):
        attack_step(x, x, norm="boundary", norm_power=2, gap=x[:, 0, 0, 0], step_size=CHANNELS.to(x))


@pytest.mark.parametrize("by", ["eps", "step_size", "both"])
def test_particles_by_channel_are_particles_on_pixels(backend, device, by):
    """φ by its definition with one radius: in pixels."""
    random = torch.Generator().manual_seed(5)
    pixels, grad = (torch.randn(2, 4, 3, 3, 3, generator=random, dtype=torch.float64) for _ in range(2))
    clean = pixels.mean(1)
    unit = CHANNELS if by != "step_size" else torch.ones_like(CHANNELS)
    steps = CHANNELS if by != "eps" else torch.ones_like(CHANNELS)
    largest = float(unit.max())
    want = []
    for i in range(2):
        flat = pixels[i].flatten(1) / 1.0
        square = torch.cdist(flat, flat).square() * largest**2  # distances are in units of the largest channel
        h = square[torch.triu_indices(4, 4, 1).unbind()].sort().values[2] / torch.tensor(4.0).log()
        k = torch.exp(-square / h)
        g = grad[i].flatten(1) / largest
        phi = (k @ g + 2 / h * (k.sum(1)[:, None] * flat - k @ flat) * largest) / 4
        moved = pixels[i] * unit[0] + 0.3 * steps[0] * phi.sign().view_as(pixels[i])
        want.append(torch.minimum(torch.maximum(moved, (clean[i] - 0.8) * unit[0]), (clean[i] + 0.8) * unit[0]))
    sizes = {"eps": 0.8 * unit if by != "step_size" else 0.8, "step_size": 0.3 * steps if by != "eps" else 0.3}
    sizes = {name: part.to(device) if isinstance(part, torch.Tensor) else part for name, part in sizes.items()}
    got = svgd_step((pixels * unit).to(device), (grad / unit).to(device), (clean * unit).to(device), **sizes)
    torch.testing.assert_close(got.cpu(), torch.stack(want), rtol=0, atol=1e-9)


class Normalised(nn.Module):
    def __init__(self, net, mean, std):
        super().__init__()
        self.net = net
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, pixels):
        return self.net((pixels - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1))


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("random_start", [True, False])
def test_pgd_on_normalised_images_is_pgd_on_pixels(norm, random_start, compact):
    """The attack of pixels through a normalising network is right; B = C, where a radius per channel was misread."""
    mean, std = torch.tensor([0.4, 0.5, 0.3]).double(), torch.tensor([0.2, 0.3, 0.25]).double()
    net, pixels = make_net().double(), torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(2)).double()
    eps = {"linf": 8 / 255, "l2": 0.5, "l1": 3.0}[norm]
    options = {"norm": norm, "steps": 5, "top": 0.1, "random_start": random_start, "compact": compact, "keep": "first"}
    want = PGD(Normalised(net, mean, std), eps=eps, lower=0.0, upper=1.0, **options)(pixels, seed=3)
    space = pixel_bounds(mean, std)
    space = space._replace(lower=-mean / std, upper=(1 - mean) / std, std=std)  # as exact as the images
    m, s = mean.view(-1, 1, 1), std.view(-1, 1, 1)
    got = PGD(net, eps=space.radius(eps), lower=space.lower, upper=space.upper, **options)((pixels - m) / s, seed=3)
    torch.testing.assert_close(got.images * s + m, want.images, rtol=0, atol=1e-6)
    assert torch.equal(got.steps, want.steps)


def test_other_attacks_on_normalised_images_are_those_on_pixels():
    mean, std = torch.tensor([0.4, 0.5, 0.3]).double(), torch.tensor([0.2, 0.3, 0.25]).double()
    net, pixels = make_net().double(), torch.rand(6, 3, 6, 6, generator=torch.Generator().manual_seed(2)).double()
    space = pixel_bounds(mean, std)._replace(lower=-mean / std, upper=(1 - mean) / std, std=std)
    whole, bounds = Normalised(net, mean, std), {"lower": space.lower, "upper": space.upper}
    m, s = mean.view(-1, 1, 1), std.view(-1, 1, 1)
    for preset in ("official", "paper", "zoo"):
        want = BoundaryAttack(whole, preset=preset, lower=0.0, upper=1.0, step_size=0.5)(pixels, seed=1)
        for compact in (True, False):
            attack = BoundaryAttack(net, preset=preset, step_size=space.radius(0.5), compact=compact, **bounds)
            got = attack((pixels - m) / s, seed=1)
            torch.testing.assert_close(got.images * s + m, want.images, rtol=0, atol=1e-9)
            assert torch.equal(got.status, want.status)
    with pytest.raises(ValueError, match="near_boundary"):
        BoundaryAttack(net, step_size=space.radius(0.5), **bounds)((pixels - m) / s)
    labels = torch.arange(6) % 5
    want = ParticleAttack(whole, eps=0.05, lower=0.0, upper=1.0, steps=3)(pixels, labels, seed=1)
    got = ParticleAttack(net, eps=space.radius(0.05), steps=3, **bounds)((pixels - m) / s, labels, seed=1)
    torch.testing.assert_close(got.images * s + m, want.images, rtol=0, atol=1e-6)


# Images outside of their bounds. Right: an error with the bound and the distance, for a step would clip them


OUTSIDE = {
    "pgd": lambda net, **bounds: PGD(net, eps=0.03, **bounds),
    "boundary": lambda net, **bounds: BoundaryAttack(net, **bounds),
    "particles": lambda net, **bounds: ParticleAttack(net, eps=0.03, **bounds),
}


def attacked(attack, images, **more):
    if isinstance(attack, ParticleAttack):
        return attack(images, torch.arange(len(images)) % 5, seed=1, **more)
    return attack(images, **more)


@pytest.mark.parametrize("kind", OUTSIDE)
def test_images_outside_of_their_bounds_are_refused(kind):
    """Normalised images given with the bounds of pixels: a radius of 0.03 moved pixels by 2.47."""
    net, images = make_net(), images_of(4).clamp(-2, 2)
    images[1, 2, 3, 3], images[2, 0, 0, 0] = 3.47, -2.5
    for bounds, words in (
        ({"lower": 0.0, "upper": 1.0}, r"below lower=0\.0 by up to 2\.5"),
        ({"lower": -2.5, "upper": 1.0}, r"above upper=1\.0 by up to 2\.47"),
        ({"upper": torch.tensor([9.0, 9.0, 3.0])}, r"above upper=\[9\.0, 9\.0, 3\.0\] by up to 0\.47"),
    ):
        with pytest.raises(ValueError, match=words):
            attacked(OUTSIDE[kind](net, **bounds), images)
    for lower, upper in ((1.0, -1.0), (torch.tensor([-9.0, 1.0, -9.0]), 0.5), (torch.ones(3), torch.zeros(3))):
        with pytest.raises(ValueError, match=r"lower=.* is above upper=.*: must be at most upper"):
            attacked(OUTSIDE[kind](net, lower=lower, upper=upper), images)


@pytest.mark.parametrize("kind", OUTSIDE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_rounding_at_a_bound_is_no_fault(kind, dtype):
    """Black and white pixels, normalised as torchvision does it, are at the bounds of `pixel_bounds`."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = torch.randint(2, (6, 3, 6, 6), generator=torch.Generator().manual_seed(0)).float()
    images = pixels.clone().sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1)).to(dtype)
    space = pixel_bounds(mean.tolist(), std.tolist())
    found = attacked(OUTSIDE[kind](make_net(), lower=space.lower, upper=space.upper), images)
    assert torch.isfinite(found.images).all()


def test_padding_may_hold_anything():
    images, valid = images_of(4).clamp(-2, 2), torch.tensor([True, True, False, True])
    images[2] = 1e6
    for kind in ("pgd", "boundary"):
        found = attacked(OUTSIDE[kind](make_net(), lower=-2.0, upper=2.0), images, valid=valid)
        assert torch.equal(found.images[2], images[2])


def test_published_bounds_clip_as_published():
    """CIFAR's white pixels are at 2.75 and the public code clips at 2.5."""
    images = images_of(4)
    images[0, 0, 0, 0] = 2.75
    BoundaryAttack(make_net(), preset="official")(images)


def test_bounds_in_the_wrong_order_are_refused_by_a_step(backend, device):
    x = images_of(2, size=4).to(device)
    particles = x[:, None].expand(-1, 2, -1, -1, -1)
    for bounds in ({"lower": 1.0, "upper": 0.0}, {"lower": torch.tensor([0.0, 2.0, 0.0]), "upper": torch.ones(3)}):
        bounds = {name: part.to(device) if isinstance(part, torch.Tensor) else part for name, part in bounds.items()}
        if device.type == "cuda" and isinstance(bounds["lower"], torch.Tensor):
            continue  # looking would wait for it
        with pytest.raises(ValueError, match="is above upper"):
            attack_step(x, x, step_size=0.1, **bounds)
        with pytest.raises(ValueError, match="is above upper"):
            svgd_step(particles, particles, x, step_size=0.1, eps=0.1, **bounds)


@pytest.mark.parametrize("preset", ["paper", "zoo", "near_boundary", "official"])
def test_missing_bounds_warn_once(preset):
    _warn_of_bounds.cache_clear()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(3):
            BoundaryAttack(make_net(), preset=preset)
        BoundaryAttack(make_net(), preset=preset, lower=-math.inf, upper=math.inf)
    assert len(found) == (preset != "official")
    assert all(preset in str(each.message) and each.filename == __file__ for each in found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("by", ["number", "image", "channel"])
def test_two_bytes_stay_inside_the_ball(backend, device, norm, by, dtype):
    """Right: the distance of what is returned, in float64, is at most the radius."""
    x0 = (2 * images_of(6, size=4)).to(dtype)
    grad = images_of(6, 1, 4).to(dtype)
    numbers = {"number": torch.ones(1), "image": torch.linspace(0.1, 2, 6), "channel": torch.tensor([0.3, 1.0, 2.0])}[
        by
    ]
    eps = {"linf": 0.031, "l2": 0.3, "l1": 1.1}[norm] * numbers
    eps = eps.view((1, -1, 1, 1) if by == "channel" else (-1, 1, 1, 1))
    size = float(eps[0, 0]) if by == "number" else (eps.flatten() if by == "image" else eps).to(device)
    x = x0.to(device)
    for _ in range(3):
        x = attack_step(x, grad.to(device), x0=x0.to(device), step_size=0.2, eps=size, norm=norm, top=0.5)
        share = (x.cpu().double() - x0.double()) / eps.double()
        length = torch.linalg.vector_norm(share.flatten(1), {"linf": math.inf, "l2": 2, "l1": 1}[norm], dim=1)
        assert (length <= 1 + 1e-6).all()
        assert not torch.equal(x.cpu(), x0)
    if norm == "linf":
        particles = x0[:, None].expand(-1, 3, -1, -1, -1) + torch.tensor([0.0, 0.01, 0.02]).to(dtype).view(3, 1, 1, 1)
        moved = svgd_step(
            particles.to(device), torch.ones_like(particles).to(device), x0.to(device), step_size=0.2, eps=size
        )
        assert ((moved.cpu().double() - x0.double()[:, None]).abs() <= eps.double()[:, None] * (1 + 1e-6)).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_an_attack_in_bfloat16_stays_inside_the_ball(norm):
    net, images = make_net(), images_of(8).clamp(-2, 2).to(torch.bfloat16)
    eps = {"linf": 0.03, "l2": 0.5, "l1": 2.0}[norm]
    found = PGD(net, eps=eps, norm=norm, random_start=True, steps=4, lower=-2.0, upper=2.0)(images).images
    order = {"linf": math.inf, "l2": 2, "l1": 1}[norm]
    distance = torch.linalg.vector_norm((found.double() - images.double()).flatten(1), order, dim=1)
    assert (distance <= eps * (1 + 1e-6)).all()
    assert (distance > 0).all()


# Memory that a step's result shares with what it reads, and a step that fails


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_a_result_that_partly_overlaps_is_refused(backend, device, norm):
    memory = images_of(6, size=4).to(device)
    x, grad = memory[:4], images_of(4, 1, 4).to(device)
    want = attack_step(x.clone(), grad, step_size=0.1, norm=norm)
    for out in (memory[1:5], memory.flatten()[1 : 1 + x.numel()].view_as(x), grad):
        with pytest.raises(ValueError, match="out: must be x itself"):
            attack_step(x, grad, step_size=0.1, norm=norm, out=out)
    assert attack_step(x, grad, step_size=0.1, norm=norm, out=memory[:4]).data_ptr() == x.data_ptr()
    torch.testing.assert_close(x, want, rtol=0, atol=0)
    both = torch.randn(4, 6, 4, 4, device=device)  # interleaved, and nothing shared
    want = attack_step(both[:, :3].clone(), grad, step_size=0.1, norm=norm)
    attack_step(both[:, :3], grad, step_size=0.1, norm=norm, out=both[:, 3:])
    torch.testing.assert_close(both[:, 3:], want, rtol=0, atol=0)


def test_a_failed_step_is_not_taken_again(monkeypatch):
    """What fails half-way has moved samples: its error comes out, and nobody tries once more."""
    calls = []

    class Failing:
        @staticmethod
        def step(out, *_):
            calls.append(out)
            out.add_(1.0)
            raise RuntimeError("out of memory: a thread's scratch for rows of 9 elements")

    monkeypatch.setitem(operators._OPERATORS, "cpu", Failing)
    x = images_of(2, size=4)
    if backends.build_info() is None:
        pytest.skip("no compiled extension")
    with pytest.raises(RuntimeError, match="out of memory"):
        attack_step(x, x.clone(), step_size=0.1, out=x)
    assert len(calls) == 1


# Draws without a seed. Right: torch's generator decides, each call has its own, and a number repeats


def drawing(kind):
    net, images, labels = make_net(), images_of(8).clamp(-2, 2), torch.arange(8) % 5
    pixels = torch.arange(8 * 3 * 64).view(8, 3, 8, 8).remainder(251).to(torch.uint8)
    logits = torch.zeros(64, 5)
    base = torch.arange(64) % 5
    teacher = torch.eye(5)[base] * 0.1
    seldom = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    rows = Adversarial(seldom.flip(1), seldom, labels, (labels + 1) % 5, torch.arange(8))
    return {
        "pgd": lambda **seed: PGD(net, eps=0.1, steps=1, random_start=True)(images, labels, **seed).images,
        "pgd_l2": lambda **seed: PGD(net, eps=0.1, norm="l2", random_start=True)(images, labels, **seed).images,
        "particles": lambda **seed: ParticleAttack(net, eps=0.1, steps=1)(images, labels, **seed).images,
        "crop_flip": lambda **seed: crop_flip(pixels, scale=1.0, shift=[0.0] * 3, pad=3, flip=True, **seed),
        "joint_augment": lambda **seed: joint_augment(pixels, **seed),
        "draw_targets": lambda **seed: draw_targets(logits, base, **seed),
        "bases": lambda **seed: select_boundary_bases(teacher, teacher, base, 64, **seed).target,
        "uniform": lambda **seed: (
            AMKDLoss(selector="uniform")(seldom, seldom, labels.clamp(max=3), rows, **seed).triplet
        ),
    }[kind]


DRAWING = ["pgd", "pgd_l2", "particles", "crop_flip", "joint_augment", "draw_targets", "bases", "uniform"]


@pytest.mark.parametrize("kind", DRAWING)
def test_draws_follow_torchs_generator(kind):
    draw = drawing(kind)
    torch.manual_seed(1)
    one, two = draw(), draw()
    assert not torch.equal(one, two)
    torch.manual_seed(1)
    assert torch.equal(one, draw())
    assert torch.equal(two, draw())
    state = torch.get_rng_state()
    assert torch.equal(draw(seed=3), draw(seed=3))
    assert torch.equal(draw(seed=3), draw(seed=torch.tensor(3)))
    assert torch.equal(state, torch.get_rng_state())  # a number draws nothing


def test_a_fresh_seed_waits_for_nothing():
    with NothingWaits():
        philox.uniform(philox.chosen_seed(None, torch.device("cpu")), torch.arange(4))
        with backends.backend("reference"):
            drawing("joint_augment")()


def test_what_draws_nothing_leaves_the_generator_alone():
    net, images = make_net(), images_of(4)
    state = torch.get_rng_state()
    PGD(net, eps=0.1)(images)
    BoundaryAttack(net)(images)
    crop_flip(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), scale=1.0, shift=[0.0] * 3)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "make", [lambda: BSS(limit=4, kl_weight=1.0), MKD, lambda: TALD(eps=0.3), lambda: CCD(mean=[0.5] * 3, std=0.5)]
)
def test_methods_without_a_draw_have_one_of_their_own(make):
    teacher, student, images = make_net(), make_net(), images_of(8)
    student.head.weight.data.mul_(0.7)  # still right, and not the teacher
    student.head.bias.data.mul_(0.7)
    batch, method = Batch(images, teacher(images).argmax(1)), make()

    def total(**draw):
        other = copy.deepcopy(student)
        return method(batch, teacher, other, StepContext(0, 60, **draw)).total

    torch.manual_seed(2)
    losses = [total() for _ in range(4)]
    assert len({float(loss.detach()) for loss in losses}) > 1
    torch.manual_seed(2)
    assert torch.equal(losses[0], total())
    assert torch.equal(total(draw=5), total(draw=5))
    method.distributed = True
    with pytest.raises(ValueError, match=r"moment\.draw=None"):
        method.draw_of(StepContext(0, 60), images.device)


# Networks inside of nn.DataParallel. Right: what the module within gives


@pytest.mark.parametrize("fold", [True, False])
def test_a_data_parallel_network_is_its_module(fold):
    """torch's functional calls refuse it, with an error that names neither the argument nor the way out."""
    net, images, labels = make_net(), images_of(6), torch.arange(6) % 5
    wrapped = nn.DataParallel(nn.DataParallel(net))
    view = frozen(wrapped, fold_batchnorm=fold)
    torch.testing.assert_close(view(images), net(images), rtol=0, atol=1e-5)
    assert view.folded == fold
    for user in (wrapped, nn.Sequential(nn.Identity(), nn.DataParallel(net))):
        got, want = PGD(user, eps=0.1)(images, labels), PGD(net, eps=0.1)(images, labels)
        torch.testing.assert_close(got.images, want.images, rtol=0, atol=1e-5)
        assert robust_accuracy(user, (images, labels), PGD(user, eps=0.1)).count == 6
    batch, moment = Batch(images, net(images).argmax(1)), StepContext(0, 60, draw=1)
    for make in (KD, lambda: BSS(limit=4)):
        losses = [make()(batch, teacher, copy.deepcopy(net), moment).total for teacher in (net, wrapped.eval())]
        torch.testing.assert_close(*losses)


def test_replicas_inside_of_another_module_are_refused_by_name():
    spread = nn.DataParallel(make_net())
    spread.device_ids = [0, 1]  # as on two GPUs
    frozen(spread)
    whole = nn.Sequential(nn.Identity(), spread)
    for use in (frozen, lambda model: PGD(model, eps=0.1), BoundaryAttack):
        with pytest.raises(ValueError, match=r"model\.1 is an nn\.DataParallel over 2 devices: must be on one"):
            use(whole)
    with pytest.raises(ValueError, match=r"student is an nn\.DataParallel over 2 devices"):
        with_features(spread, images_of(2))
    with pytest.raises(ValueError, match=r"student is an nn\.DataParallel over 2 devices"), statistics_of(spread):
        pass


# Pictures of every kind. Right: their 8-bit twins, or what viewers show


def chunked(width, height, bits, colour, rows):
    """A PNG by its specification: PIL writes no colours of 16 bits."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def levels_of(folder, name, content, grayscale=False, size=8):
    path = folder / name
    path.write_bytes(content)
    return pictures.read([path], size, grayscale)[0]


def saved(picture, form, **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


WIDE = (np.arange(64).reshape(8, 8) * 1040).astype(np.uint16)  # 16 bits, levels 0 to 255 by their upper eight


def test_grey_of_16_bits_has_all_its_levels(tmp_path):
    """PIL's conversion leaves 0 and 255 of them; a set of two brightnesses trained to chance."""
    want = torch.from_numpy((WIDE >> 8).astype(np.int64))
    files = {
        "a.png": saved(Image.fromarray(WIDE), "PNG"),
        "b.ppm": b"P5 8 8 65535\n" + WIDE.astype(">u2").tobytes(),
        "c.png": chunked(8, 8, 16, 0, WIDE),
        "d.png": chunked(8, 8, 16, 2, np.repeat(WIDE, 3, 1)),  # colours, all alike
        "e.png": chunked(8, 8, 16, 6, np.stack([WIDE, WIDE, WIDE, WIDE * 0 + 9], 2).reshape(8, -1)),
        "f.png": chunked(8, 8, 16, 4, np.stack([WIDE, WIDE * 0 + 9], 2).reshape(8, -1)),
        "g.ppm": b"P6 8 8 65535\n" + np.repeat(WIDE, 3, 1).astype(">u2").tobytes(),
    }
    for name, content in files.items():
        for grayscale in (True, False):
            found = levels_of(tmp_path, name, content, grayscale)
            slack = 1 if name == "g.ppm" else 0  # PIL rounds these
            assert ((found.long() - want.expand(1 if grayscale else 3, 8, 8)).abs() <= slack).all(), (name, grayscale)
    odd = b"P5 8 8 1023\n" + (WIDE >> 6).astype(">u2").tobytes()  # ten bits
    assert (levels_of(tmp_path, "odd.ppm", odd, True).long() - want).abs().max() <= 1


def colours():
    return np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("grayscale", [False, True])
def test_every_mode_is_its_picture(tmp_path, grayscale):
    few = Image.fromarray(colours() // 64 * 64 + 20)
    palette = few.quantize(64)
    alpha = Image.fromarray(colours()[:, :, 0])
    clear = few.copy()
    clear.putalpha(alpha)
    grey = few.convert("L")
    shaded = Image.merge("LA", (grey, alpha))
    bits = Image.fromarray((colours()[:, :, 0] > 127).astype(np.uint8) * 255).convert("1")
    cases = {
        "rgb.png": (saved(few, "PNG"), few),
        "l.png": (saved(grey, "PNG"), grey),
        "p.png": (saved(palette, "PNG"), palette.convert("RGB")),
        "p1.png": (saved(palette, "PNG", transparency=3), palette.convert("RGB")),
        "p2.png": (saved(palette, "PNG", transparency=bytes(range(64))), palette.convert("RGB")),
        "rgba.png": (saved(clear, "PNG"), few),
        "la.png": (saved(shaded, "PNG"), grey),
        "l1.png": (saved(grey, "PNG", transparency=20), grey),
        "one.png": (saved(bits, "PNG"), bits.convert("L")),
        "one.ppm": (saved(bits, "PPM"), bits.convert("L")),
        "one.bmp": (saved(bits, "BMP"), bits.convert("L")),
        "rgba.webp": (saved(clear, "WEBP", lossless=True, exact=True), few),
    }
    for name, (content, picture) in cases.items():
        want = picture.convert("RGB").convert("L" if grayscale else "RGB")
        found = levels_of(tmp_path, name, content, grayscale)
        assert found.permute(1, 2, 0).flatten().tolist() == list(want.tobytes()), name


def test_cmyk_is_its_colours(tmp_path):
    """Flat colours, which JPEG keeps; 255 - ink, less the black ink."""
    for ink, want in (((255, 0, 0, 0), (0, 255, 255)), ((0, 0, 255, 0), (255, 255, 0)), ((0, 0, 0, 255), (0, 0, 0))):
        content = saved(Image.new("CMYK", (8, 8), ink), "JPEG", quality=100)
        found = levels_of(tmp_path, "cmyk.jpg", content).long()
        assert (found - torch.tensor(want).view(3, 1, 1)).abs().max() <= 2
        grey = round(0.299 * want[0] + 0.587 * want[1] + 0.114 * want[2])
        assert (levels_of(tmp_path, "cmyk.jpg", content, True).long() - grey).abs().max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_orientations_are_followed(tmp_path, orientation, form):
    """Right: as PIL's own ImageOps turns it; a mark in a corner tells the eight apart."""
    picture = Image.fromarray(colours())
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(picture, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    want = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    found = levels_of(tmp_path, "turned.png", content)
    assert found.permute(1, 2, 0).flatten().tolist() == list(want.tobytes())
    assert (orientation == 1) == (want.tobytes() == picture.tobytes())
    grey = Image.fromarray(WIDE)
    wide = saved(grey, "PNG", exif=exif)
    want = torch.from_numpy(np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(wide)))).astype(np.int64) >> 8)
    assert torch.equal(levels_of(tmp_path, "wide.png", wide, True)[0].long(), want)


def test_metadata_that_cannot_be_read_turn_nothing(tmp_path):
    picture = Image.fromarray(colours())
    found = levels_of(tmp_path, "a.png", saved(picture, "PNG", exif=b"Exif\0\0rubbish"))
    assert found.permute(1, 2, 0).flatten().tolist() == list(picture.tobytes())


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(tmp_path, form):
    frames = [Image.fromarray(colours()), Image.fromarray(255 - colours())]
    more = {"lossless": True} if form == "WEBP" else {}
    content = saved(frames[0], form, save_all=True, append_images=frames[1:], **more)
    found = levels_of(tmp_path, "moving.png", content)
    assert found.permute(1, 2, 0).flatten().tolist() == list(frames[0].tobytes())


def test_floating_point_pictures_are_refused_by_name(tmp_path):
    content = saved(Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)), "PPM")
    with pytest.raises(UserError, match=r"float\.ppm: mode F: must be of 8 or 16 bits a channel"):
        levels_of(tmp_path, "float.ppm", content)


# ---- what picks the logits, and seeds of NumPy ----------------------------------------------------------------------


@pytest.mark.parametrize("attack", [PGD, BoundaryAttack, ParticleAttack])
def test_a_name_of_the_logits_is_no_function(attack):
    """transformers' outputs have a field `logits`: who names it gets told what is asked for, before any image."""
    with pytest.raises(TypeError, match="logits_of is a str: must be a function of the model's outputs, or None"):
        attack(torch.nn.Identity(), logits_of="logits", **({} if attack is BoundaryAttack else {"eps": 0.1}))


def test_a_seed_of_numpy_is_its_number():
    pixels = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).view(2, 3, 8, 8)
    usual = {"scale": 1.0, "shift": [0.0, 0.0, 0.0], "pad": 2, "flip": True}
    drawn = [crop_flip(pixels, **usual, seed=seed) for seed in (7, np.int64(7), np.uint8(7))]
    assert all(torch.equal(drawn[0], each) for each in drawn[1:])
    with pytest.raises(TypeError, match="seed is a float"):
        crop_flip(pixels, **usual, seed=7.0)
