"""The methods on networks of anyone's, in one process, with padding, in low precision, compiled, and over ranks."""

from __future__ import annotations

import copy
import doctest
import importlib
import itertools
import pkgutil
import subprocess
import sys

import processes
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from traps import NothingWaits

import amkd_fast as af
from amkd_fast import methods
from amkd_fast.attacks import BoundaryAttack
from amkd_fast.attacks.folding import Folds
from amkd_fast.methods import (
    AMKD,
    AT,
    BN_POLICIES,
    BSS,
    CCD,
    CRD,
    DKD,
    KD,
    MKD,
    RKD,
    SP,
    TALD,
    Batch,
    Constant,
    Delayed,
    ExtendedKD,
    Falling,
    FitNet,
    Linear,
    ReviewKD,
    Rising,
    StepContext,
    StudentAlone,
    TripletKD,
    bss,
    frozen_statistics,
    outputs,
    schedules,
    statistics_of,
    unchanged_statistics,
)

B, K, LIMIT = 24, 5, 8
NOW = StepContext(epoch=0, epochs=60, draw=3)
BOUNDS = {"lower": -2.0, "upper": 2.0}
FEATURES = {"variant": "student_space", "space": "features"}
ATTACKING = {
    "official": lambda **more: BSS(preset="official", limit=LIMIT, **more),
    "paper": lambda **more: BSS(preset="paper", attack=BOUNDS, limit=LIMIT, **more),
    "zoo": lambda **more: BSS(preset="zoo", attack=BOUNDS, limit=LIMIT, **more),
    "near_boundary": lambda **more: BSS(attack=BOUNDS, limit=LIMIT, **more),
    "amkd": lambda **more: AMKD(attack=BOUNDS, limit=LIMIT, margin=3.0, **more),
    "amkd-features": lambda **more: AMKD(attack=BOUNDS, limit=LIMIT, margin=3.0, **FEATURES, **more),
}
STAGES = {"student_stages": ["conv"], "teacher_stages": ["norm"]}
PLAIN = {"student": lambda **more: StudentAlone(**more), "kd": lambda **more: KD(**more)}
NEIGHBOURS = {
    "dkd": lambda **more: DKD(**more),
    "rkd": lambda **more: RKD(**more),
    "rkd-logits": lambda **more: RKD(space="logits", **more),
    "triplet-ce": lambda **more: TripletKD(**more),
    "triplet-kd": lambda **more: TripletKD(kl_weight=1.0, **more),
    "extended-kd": lambda **more: ExtendedKD(**STAGES, **more),
    "fitnet": lambda **more: FitNet(**STAGES, **more),
    "at": lambda **more: AT(**STAGES, **more),
    "sp": lambda **more: SP(**STAGES, **more),
    "reviewkd": lambda **more: ReviewKD(**STAGES, **more),
    "crd": lambda **more: CRD(torch.arange(B) % K, features=6, **more),
    "ccd": lambda **more: CCD(mean=[0.5, 0.4, 0.6], std=0.5, **more),
    "tald": lambda **more: TALD(eps=0.1, steps=2, **BOUNDS, **more),
    "mkd": lambda **more: MKD(ce_weight=0.5, **more),
}
PARTS = {
    "student": {"ce"},
    "kd": {"ce", "kl"},
    "dkd": {"ce", "kl"},
    "rkd": {"ce", "distance", "angle"},
    "rkd-logits": {"ce", "distance", "angle"},
    "triplet-ce": {"ce", "triplet"},
    "triplet-kd": {"ce", "kl", "triplet"},
    "extended-kd": {"segments"},
    "fitnet": {"ce", "hint"},
    "at": {"ce", "attention"},
    "sp": {"ce", "similarity"},
    "reviewkd": {"ce", "review"},
    "crd": {"ce", "contrast"},
    "ccd": {"ce", "kl", "augmented"},
    "tald": {"ce", "kl", "particles"},
    "mkd": {"ce", "kl"},
}
RUNS = {"ccd": [B, B], "tald": [B, 4 * B]}  # images that pass the student, where it is not the batch
ALL = {**PLAIN, **NEIGHBOURS, **ATTACKING}


