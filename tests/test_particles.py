"""What is special to Stein variational steps, and the attack that takes them."""

import copy
import math

import pytest
import torch
from cases.attack import Crowd, assert_one_of_the_ways, draw_crowd
from places import moving, stand_on, there
from torch import nn
from torch.nn import functional as F

import amkd_fast as af
from amkd_fast.attacks import ParticleAttack, frozen
from amkd_fast.ops.attack import particles as op

OPERATION = "attack"
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SIZES = {"step_size": 0.02, "eps": 0.05}
svgd_step = moving(af.svgd_step, in_place=("out",))
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def _on_each_backend(request):
    if "backend" in request.fixturenames:
        before = stand_on(request.getfixturevalue("device"))
        yield
        stand_on(before)
    else:
        yield


def crowd(images, count, shape=(3, 4, 5), *, seed=0, scale=1.0, dtype=torch.float64):
    """Particles, their gradients and clean images, all of them numbers."""
    x, grad, x0 = draw_crowd(Crowd(images + 1, count, shape), dtype, seed).values()
    return x[:-1], (scale * grad[:-1].double()).to(dtype), x0[:-1]


@pytest.mark.kernels
@pytest.mark.parametrize("count", [2, 3, 5, 8, 13])
@pytest.mark.parametrize(("scale", "bandwidth"), [(0.0, None), (30.0, None), (1.0, 0.02)])
def test_step_equals_the_oracle_whatever_prevails(backend, count, scale, bandwidth):
    given = crowd(2, count, seed=count, scale=scale)
    got = svgd_step(*given, **SIZES, upper=0.9, bandwidth=bandwidth)
    assert_one_of_the_ways(got, *given, **SIZES, upper=0.9, bandwidth=bandwidth)


@pytest.mark.parametrize("same", ["nothing", "a gradient"])
def test_particles_are_driven_apart(backend, same):
    x0 = torch.full((2, 1, 8), 0.5)
    x = x0[:, None] + 0.01 * torch.randn(2, 2, 1, 8, generator=torch.Generator().manual_seed(0))
    grad = torch.zeros_like(x)
    if same == "a gradient":
        grad[..., :3] = 1e6  # here both climb
    got = svgd_step(x, grad, x0, step_size=0.02, eps=1.0)
    gap, wider = (points[:, 0] - points[:, 1] for points in (x, got))
    free = grad[:, 0] == 0
    torch.testing.assert_close(wider[free], (gap + 0.04 * gap.sign())[free])
    torch.testing.assert_close(wider[~free], gap[~free])


@by_dtype
def test_one_particle_takes_the_step_of_attack_step(backend, dtype):
    x, grad, x0 = crowd(6, 1, dtype=dtype)
    grad[1] = 0
    grad[2, 0, 0, 1, 1] = math.nan
    x[3, 0, 1, 0, 2] = 0.9
    sizes = {
        "step_size": torch.tensor([0.02, 0.02, 0.02, -0.1, math.nan, 0.02]),
        "eps": torch.tensor([0.05, 0.05, 0.05, 0.0, 0.05, math.nan]),
        "lower": torch.tensor([0.1, math.nan, 0.3]),
        "upper": 0.7,
    }
    sizes = {
        name: v.to(torch.promote_types(dtype, torch.float32)) if name != "upper" else v for name, v in sizes.items()
    }
    got = svgd_step(x, grad, x0, **sizes)
    want = moving(af.attack_step)(x[:, 0], grad[:, 0], x0=x0, **sizes)
    assert torch.equal(got[:, 0], want)
    assert not torch.equal(got[0], x[0])


@by_dtype
def test_ball_and_bounds_hold(backend, dtype):
    x, grad, x0 = crowd(5, 4, scale=20.0, dtype=dtype)
    work = torch.promote_types(dtype, torch.float32)
    eps = torch.tensor([0.03, 0.0, 0.05, 0.001, 1.0], dtype=work)
    got = svgd_step(x, grad, x0, step_size=torch.full((5,), 0.3, dtype=work), eps=eps, lower=0.25, upper=0.75).double()
    clean = x0.double()[:, None]
    within = (clean - eps.view(-1, 1, 1, 1, 1), clean + eps.view(-1, 1, 1, 1, 1))
    slack = torch.finfo(dtype).eps
    inside = (clean > 0.25) & (clean < 0.75)  # where ball and bounds meet
    assert ((got >= within[0] - slack) & (got <= within[1] + slack) | ~inside).all()
    assert torch.equal(got[1], clean[1].expand_as(got[1]))
    assert got[[0, 2, 3, 4]].min() >= 0.25
    assert got[[0, 2, 3, 4]].max() <= 0.75


