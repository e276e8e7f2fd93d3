"""The adapters give other frameworks the losses and gradients of the methods themselves.

torchdistill needs torchvision and cannot be imported where these tests were written. ``Box`` below stands in for its
``DistillationBox``: our own few lines, which make the calls that version 1.1.5 makes, in its order. A box of that
version has run with the adapter once, by hand, on a stub of torchvision.
"""

from __future__ import annotations

import copy
import doctest
import sys
import textwrap
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

import amkd_fast as af
from amkd_fast.distill.adapters import MDistillerMethod, TorchdistillLoss, mdistiller, torchdistill
from amkd_fast.methods import (
    AMKD,
    BSS,
    DKD,
    KD,
    RKD,
    TALD,
    Batch,
    ExtendedKD,
    LogitsOf,
    Losses,
    Method,
    StepContext,
    outputs,
)

B, K, EPOCHS = 16, 5, 8
OPTIONS = {"attack": {"lower": -2.0, "upper": 2.0}, "limit": 6}


def memory():
    return af.CrossBatchMemory(64, K, dtype=torch.float64)


METHODS = {
    "kd": KD,
    "bss": lambda: BSS(preset="near_boundary", **OPTIONS),
    "bss-concatenated": lambda: BSS(bn="concatenated", **OPTIONS),
    "amkd": lambda: AMKD(margin=3.0, memory=memory(), **OPTIONS),
    "amkd-features": lambda: AMKD(margin=3.0, variant="student_space", space="features", **OPTIONS),
    "dkd": DKD,
    "rkd": RKD,
    "tald": lambda: TALD(eps=0.1, steps=2),
}


class Net(nn.Module):
    """Answers with logits, as mdistiller's networks do, or as those of transformers."""

    def __init__(self, form="logits", width=8):
        super().__init__()
        self.form = form
        self.conv, self.norm, self.fc = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Linear(width, K)

    def forward(self, x):
        seen = torch.relu(self.norm(self.conv(x)))
        logits = self.fc(seen.mean((2, 3)))
        if self.form == "object":
            return SimpleNamespace(logits=logits)
        return (logits, {"feats": [seen]}) if self.form == "tuple" else logits


