"""The attack engine against a loop that takes sample by sample, and what it must leave alone."""

import copy
import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from amkd_fast.attacks import PGD, PRESETS, BoundaryAttack, Status, frozen
from amkd_fast.ops.attack import attack_objective


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x):
        return F.relu(self.norm2(self.second(F.relu(self.norm1(self.first(x))))) + x)


class Net(nn.Module):
    """Small, residual, with one convolution whose output is used twice and so must not be folded."""

    def __init__(self, classes=5):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.block = Residual(8)
        self.shared, self.shared_norm = nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8 * 9, classes)

    def forward(self, x):
        x = self.block(F.relu(self.norm(self.stem(x))))
        x = self.shared(x)
        x = F.relu(self.shared_norm(x) + 0.1 * x)
        return self.head(self.drop(x.flatten(1)))


def make_images(count, seed=0):
    """Five classes, each a pattern of its own under noise."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(5, (count,), generator=generator)
    return 0.5 * patterns[labels] + torch.randn(count, 3, 8, 8, generator=generator), labels


@functools.cache
def trained_state(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Net()
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for step in range(40):
            images, labels = make_images(64, 1000 * seed + 500 + step)
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
    return net.state_dict()


def make_net(seed=0, cls=Net):
    """A network in train mode, trained for a second so that its boundaries lie where an attack can reach them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = cls()
    if isinstance(net, Net):
        net.load_state_dict(trained_state(seed))
    return net


def eager_boundary(net, images, base, target, *, steps, eta, power, score, lower, upper):
    """The search (docs/methods.md, Boundary samples) one sample at a time, in the model's own eval mode."""
    net = copy.deepcopy(net).eval()
    results = []
    for image, b, k in zip(images, base.tolist(), target.tolist(), strict=True):
        x, taken = image[None].clone(), 0
        for _ in range(steps):
            x = x.detach().requires_grad_()
            logits = net(x)
            if int(logits.argmax()) != b:
                break
            f = logits.softmax(1) if score == "softmax" else logits
            grad = torch.autograd.grad(f[0, k] - f[0, b], x)[0]
            gap = float((f[0, b] - f[0, k]).detach())
            with torch.no_grad():
                x = (x + eta * (gap + 1e-4) * grad / grad.norm() ** power).clamp(lower, upper)
            taken += 1
        with torch.no_grad():
            logits = net(x)
        p = int(logits.argmax())
        status = Status.UNCROSSED if p == b else Status.CROSSED if p == k else Status.THIRD
        results.append((x.detach()[0], logits[0], status, taken))
    images, logits, status, steps = zip(*results, strict=True)
    return torch.stack(images), torch.stack(logits), torch.tensor(status), torch.tensor(steps)


@pytest.mark.parametrize("preset", ["official", "zoo"])
@pytest.mark.parametrize("seed", range(3))
def test_public_presets_equal_the_eager_loop(preset, seed):
    # float64: in float32 a batch and a single image round differently, and a ReLU at its kink makes 1e-3 of that
    net, images = make_net(seed).double(), make_images(12, seed + 10)[0].double().clamp(-2.5, 2.5)
    base = copy.deepcopy(net).eval()(images).argmax(1)
    target = (base + 1 + torch.arange(12) % 4) % 5
    # a step with which these samples finish at different times and some not at all
    options = {"lower": -2.5, "upper": 2.5, "step_size": 0.6}
    want = eager_boundary(
        net,
        images,
        base,
        target,
        steps=10,
        eta=0.6,
        power=1,
        score="softmax" if preset == "zoo" else "logits",
        lower=-2.5,
        upper=2.5,
    )
    view = frozen(net, fold_batchnorm=False, channels_last=False)
    assert len(set(want[3].tolist())) > 3
    for compact in (False, True):
        got = BoundaryAttack(view, preset=preset, compact=compact, **options)(images, target=target)
        torch.testing.assert_close(got.images, want[0], rtol=0, atol=1e-9)
        torch.testing.assert_close(got.logits, want[1], rtol=0, atol=1e-9)
        assert torch.equal(got.status, want[2])
        assert torch.equal(got.steps, want[3])
        assert got.accepted.all()
    folded = BoundaryAttack(net, preset=preset, **options)(images, target=target)
    torch.testing.assert_close(folded.images, want[0], rtol=0, atol=1e-8)
    assert torch.equal(folded.status, want[2])