class Net(nn.Module):
    """With BatchNorm, without `embed` and `head`."""

    def __init__(self, width=8):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Linear(width, K)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def problem(dtype=torch.float64):
    """A batch that the teacher classifies rightly, and a student that nearly does."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = Net()
        images = torch.randn(400, 3, 6, 6).clamp(-2.0, 2.0)
        teacher(images)
        teacher.fc.weight.data.mul_(8.0)
        student = copy.deepcopy(teacher)
        for parameter in student.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    teacher, student, images = teacher.eval().to(dtype), student.train().to(dtype), images.to(dtype)
    with torch.no_grad():
        labels = teacher(images).argmax(1)
    return Batch(images[:B], labels[:B], torch.arange(B)), teacher, student


def taken(method, batch, teacher, student, moment=NOW):
    """Losses, gradients and running statistics of one step."""
    losses = method(batch, teacher, student, moment)
    student.zero_grad()
    losses.total.backward()
    grads = {name: parameter.grad for name, parameter in student.named_parameters()}
    return losses, grads, dict(student.named_buffers())


def _prepared(method, batch, teacher, student):
    """The method with weights of its own that are the same everywhere."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        method.prepare(batch.images, teacher, student)
    return method


def assert_same(one, two, **tolerance):
    torch.testing.assert_close(one[0].total, two[0].total, **tolerance)
    assert one[0].parts.keys() == two[0].parts.keys()
    for values, others in ((one[0].parts, two[0].parts), (one[1], two[1]), (one[2], two[2])):
        for name in values:
            torch.testing.assert_close(values[name], others[name], msg=name, **tolerance)
    if one[0].attack is not None:
        assert one[0].attack.tolist() == two[0].attack.tolist()


@pytest.mark.parametrize("policy", BN_POLICIES)
@pytest.mark.parametrize("name", ALL)
def test_the_student_runs_in_the_images_memory_format(name, policy):
    if name not in ATTACKING and policy != "separate":
        pytest.skip("attacks nothing")
    more = {"bn": policy} if name in ATTACKING else {}
    steps, formats = [], []
    for last in (torch.contiguous_format, torch.channels_last):
        batch, teacher, student = problem()
        batch = batch._replace(images=batch.images.contiguous(memory_format=last))
        method = _prepared(ALL[name](**more), batch, teacher, student)
        student.register_forward_pre_hook(
            lambda _, inputs, last=last: formats.append(inputs[0].is_contiguous(memory_format=last))
        )
        steps.append(taken(method, batch, teacher, student))
    assert len(formats) > 1
    assert all(formats)
    assert_same(*steps, rtol=1e-9, atol=1e-9)
    assert all(grad.is_contiguous() for grad in steps[1][1].values())  # as the weights are


@pytest.mark.parametrize("policy", BN_POLICIES)
@pytest.mark.parametrize("name", ALL)
def test_gradients_go_to_the_student_alone(name, policy):
    batch, teacher, student = problem()
    before = copy.deepcopy(teacher.state_dict())
    calls = []
    method = _prepared(ALL[name](**({"bn": policy} if name in ATTACKING else {})), batch, teacher, student)
    for network in (teacher, student):
        network.register_forward_hook(lambda module, inputs, _: calls.append((module is student, len(inputs[0]))))
    losses, grads, _ = taken(method, batch, teacher, student)
    assert all(torch.isfinite(grad).all() and grad.abs().sum() > 0 for grad in grads.values())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert not teacher.training
    assert student.training
    expected = PARTS.get(name, {"ce", "kl", "boundary"})
    assert set(losses.parts) == expected | ({"triplet"} if name.startswith("amkd") else set())
    assert not any(part.requires_grad for part in losses.parts.values())
    runs = [size for is_student, size in calls if is_student]
    if name not in ATTACKING:
        assert runs == RUNS.get(name, [B])
        return
    attacked, accepted, crossed, third = losses.attack.tolist()
    assert 2 <= attacked <= LIMIT
    assert accepted <= attacked
    assert crossed + third <= attacked
    # Every image passes the student once, but for the policy that has to ask who is attacked before the joint pass.
    assert runs == ([B, B + attacked] if policy == "concatenated" else [B, attacked])


