"""What a search for boundary samples has operators for on a CPU, against the same in plain calls, bit by bit."""

import copy

import pytest
import torch
from test_attacks import make_images, make_net
from torch import nn
from torch.nn import functional as F

from amkd_fast.attacks import PGD, PRESETS, BoundaryAttack, Status, folding, frozen
from amkd_fast.ops import attack
from amkd_fast.ops.attack import search

OPERATION = "attack"
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
FORMS = (torch.contiguous_format, torch.channels_last)
ALL, ROWS = 9, torch.tensor([7, 0, 3, 8, 5])
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def _on_a_cpu(request):
    if "backend" in request.fixturenames and request.getfixturevalue("backend") != "cpu":
        pytest.skip("these operators are those of a CPU")


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def wide(dtype):
    return torch.promote_types(dtype, torch.float32)


def classes(count, seed):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randint(count, (ALL,), generator=generator)
    return base, (base + torch.randint(1, count, (ALL,), generator=generator)) % count


def poisoned(logits):
    logits[1, 2], logits[2, 0] = torch.nan, torch.inf
    return logits


@by_dtype
@pytest.mark.parametrize("score", ["logits", "softmax"])
@pytest.mark.parametrize("moves", [True, False])
def test_judge(backend, dtype, score, moves):
    logits, (base, target) = poisoned(2 * draw(5, 6, dtype=dtype)), classes(6, 1)
    base[ROWS[0]], base[ROWS[3]] = logits[0].argmax(), logits[3].argmax()
    target = torch.where(target == base, (base + 1) % 6, target)
    found, gap = draw(ALL, 6, seed=2, dtype=dtype), draw(ALL, seed=3, dtype=wide(dtype))
    steps = torch.arange(ALL)
    want = attack.attack_objective(logits, base[ROWS], loss="boundary", target=target[ROWS], score=score)
    wanted = (found.index_copy(0, ROWS, logits), gap.index_copy(0, ROWS, -want[0]))
    took = steps.index_add(0, ROWS, want[3].long() * moves)
    for case in (logits, draw(6, 5, dtype=dtype).copy_(logits.T).T):
        mine = (found.clone(), gap.clone(), steps.clone())
        grad, active, left = search.judge(case, ROWS, base, target, *mine, score=score, moves=moves)
        assert left == int(want[3].sum()) == 2
        assert torch.equal(grad, want[1])
        assert torch.equal(active, want[3])
        for got, expected in zip(mine, (*wanted, took), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_judge_names_a_class_out_of_range(backend):
    base, target = classes(6, 1)
    target[3] = 6
    given = (torch.zeros(ALL, 6), torch.zeros(ALL), torch.zeros(ALL, dtype=torch.int64))
    with pytest.raises(ValueError, match="target holds 6"):
        search.judge(draw(5, 6), ROWS, base, target, *given, score="logits", moves=True)


@by_dtype
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("norm_power", [1, 2])
@pytest.mark.parametrize("how", ["plain", "everything"])
def test_advance(backend, dtype, form, norm_power, how):
    x, grad, images, inside = (
        draw(count, 3, 5, 4, seed=seed, dtype=dtype).contiguous(memory_format=form)
        for seed, count in enumerate((5, 5, ALL, ALL))
    )
    grad, gap = grad.to(wide(dtype)), draw(ALL, seed=4, dtype=wide(dtype)).abs()
    active = torch.tensor([True, False, True, False, True])
    options = {"step_size": 0.7, "lower": -1.5, "upper": None, "project": False}
    if how == "everything":
        x = x.clamp(-1, 1)
        options = {"step_size": draw(ALL, seed=5, dtype=wide(dtype)), "project": True}
        options |= {"lower": torch.tensor([-1.0, -2.0, -1.1]), "upper": torch.tensor([1.0, 1.5, 2.0])}
    of_rows = {name: value[ROWS[active]] if name == "step_size" and how != "plain" else value
               for name, value in options.items()}  # fmt: skip
    want = attack.attack_step(
        x[active], grad[active], norm="boundary", norm_power=norm_power, gap=gap[ROWS[active]], **of_rows
    )
    left, gone = ROWS[active], ROWS[~active]
    mine = images.clone(), inside.clone() if how == "everything" else None
    moved, rows = search.advance(x, grad, ROWS, active, 3, gap, *mine, norm_power=norm_power, **options)
    assert torch.equal(rows, left)
    assert torch.equal(moved, want)
    assert not torch.equal(moved, x[active])
    assert moved.is_contiguous(memory_format=form)
    assert torch.equal(mine[0], images.index_copy(0, gone, x[~active]))
    assert mine[1] is None or torch.equal(mine[1], inside.index_copy(0, left, x[active]))


def test_advance_of_images_that_are_their_own_room(backend):
    """All of the batch before the first step: the samples are the images themselves."""
    images, grad, gap = draw(5, 2, 3), draw(5, 2, 3, seed=1), draw(5, seed=2).abs()
    before, active = images.clone(), torch.tensor([True, False, False, True, True])
    options = {"norm_power": 1, "step_size": 0.5, "lower": None, "upper": None, "project": False}
    moved, _ = search.advance(images, grad, torch.arange(5), active, 3, gap, images, None, **options)
    assert torch.equal(images, before)
    assert not (moved == before[active]).flatten(1).all(1).any()
    with pytest.raises(RuntimeError, match="left"):
        search.advance(images, grad, torch.arange(5), active, 2, gap, images, None, **options)


@by_dtype
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_halve(backend, dtype, form):
    inside, outside = (draw(ALL, 3, 5, 3, seed=s, dtype=dtype).contiguous(memory_format=form) for s in (0, 1))
    base, _ = classes(6, 2)
    middle = search.some_of(inside, ROWS)
    found = draw(ALL, 6, seed=3, dtype=dtype)
    before = inside.clone(), outside.clone(), found.clone()
    half = torch.lerp(inside.to(wide(dtype)), outside.to(wide(dtype)), 0.5).to(dtype)[ROWS]
    search.halve(middle, None, ROWS, base, inside, outside, found, again=True)
    assert torch.equal(middle, half)
    assert all(torch.equal(*pair) for pair in zip((inside, outside, found), before, strict=True))
    logits = draw(5, 6, seed=4, dtype=dtype)
    base[ROWS[0]], base[ROWS[2]] = logits[0].argmax(), logits[2].argmax()
    base[ROWS[1]], base[ROWS[3]] = (logits[1].argmax() + 1) % 6, (logits[3].argmax() + 2) % 6
    logits[4, 3], base[ROWS[4]] = torch.nan, 1  # neither side
    short, beyond = torch.tensor([0, 2]), torch.tensor([1, 3])
    for again in (True, False):
        want = (before[0].index_copy(0, ROWS[short], half[short]), before[1].index_copy(0, ROWS[beyond], half[beyond]))
        mine = [part.clone() for part in (middle, *before)]
        search.halve(mine[0], logits, ROWS, base, *mine[1:], again=again)
        assert torch.equal(mine[1], want[0])
        assert torch.equal(mine[2], want[1])
        assert torch.equal(mine[3], before[2].index_copy(0, ROWS[beyond], logits[beyond]))
        ends = (part[ROWS].to(wide(dtype)) for part in want)
        assert torch.equal(mine[0], torch.lerp(*ends, 0.5).to(dtype) if again else half)


@by_dtype
@pytest.mark.parametrize("score", ["logits", "softmax"])
@pytest.mark.parametrize("retarget", [True, False])
@pytest.mark.parametrize("accept_all", [True, False])
def test_outcome(backend, dtype, score, retarget, accept_all):
    logits = poisoned(draw(ALL, 6, dtype=dtype))
    top = logits.argmax(1)
    base, target = (top + 1) % 6, (top + 2) % 6
    base[0], target[3], steps = top[0], top[3], torch.ones(ALL, dtype=torch.int64)
    steps[4], valid = 0, torch.arange(ALL) != 5
    infinite = Status.FAILED if score == "softmax" else Status.THIRD  # which no difference of two others shows
    want = [Status.UNCROSSED, Status.FAILED, infinite, Status.CROSSED, Status.OUTSIDE, Status.PADDED]
    want = torch.tensor([*want, *[Status.THIRD] * (ALL - 6)])
    third = want == Status.THIRD
    taken = {"accept_all": accept_all, "retarget": retarget}
    landed, status, gap, accepted = search.outcome(logits, base, target, steps, valid, score=score, **taken)
    assert torch.equal(status, want)
    target = torch.where(third & retarget, top, target)
    assert torch.equal(landed, target)
    value = attack.attack_objective(logits, base, loss="boundary", target=target, score=score)[0]
    torch.testing.assert_close(gap, torch.where(valid, -value, 0.0), rtol=0, atol=0, equal_nan=True)
    kept = want <= Status.OUTSIDE if accept_all else want == Status.CROSSED
    assert torch.equal(accepted, kept | third if retarget else kept)


class Convolutions(nn.Module):
    """Every form of weight that is folded."""

    def __init__(self, dimensions):
        super().__init__()
        convolution, norm = getattr(nn, f"Conv{dimensions}d"), getattr(nn, f"BatchNorm{dimensions}d")
        parts = []
        for into, out, kernel, bias, affine in ((3, 6, 3, False, True), (6, 4, 1, True, True), (4, 4, 2, False, False)):
            parts += [convolution(into, out, kernel, bias=bias), norm(out, eps=1e-3, affine=affine)]
        self.parts = nn.Sequential(*parts)
        generator = torch.Generator().manual_seed(0)
        for buffer in self.buffers():
            if buffer.is_floating_point():
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))

    def forward(self, x):
        return self.parts(x)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_fold(backend, dimensions, dtype, form, monkeypatch):
    net = Convolutions(dimensions).to(dtype)
    if dimensions == 2:
        net = net.to(memory_format=form)
    pairs = [(net.parts[i], net.parts[i + 1]) for i in (0, 2, 4)]
    folds = folding.Folds(pairs)
    for channels_last in (True, False):
        folds.convert(None, channels_last)
        with torch.no_grad():
            mine = folds.values()
            monkeypatch.setattr(folds, "_alike", False)
            plain = folds.values()
            monkeypatch.undo()
        for got, expected in zip(mine, plain, strict=True):
            assert torch.equal(got, expected)
            assert got.stride() == expected.stride() or 1 in got.shape
    x = draw(2, 3, *[6] * dimensions, dtype=dtype)
    if dtype == torch.float32:
        exact = copy.deepcopy(net).double().eval()(x.double())
        views = frozen(net), frozen(net, fold_batchnorm=False)
        mine, plain = ((view(x).double() - exact).abs().max() for view in views)
        assert views[0].folded
        assert mine <= 2 * plain