def test_official_defaults_are_the_published_ones():
    net, images = make_net().double(), make_images(6)[0].double()
    attack = BoundaryAttack(net, preset="official")
    assert PRESETS["official"][:6] == ("logits", 1, 0.3, "all", -2.5, 2.5)
    assert attack.steps == 10
    base = frozen(net)(images).argmax(1)
    target = (base + 1) % 5
    want = eager_boundary(net, images, base, target, steps=10, eta=0.3, power=1, score="logits", lower=-2.5, upper=2.5)
    torch.testing.assert_close(attack(images, target=target).images, want[0], rtol=0, atol=1e-8)


def test_near_boundary_lands_on_the_boundary():
    net, images = make_net(1), make_images(40, 3)[0].clamp(-3, 3)
    attack = BoundaryAttack(net, lower=-3.0, upper=3.0)
    got = attack(images, seed=4, record_gaps=True)
    assert got.accepted.float().mean() >= 0.95
    assert (got.gap.abs() / got.gaps[0])[got.accepted].median() <= 0.1
    assert (got.gap[got.accepted] <= 0).all()
    logits = copy.deepcopy(net).eval()(got.images)
    torch.testing.assert_close(got.logits, logits, rtol=0, atol=1e-4)
    rows = torch.arange(40)
    torch.testing.assert_close(got.gap, (got.logits[rows, got.base] - got.logits[rows, got.target]))
    third = got.status == Status.THIRD
    assert torch.equal(got.target[third], got.logits.argmax(1)[third])  # retargeted
    coarse = BoundaryAttack(net, lower=-3.0, upper=3.0, refine=0)(images, seed=4)
    assert got.gap[got.accepted].abs().mean() < coarse.gap[coarse.accepted].abs().mean()
    assert (got.images - images).norm() < (coarse.images - images).norm()
    assert torch.equal(got.steps, coarse.steps)


@pytest.mark.parametrize("refine", range(7))
@pytest.mark.parametrize("compact", [False, True])
def test_bisection_halves_the_way(refine, compact):
    """On a linear model the outside point after r halvings is the first grid point of 2^-r of the way beyond."""
    net = nn.Linear(2, 2, bias=False)
    net.weight.data = torch.eye(2)
    images = torch.tensor([[0.9, 0.5], [0.1, 0.2], [3.0, 1.0]])
    options = {"step_size": 1.7, "compact": compact}
    start = BoundaryAttack(net, refine=0, **options)(images)
    got = BoundaryAttack(net, refine=refine, **options)(images)
    share = 0.0
    while share * 1.7 < 1.0:  # the boundary lies at 1/1.7 of the way
        share += 2.0**-refine
    torch.testing.assert_close(got.images, images + share * (start.images - images), rtol=0, atol=1e-3)
    torch.testing.assert_close(got.logits, got.images)


def test_acceptance_follows_preset_and_retarget():
    net, images = make_net(2), make_images(40, 5)[0]
    for preset, retarget in (("paper", None), ("paper", True), ("near_boundary", False), ("official", None)):
        got = BoundaryAttack(net, preset=preset, retarget=retarget, step_size=1.0)(images, seed=1)
        crossed, third = got.status == Status.CROSSED, got.status == Status.THIRD
        assert crossed.any()
        assert third.any()
        want = torch.ones(40, dtype=torch.bool) if preset == "official" else crossed | third if retarget else crossed
        assert torch.equal(got.accepted, want)


def test_gap_trajectory():
    net, images = make_net(), make_images(8)[0]
    view = frozen(net)
    base = view(images).argmax(1)
    target = (base + 2) % 5
    options = {"preset": "official", "step_size": 0.12}
    full = BoundaryAttack(view, **options)(images, base, target, record_gaps=True)
    assert full.gaps.shape == (11, 8)
    for steps in (1, 2, 4):
        short = BoundaryAttack(view, steps=steps, **options)(images, base, target)
        torch.testing.assert_close(full.gaps[steps], short.gap, rtol=0, atol=1e-4)
    assert torch.equal(full.gaps[-1], full.gap)
    assert BoundaryAttack(view, **options)(images).gaps is None