@pytest.mark.parametrize("policy", BN_POLICIES)
@pytest.mark.parametrize("name", ATTACKING)
def test_padded_rows_count_nowhere_and_nothing_waits(name, policy):
    batch, teacher, student = problem()
    other, wide = copy.deepcopy(student), 2 * B  # more places than there can be bases
    expected = taken(_limited(ATTACKING[name](bn=policy), wide), batch, teacher, student)
    method = _limited(ATTACKING[name](bn=policy, fixed_shape=True), wide)
    clone = copy.deepcopy(other)
    taken(method, batch, teacher, clone)  # what is decided once may wait
    moment = NOW._replace(draw=torch.tensor(NOW.draw), weights=_tensors(method.weights(NOW)))
    method._attack[1].inside.seen.add(batch.images.device)  # as a GPU, of whose batches the first alone is looked at
    with NothingWaits():
        found = taken(method, batch, teacher, other, moment)
    assert found[0].attack[0] < wide
    assert_same(found, expected, rtol=1e-9, atol=1e-9)


def _limited(method, limit):
    method.limit = limit
    return method


def _tensors(weights):
    return {name: torch.tensor(weight, dtype=torch.float64) for name, weight in weights.items()}


def test_nobody_to_attack():
    batch, teacher, student = problem()
    wrong = batch._replace(labels=(batch.labels + 1) % K)
    for policy, fixed in itertools.product(BN_POLICIES, (False, True)):
        method = AMKD(attack=BOUNDS, bn=policy, fixed_shape=fixed, limit=4)
        found = taken(method, wrong, teacher, copy.deepcopy(student))
        plain_kd = taken(KD(), wrong, teacher, copy.deepcopy(student))
        assert found[0].attack.tolist() == [0, 0, 0, 0]
        torch.testing.assert_close(found[0].total, plain_kd[0].total)
        for name, grad in found[1].items():
            torch.testing.assert_close(grad, plain_kd[1][name])
        if policy != "concatenated":
            for name, value in found[2].items():
                torch.testing.assert_close(value, plain_kd[2][name])


def test_an_epoch_of_weight_zero_attacks_nothing(monkeypatch):
    batch, teacher, student = problem()
    monkeypatch.setattr(bss, "BoundaryAttack", None)
    losses = AMKD(attack=BOUNDS)(batch, teacher, student, StepContext(epoch=50, epochs=60))
    assert set(losses.parts) == {"ce", "kl"}
    assert losses.attack is None


def test_known_teacher_logits_are_taken():
    batch, _, student = problem()
    known = batch._replace(teacher_logits=torch.randn(B, K, dtype=torch.float64))
    expected = af.distillation_loss(
        student(batch.images), known.teacher_logits, batch.labels, temperature=3.0, ce_weight=1.0, kl_weight=4.0,
        scale_by_t2=False,
    )  # fmt: skip
    torch.testing.assert_close(KD()(known, None, student, NOW).total, expected.total)


@pytest.mark.parametrize(
    "make", [m for name, m in ALL.items() if name != "student"], ids=[n for n in ALL if n != "student"]
)
def test_a_method_without_its_teacher_says_so(make):
    batch, _, student = problem()
    with pytest.raises(ValueError, match=r"teacher=None: must be a network"):
        make()(batch, None, student, NOW)


def test_a_teacher_in_train_mode_is_refused():
    batch, teacher, student = problem()
    with pytest.raises(ValueError, match=r"teacher.training=True: must be in eval mode"):
        KD()(batch, teacher.train(), student, NOW)


def test_the_attack_follows_the_teacher():
    batch, teacher, student = problem()
    method = ATTACKING["near_boundary"]()
    first = method(batch, teacher, student, NOW)
    assert method._attack_of(teacher) is method._attack_of(teacher)
    other = copy.deepcopy(teacher)
    assert method._attack_of(other).model.model is other
    assert torch.isfinite(first.total)
    assert not list(method.parameters())
    assert not any("teacher" in key or "conv" in key for key in method.state_dict())