@pytest.mark.parametrize("name", ["judge", "advance", "halve", "outcome", "fold"])
def test_schemas_and_fakes(backend, name):
    base, target = classes(4, 0)
    steps, gap, found = torch.zeros(ALL, dtype=torch.int64), torch.ones(ALL), torch.zeros(ALL, 4)
    images, inside, active = draw(ALL, 3, 4, 4), draw(ALL, 3, 4, 4), torch.tensor([True, False, True, True, False])
    x, logits, bounds = draw(5, 3, 4, 4), draw(5, 4), torch.ones(3)
    vectors = [[torch.ones(6)] for _ in range(5)]
    calls = {
        "judge": (logits, ROWS, base, target, found, gap, steps, False, True),
        "advance": (x, x.clone(), ROWS, active, 3, gap, None, -bounds, bounds, images, inside, 3, 0.3, 0.0, 0.0, True),
        "halve": (x, logits, ROWS, base, inside, images, found, True),
        "outcome": (draw(ALL, 4), base, target, steps, None, True, False, True),
        "fold": ([draw(6, 3, 2, 2)], *vectors, [1e-5], True),
    }
    operator = getattr(torch.ops.amkd_fast, f"attack_{name}").default
    tests = ("test_schema",) if name == "judge" else ("test_schema", "test_faketensor")  # how many are left is data's
    torch.library.opcheck(operator, calls[name], test_utils=tests)


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("given", [True, False])
def test_whole_search_in_few_calls(preset, dtype, given, monkeypatch):
    """The same samples as by the loop that every backend has."""
    net, (images, labels) = make_net(1).to(dtype), make_images(24, 7)
    images = images.to(dtype).clamp(-2.5, 2.5)
    options = {"step_size": 0.2 + torch.rand(24, generator=torch.Generator().manual_seed(0))}
    attacked = BoundaryAttack(frozen(net), preset=preset, lower=-2.5, upper=2.5, **options)
    classes = (labels, (labels + 1) % 5) if given else (None, None)
    for valid in (None, torch.arange(24) % 5 != 0):
        got = attacked(images, *classes, valid=valid, seed=2)
        with monkeypatch.context() as patched:
            patched.setattr(search, "serves", lambda _: False)
            want = attacked(images, *classes, valid=valid, seed=2)
        assert len(set(got.status.tolist())) > 1
        assert len(set(got.steps.tolist())) > 1
        for name, one, two in zip(got._fields, got, want, strict=True):
            assert one is two or torch.equal(one, two), name