def problem(form="logits"):
    """Batches that the teacher classifies rightly, and a student that nearly does."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = Net()
        images = torch.randn(3 * B, 3, 6, 6).clamp(-1.7, 1.7)
        teacher(images)
        teacher.fc.weight.data.mul_(8.0)
        student = copy.deepcopy(teacher)
        for parameter in student.parameters():
            parameter.data.add_(0.03 * torch.randn_like(parameter))
    teacher, student, images = teacher.eval().double(), student.train().double(), images.double()
    labels = teacher(images).argmax(1)
    teacher.form = student.form = form
    return list(zip(images.split(B), labels.split(B), strict=True)), teacher, student


def directly(method, batches, teacher, student, epochs):
    """Losses and gradients of the method itself, with the draws that the adapters promise."""
    found, steps = [], {}
    teacher.form = student.form = "logits"
    for (images, labels), epoch in zip(batches, epochs, strict=True):
        step = steps[epoch] = steps.get(epoch, -1) + 1
        moment = StepContext(epoch, EPOCHS, draw=epoch * 2**32 + step)
        losses = method(Batch(images, labels), teacher, student, moment)
        found.append((losses, gradients(losses.total, student)))
    return found


def gradients(total, student):
    student.zero_grad()
    total.backward()
    return [parameter.grad for parameter in student.parameters()]


def assert_as_directly(found, expected):
    for (total, grads, last), (losses, their_grads) in zip(found, expected, strict=True):
        torch.testing.assert_close(total, losses.total)
        torch.testing.assert_close(grads, their_grads)
        torch.testing.assert_close(last.parts, losses.parts)
        assert not last.total.requires_grad
        assert (last.attack is None) == (losses.attack is None)
        if losses.attack is not None:
            assert last.attack.tolist() == losses.attack.tolist()
            assert losses.attack[0] >= 2


class Probe(Method):
    """Keeps the moments it sees."""

    def __init__(self, **options):
        super().__init__(**options)
        self.moments = []

    def forward(self, batch, teacher, student, moment):
        self.moments.append(moment)
        return Losses(student(batch.images).sum(), {})


# --- mdistiller


@pytest.mark.parametrize("form", ["logits", "tuple", "object"])
@pytest.mark.parametrize("name", METHODS)
def test_mdistiller_learns_as_the_method(name, form):
    batches, teacher, student = problem(form)
    before, other = copy.deepcopy(teacher.state_dict()), copy.deepcopy((teacher, student))
    distiller = MDistillerMethod(student, teacher, METHODS[name](), EPOCHS)
    found = []
    for (images, labels), epoch in zip(batches, (3, 3, 4), strict=True):
        distiller.train()
        expected = LogitsOf(copy.deepcopy(student))(images)
        logits, losses = distiller(image=images, target=labels, index=torch.arange(B), epoch=epoch)
        total = sum(loss.mean() for loss in losses.values())  # as its trainer does
        found.append((total, gradients(total, student), distiller.last))
        torch.testing.assert_close(logits, expected)
    assert_as_directly(found, directly(METHODS[name](), batches, *other, epochs=(2, 2, 3)))
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    for one, two in zip(student.buffers(), other[1].buffers(), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("form", ["logits", "tuple"])
def test_mdistiller_keeps_the_attack_folded(form):
    batches, teacher, student = problem(form)
    distiller = MDistillerMethod(student, teacher, METHODS["bss"](), EPOCHS).train()
    attacks = []
    for images, labels in batches[:2]:
        distiller(image=images, target=labels, epoch=1)
        attacks.append(distiller.method._attack[1])
    assert attacks[0] is attacks[1]
    assert attacks[0].model.folded


def test_mdistiller_counts_epochs_from_one_and_draws_once():
    (batch, *_), teacher, student = problem()
    distiller = MDistillerMethod(student, teacher, Probe(), EPOCHS).train()
    for epoch in range(1, EPOCHS + 1):
        for _ in range(2):
            distiller.forward_train(*batch, epoch=epoch)
    moments = distiller.method.moments
    assert [moment.epoch for moment in moments] == [epoch for epoch in range(EPOCHS) for _ in range(2)]
    assert {moment.epochs for moment in moments} == {EPOCHS}
    assert len({moment.draw for moment in moments}) == 2 * EPOCHS


def test_mdistiller_trains_what_the_method_has_of_its_own():
    batches, teacher, student = problem()
    method = ExtendedKD(student_stages=["conv"], teacher_stages=["conv"])
    method.prepare(batches[0][0], teacher, student)
    distiller = MDistillerMethod(student, teacher, method, EPOCHS).train()
    (own,) = method.parameters()
    assert distiller.get_learnable_parameters()[-1] is own
    assert distiller.get_extra_parameters() == own.numel() == 64


def test_mdistiller_has_the_rest_of_the_interface():
    (batch, *_), teacher, student = problem("tuple")
    distiller = MDistillerMethod(student, teacher.train(), METHODS["amkd"](), EPOCHS)
    assert not teacher.training
    assert [id(p) for p in distiller.get_learnable_parameters()] == [id(p) for p in student.parameters()]
    assert distiller.get_extra_parameters() == 0
    parallel = nn.DataParallel(distiller)  # as its train.py wraps it
    parallel.eval()
    assert not student.training
    assert torch.equal(parallel(image=batch[0]), student(batch[0])[0])
    parallel.train()
    assert (student.training, teacher.training) == (True, False)
    assert parallel(image=batch[0], target=batch[1], epoch=1)[1]["loss"].requires_grad
    with pytest.raises(RuntimeError, match="must not replicate it"):
        distiller._replicate_for_data_parallel().forward_train(*batch, epoch=1)
    teacher.train()
    with pytest.raises(ValueError, match=r"teacher.training=True"):
        distiller.forward_train(*batch, epoch=1)


def test_mdistiller_resumes_with_its_memory():
    batches, teacher, student = problem("tuple")
    distiller = MDistillerMethod(student, teacher, METHODS["amkd"](), EPOCHS).train()
    distiller.forward_train(*batches[0], epoch=1)
    state = copy.deepcopy(distiller.state_dict())
    owners = {key.split(".")[0] for key in state}
    assert owners == {"student", "teacher", "method"}
    assert len(state) == len(student.state_dict()) + len(teacher.state_dict()) + len(distiller.method.state_dict())
    again = MDistillerMethod(Net("tuple").double(), Net("tuple").double(), METHODS["amkd"](), EPOCHS).train()
    again.load_state_dict(state)
    assert int(again.method.criterion.memory.filled) == B
    one, two = (d.forward_train(*batches[1], epoch=2)[1]["loss"] for d in (distiller, again))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"method": nn.Identity()}, TypeError, "method is a Identity"),
        ({"method": Probe(distributed=True)}, ValueError, "method.distributed=True"),
        ({"epochs": 0}, ValueError, "epochs=0"),
        ({"epochs": 2.0}, TypeError, "epochs is a float"),
    ],
)
def test_mdistiller_names_bad_arguments(given, error, words):
    with pytest.raises(error, match=words):
        MDistillerMethod(**{"student": Net(), "teacher": Net(), "method": KD(), "epochs": EPOCHS, **given})


@pytest.mark.parametrize(
    ("epoch", "error", "words"),
    [
        (0, ValueError, r"epoch=0: must lie in 1 … 8"),
        (EPOCHS + 1, ValueError, "epoch=9"),
        (None, TypeError, "epoch is a NoneType"),
        (1.0, TypeError, "epoch is a float"),
    ],
)
def test_mdistiller_names_bad_epochs(epoch, error, words):
    (batch, *_), teacher, student = problem()
    with pytest.raises(error, match=words):
        MDistillerMethod(student, teacher, KD(), EPOCHS).forward_train(*batch, epoch=epoch)


# --- torchdistill


@pytest.fixture
def registries(monkeypatch):
    """Stand-ins of the modules that ``register`` imports; its three registries."""
    found = {"loss": {}, "forward": {}, "pre_epoch": {}}

    def registrar(kind):
        return lambda *, key: lambda item: found[kind].setdefault(key, item)

    def default_pre_epoch(self, epoch=None, **_):
        self.student_model.train()

    contents = {
        "torchdistill.core.interfaces.pre_epoch_proc": {"default_pre_epoch_process_with_teacher": default_pre_epoch},
        "torchdistill.core.interfaces.registry": {
            "register_forward_proc_func": registrar("forward"),
            "register_pre_epoch_proc_func": registrar("pre_epoch"),
        },
        "torchdistill.losses.registry": {"register_high_level_loss": registrar("loss")},
    }
    for name in ("torchdistill", "torchdistill.core", "torchdistill.core.interfaces", "torchdistill.losses", *contents):
        module = ModuleType(name)
        vars(module).update(contents.get(name, {}))
        monkeypatch.setitem(sys.modules, name, module)
    torchdistill.register()
    return found


class Box:
    """What a DistillationBox does with a stage's configuration, as far as the adapter can see."""

    def __init__(self, registries, teacher, student, config):
        self.teacher_model, self.student_model = teacher, student
        self.num_epochs = config["num_epochs"]
        self.criterion = registries["loss"][config["criterion"]["key"]](**config["criterion"]["kwargs"])
        self.procs = {role: registries["forward"].get(config[role].get("forward_proc")) for role in ROLES}
        self._pre_epoch = registries["pre_epoch"][config["pre_epoch_process"]]

    def pre_epoch_process(self, epoch):
        self._pre_epoch(self, epoch=epoch)

    def forward_process(self, sample_batch, targets, supp_dict=None):
        io_dict = {}
        for role, model in (("teacher", self.teacher_model), ("student", self.student_model)):
            proc = self.procs[role] or (lambda network, images, *_: network(images))
            with torch.set_grad_enabled(role == "student"):
                io_dict[role] = {".": {"output": proc(model, sample_batch, targets, supp_dict)}}
        outputs = io_dict["student"]["."]["output"]
        return self.criterion(io_dict, dict(outputs) if isinstance(outputs, dict) else {}, targets)