@pytest.mark.parametrize("name", ["near_boundary", "ccd", "tald"])
def test_the_teacher_is_folded_once_a_step(name, monkeypatch):
    """And in every step: a weight that has changed by then is seen."""
    folds, values = [], Folds.values
    monkeypatch.setattr(Folds, "values", lambda self: folds.append(1) or values(self))
    batch, teacher, student = problem()
    method = {**ATTACKING, **NEIGHBOURS}[name]()
    first = method(batch, teacher, student, NOW)
    folds.clear()
    second = method(batch, teacher, student, NOW)
    assert len(folds) == 1
    teacher.fc.weight.data.mul_(0.5)
    third = method(batch, teacher, student, NOW)
    assert len(folds) == 2
    assert first.parts["kl"] == second.parts["kl"] != third.parts["kl"]


def test_features_are_what_the_classifier_sees():
    batch, _, student = problem()
    logits, seen = outputs.with_features(student, batch.images)
    torch.testing.assert_close(student.fc(seen), logits)
    with pytest.raises(ValueError, match=r"must have a torch.nn.Linear"):
        outputs.with_features(nn.Conv2d(3, 4, 3), batch.images)
    twice = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="it ran 2 times"):
        outputs.with_features(nn.Sequential(twice, twice), torch.zeros(2, 3))


def test_a_memory_is_in_the_state_dict_and_widens_the_pool():
    batch, teacher, student = problem()
    method = AMKD(attack=BOUNDS, limit=LIMIT, margin=3.0, memory=af.CrossBatchMemory(64, K, dtype=torch.float64))
    method(batch, teacher, student, NOW)
    again = AMKD(attack=BOUNDS, limit=LIMIT, margin=3.0, memory=af.CrossBatchMemory(64, K, dtype=torch.float64))
    again.load_state_dict(method.state_dict())
    assert int(again.criterion.memory.filled) == B
    one, two = (m(batch, teacher, copy.deepcopy(student), NOW).total for m in (method, again))
    assert torch.equal(one, two)


# --- statistics


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_of_all_rows_are_batchnorms_own(momentum):
    x = torch.randn(9, 4, 3, 3, dtype=torch.float64) + 5.0
    native, ours = (nn.BatchNorm2d(4, momentum=momentum).double() for _ in range(2))
    for _ in range(3):
        expected = native(x)
        with statistics_of(ours):
            found = ours(x)
        torch.testing.assert_close(found, expected)
        for one, other in zip(ours.buffers(), native.buffers(), strict=True):
            torch.testing.assert_close(one, other)
    with statistics_of(ours), frozen_statistics(ours):
        torch.testing.assert_close(ours(x), copy.deepcopy(ours).eval()(x))
    assert "forward" not in vars(ours)


def test_statistics_of_some_rows():
    x, rows = torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3 > 0
    native, ours = nn.BatchNorm1d(4).double(), nn.BatchNorm1d(4).double()
    expected = native(x[rows])
    with statistics_of(ours, rows):
        torch.testing.assert_close(ours(x)[rows], expected)
        assert ours(x).isfinite().all()
    with statistics_of(ours, torch.zeros(9, dtype=torch.bool)):
        before = copy.deepcopy(ours.state_dict())
        assert ours(x).isfinite().all()
    assert all(torch.equal(before[key], value) for key, value in ours.state_dict().items())


def test_statistics_left_as_they_were():
    batch, _, student = problem()
    before = copy.deepcopy(dict(student.named_buffers()))
    with torch.no_grad(), unchanged_statistics(student):
        student(batch.images)
    with torch.no_grad(), frozen_statistics(student):
        student(batch.images)
    assert torch.equal(student.norm.running_mean, before["norm.running_mean"])
    assert torch.equal(student.norm.running_var, before["norm.running_var"])
    assert student.norm.training
    assert student.norm.momentum == 0.1


# --- schedules


