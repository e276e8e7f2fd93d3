"""One training step on the handwritten digits, by method: what the attacked images and the triplets add to KD.

A teacher and a student of a few epochs are trained first, as the attack's work depends on what they know. The step then
repeats itself: learning rate 0, one batch, one draw. ``reference`` is the same step with every operation of ours in
plain PyTorch.
"""

from __future__ import annotations

import copy
from functools import lru_cache

import pytest
import torch

from amkd_fast import backends

pytest.importorskip("lightning", reason="training needs the `train` extra: lightning")
pytest.importorskip("sklearn", reason="training needs the `train` extra: scikit-learn")

from amkd_fast.distill import choice, experiment, methods
from amkd_fast.distill import data as datasets
from amkd_fast.distill.data import Batches
from amkd_fast.distill.settings import METHODS, Settings
from amkd_fast.distill.teacher import Teacher

SETTINGS = Settings(teacher_epochs=8, epochs=12)
MOMENT = methods.Moment(epoch=10, epochs=60, draw=7)  # when the zoo attacks, too
PLAIN = ("student", "reference")  # no operation of ours is in it: the same step as under auto
LIMIT = 1e-3  # relative; of loss and gradients against the step on the reference


@lru_cache(maxsize=1)
def _networks():
    data = datasets.load(SETTINGS)
    teacher = Teacher(experiment.train_teacher(data, SETTINGS)[0].network, data)
    student = experiment.train_student("kd", 0, teacher, data, SETTINGS).network
    return data, teacher, student


def _step(method):
    """The step, and its loss and gradients, on a student of its own."""
    data, teacher, student = _networks()
    student = copy.deepcopy(student).train().requires_grad_()
    batch = teacher.inform(next(iter(Batches(data.student, SETTINGS.batch_size, 0, data.augment))))
    method = choice.method(method, SETTINGS, data)
    optimizer = torch.optim.SGD(
        student.parameters(), lr=0.0, momentum=SETTINGS.momentum, weight_decay=SETTINGS.weight_decay
    )

    def step():
        optimizer.zero_grad()
        outcome = method(batch, teacher.network, student, MOMENT)
        outcome.total.backward()
        optimizer.step()
        return outcome

    def answer():
        outcome = step()
        return outcome, torch.cat([outcome.total.detach().view(1), *(p.grad.flatten() for p in student.parameters())])

    return step, answer


@pytest.mark.benchmark(group="training step, digits, batch 64", max_time=1.0, min_rounds=5, disable_gc=True)
@pytest.mark.parametrize(
    ("method", "backend"),
    [(method, backend) for method in METHODS for backend in ("reference", "auto") if (method, backend) != PLAIN],
)
def test_step(benchmark, method, backend):
    with backends.backend("reference"):
        _, expected = _step(method)[1]()
    step, answer = _step(method)
    with backends.backend(backend):
        outcome, got = answer()
        assert ((got - expected).abs().max() / expected.abs().max()).item() <= LIMIT
        benchmark(step)
    if outcome.attack is not None:
        benchmark.extra_info["attack"] = dict(zip(methods.COUNTS, outcome.attack.tolist(), strict=True))
