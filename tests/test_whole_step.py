"""The recorded step: a CUDA graph on a GPU; on a CPU a stand-in runs the function again, in which nothing may wait."""

from __future__ import annotations

import copy

import pytest
import torch
from test_methods import ATTACKING, BOUNDS, K, Net, problem
from traps import NothingWaits

import amkd_fast as af
from amkd_fast.attacks import arguments
from amkd_fast.attacks.capture import CudaGraph
from amkd_fast.distill.whole_step import WholeStep
from amkd_fast.methods import AMKD, KD, Batch, StepContext, StudentAlone

EPOCHS, STEPS = 4, 3
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def _bounds_are_not_looked_at(monkeypatch):
    """As while a graph is captured."""
    monkeypatch.setattr(arguments.BoundsCheck, "check", lambda *_: None)


class Rehearsed:
    """In place of a CUDA graph, with its two runs to warm up; memory that a run makes has a new address each time."""

    made = 0

    def __init__(self, function):
        type(self).made += 1
        for _ in range(2):
            function()
        self._function = function
        self.replay()  # where a recording would only write down

    def replay(self):
        with NothingWaits():
            self._function()


def amkd(**more):
    memory = af.CrossBatchMemory(40, K, dtype=torch.float64)
    return AMKD(attack=BOUNDS, limit=32, margin=3.0, memory=memory, **more)


METHODS = {
    "student": lambda **_: StudentAlone(),
    "kd": lambda **_: KD(),
    "official": lambda **more: ATTACKING["official"](**more),
    "amkd": amkd,
}


def optimizer_of(student, lr):
    return torch.optim.SGD(student.parameters(), lr=lr, momentum=0.9, weight_decay=1e-3, fused=torch.is_tensor(lr))


def batches():
    """A smaller one at the end of each epoch."""
    batch, teacher, _ = problem()
    for epoch in range(EPOCHS):
        for step in range(STEPS):
            rows = slice(0, 24 if step + 1 < STEPS else 10)
            images, labels = batch.images.roll(step, 0)[rows], batch.labels.roll(step, 0)[rows]
            with torch.no_grad():
                known = teacher(images)
            yield Batch(images, labels, None, known), StepContext(epoch, EPOCHS, 10 * epoch + step)


@pytest.mark.parametrize(("device", "graph"), [("cpu", Rehearsed), pytest.param("cuda", CudaGraph, marks=NO_GPU)])
@pytest.mark.parametrize("name", METHODS)
def test_recorded_steps_are_eager_steps(name, device, graph):
    _, teacher, student = problem()
    teacher, eager = teacher.to(device), student.to(device)
    recorded = copy.deepcopy(eager)
    with torch.device(device):
        methods = [METHODS[name](fixed_shape=fixed) for fixed in (False, True)]
        rate = torch.tensor(0.05, dtype=torch.float64)
    plain, optimizer = optimizer_of(eager, 0.05), optimizer_of(recorded, rate)
    whole = WholeStep(methods[1], teacher, recorded, optimizer, graph=graph)
    near = {"rtol": 1e-9, "atol": 1e-9} if device == "cpu" else {"rtol": 1e-6, "atol": 1e-6}  # sums in other orders
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)) for o in (plain, optimizer)]
    Rehearsed.made = 0
    for batch, moment in batches():
        batch = Batch(*(None if part is None else part.to(device) for part in batch))
        expected = methods[0](batch, teacher, eager, moment)
        plain.zero_grad()
        expected.total.backward()
        plain.step()
        before = copy.deepcopy(batch)
        found = whole(batch, moment)
        assert torch.equal(batch.images, before.images)
        torch.testing.assert_close(found.total, expected.total.detach(), **near)
        assert found.parts.keys() == expected.parts.keys()
        for part, value in expected.parts.items():
            torch.testing.assert_close(found.parts[part], value, **near)
        if expected.attack is not None:
            assert found.attack.tolist() == expected.attack.tolist()
        for schedule in schedules:
            schedule.step()
    for key, value in eager.state_dict().items():
        torch.testing.assert_close(recorded.state_dict()[key], value, **near)
    attacks = name in ("official", "amkd")
    assert device == "cuda" or Rehearsed.made == (4 if attacks else 2)  # two sizes of batch, with and without an attack


def test_a_batch_of_which_nobody_is_attacked():
    batch, teacher, student = problem()
    wrong = batch._replace(labels=(batch.labels + 1) % K)
    eager, recorded = amkd(), amkd(fixed_shape=True)
    optimizer = optimizer_of(student, torch.tensor(0.0, dtype=torch.float64))
    expected = eager(wrong, teacher, copy.deepcopy(student), StepContext(0, EPOCHS, 1))
    found = WholeStep(recorded, teacher, student, optimizer, graph=Rehearsed)(wrong, StepContext(0, EPOCHS, 1))
    torch.testing.assert_close(found.total, expected.total.detach())
    for one, other in zip(eager.criterion.memory.buffers(), recorded.criterion.memory.buffers(), strict=True):
        torch.testing.assert_close(one, other)
    assert int(recorded.criterion.memory.filled) == len(wrong.labels)


def test_a_failed_recording_changes_nothing():
    batch, teacher, student = problem()
    before = copy.deepcopy(student.state_dict())

    def failing(function):
        function()
        raise RuntimeError("not to be recorded")

    whole = WholeStep(KD(), teacher, student, optimizer_of(student, torch.tensor(0.1)), graph=failing)
    with pytest.raises(RuntimeError, match="not to be recorded"):
        whole(batch, StepContext(0, EPOCHS, 1))
    assert all(torch.equal(before[key], value) for key, value in student.state_dict().items())


def test_what_cannot_be_recorded_is_named():
    _, teacher, student = problem()
    with pytest.raises(ValueError, match=r"method.fixed_shape=False"):
        WholeStep(amkd(), teacher, student, optimizer_of(student, torch.tensor(0.1)))
    with pytest.raises(TypeError, match="its lr must be a tensor"):
        WholeStep(KD(), teacher, Net(), optimizer_of(student, 0.1))