def test_schedules_are_those_of_the_public_trainers():
    for epoch in range(60):
        assert schedules.OFFICIAL_KL(epoch, 60) == pytest.approx(3 * (1 - epoch / 60) + 1)
        assert schedules.OFFICIAL_BOUNDARY(epoch, 60) == pytest.approx(max(2 * (1 - 4 * epoch / (3 * 60)), 0))
        e = epoch + 1  # the zoo's trainer counts from one
        zoo = 0.0 if e <= 10 else max(2 * (1 - 5 * (e - 1) / (4 * 60)), 0)
        assert schedules.ZOO_BOUNDARY(epoch, 60) == pytest.approx(zoo)
    assert Constant(0.3)(59, 60) == 0.3
    assert [Rising(2.0, 20)(epoch, 60) for epoch in (0, 9, 19, 40)] == [0.1, 1.0, 2.0, 2.0]
    assert (Linear(1.0, 0.0)(30, 60), Falling(1.0, 0.5)(45, 60), Delayed(1.0, 1.0, 5)(4, 60)) == (0.5, 0.0, 0.0)
    assert BSS(boundary_weight=0.5).weights(NOW) == {"kl": 4.0, "boundary": 0.5}


# --- low precision, compilation


@pytest.mark.parametrize("name", ["kd", *NEIGHBOURS, "official", "amkd", "amkd-features"])
def test_under_autocast(name):
    batch, teacher, student = problem(torch.float32)
    expected = taken(_prepared(ALL[name](), batch, teacher, student), batch, teacher, copy.deepcopy(student))
    method = _prepared(ALL[name](), batch, teacher, student)
    with torch.autocast("cpu", torch.bfloat16):
        losses = method(batch, teacher, student, NOW)
    losses.total.backward()
    assert losses.total.dtype == torch.float32
    torch.testing.assert_close(losses.total, expected[0].total, rtol=0.15, atol=0.05)
    assert all(torch.isfinite(parameter.grad).all() for parameter in student.parameters())


