"""What is special to the attack family: steps, objectives, bases and draws at their edges, and their derivatives."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_attack import objective_bounds
from places import moving, stand_on, there

from amkd_fast import backends, philox
from amkd_fast.ops import attack
from amkd_fast.ops.attack import operators, reference

OPERATION = "attack"
RULES = ("linf", "l2", "l1", "unit", "newton")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
attack_step = moving(attack.attack_step, in_place=("momentum", "out"))
attack_objective = moving(attack.attack_objective)
draw_targets, select_boundary_bases = moving(attack.draw_targets), moving(attack.select_boundary_bases)
by_rule = pytest.mark.parametrize("rule", RULES)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
fast_only = pytest.mark.usefixtures("fast")


@pytest.fixture(autouse=True)
def _on_each_backend(device):
    before = stand_on(device)
    yield
    stand_on(before)


@pytest.fixture
def fast(backend):
    if backend == "reference":
        pytest.skip("backend reference: is what these tests compare with")


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


single = partial(draw, dtype=torch.float32)


# Steps


def options_of(rule, rows, dtype, seed=0):
    """Arguments of a step that uses everything the rule knows, one number a sample."""
    uniform = torch.rand(2, rows, generator=torch.Generator().manual_seed(seed)).to(
        torch.promote_types(dtype, torch.float32)
    )
    signs = 1 - 2 * (torch.arange(rows) % 2)
    step = {"step_size": (0.1 + uniform[0]) * signs, "top": 0.05}
    if rule in ("unit", "newton"):
        return {**step, "norm": "boundary", "norm_power": 1 + (rule == "newton"), "gap": 3 * uniform[1] - 1}
    return {**step, "norm": rule, "eps": (3.0 if rule == "l1" else 0.3) * uniform[1] + 0.01}


def specified(x, grad, dtype, **step):
    """The step by the specification with everything in ``dtype``: the samples, and the velocity."""
    defaults = {"x0": None, "eps": None, "norm_power": 1, "gap": None, "momentum": None, "decay": 1.0}
    defaults |= {"lower": None, "upper": None, "active": None, "project": False, "top": 0.01}
    step = {**defaults, **step}
    step["velocity"] = step.pop("momentum")
    wide = {
        name: t.to(dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() else t for name, t in step.items()
    }
    return reference.attack_step(x.to(dtype), grad.to(dtype), **wide)


def test_momentum_follows_its_recurrence():
    x, velocity, v = torch.zeros(2, 6), torch.zeros(2, 6), np.zeros((2, 6))
    for i in range(3):
        grad = draw(2, 6, seed=i, dtype=torch.float32)
        x = attack_step(x, grad, step_size=0.1, momentum=velocity, decay=0.9)
        g = grad.numpy()
        v = 0.9 * v + g / np.abs(g).mean(1, keepdims=True)
        np.testing.assert_allclose(velocity.numpy(), v, rtol=1e-5, atol=1e-6)
    before = velocity.clone()
    attack_step(x, grad * torch.tensor([[1.0], [math.nan]]), step_size=0.1, momentum=velocity)
    assert torch.equal(velocity[1], before[1])
    assert not torch.equal(velocity[0], before[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_images_are_moved_in_float32(dtype):
    x, grad = draw(3, 8, dtype=torch.float32).to(dtype), draw(3, 8, seed=1, dtype=torch.float32).to(dtype)
    for gradient in (grad, grad.float()):
        got = attack_step(x, gradient, step_size=0.37, norm="l2")
        want = attack_step(x.float(), grad.float(), step_size=0.37, norm="l2").to(dtype)
        assert got.dtype == dtype
        assert torch.equal(got, want)
    far = attack_step(x, grad, step_size=1e30, norm="l2")
    assert torch.isfinite(far).all()


def test_huge_and_tiny_gradients_keep_their_direction():
    x, grad = torch.zeros(1, 8), draw(1, 8, dtype=torch.float32)
    want = attack_step(x, grad, step_size=1.0, norm="l2")
    for scale in (1e37, 1e-37):
        torch.testing.assert_close(attack_step(x, grad * scale, step_size=1.0, norm="l2"), want)
    stays = attack_step(x, grad * 1e-40, step_size=1.0, norm="boundary", norm_power=2, gap=torch.ones(1))
    assert torch.equal(stays, x)  # the Newton step would be infinite


def test_a_newton_step_of_no_length_is_none_however_small_the_gradient():
    x, gap = draw(2, 8, dtype=torch.float32), torch.full((2,), -1e-4)
    for scale in (1.0, 1e-40):
        grad = scale * draw(2, 8, seed=1, dtype=torch.float32)
        assert torch.equal(attack_step(x, grad, step_size=1.0, norm="boundary", norm_power=2, gap=gap), x)


def test_out_may_be_the_input_or_lie_otherwise():
    x, grad, x0 = single(3, 3, 4, 5), single(3, 3, 4, 5, seed=1), single(3, 3, 4, 5, seed=2)
    step = {"x0": x0, "step_size": 0.1, "eps": 0.3}
    want = attack_step(x, grad, **step)
    out = torch.full_like(x, math.nan, memory_format=torch.channels_last)
    assert attack_step(x, grad, **step, out=out) is out
    assert torch.equal(out, want)
    assert attack_step(x, grad, **step, out=x) is x
    assert torch.equal(x, want)
    velocity = torch.zeros_like(out)  # of other strides than x
    attack_step(x, grad, step_size=0.1, momentum=velocity)
    torch.testing.assert_close(velocity, grad / grad.abs().mean((1, 2, 3), keepdim=True))


BAD = (0.0, math.nan, math.inf, -math.inf)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_bounds_radii_and_finiteness_hold(data):
    """No NaN enters a finite sample, samples that must not move do not, bounds and radii hold."""
    norm = data.draw(st.sampled_from(["linf", "l2", "l1", "boundary"]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    shape = data.draw(st.sampled_from([(4, 7), (3, 2, 5), (4, 3, 2, 3), (1, 1)]))
    seed = data.draw(st.integers(0, 10**6))
    rows = shape[0]
    x0 = draw(*shape, seed=seed, dtype=dtype).clamp(-1, 1)
    grad = draw(*shape, seed=seed + 1, dtype=dtype) * 10.0 ** data.draw(st.integers(-30, 30))
    poison = data.draw(st.lists(st.sampled_from([None, *BAD]), min_size=rows, max_size=rows))
    for row, value in enumerate(poison):
        if value == 0.0:
            grad[row] = 0
        elif value is not None:
            grad[row].view(-1)[data.draw(st.integers(0, grad[row].numel() - 1))] = value
    active = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    size = torch.tensor(data.draw(st.lists(st.sampled_from([0.1, -3.0, 1e30, math.nan]), min_size=rows, max_size=rows)))
    boundary = norm == "boundary"
    eps = torch.tensor(data.draw(st.lists(st.sampled_from([0.0, 0.3, 5.0]), min_size=rows, max_size=rows)))
    x = x0.clone() if boundary else (x0 + 0.01 * draw(*shape, seed=seed + 2, dtype=dtype)).clamp(-1, 1)
    gap = torch.tensor(data.draw(st.lists(st.sampled_from([2.0, -1.0, math.inf]), min_size=rows, max_size=rows)))
    extra = {"gap": gap, "norm_power": data.draw(st.sampled_from([1, 2]))} if boundary else {"x0": x0, "eps": eps}
    project = data.draw(st.booleans())
    new = attack_step(
        x, grad, step_size=size, norm=norm, lower=-1.0, upper=1.0, active=active, project=project, **extra
    )
    assert torch.isfinite(new).all()
    assert new.abs().max() <= 1
    for row in range(rows):
        if poison[row] is not None or not active[row] or math.isnan(size[row]) or (boundary and gap[row] == math.inf):
            assert torch.equal(new[row], x[row])
        elif not boundary and not torch.equal(new[row], x[row]):
            difference = (new[row] - x0[row]).double().flatten()
            order = {"linf": math.inf, "l2": 2, "l1": 1}[norm]
            slack = 4 * torch.finfo(dtype).eps * (1 + float(eps[row]))
            assert float(torch.linalg.vector_norm(difference, order)) <= float(eps[row]) + difference.numel() * slack
            if eps[row] == 0:
                assert torch.equal(new[row], x0[row])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_in_clean_images_or_bounds_does_not_spread(bad):
    x, grad = draw(2, 3, 4), draw(2, 3, 4, seed=1)
    for norm in ("linf", "l2", "l1"):
        x0 = x.clone()
        x0[0, 0, 0] = math.nan
        new = attack_step(
            x, grad, x0=x0, step_size=0.1, eps=0.2, norm=norm, upper=torch.tensor([bad, 1.0, 1.0]).double()
        )
        assert torch.isfinite(new).all()
        clean = attack_step(x, grad, x0=x, step_size=0.1, eps=0.2, norm=norm, upper=torch.tensor([9.0, 1, 1]).double())
        assert torch.equal(new[1], clean[1])


@fast_only
@by_rule
@by_dtype
@pytest.mark.parametrize("project", [False, True])
def test_samples_stay_bit_for_bit_and_others_do_not_notice(rule, dtype, project):
    rows = 12
    x, grad = single(rows, 3, 5, dtype=dtype), single(rows, 3, 5, seed=1, dtype=dtype)
    step = {**options_of(rule, rows, dtype), "project": project, "lower": -1.0, "upper": 0.9}
    x = x.clamp(-1, 0.75)  # nobody stands at the upper bound
    clean = {**step, "x0": x + 0.01} if "eps" in step else step
    free = attack_step(x, grad, **clean)
    bad = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in clean.items()}
    poisoned = grad.clone()
    poisoned[0], poisoned[1, 2, 4], poisoned[2, 0, 0], poisoned[3, 1, 1] = 0, math.nan, math.inf, -math.inf
    bad["step_size"][4], bad["step_size"][5], bad["step_size"][6] = math.nan, math.inf, -math.inf
    stays = [*range(8)]
    if "eps" in bad:
        bad["eps"][7] = math.nan
        bad["eps"][8] = -1.0
        stays.append(8)
    else:
        bad["gap"][7] = math.inf
    active = torch.ones(rows, dtype=torch.bool)
    active[9] = False
    stays.append(9)
    got = attack_step(x, poisoned, **bad, active=active)
    moves = [i for i in range(rows) if i not in stays]
    assert torch.equal(got[stays], x[stays])
    assert torch.equal(got[moves], free[moves])
    assert not torch.equal(got[moves], x[moves])
    into = x.clone()
    attack_step(into, poisoned, **bad, active=active, out=into)
    assert torch.equal(into, got)


@fast_only
@by_rule
@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-20, 1e18, 1e30, 3e37])
def test_gradients_of_any_size_keep_their_direction(rule, scale):
    x, grad = single(2, 33), single(2, 33, seed=1).clamp(-3, 3)
    grad = torch.where(grad.abs() < 0.5, 0.0, grad) * scale  # zeros meet every factor
    step = options_of(rule, 2, x.dtype)
    step.pop("eps", None)
    got = attack_step(x, grad, **step)
    assert torch.isfinite(got).all()
    truth = specified(x, grad, torch.float64, **step)[0]
    if rule == "newton":
        truth = truth.clamp(-3.4e38, 3.4e38)
        overflows = (step["step_size"] * (step["gap"] + 1e-4) / grad.abs().amax(1)).isinf()
        truth = torch.where(overflows[:, None], x.double(), truth)
    torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=1e-5)


@fast_only
@by_rule
def test_reach_of_any_size_stays_finite(rule):
    x, grad = single(4, 40).clamp(-2, 2), single(4, 40, seed=1)
    grad[:, ::3] = 0
    step = {**options_of(rule, 4, x.dtype), "step_size": torch.tensor([3e38, -3e38, 1e20, 1e-45])}
    for extra in ({}, {"lower": -2.0, "upper": 2.0}):
        got = attack_step(x, grad, **{**step, "x0": x} if "eps" in step else step, **extra)
        assert torch.isfinite(got).all()
        if "eps" in step:
            order = {"linf": math.inf, "l2": 2, "l1": 1}[rule]
            length = torch.linalg.vector_norm((got - x).double(), order, dim=1)
            assert (length <= step["eps"] * (1 + 1e-5) + 1e-6).all()


@fast_only
def test_a_nan_bounds_nothing_and_stays_where_it_was():
    for rule in RULES:
        x, grad = single(2, 3, 4), single(2, 3, 4, seed=1)
        x[0, 1, 2] = math.nan
        step = {**options_of(rule, 2, x.dtype), "upper": torch.tensor([math.nan, 0.5, 0.5])}
        if "eps" in step:
            step["x0"] = torch.zeros(2, 3, 4)
            step["x0"][1, 0, 0] = math.nan
        got, want = attack_step(x, grad, **step), specified(x, grad, torch.float32, **step)[0]
        assert torch.equal(got.isnan(), x.isnan())
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6, equal_nan=True)


@fast_only
@by_dtype
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_momentum(dtype, norm):
    work = torch.promote_types(dtype, torch.float32)
    x, velocity = single(5, 3, 6, dtype=dtype), single(5, 3, 6, seed=3, dtype=work)
    velocity[4, 0, 0] = 1e38 if work == torch.float32 else 1e308
    grad = single(5, 3, 6, seed=1, dtype=dtype)
    grad[1] = 0
    grad[2, 1, 1] = math.nan
    active = torch.tensor([True, True, True, False, True])
    step = {"norm": norm, "step_size": 0.3, "decay": 10.0, "active": active, "top": 0.2}
    want, after = specified(x, grad, work, **step, momentum=velocity)
    kept = velocity.clone()
    got = attack_step(x, grad, **step, momentum=velocity)
    slack = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    torch.testing.assert_close(got, want.to(dtype), **slack)
    torch.testing.assert_close(velocity, after, rtol=1e-5, atol=1e-6)
    assert torch.equal(velocity[1:], kept[1:])
    assert torch.equal(got[1:], x[1:])
    assert not torch.equal(velocity[0], kept[0])


@fast_only
@pytest.mark.parametrize("top", [1e-9, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
def test_l1_takes_the_largest_and_all_that_tie(top, levels):
    rows, size = 6, 101
    values = torch.randint(-levels, levels + 1, (rows, size), generator=torch.Generator().manual_seed(levels))
    grad = values.float() * 0.37
    grad[0, :98] = 0  # fewer than most of the tops are not zero
    grad[0, 98:] = torch.tensor([1.0, -2.0, 3.0])
    x = torch.zeros(rows, size)
    got = attack_step(x, grad, step_size=1.0, norm="l1", top=top)
    for i in range(rows):
        size_of = grad[i].abs()
        least = size_of.sort(descending=True).values[max(1, math.ceil(top * size)) - 1]
        chosen = (size_of >= least) & (size_of > 0)
        assert torch.equal(got[i] != 0, chosen)
        torch.testing.assert_close(got[i].abs().sum(), torch.tensor(1.0))


@fast_only
@pytest.mark.parametrize("kind", ["normal", "geometric", "equal", "one", "cauchy"])
def test_l1_projection_is_exact(kind):
    size = 257
    difference = {
        "normal": single(3, size, dtype=torch.float64),
        "geometric": (0.9 ** torch.arange(size)).expand(3, size).double() * single(3, size, seed=1).sign(),
        "equal": torch.ones(3, size).double(),
        "one": torch.eye(3, size).double() * 7,
        "cauchy": torch.tan(1.57 * (2 * torch.rand(3, size, generator=torch.Generator().manual_seed(2)).double() - 1)),
    }[kind]
    x0 = single(3, size, seed=4, dtype=torch.float64)
    for radius in (1e-6, 0.5, 3.0, 100.0):
        got = attack_step(x0 + difference, torch.ones_like(x0), x0=x0, step_size=1e-300, eps=radius, norm="l1", top=1.0)
        want = x0 + reference.project_l1(difference, torch.full((3, 1), radius).double())
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@fast_only
@pytest.mark.parametrize("lower", [0.0, -0.1])
@pytest.mark.parametrize("size", [7, 64, 3 * 37, 3072])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_two_byte_images_go_where_the_specification_says(dtype, size, lower):
    """To the last bit: a sum, the box, the bounds and two bytes round in one way each."""
    clean = torch.rand(9, size, generator=torch.Generator().manual_seed(size))
    x = (clean + 0.04 * single(9, size).clamp(-1, 1)).clamp(lower, 1.0)
    grad = single(9, size, seed=1)
    grad[0], grad[1], grad[2, ::3], grad[3, -1] = 0.0, -0.0, 0.0, math.nan
    x[4, 0], x[5, -1], clean[6, 0], clean[7, -1] = -3.0, math.nan, -0.5, 1.5  # out of bounds, or no number
    x, grad, clean = (images.to(dtype) for images in (x, grad, clean))
    x[8] = clean[8]
    sizes = {"x0": clean, "step_size": 2 / 255, "eps": 8 / 255, "lower": lower, "upper": 1.0}
    with backends.backend("reference"):
        want = attack_step(x, grad, **sizes)
    got = attack_step(x, grad, **sizes)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(got[2], x[2])


@fast_only
def test_eps_zero_and_zero_step():
    x, grad, x0 = single(3, 8), single(3, 8, seed=1), single(3, 8, seed=2) * 9
    for norm in ("linf", "l2", "l1"):
        got = attack_step(x, grad, x0=x0, step_size=0.3, eps=torch.tensor([0.0, 1e9, 0.0]), norm=norm, upper=0.1)
        assert torch.equal(got[[0, 2]], x0[[0, 2]])
        assert got[1].max() <= 0.1
    still = attack_step(x, grad, step_size=0.0)
    assert torch.equal(still, x)


@by_rule
def test_a_sample_is_the_same_in_any_company(rule):
    shape = (9, 3, 16, 16)
    x, grad = single(*shape), single(*shape, seed=1)
    step = {**options_of(rule, 9, x.dtype), "lower": -1.0}
    if "eps" in step:
        step["x0"] = x * 0.9
    whole = attack_step(x, grad, **step)
    part = {name: t[4:5] if isinstance(t, torch.Tensor) else t for name, t in step.items()}
    assert torch.equal(whole[4:5], attack_step(x[4:5], grad[4:5], **part))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "boundary1", "boundary2"])
@pytest.mark.parametrize("project", [False, True])
def test_step_is_differentiable(norm, project):
    norm, power = (norm[:-1], int(norm[-1])) if norm.startswith("boundary") else (norm, 1)
    x, grad = draw(3, 6).requires_grad_(), draw(3, 6, seed=1).requires_grad_()
    x0 = draw(3, 6) + 0.1 * draw(3, 6, seed=4)  # uneven, or the l1 threshold sits on a kink
    extra = {"gap": torch.ones(3).double(), "norm_power": power} if norm == "boundary" else {"x0": x0, "eps": 0.2}

    def step(x, grad):
        return attack_step(x, grad, step_size=0.4, norm=norm, lower=-0.7, upper=0.7, project=project, top=0.4, **extra)

    assert torch.autograd.gradcheck(step, (x, grad))


def test_derivatives_survive_compilation():
    x, grad = draw(3, 6).requires_grad_(), draw(3, 6, seed=1).requires_grad_()

    def loss(x, grad):
        return attack.attack_step(x, grad, step_size=0.4, norm="l2", lower=-0.7).square().sum()

    torch._dynamo.reset()
    with backends.backend("auto"):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        pairs = zip(*(torch.autograd.grad(f(x, grad), (x, grad)) for f in (compiled, loss)), strict=True)
        for got, want in pairs:
            torch.testing.assert_close(got, want)


def test_derivatives_of_samples_that_stay_are_finite():
    x, grad = draw(4, 6).requires_grad_(), draw(4, 6, seed=1)
    grad[0], grad[1, 2], grad[2, 0] = 0.0, math.nan, math.inf
    grad.requires_grad_()
    for norm in ("l2", "boundary"):
        extra = {"gap": torch.ones(4).double(), "norm_power": 2} if norm == "boundary" else {}
        dx, dg = torch.autograd.grad(attack_step(x, grad, step_size=0.4, norm=norm, **extra).sum(), (x, grad))
        assert torch.isfinite(dx).all()
        assert torch.isfinite(dg).all()
        assert not dg[:3].any()
        assert torch.equal(dx[:3], torch.ones(3, 6).double())


# Rows of logits


def objective_options(loss, k, rows):
    labels = (torch.arange(rows) * 7) % k
    other = (labels + 1 + torch.arange(rows) % max(k - 1, 1)) % k
    for score in ("logits", "softmax") if loss == "boundary" else ("logits",):
        for targeted, target in ((False, None), (False, other), (True, other)):
            if k >= {"ce": 1, "boundary": 2, "dlr": 4 if targeted else 3}[loss]:
                yield labels, {"loss": loss, "score": score, "targeted": targeted, "target": target}


@fast_only
@by_dtype
@pytest.mark.parametrize("loss", ["ce", "boundary", "dlr"])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 7, 8, 9, 10, 100, 1000, 1025])
def test_objective_equals_the_specification(dtype, loss, k):
    logits = 4 * draw(11, k, dtype=dtype)
    for labels, options in objective_options(loss, k, 11):
        got = attack_objective(logits, labels, **options)
        truth = reference.attack_objective(logits.double(), labels, **options)
        eager = reference.attack_objective(logits, labels, **options)
        for part, bound in enumerate(objective_bounds(logits, labels, *truth[:2], **options)):
            error = (got[part].double() - truth[part]).abs()
            assert (error <= bound).all(), (part, options, (error / bound).max())
        assert torch.equal(got[2], eager[2])
        assert torch.equal(got[3], eager[3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_objective_dtypes_and_ties(dtype):
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0], [3.0, 3.0, 3.0, 3.0]], dtype=dtype)
    value, gradient, prediction, active = attack_objective(logits, torch.tensor([1, 2]), loss="boundary")
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    assert prediction.tolist() == [1, 0]
    assert active.tolist() == [True, False]
    assert gradient.tolist() == [[0, -1, 1, 0], [1, 0, -1, 0]]  # the lowest of the other classes


def test_rows_that_are_not_finite_are_inert():
    logits = draw(4, 5).float()
    logits[0, 1], logits[1, 2], logits[2, 3] = math.nan, math.inf, -math.inf
    labels = torch.tensor([0, 2, 4, 1])
    for loss in ("ce", "boundary", "dlr"):
        value, gradient, _, active = attack_objective(logits, labels, loss=loss)
        assert torch.isfinite(gradient).all()
        assert not gradient[:2].any()
        assert not active[:2].any()
        assert torch.isfinite(value[3])
        torch.testing.assert_close(gradient[3], attack_objective(logits[3:], labels[3:], loss=loss)[1][0])
    assert torch.isfinite(attack_objective(logits, labels, loss="ce")[0][2])  # a masked class is no fault


@fast_only
@pytest.mark.parametrize("loss", ["ce", "boundary", "dlr"])
def test_objective_of_poisoned_and_tied_rows(loss):
    inf, nan = math.inf, math.nan
    rows = [[nan, 0, 1, 2, 3], [0, 1, inf, 2, 0], [0, -inf, 2, 1, 5], [-inf] * 5, [2, 2, 2, 2, 2], [0, 3, 3, 1, 3]]
    rows += [[inf, inf, 0, 1, 2], [1e37, -3e37, 2e37, 0, 1], [0, nan, 1, nan, 2], [-inf, -inf, -inf, -inf, 1.0]]
    for dtype in (torch.float32, torch.float64):
        logits = torch.tensor(rows, dtype=dtype)
        for shift in range(5):
            labels = (torch.arange(len(rows)) + shift) % 5
            for targeted, target in ((False, None), (False, (labels + 2) % 5), (True, (labels + 3) % 5)):
                options = {"loss": loss, "target": target, "targeted": targeted, "score": "logits"}
                got = attack_objective(logits, labels, **options)
                want = reference.attack_objective(logits, labels, **options)
                assert torch.isfinite(got[1]).all()
                torch.testing.assert_close(got[0].nan_to_num(7e7), want[0].nan_to_num(7e7), rtol=1e-5, atol=1e-6)
                torch.testing.assert_close(got[1], want[1], rtol=1e-5, atol=1e-6)
                assert torch.equal(got[2], want[2])
                assert torch.equal(got[3], want[3])


@fast_only
@by_dtype
@pytest.mark.parametrize("k", [3, 8, 21])
def test_a_nan_is_found_in_every_dtype_and_place(dtype, k):
    logits = single(k, k, dtype=dtype) + torch.diag(torch.full((k,), math.nan, dtype=dtype))
    labels = (torch.arange(k) + 1) % k
    for loss in ("ce", "boundary", "dlr"):
        value, gradient, prediction, active = attack_objective(logits, labels, loss=loss)
        assert value.isnan().all()
        assert not gradient.any()
        assert torch.equal(prediction, torch.arange(k))
        assert not active.any()
    assert torch.equal(draw_targets(logits, labels, seed=3), torch.arange(k))
    assert not select_boundary_bases(logits, logits, labels, k, seed=3).valid.any()


@pytest.mark.parametrize("bad", [-1, 4, 2**40])
def test_classes_out_of_range_are_named_on_a_cpu(device, bad):
    if device.type != "cpu":
        pytest.skip("on a GPU they make a row inert")
    logits, right, wrong = draw(3, 4), torch.arange(3), torch.tensor([0, bad, 1])
    for name, call in {
        "labels": lambda: attack_objective(logits, wrong),
        "target": lambda: attack_objective(logits, right, target=wrong),
        "base": lambda: draw_targets(logits, wrong, seed=0),
    }.items():
        with pytest.raises(ValueError, match=f"^{name} holds {bad}"):
            call()
    assert select_boundary_bases(logits, logits, torch.full((3,), bad), 2, seed=0).valid.tolist() == [False, False]


def test_labels_of_32_bits_and_seeds_that_are_numbers_are_the_same():
    logits, labels = single(6, 5), torch.arange(6) % 5
    calls = (
        (lambda classes, _: attack_objective(logits, classes, target=classes.flip(0))),
        (lambda classes, seed: select_boundary_bases(logits, logits, logits.argmax(1).to(classes.dtype), 4, seed=seed)),
        (lambda classes, seed: (draw_targets(logits, classes, seed=seed),)),
    )
    for seed in (0, -1, 2**40 + 3):
        for call in calls:
            pairs = zip(call(labels, torch.tensor(seed)), call(labels.int(), seed), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)


def test_one_eligible_row_ties_and_nan_rows():
    teacher = torch.tensor([[2.0, 0, 0], [2.0, 0, 0], [math.nan, 5, 0], [0, 0, 2.0]])
    student = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0.0, 5, 0], [0, 2.0, 0]])
    chosen = select_boundary_bases(student, teacher, torch.tensor([0, 0, 0, 2]), 4, seed=0)
    assert chosen.index[chosen.valid].tolist() == [0, 1]
    one = select_boundary_bases(student[1:], teacher[1:], torch.tensor([0, 0, 2]), 4, seed=0)
    assert one.valid.tolist() == [True, False, False, False]
    assert all(torch.isfinite(column.double()).all() for column in one)


def test_equal_rows_rank_by_their_place():
    logits = torch.tensor([[2.0, 1.0, 0.0]]).expand(40, 3)
    student = torch.where(torch.arange(40)[:, None] % 2 == 0, logits, logits + torch.tensor([1.0, 0.0, 0.0]))
    chosen = select_boundary_bases(student, logits, torch.zeros(40, dtype=torch.int64), 30, seed=0)
    assert chosen.index.tolist() == [*range(1, 40, 2), *range(0, 20, 2)]


def test_draw_follows_the_conditional_distribution():
    logits = torch.tensor([[1.0, 3.0, 0.0, 2.0, -1.0]])
    base, count = torch.tensor([1]), 20000
    drawn = draw_targets(logits.expand(count, 5), base.expand(count), seed=9)
    p = logits[0].double().softmax(0)
    want = p / (1 - p[1])
    want[1] = 0
    frequency = torch.bincount(drawn, minlength=5).double() / count
    assert ((frequency - want).abs() <= 4.5 * (want * (1 - want) / count).sqrt()).all()
    # inversion with the row's own number
    u = philox.uniform(9, torch.arange(count), dtype=torch.float64)
    edges = want.cumsum(0)
    assert torch.equal(drawn, torch.searchsorted(edges, u, right=True))


def test_draw_where_others_underflow_or_vanish():
    sure = torch.tensor([[500.0, 1.0, 1.0]])
    drawn = draw_targets(sure.expand(2000, 3), torch.zeros(2000, dtype=torch.int64), seed=1)
    assert sorted(drawn.unique().tolist()) == [1, 2]
    masked = torch.tensor([[5.0, -math.inf, -math.inf], [math.nan, 0, 1]])
    assert draw_targets(masked, torch.tensor([0, 1]), seed=1).max() <= 2
    assert int(draw_targets(masked[:1], torch.tensor([0]), seed=1)) != 0


@fast_only
def test_draws_agree_with_the_specification_one_by_one():
    count = 500 if backends.INTERPRETING else 20_000
    logits = 2 * single(count, 7)
    base, rows = logits.argmax(1), torch.arange(count) * 2**33 + 5
    for seed in (0, 12345, 2**64 - 1, torch.tensor(77)):
        for counters in (None, rows):
            got = draw_targets(logits, base, seed=seed, rows=counters)
            assert torch.equal(got, reference.draw_targets(logits, base, seed, counters))


@fast_only
def test_draws_from_extreme_rows():
    inf, nan = math.inf, math.nan
    rows = torch.tensor(
        [[0, inf, 1], [nan, 0, 1], [0, nan, 1], [-inf] * 3, [500.0, 0, -500], [inf, inf, inf], [0, -inf, -inf]]
    )
    for base in range(3):
        bases = torch.full((len(rows),), base)
        got = draw_targets(rows, bases, seed=3)
        assert torch.equal(got, reference.draw_targets(rows, bases, 3, None))
        assert (got != base).all()


# The operators themselves


def step_arguments(x, out=None):
    numbers = (0, 0.1, 0.0, -math.inf, math.inf, 1.0, False, 1)
    return (torch.empty_like(x) if out is None else out, x, torch.ones_like(x), *[None] * 8, *numbers)


@fast_only
def test_raw_operators_refuse_what_they_cannot_read(backend):
    if backend == "triton":
        pytest.skip("the Triton operators rely on the public functions' checks")
    found = operators.serving(there(torch.zeros(1)))[1]
    x = there(single(3, 2, 4))
    good = step_arguments(x)
    wrong = {1: x[..., ::2], 2: x.double(), 0: x.half(), 3: x[:2], 4: there(torch.ones(2)), 10: there(torch.ones(3))}
    for place, value in wrong.items():
        arguments = list(good)
        arguments[place] = value
        with pytest.raises(RuntimeError):
            found.step(*arguments)
    logits, labels = there(single(3, 5)), there(torch.arange(3))
    for arguments in (
        (logits[0], labels, None, 0, False, False),
        (logits, labels[:2], None, 0, False, False),
        (logits, labels.int(), None, 0, False, False),
        (logits, labels, None, 3, False, False),
        (logits[:, :2], labels, None, 2, False, False),
        (logits, labels, None, 0, False, True),
    ):
        with pytest.raises(RuntimeError):
            found.objective(*arguments)


@fast_only
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_nothing_waits_for_the_device(backend, device):
    if device.type != "cuda":
        pytest.skip("backend runs on the CPU")
    x, logits, labels = single(4, 3, 8, 8).to(device), single(4, 10).to(device), torch.arange(4, device=device)

    def everything():
        value, _, _, active = attack.attack_objective(logits, labels, loss="boundary")
        attack.attack_step(x, x, step_size=0.3, norm="boundary", gap=-value, active=active, lower=-1.0)
        attack.attack_step(x, x, x0=x, step_size=0.3, eps=0.1, norm="l1")
        attack.select_boundary_bases(logits, logits, labels, 3, seed=1)

    everything()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        everything()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@fast_only
def test_classes_out_of_range_make_a_row_inert_on_a_gpu(backend, device):
    if device.type != "cuda":
        pytest.skip("on a CPU they are an error")
    logits = single(4, 6).to(device)
    labels = torch.tensor([0, -1, 6, 2**40], device=device)
    for loss in ("ce", "boundary", "dlr"):
        value, gradient, _, active = attack.attack_objective(logits, labels, loss=loss)
        assert value[1:].isnan().all()
        assert not gradient[1:].any()
        assert not active[1:].any()