@by_dtype
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_particle_that_is_not_finite_is_not_there(backend, dtype, bad):
    x, grad, x0 = crowd(3, 5, dtype=dtype)
    free = svgd_step(x, grad, x0, **SIZES)
    for name in ("particles", "grad"):
        given = {"particles": x.clone(), "grad": grad.clone()}
        given[name][1, 0, 2, 1, 1] = bad
        given[name][1, 3, 0, 0, 0] = bad
        got = svgd_step(**given, x0=x0, **SIZES)
        assert torch.equal(got[[0, 2]], free[[0, 2]])
        torch.testing.assert_close(got[1, [0, 3]], given["particles"][1, [0, 3]], rtol=0, atol=0, equal_nan=True)
        rest = [1, 2, 4]
        assert torch.equal(got[1, rest], svgd_step(x[1:2, rest], grad[1:2, rest], x0[1:2], **SIZES)[0])
    lost = svgd_step(x, grad * torch.tensor([1.0, math.nan, 1.0], dtype=dtype).view(3, 1, 1, 1, 1), x0, **SIZES)
    assert torch.equal(lost[1], x[1])
    assert torch.equal(lost[[0, 2]], free[[0, 2]])


def test_images_without_a_usable_size_stay(backend):
    x, grad, x0 = crowd(4, 3, dtype=torch.float32)
    step_size = torch.tensor([math.inf, math.nan, 0.02, 0.02])
    eps = torch.tensor([0.05, 0.05, -1.0, 0.05])
    got = svgd_step(x, grad, x0, step_size=step_size, eps=eps)
    assert torch.equal(got[:3], x[:3])
    assert torch.equal(got[3:], svgd_step(x[3:], grad[3:], x0[3:], **SIZES))


def test_equal_particles_follow_their_mean_gradient(backend):
    _, grad, x0 = crowd(2, 4, scale=1.0)
    x = x0[:, None].expand_as(grad).contiguous()
    got = svgd_step(x, grad, x0, **SIZES)
    torch.testing.assert_close(got, x + 0.02 * grad.mean(1, keepdim=True).sign())
    x = x.clone()
    x[:, 3] += 0.01  # three of six pairs are at one point: the median is 0
    got = svgd_step(x, grad, x0, **SIZES)
    want = torch.cat([grad[:, :3].mean(1, keepdim=True).expand(-1, 3, -1, -1, -1), grad[:, 3:]], 1).sign()
    torch.testing.assert_close(got, (x + 0.02 * want))
    still = svgd_step(x, torch.zeros_like(x), x0, **SIZES)
    assert torch.equal(still, x)


