"""The fast kernels of the attack family against the specification: sizes, layouts, dtypes, poison, ties, draws."""

import math

import pytest
import torch
from oracles_attack import objective_bounds
from places import moving, stand_on, there
from torch._subclasses.fake_tensor import FakeTensorMode

from amkd_fast import backends
from amkd_fast.ops import attack
from amkd_fast.ops.attack import operators, reference, steps

OPERATION = "attack"
RULES = ("linf", "l2", "l1", "unit", "newton")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
attack_step = moving(attack.attack_step, in_place=("momentum", "out"))
attack_objective = moving(attack.attack_objective)
draw_targets, select_boundary_bases = moving(attack.draw_targets), moving(attack.select_boundary_bases)
by_rule = pytest.mark.parametrize("rule", RULES)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def _on_each_backend(device):
    before = stand_on(device)
    yield
    stand_on(before)


@pytest.fixture(autouse=True)
def _fast_only(backend):
    if backend == "reference":
        pytest.skip("backend reference: is what these tests compare with")


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


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
    return steps.attack_step(x.to(dtype), grad.to(dtype), **wide)


def assert_as_precise(got, x, grad, step):
    """At most twice as far from fp64 as the specification in ``x``'s dtype, and a rounding or two."""
    truth = specified(x, grad, torch.float64, **step)[0]
    eager = (specified(x, grad, x.dtype, **step)[0].double() - truth).abs().max()
    eps = torch.finfo(x.dtype).eps
    if x.dtype == torch.float64:  # where the specification is its own truth
        allowed = 32 * eps * truth.abs().clamp(min=1.0)
    else:
        allowed = 2 * eager + 2 * eps * truth.abs().clamp(min=1e-3)
    assert torch.isfinite(got).all()
    assert ((got.double() - truth).abs() <= allowed).all(), ((got.double() - truth).abs().max(), eager)


@by_rule
@by_dtype
@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("shape", [(3, 1), (3, 7), (2, 3, 5), (4, 3, 4, 6), (5, 2, 3, 2, 3), (2, 1, 3, 3)], ids=str)
def test_step_is_as_precise_as_eager(rule, dtype, project, shape):
    x, grad = draw(*shape, dtype=dtype), draw(*shape, seed=1, dtype=dtype)
    step = {**options_of(rule, shape[0], dtype), "project": project}
    if "eps" in step:
        step["x0"] = (x + 0.2 * draw(*shape, seed=2, dtype=dtype)).to(dtype)
    channels = torch.linspace(0.3, 1.5, shape[1]).to(step["step_size"].dtype)
    for lower, upper in ((None, None), (-0.75, 0.5), (-channels, channels), (None, channels), (-channels, 0.25)):
        bounds = {"lower": lower, "upper": upper}
        got = attack_step(x, grad, **step, **bounds)
        assert_as_precise(got, x, grad, {**step, **bounds})


@by_rule
@pytest.mark.parametrize("size", [8, 9, 31, 4096, 4097, 20_000])
def test_step_of_any_size(rule, size):
    if backends.INTERPRETING and size > 5000:
        pytest.skip("too slow in Triton's interpreter")
    x, grad = draw(2, size), draw(2, size, seed=1)
    step = options_of(rule, 2, x.dtype)
    if "eps" in step:
        step["x0"] = x + 0.2 * draw(2, size, seed=2)
    assert_as_precise(
        attack_step(x, grad, **step, lower=-1.0, upper=1.5), x, grad, {**step, "lower": -1.0, "upper": 1.5}
    )


@by_rule
@pytest.mark.parametrize("layout", ["channels_last", "mixed", "strided", "expanded"])
def test_step_of_any_layout(rule, layout):
    shape = (3, 3, 6, 5)
    x, grad, x0 = draw(*shape), draw(*shape, seed=1), draw(*shape) + 0.1 * draw(*shape, seed=2)
    last = torch.channels_last
    if layout == "channels_last":
        x, grad, x0 = (t.contiguous(memory_format=last) for t in (x, grad, x0))
    elif layout == "mixed":
        grad = grad.contiguous(memory_format=last)
    elif layout == "strided":
        x, grad, x0 = (t.repeat_interleave(2, 3)[..., ::2] for t in (x, grad, x0))
    else:
        x, x0 = x[:1].expand(shape), x0[:1].expand(shape)
    step = {**options_of(rule, 3, x.dtype), "lower": torch.tensor([-1.0, -0.5, -0.2]), "upper": 0.7}
    if "eps" in step:
        step["x0"] = x0
    want = specified(x, grad, torch.float32, **step)[0]
    torch.testing.assert_close(attack_step(x, grad, **step), want, rtol=1e-5, atol=1e-6)
    out = torch.full(shape, math.nan).contiguous(memory_format=last)
    assert attack_step(x, grad, **step, out=out) is out
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-6)


