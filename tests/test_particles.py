"""Stein variational steps against an oracle whose repulsion is autograd's, and the attack that takes them."""

import copy
import math

import pytest
import torch
from places import moving, stand_on, there
from torch import nn
from torch.nn import functional as F

import amkd_fast as af
from amkd_fast import backends
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
    """Particles, their gradients and clean images in [0, 1]; at scale 1 repulsion counts as much as the gradients."""
    draws = torch.Generator().manual_seed(seed)
    x0 = torch.rand(images, *shape, generator=draws, dtype=torch.float64)
    offset = 0.05 * (2 * torch.rand(images, count, *shape, generator=draws, dtype=torch.float64) - 1)
    grad = torch.randn(images, count, *shape, generator=draws, dtype=torch.float64)
    grad = scale * grad / math.sqrt(math.prod(shape))
    return (x0[:, None] + offset).to(dtype), grad.to(dtype), x0.to(dtype)


def oracle_direction(x, grad, bandwidth=None):
    """φ [n, D] of one image in float64; the gradients of the kernel by autograd."""
    x, grad = x.double().flatten(1), grad.double().flatten(1)
    count, phi = x.shape[0], []
    square = [float((x[i] - x[j]).square().sum()) for i in range(count) for j in range(i)]
    h = bandwidth
    if h is None and square:
        h = sorted(square)[(len(square) - 1) // 2] / math.log(count)
    for i in range(count):
        others = x.clone().requires_grad_()
        distance = (others - x[i]).square().sum(1)
        if h:
            kernel = torch.exp(-distance / h)
            (push,) = torch.autograd.grad(kernel.sum(), others)
        else:
            kernel, push = (distance == 0).double(), torch.zeros_like(others)
        phi.append(((kernel.detach()[:, None] * grad) + push).sum(0) / count)
    return torch.stack(phi)


def assert_equals_the_oracle(got, x, grad, x0, *, step_size, eps, lower=None, upper=None, bandwidth=None):
    """Wherever the sign is certain; elsewhere the result is one of those that are possible."""
    slack = 4 * torch.finfo(got.dtype).eps

    def projected(moved, i):
        moved = torch.minimum(torch.maximum(moved, x0[i].double() - eps), x0[i].double() + eps)
        for bound, clip in ((lower, torch.maximum), (upper, torch.minimum)):
            if bound is not None:
                bound = torch.as_tensor(bound, dtype=torch.float64)
                moved = clip(moved, bound.reshape(-1, *[1] * (moved.dim() - 2)))
        return moved

    for i in range(len(x)):
        phi = oracle_direction(x[i], grad[i], bandwidth).view_as(x[i])
        start = x[i].double()
        ways = torch.stack([projected(start + sign * step_size, i) for sign in (-1, 0, 1)])
        error = (got[i].double() - ways).abs()
        certain = phi.abs() > 1e-5 * phi.abs().max()
        assert certain.double().mean() > 0.9
        right = error.gather(0, (phi.sign().long() + 1)[None])[0]
        assert right[certain].max() <= slack
        assert error.amin(0).max() <= slack


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 13])
@pytest.mark.parametrize(("scale", "bandwidth"), [(0.0, None), (1.0, None), (30.0, None), (1.0, 0.02)])
def test_step_equals_the_oracle(backend, count, scale, bandwidth):
    if count == 1 and scale == 0:
        pytest.skip("nothing moves")
    if backends.INTERPRETING and count in (3, 5):
        pytest.skip("too slow in Triton's interpreter")
    given = crowd(2, count, seed=count, scale=scale)
    bounds = {"lower": torch.tensor([0.1, 0.0, 0.2]).double(), "upper": 0.9}
    got = svgd_step(*given, **SIZES, **bounds, bandwidth=bandwidth)
    assert got.dtype == torch.float64
    assert_equals_the_oracle(got, *given, **SIZES, **bounds, bandwidth=bandwidth)