@pytest.mark.parametrize("bandwidth", [None, 1e-300, 1e-40, 1e30])
@pytest.mark.parametrize("spread", [1.0, 1e-22, 1e25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_any_bandwidth_and_any_distance_stay_finite(backend, bandwidth, spread, dtype):
    x, grad, _ = crowd(4, 4, (1, 9), dtype=dtype)
    x, grad = x * spread, grad * torch.tensor([0.0, 1.0, 3e38, 1e-44], dtype=dtype).view(4, 1, 1, 1)
    got = svgd_step(x, grad, x[:, 0].contiguous(), step_size=spread, eps=2 * spread, bandwidth=bandwidth)
    assert torch.isfinite(got).all()
    moved = (got != x).flatten(2).any(2)
    assert moved[1:3].all()


def test_out_may_be_the_particles_or_lie_otherwise(backend):
    x, grad, x0 = crowd(3, 6, (3, 4, 5), dtype=torch.float32)
    want = svgd_step(x, grad, x0, **SIZES)
    out = torch.full_like(x.flatten(0, 1), math.nan, memory_format=torch.channels_last).unflatten(0, (3, 6))
    assert svgd_step(x, grad, x0, **SIZES, out=out) is out
    assert torch.equal(out, want)
    assert svgd_step(x, grad, x0, **SIZES, out=x) is x
    assert torch.equal(x, want)


def test_an_image_is_the_same_in_any_company(backend):
    x, grad, x0 = crowd(9, 5, (3, 16, 16), dtype=torch.float32)
    whole = svgd_step(x, grad, x0, **SIZES, lower=0.0)
    assert torch.equal(whole[4:6], svgd_step(x[4:6], grad[4:6], x0[4:6], **SIZES, lower=0.0))


def test_nothing_carries_a_graph(backend):
    x, grad, x0 = (t.requires_grad_() for t in crowd(2, 3))
    got = svgd_step(x, grad, x0, **SIZES)
    assert not got.requires_grad
    assert x.grad is None


def test_raw_operator_refuses_what_it_cannot_read(backend):
    if backend in ("reference", "triton"):
        pytest.skip("has no operator that checks")
    x, grad, x0 = map(there, crowd(2, 3))
    good = [torch.empty_like(x), x, grad, x0, None, None, None, None, 0.1, 0.1, 0.0, 1.0, 0.0]
    many = there(torch.zeros(2, 65, 3, 4, 5).double())
    wrong = {0: x, 1: x[..., ::2], 2: grad.half(), 3: x0[:1], 4: there(torch.ones(3).double()), 7: x0, 12: -1.0}
    for place, value in wrong.items():
        arguments = list(good)
        arguments[place] = value
        with pytest.raises(RuntimeError):
            op.operators.serving(x)[1].svgd(*arguments)
    with pytest.raises(RuntimeError, match="from 1 to 64"):
        op.operators.serving(x)[1].svgd(torch.empty_like(many), many, many, *good[3:])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_nothing_waits_for_the_device(backend, device):
    if device.type != "cuda":
        pytest.skip("backend runs on the CPU")
    given = [t.to(device) for t in crowd(3, 4, dtype=torch.float32)]
    af.svgd_step(*given, **SIZES)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        af.svgd_step(*given, **SIZES, lower=0.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# The attack


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(4), nn.Dropout(0.5), nn.Flatten(),
            nn.Linear(32, 5),
        )  # fmt: skip
        net[1].running_mean.normal_()
        net[6].weight.data *= 30  # so that its gradients count beside the repulsion
    return net


def batch(count=6, dtype=torch.float32, seed=0):
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return images, torch.arange(count) % 5


def loss_of(net, images, labels):
    clean = copy.deepcopy(net).eval()
    return F.cross_entropy(clean(images.flatten(0, 1)).double(), labels.repeat_interleave(images.shape[1]))


def test_attack_is_the_loop_written_down():
    net, (images, labels) = network().double(), batch(dtype=torch.float64)
    view = frozen(net, fold_batchnorm=False, channels_last=False)
    attack = ParticleAttack(view, particles=3, eps=0.1, steps=4, lower=0.0, upper=1.0)
    found = attack(images, labels, seed=5)
    first = ParticleAttack(view, particles=3, eps=0.1, steps=1, step_size=1e-300, lower=0.0, upper=1.0)
    x, plain = first(images, labels, seed=5).images, copy.deepcopy(net).eval()
    for _ in range(4):
        leaf = x.clone().requires_grad_()
        loss = F.cross_entropy(plain(leaf.flatten(0, 1)), labels.repeat_interleave(3), reduction="sum")
        (grad,) = torch.autograd.grad(loss, leaf)
        x = af.svgd_step(x, grad, images, step_size=0.0625, eps=0.1, lower=0.0, upper=1.0)
    torch.testing.assert_close(found.images, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.logits, plain(x.flatten(0, 1)).unflatten(0, (6, 3)))


@pytest.mark.parametrize("loss", ["ce", "boundary", "dlr"])
def test_attack_raises_the_loss_inside_ball_and_bounds(loss):
    net, (images, labels) = network(), batch()
    labels = copy.deepcopy(net).eval()(images).argmax(1)
    found = ParticleAttack(net, particles=5, eps=0.1, lower=0.0, upper=1.0, loss=loss)(images, labels, seed=1)
    assert found.images.shape == (6, 5, 3, 8, 8)
    assert found.logits.shape == (6, 5, 5)
    assert (found.images - images[:, None]).abs().max() <= 0.1 + 1e-6
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    assert loss_of(net, found.images, labels) > loss_of(net, images[:, None], labels) + 0.05
    assert torch.pdist(found.images[0].flatten(1)).min() > 0.1  # they keep apart
    torch.testing.assert_close(found.logits.flatten(0, 1), copy.deepcopy(net).eval()(found.images.flatten(0, 1)))


def test_attack_leaves_everything_as_it_was():
    net, (images, labels) = network(), batch()
    net.train()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    state, kept, random = copy.deepcopy(net.state_dict()), images.clone(), torch.get_rng_state()
    found = ParticleAttack(net, eps=0.1)(images, labels, seed=1)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert net.training
    assert net[1].training
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight))
    assert net[6].weight.grad is None
    assert torch.equal(images, kept)
    assert torch.equal(torch.get_rng_state(), random)
    assert not found.images.requires_grad
    assert not found.logits.requires_grad