@by_rule
@by_dtype
@pytest.mark.parametrize("project", [False, True])
def test_samples_stay_bit_for_bit_and_others_do_not_notice(rule, dtype, project):
    rows = 12
    x, grad = draw(rows, 3, 5, dtype=dtype), draw(rows, 3, 5, seed=1, dtype=dtype)
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


@by_rule
@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-20, 1e18, 1e30, 3e37])
def test_gradients_of_any_size_keep_their_direction(rule, scale):
    x, grad = draw(2, 33), draw(2, 33, seed=1).clamp(-3, 3)
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


@by_rule
def test_reach_of_any_size_stays_finite(rule):
    x, grad = draw(4, 40).clamp(-2, 2), draw(4, 40, seed=1)
    grad[:, ::3] = 0
    step = {**options_of(rule, 4, x.dtype), "step_size": torch.tensor([3e38, -3e38, 1e20, 1e-45])}
    for extra in ({}, {"lower": -2.0, "upper": 2.0}):
        got = attack_step(x, grad, **{**step, "x0": x} if "eps" in step else step, **extra)
        assert torch.isfinite(got).all()
        if "eps" in step:
            order = {"linf": math.inf, "l2": 2, "l1": 1}[rule]
            length = torch.linalg.vector_norm((got - x).double(), order, dim=1)
            assert (length <= step["eps"] * (1 + 1e-5) + 1e-6).all()


def test_a_nan_bounds_nothing_and_stays_where_it_was():
    for rule in RULES:
        x, grad = draw(2, 3, 4), draw(2, 3, 4, seed=1)
        x[0, 1, 2] = math.nan
        step = {**options_of(rule, 2, x.dtype), "upper": torch.tensor([math.nan, 0.5, 0.5])}
        if "eps" in step:
            step["x0"] = torch.zeros(2, 3, 4)
            step["x0"][1, 0, 0] = math.nan
        got, want = attack_step(x, grad, **step), specified(x, grad, torch.float32, **step)[0]
        assert torch.equal(got.isnan(), x.isnan())
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6, equal_nan=True)


@by_dtype
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_momentum(dtype, norm):
    work = torch.promote_types(dtype, torch.float32)
    x, velocity = draw(5, 3, 6, dtype=dtype), draw(5, 3, 6, seed=3, dtype=work)
    velocity[4, 0, 0] = 1e38 if work == torch.float32 else 1e308
    grad = draw(5, 3, 6, seed=1, dtype=dtype)
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


@pytest.mark.parametrize("kind", ["normal", "geometric", "equal", "one", "cauchy"])
def test_l1_projection_is_exact(kind):
    size = 257
    difference = {
        "normal": draw(3, size, dtype=torch.float64),
        "geometric": (0.9 ** torch.arange(size)).expand(3, size).double() * draw(3, size, seed=1).sign(),
        "equal": torch.ones(3, size).double(),
        "one": torch.eye(3, size).double() * 7,
        "cauchy": torch.tan(1.57 * (2 * torch.rand(3, size, generator=torch.Generator().manual_seed(2)).double() - 1)),
    }[kind]
    x0 = draw(3, size, seed=4, dtype=torch.float64)
    for radius in (1e-6, 0.5, 3.0, 100.0):
        got = attack_step(x0 + difference, torch.ones_like(x0), x0=x0, step_size=1e-300, eps=radius, norm="l1", top=1.0)
        want = x0 + steps.project_l1(difference, torch.full((3, 1), radius).double())
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_eps_zero_and_zero_step():
    x, grad, x0 = draw(3, 8), draw(3, 8, seed=1), draw(3, 8, seed=2) * 9
    for norm in ("linf", "l2", "l1"):
        got = attack_step(x, grad, x0=x0, step_size=0.3, eps=torch.tensor([0.0, 1e9, 0.0]), norm=norm, upper=0.1)
        assert torch.equal(got[[0, 2]], x0[[0, 2]])
        assert got[1].max() <= 0.1
    still = attack_step(x, grad, step_size=0.0)
    assert torch.equal(still, x)