@pytest.mark.parametrize("preset", list(PRESETS))
def test_compaction_changes_no_result(preset):
    net, images = make_net(3), make_images(24, 7)[0]
    valid = torch.arange(24) % 5 != 0
    runs = [
        BoundaryAttack(net, preset=preset, compact=compact, step_size=0.2)(
            images, seed=2, valid=valid, record_gaps=True
        )
        for compact in (True, False)
    ]
    for name, one, two in zip(runs[0]._fields, *runs, strict=True):
        if one.is_floating_point():
            torch.testing.assert_close(one, two, rtol=0, atol=1e-4, equal_nan=True, msg=name)
        else:
            assert torch.equal(one[..., valid], two[..., valid]), name
    for run in runs:
        assert torch.equal(run.images[~valid], images[~valid])
        assert (run.status[~valid] == Status.PADDED).all()
        assert not run.accepted[~valid].any()
        assert not run.steps[~valid].any()
        assert not run.logits[~valid].any()


def test_finished_and_padded_samples_cost_nothing():
    rows = []

    class Counting(nn.Linear):
        def forward(self, x):
            rows.append(len(x))
            return super().forward(x)

    net = Counting(2, 2, bias=False)
    net.weight.data = torch.eye(2)
    images = torch.tensor([[0.6, 0.5], [9.0, 0.0], [0.6, 0.5], [5.0, 0.0]])
    attack = BoundaryAttack(net, preset="official", step_size=0.75)
    attack(images)
    rows.clear()
    got = attack(images, valid=torch.tensor([True, True, False, True]))
    assert max(rows) == 3
    assert sum(rows) == int((got.steps + 1)[[0, 1, 3]].sum())  # one pass a step and the one that sees the end
    assert got.steps.tolist() == [1, 2, 0, 1]  # 9 is cut off at the preset's bound and comes one step later


def test_sample_that_starts_outside_its_base_does_not_move():
    net, images = make_net(), make_images(6)[0]
    base = frozen(net)(images).argmax(1)
    wrong = torch.where(torch.arange(6) < 3, (base + 1) % 5, base)
    for preset in PRESETS:
        got = BoundaryAttack(net, preset=preset)(images, wrong)
        assert (got.status[:3] == Status.OUTSIDE).all()
        assert torch.equal(got.images[:3], images[:3])
        assert (got.status[3:] != Status.OUTSIDE).all()
        assert got.accepted[:3].all() == (preset in ("official", "zoo"))


def test_targets_are_the_runner_up_or_drawn():
    net, images = make_net(), make_images(30)[0]
    logits = frozen(net)(images)
    attack = BoundaryAttack(net, preset="official")
    assert torch.equal(attack(images).target, logits.topk(2).indices[:, 1])
    drawn = attack(images, seed=3).target
    assert not torch.equal(drawn, attack(images, seed=4).target)
    assert torch.equal(drawn, attack(images, seed=torch.tensor(3)).target)
    assert (drawn != logits.argmax(1)).all()


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("preset", list(PRESETS))
def test_empty_and_all_padded_batches(count, preset):
    net, images = make_net(), make_images(count)[0]
    valid = torch.zeros(count, dtype=torch.bool)
    for compact in (True, False):
        got = BoundaryAttack(net, preset=preset, compact=compact)(images, valid=valid, record_gaps=True)
        assert got.images.shape == images.shape
        assert got.logits.shape == (count, 5)
        assert got.gaps.shape == (11, count)
        assert not got.accepted.any()
        result = PGD(net, eps=0.1, compact=compact)(images, valid=valid)
        assert result.logits.shape == (count, 5)
        assert torch.equal(result.images, images)


class Poisoned(nn.Module):
    """Gives NaN logits, or NaN or zero gradients, to chosen images (those with a large first pixel)."""

    def __init__(self, kind):
        super().__init__()
        self.net, self.kind = nn.Linear(12, 3), kind

    def forward(self, x):
        x = x.flatten(1)
        bad = (x[:, :1] > 5).to(x.dtype)
        if self.kind == "zero":
            return self.net(x * (1 - bad)) + torch.tensor([0.5, 0.0, 0.0])
        if self.kind == "nan":
            return self.net(x) + torch.where(bad > 0, math.nan, 0.0)
        # finite values, infinite slope
        return self.net(x) + bad * (x - x.detach()).abs().sum(1, keepdim=True).sqrt()


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(["zero", "nan", "slope"]),
    bad=st.lists(st.booleans(), min_size=5, max_size=5),
    preset=st.sampled_from(list(PRESETS)),
    seed=st.integers(0, 1000),
    compact=st.booleans(),
)
def test_poisoned_samples_stay_and_spoil_no_other(kind, bad, preset, seed, compact):
    torch.manual_seed(seed)
    net, images, bad = Poisoned(kind), torch.rand(5, 3, 2, 2), torch.tensor(bad)
    clean = images.clone()
    images[bad, 0, 0, 0] = 9.0
    attack = BoundaryAttack(net, preset=preset, lower=-10.0, upper=10.0, compact=compact)
    got, alone = attack(images), attack(clean)
    assert torch.isfinite(got.images).all()
    assert torch.equal(got.images[bad], images[bad])
    torch.testing.assert_close(got.images[~bad], alone.images[~bad])
    if kind == "nan":
        assert (got.status[bad] == Status.FAILED).all()
        assert not got.accepted[bad].any()
    for norm in ("linf", "l2", "l1"):
        result = PGD(net, eps=0.2, norm=norm, steps=3, compact=compact)(images)
        assert torch.isfinite(result.images).all()
        assert torch.equal(result.images[bad], images[bad])