def test_attack_draws_by_its_seed():
    net, (images, labels) = network(), batch()
    attack = ParticleAttack(net, eps=0.1, steps=2)
    one, again, other = (attack(images, labels, seed=seed).images for seed in (1, torch.tensor(1), 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one[:, 0], one[:, 1])
    part = attack(images[2:4], labels[2:4], rows=torch.tensor([2, 3]), seed=1).images
    torch.testing.assert_close(part, one[2:4], rtol=0.0, atol=1e-6)  # the network's own rounding depends on the batch
    with pytest.raises(ValueError, match="rows"):
        attack(images, labels, rows=torch.arange(3), seed=1)


@by_dtype
@pytest.mark.parametrize("last", [False, True])
def test_attack_keeps_dtype_and_memory_format(dtype, last):
    net, (images, labels) = network(), batch(dtype=dtype)
    if last:
        images = images.contiguous(memory_format=torch.channels_last)
    bounds = {"lower": torch.zeros(3), "upper": torch.ones(3)}
    sizes = {"eps": torch.full((6,), 0.1, dtype=torch.float64), "step_size": torch.full((6,), 0.05)}
    found = ParticleAttack(net, steps=2, **sizes, **bounds)(images, labels.int(), seed=3).images
    assert found.dtype == dtype
    flat = found.flatten(0, 1)
    assert flat.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    assert (found.double() - images.double()[:, None]).abs().max() <= 0.1 + 4 * torch.finfo(dtype).eps


def test_attack_under_autocast_and_inference_mode():
    net, (images, labels) = network(), batch()
    attack = ParticleAttack(net, eps=0.1, steps=2)
    with torch.autocast("cpu", torch.bfloat16):
        found = attack(images, labels, seed=0)
    assert found.images.dtype == torch.float32
    assert found.logits.dtype == torch.bfloat16
    with torch.inference_mode():
        inside = attack(images, labels, seed=0)
    assert torch.equal(inside.images, attack(images, labels, seed=0).images)


def test_attack_of_nothing_and_of_many_outputs():
    net, (images, labels) = network(), batch()
    found = ParticleAttack(net, eps=0.1, particles=3)(images[:0], labels[:0], seed=0)
    assert found.images.shape == (0, 3, 3, 8, 8)
    assert found.logits.shape == (0, 3, 5)

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return x.mean(), self.net(x)

    pair = ParticleAttack(Pair(), eps=0.1, steps=1, logits_of=lambda outputs: outputs[1])(images, labels, seed=0)
    torch.testing.assert_close(pair.images, ParticleAttack(net, eps=0.1, steps=1)(images, labels, seed=0).images)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"particles": 0}, ValueError, "particles=0"),
        ({"particles": 65}, ValueError, "particles=65"),
        ({"particles": 2.0}, TypeError, "particles is a float"),
        ({"eps": -1.0}, ValueError, "eps=-1.0"),
        ({"steps": 0}, ValueError, "steps=0"),
        ({"step_size": 0.0}, ValueError, "step_size=0.0"),
        ({"loss": "mse"}, ValueError, "loss='mse'"),
        ({"model": "net"}, TypeError, "model is a str"),
    ],
)
def test_attack_refuses(change, kind, message):
    with pytest.raises(kind, match=message):
        ParticleAttack(**{"model": network(), "eps": 0.1, **change})


def test_attack_refuses_what_it_is_called_with():
    images, labels = batch()
    attack = ParticleAttack(network(), eps=torch.tensor([0.1]), lower=torch.zeros(2))
    with pytest.raises(ValueError, match=r"lower.shape"):
        attack(images, labels, seed=0)
    attack.lower = None
    with pytest.raises(ValueError, match=r"eps.shape"):
        attack(images, labels, seed=0)
    attack.eps = 0.1
    attack.step_size = 0.1
    for wrong, kind in ((labels[:2], ValueError), (None, TypeError), (labels.float(), TypeError)):
        with pytest.raises(kind, match="labels"):
            attack(images, wrong, seed=0)
    with pytest.raises(TypeError, match="seed"):
        attack(images, labels, seed=0.5)