@by_rule
def test_the_same_bits_twice_and_in_any_company(rule):
    shape = (9, 3, 16, 16)
    x, grad = draw(*shape), draw(*shape, seed=1)
    step = {**options_of(rule, 9, x.dtype), "lower": -1.0}
    if "eps" in step:
        step["x0"] = x * 0.9
    whole = attack_step(x, grad, **step)
    assert torch.equal(whole, attack_step(x, grad, **step))
    part = {name: t[4:5] if isinstance(t, torch.Tensor) else t for name, t in step.items()}
    assert torch.equal(whole[4:5], attack_step(x[4:5], grad[4:5], **part))


# Rows of logits


def objective_options(loss, k, rows):
    labels = (torch.arange(rows) * 7) % k
    other = (labels + 1 + torch.arange(rows) % max(k - 1, 1)) % k
    for score in ("logits", "softmax") if loss == "boundary" else ("logits",):
        for targeted, target in ((False, None), (False, other), (True, other)):
            if k >= {"ce": 1, "boundary": 2, "dlr": 4 if targeted else 3}[loss]:
                yield labels, {"loss": loss, "score": score, "targeted": targeted, "target": target}


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


@by_dtype
@pytest.mark.parametrize("k", [3, 8, 21])
def test_a_nan_is_found_in_every_dtype_and_place(dtype, k):
    logits = draw(k, k, dtype=dtype) + torch.diag(torch.full((k,), math.nan, dtype=dtype))
    labels = (torch.arange(k) + 1) % k
    for loss in ("ce", "boundary", "dlr"):
        value, gradient, prediction, active = attack_objective(logits, labels, loss=loss)
        assert value.isnan().all()
        assert not gradient.any()
        assert torch.equal(prediction, torch.arange(k))
        assert not active.any()
    assert torch.equal(draw_targets(logits, labels, seed=3), torch.arange(k))
    assert not select_boundary_bases(logits, logits, labels, k, seed=3).valid.any()


def test_logits_may_have_any_strides():
    logits = draw(6, 20)[:, ::2]
    labels = torch.arange(6)
    for view in (logits, logits.t().contiguous().t(), logits[:1].expand(6, 10), draw(40, 10)[::7]):
        got, want = (
            attack_objective(view, labels),
            reference.attack_objective(view, labels, "ce", None, "logits", False),
        )
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other)
        chosen = select_boundary_bases(view, view, view.argmax(1), 4, seed=2)
        expected = reference.select_boundary_bases(view, view, view.argmax(1), 4, 2)
        assert all(torch.equal(one, other) for one, other in zip(chosen, expected, strict=True))