# What must stay as it was


def snapshot(net):
    return {
        "values": {name: value.clone() for name, value in net.state_dict().items()},
        "ids": [id(value) for value in (*net.parameters(), *net.buffers())],
        "versions": [value._version for value in (*net.parameters(), *net.buffers())],
        "flags": [value.requires_grad for value in net.parameters()],
        "grads": [None if value.grad is None else value.grad.clone() for value in net.parameters()],
        "modes": [module.training for module in net.modules()],
        "hooks": [len(module._forward_hooks) for module in net.modules()],
        "random": torch.get_rng_state(),
        "grad_mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
    }


def same(one, two):
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


class Raising(Net):
    """Raises at its ``fail_at``-th pass; draws random numbers in eval mode, too."""

    fail_at = 10**9
    calls = 0  # kept on the class, where copies of the network share it

    def forward(self, x):
        Raising.calls += 1
        if Raising.calls >= self.fail_at:
            raise RuntimeError("the model raised")
        torch.rand(3)
        return super().forward(x)


@pytest.mark.parametrize("fail_at", [None, 1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["folded", "plain", "hooked"])
@pytest.mark.parametrize("surroundings", ["plain", "no_grad", "inference", "autocast"])
def test_nothing_of_the_callers_changes(fail_at, kind, surroundings):
    if kind == "folded" and fail_at in (3, 4):
        fail_at = 2  # the folded copy no longer passes through forward's Python
    net = make_net(cls=Raising)
    net.fail_at = fail_at or 10**9
    net.train()
    net.block.eval()  # mixed modes must come back as they were
    for parameter in list(net.parameters())[::2]:
        parameter.grad = torch.ones_like(parameter)
    next(iter(net.parameters())).requires_grad_(False)
    if kind == "hooked":
        net.block.register_forward_hook(lambda module, inputs, output: None)
    images = make_images(4)[0]
    kept = images.clone()
    context = {
        "plain": torch.enable_grad,
        "no_grad": torch.no_grad,
        "inference": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    }[surroundings]
    with context():
        before = snapshot(net)
        for make in (
            lambda: BoundaryAttack(frozen(net, fold_batchnorm=kind != "plain"))(images),
            lambda: PGD(frozen(net, fold_batchnorm=kind != "plain"), eps=0.1, steps=4)(images),
        ):
            Raising.calls = 0
            if fail_at is None:
                result = make()
                assert not result.images.requires_grad
                assert not result.logits.requires_grad
            else:
                with pytest.raises(RuntimeError, match="the model raised"):
                    make()
            assert same(before, snapshot(net))
    assert torch.equal(images, kept)


# The frozen view


def test_folding_is_done_and_exact():
    net, images = make_net(), make_images(5)[0]
    want = copy.deepcopy(net).eval()(images)
    view = frozen(net)
    torch.testing.assert_close(view(images), want, rtol=0, atol=1e-5)
    assert view.folded
    assert view.reason == ""
    norms = [module for module in view._run._network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 1  # the one whose convolution has a second user
    leaf = images.clone().requires_grad_()
    view(leaf).sum().backward()
    assert leaf.grad is not None
    assert all(parameter.grad is None for parameter in net.parameters())
    with torch.inference_mode():
        frozen(net)(images)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("dtype", [None, torch.float64, torch.bfloat16])
def test_view_follows_the_model(fold, dtype):
    net, images = make_net(), make_images(5)[0]
    view = frozen(net, fold_batchnorm=fold, dtype=dtype)
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-5

    def check():
        got = view(images)
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        want = copy.deepcopy(net).eval()(images)
        torch.testing.assert_close(got.float(), want, rtol=tolerance, atol=tolerance)
        assert view.folded == fold
        return got

    first = check()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net.train()(images).square().mean().backward()
    optimizer.step()
    second = check()
    assert not torch.allclose(first, second, atol=1e-3)
    net(images + 1)  # moves running statistics alone
    third = check()
    assert not torch.allclose(second, third, atol=1e-4)
    net.load_state_dict(make_net(5).state_dict())
    check()
    net.head = nn.Linear(72, 7)  # another structure
    assert check().shape == (5, 7)
    net.norm.weight.data.mul_(3.0)  # leaves no trace in the version
    check()


class Branching(Net):
    def forward(self, x):
        return super().forward(x) if x.mean() < 100 else super().forward(-x)


class Random(Net):
    def forward(self, x):
        return super().forward(x + 0.5 * torch.rand_like(x))


class Viewing(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4 * 36, 5)

    def forward(self, x):
        x = self[1](self[0](x))
        return self.head(x.view(x.size(0), -1))


class Volume(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.Linear(4 * 64, 5)

    def forward(self, x):
        return self.head(self.norm(self.conv(x[..., None])).flatten(1))


class Shared(Net):
    """The same convolution under two normalisations, and a weight read from outside."""

    def forward(self, x):
        x = self.norm(self.stem(x)) + self.block.norm1(self.stem(x)) + self.stem.weight.mean()
        return self.head(self.shared(x).flatten(1))


@pytest.mark.parametrize(
    ("cls", "folded", "reason"),
    [
        (Branching, False, "cannot trace"),
        (Random, False, "outputs differ"),
        (Viewing, True, ""),
        (Volume, True, ""),
        (Shared, False, "no convolution"),
    ],
)
def test_unusual_models_keep_their_results(cls, folded, reason):
    net, images = make_net(cls=cls), make_images(4)[0]
    view = frozen(net)
    state = torch.get_rng_state()
    got = view(images)
    torch.set_rng_state(state)
    torch.testing.assert_close(got, copy.deepcopy(net).eval()(images), rtol=0, atol=1e-5)
    assert view.folded == folded
    assert reason in view.reason
    BoundaryAttack(net)(images)


def test_hooks_run_and_forbid_folding():
    net, images, seen = make_net(), make_images(4)[0], []
    view = frozen(net)
    view(images)
    net.block.register_forward_hook(lambda module, inputs, output: seen.append(module.training) or output * 2)
    doubled = view(images)
    assert not view.folded
    assert "hooks" in view.reason
    assert seen
    assert not any(seen)
    torch.testing.assert_close(doubled, copy.deepcopy(net).eval()(images), rtol=0, atol=1e-5)


def test_logits_of_and_bad_outputs():
    class Two(Net):
        def forward(self, x):
            return {"features": x, "logits": super().forward(x)}

    net, images = make_net(cls=Two), make_images(4)[0]
    plain = make_net()
    got = BoundaryAttack(net, logits_of=lambda outputs: outputs["logits"])(images)
    want = BoundaryAttack(plain)(images)
    torch.testing.assert_close(got.images, want.images)
    assert got.status.tolist() == want.status.tolist()
    with pytest.raises(ValueError, match="logits_of"):
        BoundaryAttack(net)(images)
    with pytest.raises(ValueError, match="no graph"):
        BoundaryAttack(plain, logits_of=lambda outputs: outputs.detach())(images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_image_dtypes_and_layouts_come_back(dtype):
    net, images = make_net(), make_images(6)[0].clamp(-3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
    got = BoundaryAttack(net, lower=-3.0, upper=3.0)(images)
    assert got.images.dtype == dtype
    assert got.images.is_contiguous(memory_format=torch.channels_last)
    assert got.accepted.any()
    # the logits belong to the rounded images that are returned
    torch.testing.assert_close(got.logits, frozen(net)(got.images), rtol=1e-4, atol=1e-4)


# PGD


def eager_pgd(net, images, labels, *, eps, eta, steps, norm, mu=None, lower=-3.0, upper=3.0):
    net = copy.deepcopy(net).eval()
    x, velocity = images.clone(), torch.zeros_like(images)
    for _ in range(steps):
        x = x.detach().requires_grad_()
        g = torch.autograd.grad(F.cross_entropy(net(x), labels, reduction="sum"), x)[0]
        if mu is not None:
            velocity = mu * velocity + g / g.abs().mean((1, 2, 3), keepdim=True)
            g = velocity
        with torch.no_grad():
            if norm == "linf":
                x = images + (x + eta * g.sign() - images).clamp(-eps, eps)
            else:
                d = x + eta * g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1) - images
                x = images + d * (eps / d.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(max=1)
            x = x.clamp(lower, upper)
    return x.detach()


@pytest.mark.parametrize(("norm", "mu"), [("linf", None), ("linf", 1.0), ("l2", None), ("l2", 0.5)])
@pytest.mark.parametrize("steps", [1, 6])
def test_pgd_equals_the_eager_loop(norm, mu, steps):
    # In fp64: the sign of a gradient that is nearly 0 is a step up or a step down.
    net, images, labels = make_net().double(), make_images(8)[0].double().clamp(-3, 3), torch.arange(8) % 5
    view = frozen(net, fold_batchnorm=False, channels_last=False)
    attack = PGD(view, eps=0.3, step_size=0.11, steps=steps, norm=norm, momentum=mu, lower=-3.0, upper=3.0)
    got = attack(images, labels)
    want = eager_pgd(net, images, labels, eps=0.3, eta=0.11, steps=steps, norm=norm, mu=mu)
    torch.testing.assert_close(got.images, want, rtol=0, atol=1e-9)
    logits = copy.deepcopy(net).eval()(want)
    torch.testing.assert_close(got.logits, logits, rtol=0, atol=1e-9)
    torch.testing.assert_close(got.value, F.cross_entropy(logits, labels, reduction="none"), rtol=0, atol=1e-9)
    assert torch.equal(got.adversarial, logits.argmax(1) != labels)
    assert got.steps.tolist() == [steps] * 8


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("keep", ["last", "best", "first"])
def test_pgd_radius_bounds_and_kept_iterate(norm, keep):
    net, images = make_net().double(), make_images(16)[0].double().clamp(-1, 1)  # see test_pgd_equals_the_eager_loop
    upper = torch.tensor([1.0, 1.0, 0.9], dtype=torch.float64)
    eps = torch.linspace(0, 30 if norm == "l1" else 2, 16)
    labels = frozen(net)(images).argmax(1)
    attack = PGD(
        net,
        eps=eps,
        norm=norm,
        steps=5,
        random_start=True,
        restarts=3,
        keep=keep,
        lower=-1.0,
        upper=upper,
        top=0.2,
    )
    assert not (frozen(net)(images).argmax(1) != labels).any()
    images[:, 2] = images[:, 2].clamp(max=0.9)
    labels = frozen(net)(images).argmax(1)
    got = attack(images, labels, seed=3)
    order = {"linf": math.inf, "l2": 2, "l1": 1}[norm]
    distance = torch.linalg.vector_norm((got.images - images).flatten(1).double(), order, dim=1)
    assert (distance <= eps * (1 + 1e-5) + 1e-6).all()
    assert got.images.amin() >= -1
    assert (got.images.amax((0, 2, 3)) <= upper).all()
    torch.testing.assert_close(got.logits, frozen(net)(got.images), rtol=0, atol=1e-9)
    assert torch.equal(got.adversarial, got.logits.argmax(1) != labels)
    assert got.adversarial.any()
    assert not got.adversarial[0]
    again = attack(images, labels, seed=3)
    assert torch.equal(got.images, again.images)
    assert not torch.equal(got.images, attack(images, labels, seed=4).images)
    dense = PGD(
        net,
        eps=eps,
        norm=norm,
        steps=5,
        random_start=True,
        restarts=3,
        keep=keep,
        compact=False,
        top=0.2,
        lower=-1.0,
        upper=upper,
    )(images, labels, seed=3)
    torch.testing.assert_close(dense.images, got.images, rtol=0, atol=1e-9)
    assert torch.equal(dense.steps, got.steps)


def test_pgd_keeps():
    net, images = make_net().double(), make_images(24)[0].double()
    labels = frozen(net)(images).argmax(1)
    runs = {
        keep: PGD(net, eps=0.3, step_size=0.1, steps=8, keep=keep)(images, labels) for keep in ("last", "best", "first")
    }
    assert (runs["best"].value >= runs["last"].value - 1e-5)[runs["best"].adversarial == runs["last"].adversarial].all()
    assert (runs["first"].steps <= runs["last"].steps).all()
    early = runs["first"].adversarial
    assert early.sum() >= runs["last"].adversarial.sum()
    assert (runs["first"].steps[early] < 8).any()
    for row in early.nonzero()[:4, 0].tolist():  # one step fewer is not adversarial
        steps = int(runs["first"].steps[row])
        if steps > 1:
            short = PGD(net, eps=0.3, step_size=0.1, steps=steps - 1)(images[row : row + 1], labels[row : row + 1])
            assert not short.adversarial.any()


def test_restarts_take_survivors_only():
    net, images = make_net(), make_images(24)[0]
    labels = frozen(net)(images).argmax(1)
    options = {"eps": 0.1, "steps": 2, "random_start": True}
    one = PGD(net, **options)(images, labels, seed=1)
    many = PGD(net, restarts=4, **options)(images, labels, seed=1)
    assert one.adversarial.any()
    assert not one.adversarial.all()
    assert torch.equal(one.images[one.adversarial], many.images[one.adversarial])
    assert torch.equal(many.steps[one.adversarial], one.steps[one.adversarial])
    survivors = ~one.adversarial & ~many.adversarial
    assert (many.steps[survivors] == 8).all()
    assert torch.equal(one.images[survivors], many.images[survivors])


@pytest.mark.parametrize("loss", ["ce", "boundary", "dlr"])
def test_targeted_attack_goes_to_its_target(loss):
    net, images = make_net(), make_images(16)[0]
    labels = frozen(net)(images).argmax(1)
    target = (labels + 1) % 5
    got = PGD(net, eps=1.0, steps=20, targeted=True, loss=loss)(images, labels, target)
    start = attack_objective(frozen(net)(images), labels, loss=loss, target=target, targeted=True)[0]
    assert (got.value > start).all()
    assert got.adversarial.float().mean() > (0.1 if loss == "dlr" else 0.7)  # dlr may lift a third class above both
    assert torch.equal(got.adversarial, got.logits.argmax(1) == target)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda net: BoundaryAttack(net, preset="bss"), ValueError, "preset='bss'"),
        (lambda net: BoundaryAttack(net, steps=0), ValueError, "steps=0"),
        (lambda net: BoundaryAttack(net, steps=1.0), TypeError, "steps is a float"),
        (lambda net: BoundaryAttack(net, step_size=-1.0), ValueError, "step_size=-1.0"),
        (lambda net: BoundaryAttack(net, refine=-1), ValueError, "refine=-1"),
        (lambda net: BoundaryAttack(net, retarget=3), ValueError, "retarget=3"),
        (lambda net: BoundaryAttack(net, capture="yes"), ValueError, "capture='yes'"),
        (lambda net: BoundaryAttack(lambda x: x), TypeError, "model is a function"),
        (lambda net: BoundaryAttack(net)(torch.zeros(3)), ValueError, "images.shape"),
        (lambda net: BoundaryAttack(net)(make_images(2)[0], torch.zeros(3).long()), ValueError, "base.shape"),
        (lambda net: BoundaryAttack(net)(make_images(2)[0], valid=torch.zeros(2)), TypeError, "valid.dtype"),
        (lambda net: BoundaryAttack(net, lower=torch.zeros(2))(make_images(2)[0]), ValueError, "lower.shape"),
        (lambda net: BoundaryAttack(net)(make_images(2)[0], target=torch.tensor([0, 9])), ValueError, "target holds 9"),
        (lambda net: PGD(net, eps=-1.0), ValueError, "eps=-1.0"),
        (lambda net: PGD(net, eps=1.0, restarts=2), ValueError, "restarts=2"),
        (lambda net: PGD(net, eps=1.0, norm="boundary"), ValueError, "norm='boundary'"),
        (lambda net: PGD(net, eps=1.0, keep="all"), ValueError, "keep='all'"),
        (lambda net: PGD(net, eps=1.0, targeted=True)(make_images(2)[0]), ValueError, "target=None"),
        (lambda net: PGD(net, eps=torch.ones(3))(make_images(2)[0]), ValueError, "eps.shape"),
        (lambda net: frozen("net"), TypeError, "model is a str"),
        (lambda net: frozen(net, dtype=torch.int8), ValueError, "dtype=torch.int8"),
    ],
)
def test_errors_name_the_argument(make, error, words):
    with pytest.raises(error, match=words):
        make(make_net())