@by_dtype
@pytest.mark.parametrize(("count", "shape"), [(1, (7,)), (4, (3, 5, 5)), (7, (2, 3, 2, 3)), (4, (1,))], ids=str)
def test_dtypes_and_shapes(backend, dtype, count, shape):
    given = crowd(3, count, shape, dtype=dtype)
    got = svgd_step(*given, **SIZES, upper=0.7)
    assert got.dtype == dtype
    assert_equals_the_oracle(got, *given, **SIZES, upper=0.7)
    wide = svgd_step(given[0], given[1].to(torch.promote_types(dtype, torch.float32)), given[2], **SIZES, upper=0.7)
    assert torch.equal(wide, got)


@pytest.mark.parametrize(("count", "size"), [(4, 1500), (6, 263), (64, 40), (33, 17)])
def test_many_numbers_and_many_particles(backend, count, size):
    given = crowd(1, count, (1, size), dtype=torch.float32)
    got = svgd_step(*given, **SIZES, lower=0.05)
    assert_equals_the_oracle(got, *given, **SIZES, lower=0.05)


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


@pytest.mark.parametrize("layout", ["channels_last", "mixed", "strided", "expanded", "transposed"])
def test_any_layout(backend, layout):
    x, grad, x0 = crowd(3, 4, (3, 6, 5), dtype=torch.float32)
    bounds = {"lower": torch.tensor([0.1, 0.2, 0.3]), "upper": 0.7}
    if layout == "expanded":
        x = x[:1].expand_as(x)
    want = svgd_step(x.contiguous(), grad, x0, **SIZES, **bounds)
    last = torch.channels_last
    if layout in ("channels_last", "mixed"):
        x = x.flatten(0, 1).contiguous(memory_format=last).unflatten(0, (3, 4))
        x0 = x0.contiguous(memory_format=last)
    if layout == "channels_last":
        grad = grad.flatten(0, 1).contiguous(memory_format=last).unflatten(0, (3, 4))
    if layout == "strided":
        x, grad, x0 = (t.repeat_interleave(2, -1)[..., ::2] for t in (x, grad, x0))
    if layout == "transposed":
        x, grad = (t.transpose(0, 1).contiguous().transpose(0, 1) for t in (x, grad))
    assert torch.equal(svgd_step(x, grad, x0, **SIZES, **bounds), want)
    out = torch.full(want.shape, math.nan)
    assert svgd_step(x, grad, x0, **SIZES, **bounds, out=out) is out
    assert torch.equal(out, want)


def test_out_may_be_the_particles_and_nothing_else_changes(backend):
    x, grad, x0 = crowd(3, 6, (2, 40), dtype=torch.float32)
    copies = [t.clone() for t in (x, grad, x0)]
    want = svgd_step(x, grad, x0, **SIZES)
    assert all(torch.equal(a, b) for a, b in zip((x, grad, x0), copies, strict=True))
    assert svgd_step(x, grad, x0, **SIZES, out=x) is x
    assert torch.equal(x, want)


def test_the_same_bits_twice_and_in_any_company(backend):
    shape = (3, 8, 8) if backends.INTERPRETING else (3, 32, 32)
    x, grad, x0 = crowd(9, 5, shape, dtype=torch.float32)
    whole = svgd_step(x, grad, x0, **SIZES, lower=0.0)
    assert torch.equal(whole, svgd_step(x, grad, x0, **SIZES, lower=0.0))
    assert torch.equal(whole[4:6], svgd_step(x[4:6], grad[4:6], x0[4:6], **SIZES, lower=0.0))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(whole, svgd_step(x, grad, x0, **SIZES, lower=0.0))
    finally:
        torch.set_num_threads(threads)


def test_nothing_carries_a_graph(backend):
    x, grad, x0 = (t.requires_grad_() for t in crowd(2, 3))
    got = svgd_step(x, grad, x0, **SIZES)
    assert not got.requires_grad
    assert x.grad is None