@pytest.mark.parametrize("overwriting", [True, False])
def test_relu_takes_no_gradient_that_others_hold(overwriting):
    def relu(x):
        return folding.relu_over(x) if overwriting else F.relu(x)

    leaf, grad = draw(4, 3, seed=1).requires_grad_(), draw(4, 3, seed=2)
    before = grad.clone()
    assert torch.equal(torch.autograd.grad(relu(leaf * 2), leaf, grad)[0], 2 * before * (leaf > 0))
    assert torch.equal(grad, before)
    x = leaf * 3
    y = relu(x * 1) * 2
    z = relu(y * 1) + y + relu(y * 0.5)  # its gradient goes to three
    (first,) = torch.autograd.grad(z, leaf, grad, create_graph=True)
    assert torch.equal(grad, before)
    torch.testing.assert_close(first, grad * 15 * (leaf > 0))
    square = relu(leaf * leaf * leaf)
    (first,) = torch.autograd.grad(square, leaf, grad, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), leaf)
    torch.testing.assert_close(second, 6 * leaf * grad * (leaf > 0))


def test_perturb_spares_the_last_pass():
    rows = []

    class Counting(nn.Linear):
        def forward(self, x):
            rows.append(len(x))
            return super().forward(x)

    net = Counting(12, 4)
    images, labels, valid = draw(6, 12).clamp(-1, 1), torch.arange(6) % 4, torch.arange(6) != 2
    for options, passes in (({}, 3), ({"keep": "best"}, 4), ({"random_start": True}, 3), ({"momentum": 1.0}, 3)):
        attacked = PGD(net, eps=0.3, steps=3, lower=-1.0, upper=1.0, **options)
        want = attacked(images, labels, valid=valid, seed=1)
        rows.clear()
        got = attacked.perturb(images, labels, valid=valid, seed=1)
        assert len(rows) == passes
        assert torch.equal(got, want.images)
        assert not torch.equal(got[0], images[0])
        assert torch.equal(got[2], images[2])
    assert attacked.perturb(images[:0], labels[:0]).shape == (0, 12)