def test_with_a_gradient_scaler():
    batch, teacher, student = problem(torch.float32)
    method, optimizer = ATTACKING["amkd"](), torch.optim.SGD(student.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    values = []
    for draw in range(8):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            losses = method(batch, teacher, student, NOW._replace(draw=draw))
        scaler.scale(losses.total).backward()
        scaler.step(optimizer)
        scaler.update()
        values.append(losses.total.item())
    assert scaler.get_scale() == 2.0**10  # no step was skipped
    assert values[-1] < values[0]


@pytest.mark.parametrize(("name", "policy"), [("kd", None), *(("amkd", policy) for policy in BN_POLICIES)])
def test_a_compiled_student(name, policy):
    batch, teacher, student = problem()
    more = {"bn": policy} if name in ATTACKING else {}
    other = copy.deepcopy(student)
    expected = taken(ALL[name](**more), batch, teacher, student)
    torch._dynamo.reset()
    compiled = torch.compile(other, backend="aot_eager")
    losses = ALL[name](**more)(batch, teacher, compiled, NOW)
    losses.total.backward()
    found = losses, {name: parameter.grad for name, parameter in other.named_parameters()}, dict(other.named_buffers())
    assert_same(found, expected, rtol=1e-9, atol=1e-9)


def test_accumulated_gradients_are_those_of_the_sum():
    batch, teacher, student = problem()
    method = ATTACKING["amkd"]()
    halves = [Batch(*parts) for parts in zip(batch.images.split(12), batch.labels.split(12), strict=True)]
    single = [taken(method, half, teacher, copy.deepcopy(student))[1] for half in halves]
    for half in halves:
        method(half, teacher, student, NOW).total.backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(parameter.grad, single[0][name] + single[1][name])


# --- attack without an early end


@pytest.mark.parametrize("preset", ["official", "near_boundary"])
def test_all_steps_give_the_same_samples(preset):
    batch, teacher, _ = problem()
    bounds = {} if preset == "official" else BOUNDS
    target = (batch.labels + 1) % K
    one = BoundaryAttack(teacher, preset=preset, **bounds)(batch.images, batch.labels, target)
    attack = BoundaryAttack(teacher, preset=preset, early_exit=False, **bounds)
    attack(batch.images, batch.labels, target)
    attack.inside.seen.add(batch.images.device)  # as a GPU, of whose batches the first alone is looked at
    with NothingWaits():
        two = attack(batch.images, batch.labels, target)
    torch.testing.assert_close(one.images, two.images, rtol=1e-9, atol=1e-9)
    assert torch.equal(one.status, two.status)
    assert torch.equal(one.steps, two.steps)
    with pytest.raises(ValueError, match=r"early_exit=False: must not be used with"):
        BoundaryAttack(teacher, early_exit=False, compact=True)


# --- ranks: every rank has a share of each batch, one of them a small one

WORLD, SHARES = 2, (14, 10)
RANKED = [(name, policy) for name in ALL for policy in BN_POLICIES if name in ATTACKING or policy == "separate"]


def trained(case, rank):
    """Three steps of SGD; ``rank`` None: in one process with everything."""
    name, policy = case
    more = {"bn": policy} if name in ATTACKING else {}
    if name == "amkd":
        more["memory"] = af.CrossBatchMemory(40, K, dtype=torch.float64)
    method = ALL[name](distributed=rank is not None, **more)
    batch, teacher, student = problem()
    _prepared(method, batch, teacher, student)
    parameters = [*student.parameters(), *method.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    log = []
    for step in range(3):
        parts = [part.roll(step, 0) for part in batch[:3]]
        shares = SHARES if step < 2 else (B, 0)  # the last batch leaves a rank without any
        if rank is not None:
            parts = [part.split(shares)[rank] for part in parts]
        with statistics_of(student, distributed=rank is not None):
            losses = method(Batch(*parts), teacher, student, NOW._replace(draw=step))
        optimizer.zero_grad()
        losses.total.backward()
        if rank is not None:  # what DistributedDataParallel does to world_size * loss
            for parameter in parameters:
                dist.all_reduce(parameter.grad)
        optimizer.step()
        parts = {key: part.item() for key, part in losses.parts.items()}
        log.append({**parts, "attack": None if losses.attack is None else losses.attack.tolist()})
    return log, {**student.state_dict(), **{f"method.{key}": value for key, value in method.state_dict().items()}}


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    torch.save([trained(case, rank) for case in RANKED], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(work, (str(folder),), nprocs=WORLD, start_method=processes.METHOD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("case", range(len(RANKED)), ids=lambda i: "-".join(RANKED[i]))
def test_ranks_learn_as_one_process(of_ranks, case):
    log, state = trained(RANKED[case], None)
    for rank in range(WORLD):
        for found, expected in zip(of_ranks[rank][case][0], log, strict=True):
            assert found.pop("attack") == expected["attack"]
            assert found == pytest.approx({k: v for k, v in expected.items() if k != "attack"}, abs=1e-10)
        for key, value in of_ranks[rank][case][1].items():
            torch.testing.assert_close(value, state[key], rtol=1e-9, atol=1e-10)


# --- bad arguments


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BSS(preset="best"), "preset='best'"),
        (lambda: BSS(bn="none"), "bn='none'"),
        (lambda: BSS(limit=0), "limit=0"),
        (lambda: BSS(kl_weight=-1.0), "kl_weight=-1.0"),
        (lambda: BSS(fixed_shape=True, distributed=True), "fixed_shape=True"),
        (lambda: AMKD(triplet_weight=0.0), "triplet_weight=0.0"),
        (lambda: AMKD(preset="official", negatives="target"), "overshooting step"),
        (lambda: AMKD(variant="teacher_anchor", space="features"), "space='features'"),
    ],
)
def test_bad_arguments_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_force_insists():
    assert AMKD(preset="official", negatives="target", force=True).criterion.negatives == "target"


def test_examples_in_the_docstrings():
    for info in pkgutil.iter_modules(methods.__path__, "amkd_fast.methods."):
        assert doctest.testmod(importlib.import_module(info.name)).failed == 0


def test_they_need_torch_alone():
    """Import and step where the packages of the extra cannot be imported."""
    code = """
import sys
for name in ("lightning", "torchmetrics", "sklearn", "matplotlib", "PIL", "pydantic", "yaml", "rich"):
    sys.modules[name] = None  # what Python takes for not installed
import torch
from amkd_fast.methods import KD, Batch, StepContext
student, teacher = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3).eval()
batch = Batch(torch.rand(8, 2), torch.zeros(8).long())
KD()(batch, teacher, student, StepContext(epoch=0, epochs=60)).total.backward()
assert not any(name.startswith("amkd_fast.distill") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