ROLES = ("teacher", "student")


def config(**kwargs):
    """As a YAML file gives it."""
    return {
        "num_epochs": EPOCHS,
        "pre_epoch_process": "amkd_fast_pre_epoch",
        "teacher": {"forward_proc": "amkd_fast_forward"},
        "student": {"forward_proc": "amkd_fast_forward"},
        "criterion": {"key": "AMKDFastLoss", "kwargs": kwargs},
    }


@pytest.mark.parametrize("form", ["logits", "tuple"])
@pytest.mark.parametrize("name", METHODS)
def test_torchdistill_learns_as_the_method(name, form, registries):
    batches, teacher, student = problem(form)
    before, other = copy.deepcopy(teacher.state_dict()), copy.deepcopy((teacher, student))
    box = Box(registries, teacher.train(), student.eval(), config(method=METHODS[name]()))
    found = []
    for index, (images, labels) in enumerate(batches):
        if index != 1:
            box.pre_epoch_process(epoch=2 + index // 2)
        total = box.forward_process(images, labels)
        found.append((total, gradients(total, student), box.criterion.last))
    assert_as_directly(found, directly(METHODS[name](), batches, *other, epochs=(2, 2, 3)))
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not list(box.criterion.parameters())


@pytest.mark.parametrize("wrap", [nn.Sequential, nn.DataParallel])
def test_torchdistill_prepares_the_attack_once(wrap, registries):
    batches, teacher, student = problem()
    box = Box(registries, wrap(teacher), student, config(method=METHODS["bss"]()))
    attacks = []
    for epoch, batch in enumerate(batches):
        box.pre_epoch_process(epoch)
        box.forward_process(*batch).backward()
        attacks.append(box.criterion.method._attack[1])
    assert attacks[0] is attacks[1] is attacks[2]
    assert attacks[0].model.folded


def test_torchdistill_counts_epochs_from_zero_in_each_stage(registries):
    (batch, *_), teacher, student = problem()
    box = Box(registries, teacher, student, config(method=Probe()))
    for epoch in range(EPOCHS):
        box.pre_epoch_process(epoch)
        box.forward_process(*batch)
        box.forward_process(*batch)
    moments = box.criterion.method.moments
    assert [moment.epoch for moment in moments] == [epoch for epoch in range(EPOCHS) for _ in range(2)]
    assert len({moment.draw for moment in moments}) == 2 * EPOCHS
    # A box of two stages, in its second: epochs 3 … 7 of 8.
    box.stage_number, box.stage_end_epoch = 2, EPOCHS
    box.train_config = {"stage1": {"num_epochs": 3}, "stage2": {"num_epochs": 5}}
    box.pre_epoch_process(3)
    box.forward_process(*batch)
    assert moments[-1][:2] == (0, 5)


def test_torchdistill_keeps_a_memory_in_its_state(registries):
    batches, teacher, student = problem()
    boxes = [Box(registries, teacher, copy.deepcopy(student), config(method=METHODS["amkd"]())) for _ in range(2)]
    boxes[0].pre_epoch_process(0)
    boxes[0].forward_process(*batches[0])
    boxes[1].criterion.load_state_dict(boxes[0].criterion.state_dict())
    boxes[1].student_model.load_state_dict(boxes[0].student_model.state_dict())
    totals = []
    for box in boxes:
        box.pre_epoch_process(1)
        totals.append(box.forward_process(*batches[1]))
    assert torch.equal(*totals)
    assert not any("teacher" in key or "conv" in key for key in boxes[0].criterion.state_dict())


def test_the_yaml_of_the_docstring(registries):
    yaml = pytest.importorskip("yaml", reason="reads the docstring's YAML")
    lines = TorchdistillLoss.__doc__.split("in the YAML::")[1].split("The box's epochs")[0]
    train = yaml.safe_load(textwrap.dedent(lines))["train"]
    batches, teacher, student = problem()
    box = Box(registries, teacher.float(), student.float(), train)
    box.pre_epoch_process(0)
    images, labels = batches[0]
    box.forward_process(images.float(), labels).backward()
    assert set(box.criterion.last.parts) == {"ce", "kl", "boundary", "triplet"}
    upper = box.criterion.method._attack[1].settings.upper
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    torch.testing.assert_close(upper, (1.0 - mean) / std, rtol=0.0, atol=0.01)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: TorchdistillLoss("best"), ValueError, "method='best'"),
        (lambda: TorchdistillLoss(nn.Identity()), TypeError, "method is a Identity"),
        (lambda: TorchdistillLoss(KD(), temperature=2.0), TypeError, "temperature: must not be given"),
        (lambda: TorchdistillLoss("kd", distributed=True), ValueError, "method.distributed=True"),
        (lambda: TorchdistillLoss("kd", temperature=0.0), ValueError, "temperature=0.0"),
        (lambda: TorchdistillLoss("kd").begin_epoch(8, 8), ValueError, r"epoch=8: must lie in 0 … 7"),
        (lambda: TorchdistillLoss("kd").begin_epoch(None, 8), TypeError, "epoch is a NoneType"),
        (lambda: torchdistill.not_run(Net(), {"x": 1}), TypeError, "sample_batch is a dict"),
    ],
)
def test_torchdistill_names_bad_arguments(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_torchdistill_names_what_the_yaml_lacks(registries):
    (batch, *_), teacher, student = problem()
    box = Box(registries, teacher, student, config(method="kd"))
    with pytest.raises(ValueError, match=r"train.pre_epoch_process: must be 'amkd_fast_pre_epoch'"):
        box.forward_process(*batch)
    for role in ROLES:
        lacking = config(method="kd")
        del lacking[role]["forward_proc"]
        box = Box(registries, teacher, student, lacking)
        box.pre_epoch_process(0)
        with pytest.raises(ValueError, match=rf"train.{role}.forward_proc: must be 'amkd_fast_forward'.* a Tensor"):
            box.forward_process(*batch)
    with pytest.raises(ValueError, match="model_loss_dict has aux"):
        box.criterion({}, {"aux": torch.zeros(())}, batch[1])
    box.criterion = nn.CrossEntropyLoss()
    with pytest.raises(ValueError, match=r"train.criterion.key: must be 'AMKDFastLoss'"):
        box.pre_epoch_process(0)


def test_register_without_torchdistill(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdistill", None)
    with pytest.raises(ImportError, match="torchdistill"):
        torchdistill.register()


# --- both


def test_logits_of_names_an_answer_without_logits():
    class Dictionary(nn.Module):
        def forward(self, images):
            return {"scores": images}

    with pytest.raises(TypeError, match="Dictionary returned a dict"):
        LogitsOf(Dictionary())(torch.zeros(1))


def test_examples_in_the_docstrings():
    for module in (outputs, mdistiller, torchdistill):
        found = doctest.testmod(module)
        assert found.attempted > 0
        assert found.failed == 0