def test_empty_batches(backend):
    for shape in ((0, 4, 3, 2, 2), (2, 4, 3, 0, 2)):
        x = torch.zeros(shape)
        got = svgd_step(x, x, x[:, 0], step_size=0.1, eps=0.1)
        assert got.shape == x.shape
        assert svgd_step(x, x, x[:, 0], step_size=0.1, eps=0.1, out=x) is x


@pytest.mark.skipif(backends.INTERPRETING, reason="torch.compile has no interpreter to run")
def test_compiles_into_one_graph(backend, device):
    if backend == "triton" and device.type == "cpu":
        pytest.skip("backend triton: no CUDA device")
    x, grad, x0 = map(there, crowd(2, 4, dtype=torch.float32))

    def double(x, grad, x0):
        return 2 * af.svgd_step(x, grad, x0, **SIZES, upper=0.9)

    torch._dynamo.reset()
    assert torch.equal(torch.compile(double, fullgraph=True, backend="aot_eager")(x, grad, x0), double(x, grad, x0))


@pytest.mark.skipif(backends.INTERPRETING, reason="opcheck runs each operator a dozen times")
def test_opcheck(backend):
    if backend == "reference":
        pytest.skip("backend reference: has no operator")
    x, grad, x0 = map(there, crowd(2, 3))
    arguments = (torch.empty_like(x), x, grad, x0, None, None, None, None, 0.1, 0.1, 0.0, 1.0, 0.0)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(op._serving(x), arguments, test_utils=checks)


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
            op._serving(x)(*arguments)
    with pytest.raises(RuntimeError, match="from 1 to 64"):
        op._serving(x)(torch.empty_like(many), many, many, *good[3:])


X, GRAD, X0 = crowd(2, 3, dtype=torch.float32)
BAD = [
    ({"particles": [1.0]}, TypeError, "particles is a list"),
    ({"particles": X.long()}, TypeError, "particles.dtype=torch.int64"),
    ({"particles": X[:, 0, 0, 0]}, ValueError, r"particles.shape=\(2, 5\)"),
    ({"particles": torch.zeros(2, 0, 3)}, ValueError, r"n from 1 to 64"),
    ({"particles": torch.zeros(2, 65, 3)}, ValueError, r"n from 1 to 64"),
    ({"grad": GRAD[:1]}, ValueError, "grad.shape"),
    ({"grad": GRAD.double()}, TypeError, "grad.dtype=torch.float64"),
    ({"x0": X}, ValueError, "x0.shape"),
    ({"x0": X0.half()}, TypeError, "x0.dtype=torch.float16"),
    ({"step_size": "1"}, TypeError, "step_size is a str"),
    ({"step_size": math.inf}, ValueError, "step_size=inf"),
    ({"step_size": torch.ones(3)}, ValueError, "step_size.shape"),
    ({"eps": -0.1}, ValueError, "eps=-0.1"),
    ({"eps": None}, TypeError, "eps is a NoneType"),
    ({"lower": torch.zeros(2)}, ValueError, "lower.shape"),
    ({"upper": math.nan}, ValueError, "upper=nan"),
    ({"bandwidth": 0.0}, ValueError, "bandwidth=0.0"),
    ({"bandwidth": torch.ones(2)}, TypeError, "bandwidth is a Tensor"),
    ({"out": X[:1]}, ValueError, "out.shape"),
    ({"out": X.double()}, TypeError, "out.dtype=torch.float64"),
    ({"out": X.clone().requires_grad_()}, ValueError, "out.requires_grad=True"),
    ({"x0": X0.to("meta")}, ValueError, "x0.device=meta"),
]


@pytest.mark.parametrize(("change", "kind", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_arguments(change, kind, message):
    given = {"particles": X, "grad": GRAD, "x0": X0, **SIZES, **change}
    with pytest.raises(kind, match=message):
        af.svgd_step(**given)


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