@by_dtype
@pytest.mark.parametrize(("rows", "k"), [(1, 2), (7, 3), (64, 10), (256, 10), (256, 100), (300, 17), (5, 1000)])
def test_bases_equal_the_specification(dtype, rows, k):
    teacher = 3 * draw(rows, k, dtype=dtype)
    student = (teacher + draw(rows, k, seed=1, dtype=dtype)).to(dtype)
    labels = torch.where(torch.arange(rows) % 4 == 1, 0, teacher.argmax(1))
    for limit in (0, 1, rows // 3, rows, rows + 5):
        for seed in (0, -1, 2**63 + 11, torch.tensor(-5)):
            got = select_boundary_bases(student, teacher, labels, limit, seed=seed)
            want = reference.select_boundary_bases(student.double(), teacher.double(), labels, limit, seed)
            assert torch.equal(got.valid, want.valid)
            if dtype in (torch.float32, torch.float64):
                assert torch.equal(got.index, want.index)
                assert torch.equal(got.base, want.base)
                assert torch.equal(got.target, want.target)
            # Half precision makes ranks that fp32 and fp64 see differently. Whoever is chosen has a target of its own.
            drawn = reference.draw_targets(teacher, teacher.argmax(1), seed)
            assert torch.equal(got.target[got.valid], drawn[got.index[got.valid]])


def test_equal_rows_rank_by_their_place():
    logits = torch.tensor([[2.0, 1.0, 0.0]]).expand(40, 3)
    student = torch.where(torch.arange(40)[:, None] % 2 == 0, logits, logits + torch.tensor([1.0, 0.0, 0.0]))
    chosen = select_boundary_bases(student, logits, torch.zeros(40, dtype=torch.int64), 30, seed=0)
    assert chosen.index.tolist() == [*range(1, 40, 2), *range(0, 20, 2)]


def test_draws_agree_with_the_specification_one_by_one():
    count = 500 if backends.INTERPRETING else 20_000
    logits = 2 * draw(count, 7)
    base, rows = logits.argmax(1), torch.arange(count) * 2**33 + 5
    for seed in (0, 12345, 2**64 - 1, torch.tensor(77)):
        for counters in (None, rows):
            got = draw_targets(logits, base, seed=seed, rows=counters)
            assert torch.equal(got, reference.draw_targets(logits, base, seed, counters))


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


def raw(backend):
    return (attack._serving(there(torch.zeros(1)))[1], "_triton" if backend == "triton" else "")


def step_arguments(x, out=None):
    numbers = (0, 0.1, 0.0, -math.inf, math.inf, 1.0, False, 1)
    return (torch.empty_like(x) if out is None else out, x, torch.ones_like(x), *[None] * 8, *numbers)


@pytest.mark.skipif(backends.INTERPRETING, reason="opcheck runs each operator a dozen times")
def test_opcheck(backend):
    _, suffix = raw(backend)
    op = {name: getattr(torch.ops.amkd_fast, name + suffix).default for name in operators.NAMES}
    x, logits, labels = there(draw(3, 2, 4)), there(draw(3, 5)), there(torch.arange(3))
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(op["attack_step"], step_arguments(x), test_utils=checks)
    torch.library.opcheck(op["attack_objective"], (logits, labels, None, 0, False, False), test_utils=checks)
    torch.library.opcheck(op["attack_bases"], (logits, logits, labels, 2, None, 3), test_utils=checks)
    torch.library.opcheck(op["attack_draw"], (logits, labels, None, None, 3), test_utils=checks)


def test_fakes_have_the_shapes_and_dtypes_of_the_real(backend):
    found, _ = raw(backend)
    for dtype in DTYPES:
        logits, labels = there(draw(3, 5, dtype=dtype)), there(torch.arange(3))
        calls = [
            (found.objective, (logits, labels, None, 2, False, False)),
            (found.draw, (logits, labels, None, None, 1)),
        ]
        for op, arguments in (*calls, (found.bases, (logits, logits, labels, 4, None, 1))):
            real = op(*arguments)
            with FakeTensorMode() as mode:
                moved = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
                fake = op(*moved)
            pairs = zip(
                *((result,) if isinstance(result, torch.Tensor) else result for result in (real, fake)), strict=True
            )
            for one, other in pairs:
                assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


def test_raw_operators_refuse_what_they_cannot_read(backend):
    if backend == "triton":
        pytest.skip("the Triton operators rely on the public functions' checks")
    found, _ = raw(backend)
    x = there(draw(3, 2, 4))
    good = step_arguments(x)
    wrong = {1: x[..., ::2], 2: x.double(), 0: x.half(), 3: x[:2], 4: there(torch.ones(2)), 10: there(torch.ones(3))}
    for place, value in wrong.items():
        arguments = list(good)
        arguments[place] = value
        with pytest.raises(RuntimeError):
            found.step(*arguments)
    logits, labels = there(draw(3, 5)), there(torch.arange(3))
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_nothing_waits_for_the_device(backend, device):
    if device.type != "cuda":
        pytest.skip("backend runs on the CPU")
    x, logits, labels = draw(4, 3, 8, 8).to(device), draw(4, 10).to(device), torch.arange(4, device=device)

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


def test_classes_out_of_range_make_a_row_inert_on_a_gpu(backend, device):
    if device.type != "cuda":
        pytest.skip("on a CPU they are an error")
    logits = draw(4, 6).to(device)
    labels = torch.tensor([0, -1, 6, 2**40], device=device)
    for loss in ("ce", "boundary", "dlr"):
        value, gradient, _, active = attack.attack_objective(logits, labels, loss=loss)
        assert value[1:].isnan().all()
        assert not gradient[1:].any()
        assert not active[1:].any()
