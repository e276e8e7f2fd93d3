"""The attack operations against oracles written per sample in NumPy from METHODS section 3."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from places import moving, stand_on

from amkd_fast import backends, philox
from amkd_fast.ops import attack

OPERATION = "attack"
SHAPE = (5, 3, 4, 4)


attack_step = moving(attack.attack_step, in_place=("momentum", "out"))
attack_objective = moving(attack.attack_objective)
draw_targets, select_boundary_bases = moving(attack.draw_targets), moving(attack.select_boundary_bases)


@pytest.fixture(autouse=True)
def _on_each_backend(device):
    before = stand_on(device)
    yield
    stand_on(before)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def project_l1_by_bisection(v, radius):
    """Oracle: the threshold of the soft shrinkage is found by bisection, not by sorting."""
    if np.abs(v).sum() <= radius:
        return v
    low, high = 0.0, np.abs(v).max()
    for _ in range(200):
        middle = (low + high) / 2
        if np.maximum(np.abs(v) - middle, 0).sum() > radius:
            low = middle
        else:
            high = middle
    return np.sign(v) * np.maximum(np.abs(v) - high, 0)


def oracle_step(x, g, x0, eta, eps, norm, power, gap, lower, upper, project, top):
    """One sample [C, ...] as float64 NumPy."""
    sign = np.sign(eta if gap is None else eta * (gap + 1e-4))
    g = g.copy()
    if project:
        for c in range(x.shape[0]):
            g[c][(x[c] <= lower[c]) & (sign * g[c] < 0)] = 0
            g[c][(x[c] >= upper[c]) & (sign * g[c] > 0)] = 0
    if not np.isfinite(g).all() or not g.any():
        return x
    if norm == "linf":
        delta = eta * np.sign(g)
    elif norm == "l1":
        count = max(1, math.ceil(top * g.size))
        chosen = np.abs(g) >= np.sort(np.abs(g).ravel())[-count]
        delta = eta * np.sign(g) * chosen / chosen.sum()
    else:
        scale = eta if norm == "l2" else eta * (gap + 1e-4)
        delta = scale * g / np.sqrt((g**2).sum()) ** power
    new = x + delta
    if eps is not None:
        d = new - x0
        if norm == "linf":
            new = x0 + np.clip(d, -eps, eps)
        elif norm == "l2":
            new = x0 + d * min(1.0, eps / max(np.sqrt((d**2).sum()), 1e-300))
        else:
            new = x0 + project_l1_by_bisection(d.ravel(), eps).reshape(d.shape)
    for c in range(x.shape[0]):
        new[c] = np.clip(new[c], lower[c], upper[c])
    return new


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "boundary1", "boundary2"])
@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_step_equals_the_oracle(norm, project, layout):
    norm, power = (norm[:-1], int(norm[-1])) if norm.startswith("boundary") else (norm, 1)
    boundary = norm == "boundary"
    x, grad, x0 = draw(*SHAPE), draw(*SHAPE, seed=1), draw(*SHAPE) + 0.1 * draw(*SHAPE, seed=2)
    lower, upper = torch.tensor([-0.5, -1.0, -2.0]).double(), torch.tensor([0.5, 1.0, 0.4]).double()
    x = torch.minimum(torch.maximum(x, lower.view(3, 1, 1)), upper.view(3, 1, 1))  # many stand at a bound
    eta, eps = torch.tensor([0.3, -0.2, 0.1, 0.5, 2.0]).double(), torch.tensor([0.3, 0.1, 5.0, 0.0, 0.7]).double()
    gap = draw(5, seed=3)
    want = [
        oracle_step(
            *(t[i].numpy() for t in (x, grad, x0)),
            float(eta[i]),
            None if boundary else float(eps[i]),
            norm,
            power,
            float(gap[i]) if boundary else None,
            lower.numpy(),
            upper.numpy(),
            project,
            0.1,
        )
        for i in range(5)
    ]
    want = torch.from_numpy(np.stack(want))
    if not boundary:
        want[3] = x0[3]  # ε = 0 returns x₀, which breaks bounds here
    if layout == "channels_last":
        x, grad, x0 = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad, x0))
    elif layout == "strided":
        x, grad, x0 = (t.repeat_interleave(2, 3)[..., ::2] for t in (x, grad, x0))
    extra = {"gap": gap, "norm_power": power} if boundary else {"x0": x0, "eps": eps}
    step = {"step_size": eta, "norm": norm, "lower": lower, "upper": upper, "project": project, "top": 0.1, **extra}
    torch.testing.assert_close(attack_step(x, grad, **step), want, rtol=0, atol=1e-12)
    single = {name: t.float() if isinstance(t, torch.Tensor) else t for name, t in step.items()}
    got = attack_step(x.float(), grad.float(), **single)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-5 if power == 2 else 1e-6)


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


def test_out_may_be_the_input_and_nothing_else_changes():
    x, grad, x0 = draw(*SHAPE), draw(*SHAPE, seed=1), draw(*SHAPE, seed=2)
    copies = [t.clone() for t in (x, grad, x0)]
    want = attack_step(x, grad, x0=x0, step_size=0.1, eps=0.3)
    assert all(torch.equal(a, b) for a, b in zip((x, grad, x0), copies, strict=True))
    assert attack_step(x, grad, x0=x0, step_size=0.1, eps=0.3, out=x) is x
    assert torch.equal(x, want)


def test_empty_batches():
    x = torch.zeros(0, 3, 4, 4)
    assert (
        attack_step(x, x, step_size=0.1, norm="boundary", gap=torch.zeros(0), project=True, lower=0.0).shape == x.shape
    )
    none = torch.zeros(0, dtype=torch.int64)
    for loss in ("ce", "boundary", "dlr"):
        value, gradient, prediction, active = attack_objective(torch.zeros(0, 4), none, loss=loss)
        assert (value.shape, gradient.shape, prediction.shape, active.shape) == ((0,), (0, 4), (0,), (0,))
    chosen = select_boundary_bases(torch.zeros(0, 4), torch.zeros(0, 4), none, 3, seed=0)
    assert chosen.valid.tolist() == [False] * 3


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


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "x.dtype"),
        ({"x": torch.zeros(2), "grad": torch.zeros(2)}, ValueError, "x.shape"),
        ({"grad": torch.zeros(2, 4)}, ValueError, "grad.shape"),
        ({"grad": torch.zeros(2, 3).double()}, TypeError, "grad.dtype"),
        ({"eps": 0.1}, ValueError, "x0=None"),
        ({"eps": -0.1, "x0": torch.zeros(2, 3)}, ValueError, "eps=-0.1"),
        ({"step_size": math.nan}, ValueError, "step_size=nan"),
        ({"step_size": "1"}, TypeError, "step_size is a str"),
        ({"step_size": torch.zeros(3)}, ValueError, "step_size.shape"),
        ({"norm": "l3"}, ValueError, "norm='l3'"),
        ({"norm_power": 2}, ValueError, "norm_power=2"),
        ({"norm": "boundary"}, ValueError, "gap is None"),
        ({"gap": torch.zeros(2)}, ValueError, "gap is given"),
        ({"norm": "boundary", "gap": torch.zeros(2), "eps": 1.0}, ValueError, "eps=1.0"),
        ({"norm": "boundary", "gap": torch.zeros(2), "momentum": torch.zeros(2, 3)}, ValueError, "momentum"),
        ({"momentum": torch.zeros(2, 3).double()}, TypeError, "momentum.dtype"),
        ({"active": torch.zeros(2)}, TypeError, "active.dtype"),
        ({"active": torch.zeros(3, dtype=torch.bool)}, ValueError, "active.shape"),
        ({"lower": torch.zeros(2)}, ValueError, "lower.shape"),
        ({"upper": math.nan}, ValueError, "upper=nan"),
        ({"top": 0.0}, ValueError, "top=0.0"),
        ({"out": torch.zeros(2, 3), "x": torch.zeros(2, 3, requires_grad=True)}, ValueError, "out"),
    ],
)
def test_step_errors_name_the_argument(change, error, words):
    arguments = {"x": torch.zeros(2, 3), "grad": torch.ones(2, 3), "step_size": 0.1, **change}
    with pytest.raises(error, match=words):
        attack_step(**arguments)


# The objective


def autograd_objective(logits, labels, loss, target, score, targeted):
    z = logits.double().clone().requires_grad_()
    rows = torch.arange(len(z))
    if loss == "ce":
        wanted = target if targeted else labels
        value = torch.nn.functional.cross_entropy(z, wanted, reduction="none") * (-1 if targeted else 1)
    else:
        if target is None:
            others = z.detach().clone()
            others[rows, labels] = -math.inf
            target = others.argmax(1)
        f = z.softmax(1) if score == "softmax" and loss == "boundary" else z
        value = f[rows, target] - f[rows, labels]
        if loss == "dlr":
            s = z.sort(1, descending=True).values
            value = value / (s[:, 0] - (s[:, 2] + s[:, 3]) / 2 if targeted else s[:, 0] - s[:, 2])
    return value.detach(), torch.autograd.grad(value.sum(), z)[0]


@pytest.mark.parametrize(
    ("loss", "score"), [("ce", "logits"), ("boundary", "logits"), ("boundary", "softmax"), ("dlr", "logits")]
)
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("with_target", [False, True])
def test_objective_and_its_gradient_equal_autograd(loss, score, targeted, with_target):
    if targeted and not with_target:
        with pytest.raises(ValueError, match="target=None"):
            attack_objective(draw(3, 5), torch.zeros(3, dtype=torch.int64), loss=loss, targeted=True)
        return
    logits = 3 * draw(40, 6)
    labels = torch.where(torch.arange(40) % 2 == 0, logits.argmax(1), 2)
    target = (labels + 1 + torch.arange(40) % 5) % 6 if with_target else None
    value, gradient, prediction, active = attack_objective(
        logits, labels, loss=loss, target=target, score=score, targeted=targeted
    )
    want_value, want_gradient = autograd_objective(logits, labels, loss, target, score, targeted)
    torch.testing.assert_close(value, want_value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient, want_gradient, rtol=1e-9, atol=1e-9)
    assert torch.equal(prediction, logits.argmax(1))
    assert torch.equal(active, prediction != target if targeted else prediction == labels)
    assert not value.requires_grad


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


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"logits": torch.zeros(3)}, ValueError, "logits.shape"),
        ({"logits": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "logits.dtype"),
        ({"labels": torch.zeros(2)}, TypeError, "labels.dtype"),
        ({"labels": torch.tensor([0, 3])}, ValueError, "labels holds 3"),
        ({"labels": torch.tensor([-1, 0])}, ValueError, "labels holds -1"),
        ({"target": torch.tensor([0, 5])}, ValueError, "target holds 5"),
        ({"loss": "mse"}, ValueError, "loss='mse'"),
        ({"score": "p"}, ValueError, "score='p'"),
        ({"logits": torch.zeros(2, 2), "loss": "dlr"}, ValueError, "at least 3 classes"),
    ],
)
def test_objective_errors_name_the_argument(change, error, words):
    arguments = {"logits": torch.zeros(2, 3), "labels": torch.tensor([0, 1]), **change}
    with pytest.raises(error, match=words):
        attack_objective(**arguments)


# The bases


def oracle_bases(student, teacher, labels, limit):
    s, t = student.double().softmax(1).numpy(), teacher.double().softmax(1).numpy()
    found = []
    for i, y in enumerate(labels.tolist()):
        if teacher[i].argmax() == y and student[i].argmax() == y:
            found.append((-sum((t[i, c] - s[i, c]) ** 2 for c in range(t.shape[1]) if c != y), i))
    return [i for _, i in sorted(found)[:limit]]


@pytest.mark.parametrize("limit", [0, 3, 16, 64, 100])
@pytest.mark.parametrize("label_dtype", [torch.int64, torch.int32])
def test_bases_equal_the_per_sample_loop(limit, label_dtype):
    teacher, student = 3 * draw(64, 5).float(), 3 * draw(64, 5).float() + draw(64, 5, seed=1).float()
    labels = torch.where(torch.arange(64) % 3 == 0, 1, teacher.argmax(1)).to(label_dtype)
    labels[7] = -100
    want = oracle_bases(student, teacher, labels, limit)
    chosen = select_boundary_bases(student, teacher, labels, limit, seed=5)
    assert [column.shape for column in chosen] == [(limit,)] * 4
    assert [column.dtype for column in chosen] == [torch.int64] * 3 + [torch.bool]
    assert chosen.valid.tolist() == [True] * len(want) + [False] * (limit - len(want))
    assert chosen.index[chosen.valid].tolist() == want
    assert chosen.base[chosen.valid].tolist() == labels[want].tolist()
    assert (chosen.target != chosen.base)[chosen.valid].all()
    again = select_boundary_bases(student, teacher, labels, limit, seed=torch.tensor(5))
    assert all(torch.equal(a, b) for a, b in zip(chosen, again, strict=True))
    # the draw belongs to the row of the batch, whatever its rank
    drawn = draw_targets(teacher, teacher.argmax(1), seed=5)
    assert torch.equal(chosen.target[chosen.valid], drawn[want])


def test_one_eligible_row_ties_and_nan_rows():
    teacher = torch.tensor([[2.0, 0, 0], [2.0, 0, 0], [math.nan, 5, 0], [0, 0, 2.0]])
    student = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0.0, 5, 0], [0, 2.0, 0]])
    chosen = select_boundary_bases(student, teacher, torch.tensor([0, 0, 0, 2]), 4, seed=0)
    assert chosen.index[chosen.valid].tolist() == [0, 1]
    one = select_boundary_bases(student[1:], teacher[1:], torch.tensor([0, 0, 2]), 4, seed=0)
    assert one.valid.tolist() == [True, False, False, False]
    assert all(torch.isfinite(column.double()).all() for column in one)


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


def test_objective_and_bases_have_no_data_dependent_control_flow():
    """One graph without breaks: nothing asks for a value on the host."""
    torch._dynamo.reset()
    student, teacher, labels = draw(12, 4).float(), draw(12, 4, seed=1).float(), torch.arange(12) % 4

    def everything(student, teacher, labels):
        value, gradient, prediction, active = attack_objective(student, labels, loss="boundary")
        moved = attack_step(
            student, gradient, step_size=1.0, norm="boundary", gap=-value, active=active, lower=-1.0, project=True
        )
        return (moved, prediction, *select_boundary_bases(student, teacher, labels, 5, seed=3))

    compiled = torch.compile(everything, fullgraph=True, backend="eager")
    for got, want in zip(compiled(student, teacher, labels), everything(student, teacher, labels), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"student": torch.zeros(4, 2)}, ValueError, "student.shape"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, "labels.shape"),
        ({"limit": -1}, ValueError, "limit=-1"),
        ({"limit": 2.0}, TypeError, "limit is a float"),
        ({"seed": "1"}, TypeError, "seed is a str"),
        ({"student": torch.zeros(4, 1), "teacher": torch.zeros(4, 1)}, ValueError, "at least 2 classes"),
    ],
)
def test_bases_errors_name_the_argument(change, error, words):
    zeros = torch.zeros(4, 3)
    arguments = {"student": zeros, "teacher": zeros, "labels": torch.zeros(4, dtype=torch.int64), "limit": 2, "seed": 0}
    with pytest.raises(error, match=words):
        select_boundary_bases(**{**arguments, **change})
