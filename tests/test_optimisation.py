"""Learning rates, optimisers, the teacher's own settings, and trainings with them that go on after an interruption."""

from __future__ import annotations

import errno
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("lightning", reason="the extra `train` is not installed")

from test_whole_step import Rehearsed, problem

from amkd_fast.distill import build, files, lr_schedule, optimizers, schemas, training_runs
from amkd_fast.distill.cli import main
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.settings import CompareSettings, Settings, TrainSettings
from amkd_fast.distill.whole_step import WholeStep
from amkd_fast.methods import KD, Batch, StepContext, StudentAlone

pytestmark = pytest.mark.usefixtures("one_thread")
EPOCHS, STEPS = 8, 5
NEW = (
    *("max_steps", "optimizer", "nesterov", "schedule", "lr_milestones", "lr_factor", "warmup_epochs", "recipe"),
    *("teacher_batch_size", "teacher_optimizer", "teacher_lr", "teacher_weight_decay", "teacher_schedule"),
    *("teacher_lr_milestones", "teacher_warmup_epochs", "kd_temperature", "kd_ce_weight", "kd_kl_weight"),
)


def factors(**settings):
    factor = lr_schedule.of(Settings(**settings), EPOCHS, STEPS)
    return [factor(step) for step in range(EPOCHS * STEPS + 1)]  # the last is asked for, and not used


def rates_of_torch(scheduler):
    """The learning rates of a scheduler of torch.optim, from 1, one for each step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], 1.0)
    scheduler, rates = scheduler(optimizer), []
    for _ in range(EPOCHS * STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_is_as_it_was():
    steps = EPOCHS * STEPS
    assert factors() == [0.5 * (1.0 + math.cos(math.pi * min(step / steps, 1.0))) for step in range(steps + 1)]


@pytest.mark.parametrize(
    ("settings", "scheduler"),
    [
        ({"schedule": "constant"}, lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)),
        (
            {"schedule": "step", "lr_milestones": "3,4,7", "lr_factor": 0.2},
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [3 * STEPS, 4 * STEPS, 7 * STEPS], 0.2),
        ),
        (
            {"schedule": "one-cycle"},
            lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, EPOCHS * STEPS, cycle_momentum=False),
        ),
        (
            {"warmup_epochs": 2},
            lambda o: torch.optim.lr_scheduler.SequentialLR(
                o,
                [
                    torch.optim.lr_scheduler.LinearLR(o, 1.0 / (2 * STEPS), 1.0, 2 * STEPS - 1),
                    torch.optim.lr_scheduler.CosineAnnealingLR(o, (EPOCHS - 2) * STEPS),
                ],
                [2 * STEPS],
            ),
        ),
        (
            {"schedule": "step", "lr_milestones": "3", "warmup_epochs": 1},
            lambda o: torch.optim.lr_scheduler.ChainedScheduler(
                [
                    torch.optim.lr_scheduler.LinearLR(o, 1.0 / STEPS, 1.0, STEPS - 1),
                    torch.optim.lr_scheduler.MultiStepLR(o, [3 * STEPS]),
                ]
            ),
        ),
    ],
    ids=["constant", "step", "one-cycle", "warm cosine", "warm step"],
)
def test_rates_are_those_of_torchs_schedulers(settings, scheduler):
    assert factors(**settings)[:-1] == pytest.approx(rates_of_torch(scheduler), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_one_cycle_of_few_steps(steps):
    found = [lr_schedule.one_cycle(step, steps) for step in range(steps + 1)]
    assert all(0.0 < factor <= 1.0 for factor in found)
    assert found[-1] == pytest.approx(lr_schedule.END)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"schedule": "step"}, "--schedule step: needs --lr-milestones, as 150,180,210"),
        ({"lr_milestones": "30"}, "--lr-milestones 30: are for --schedule step, not cosine"),
        ({"teacher_lr_milestones": "30"}, "--teacher-lr-milestones 30: are for --teacher-schedule step, not cosine"),
        (
            {"schedule": "step", "lr_milestones": "5,5"},
            "--lr-milestones 5,5: must be whole numbers that rise, from 1, below --epochs 60",
        ),
        ({"schedule": "step", "lr_milestones": "0,5"}, "--lr-milestones 0,5: must be"),
        ({"schedule": "step", "lr_milestones": "5,x"}, "--lr-milestones 5,x: must be"),
        ({"schedule": "step", "lr_milestones": "60"}, "--lr-milestones 60: must be"),
        (
            {"schedule": "step", "lr_milestones": "45"},
            "--teacher-lr-milestones 45: must be .* below --teacher-epochs 40",
        ),
        ({"teacher_schedule": "step"}, "--teacher-schedule step: needs --teacher-lr-milestones"),
        ({"warmup_epochs": 60}, "--warmup-epochs 60: must be below --epochs 60"),
        ({"warmup_epochs": 40}, "--teacher-warmup-epochs 40: must be below --teacher-epochs 40"),
        ({"warmup_epochs": 2, "schedule": "one-cycle"}, "--warmup-epochs 2: --schedule one-cycle begins with a rise"),
        ({"nesterov": True, "momentum": 0.0}, "--nesterov: is for --optimizer sgd with a --momentum above 0"),
        ({"nesterov": True, "optimizer": "adamw"}, "--nesterov: is for"),
    ],
)
def test_what_cannot_be_followed(settings, line):
    for kind in (TrainSettings, CompareSettings):
        with pytest.raises(UserError, match=line):
            build.check(kind(**settings), torch.device("cpu"))


def test_a_teacher_that_is_not_trained_here_needs_no_schedule(monkeypatch):
    monkeypatch.setattr("amkd_fast.distill.teacher_file.check", lambda *_: None)
    late = {"schedule": "step", "lr_milestones": "45"}
    build.check(TrainSettings(teacher="a file", **late), torch.device("cpu"))
    build.check(TrainSettings(teacher_schedule="cosine", **late), torch.device("cpu"))
    build.check(TrainSettings(method="student", **late), torch.device("cpu"))


def test_the_teachers_own_settings():
    shared = Settings(lr=0.3, optimizer="adamw", schedule="constant", warmup_epochs=3, batch_size=16)
    assert shared.of_teacher() == replace(shared, epochs=40)
    own = {"batch_size": 8, "optimizer": "sgd", "lr": 0.5, "weight_decay": 0.0, "schedule": "step"}
    own |= {"lr_milestones": "7", "warmup_epochs": 0}
    found = replace(shared, **{f"teacher_{name}": value for name, value in own.items()}).of_teacher()
    assert {name: getattr(found, name) for name in own} == own
    assert found.epochs == 40


def test_the_teacher_is_trained_by_them(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(training_runs, "fit", lambda *args, **options: seen.append((args[6], options["epochs"])))
    words = ["--teacher-lr", "0.5", "--teacher-epochs", "7", "--teacher-batch-size", "8", "--lr", "0.2"]
    assert (
        main(["train", *SMALL, *words, "--output", str(tmp_path / "out")]) == 1
    )  # of this test, which returns nothing
    ((settings, epochs),) = seen
    assert (settings.lr, settings.batch_size, epochs) == (0.5, 8, 7)


def test_optimisers():
    weights = [nn.Parameter(torch.ones(3))]
    sgd = optimizers.build(weights, Settings(momentum=0.8, nesterov=True, lr=0.3, weight_decay=0.01))
    assert isinstance(sgd, torch.optim.SGD)
    assert [sgd.defaults[name] for name in ("lr", "momentum", "nesterov", "weight_decay")] == [0.3, 0.8, True, 0.01]
    adamw = optimizers.build(weights, Settings(optimizer="adamw", lr=0.001, weight_decay=0.02))
    assert isinstance(adamw, torch.optim.AdamW)
    assert [adamw.defaults[name] for name in ("lr", "betas", "weight_decay")] == [0.001, (0.9, 0.999), 0.02]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_recorded_step_reads_the_rate_of_a_schedule(optimizer):
    batch, _, eager = problem()
    _, _, recorded = problem()
    settings = Settings(optimizer=optimizer, lr=0.05, schedule="step", lr_milestones="1", nesterov=optimizer == "sgd")
    both = [
        optimizers.build(network.parameters(), settings, recorded_on=device)
        for network, device in ((eager, None), (recorded, torch.device("cpu")))
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(one, lr_schedule.of(settings, 2, 2)) for one in both]
    whole, method = WholeStep(StudentAlone(), None, recorded, both[1], graph=Rehearsed), StudentAlone()
    for step in range(4):
        moment = StepContext(step // 2, 2, step)
        both[0].zero_grad()
        method(batch, None, eager, moment).total.backward()
        both[0].step()
        whole(Batch(batch.images, batch.labels), moment)
        for schedule in schedules:
            schedule.step()
    assert float(both[1].param_groups[0]["lr"]) == pytest.approx(0.005)
    for one, other in zip(eager.parameters(), recorded.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)  # the rate is a tensor in single precision


def test_kd_as_mdistiller_weighs_it():
    batch, teacher, student = problem()
    method = KD(temperature=4.0, ce_weight=0.1, kl_weight=0.9, scale_by_t2=True)
    losses = method(batch, teacher, student, StepContext(7, 240, 0))
    logits, known = student(batch.images), teacher(batch.images)
    assert logits.dtype == torch.float64
    p, log_q = (known / 4.0).softmax(1), (logits / 4.0).log_softmax(1)
    kl = (p * (p.log() - log_q)).sum(1).mean()
    ce = -logits.log_softmax(1).gather(1, batch.labels[:, None]).mean()
    torch.testing.assert_close(losses.total, 0.1 * ce + 0.9 * 16.0 * kl, rtol=1e-12, atol=1e-12)
    found = build.method("kd", Settings(kd_temperature=4.0, kd_ce_weight=0.1, kd_kl_weight=0.9), None)
    again = found(batch, teacher, student, StepContext(7, 240, 0))
    assert float(again.total.detach()) == float(losses.total.detach())


# --- interrupted

SMALL = (
    *("--teacher-network", "small-2-1", "--student-network", "small-2-1", "--teacher-images", "100"),
    *("--student-images", "40", "--epochs", "3", "--batch-size", "16"),
)
EPOCH_TWO = ("epoch_log.write_atomic", "log.csv")
INTERRUPTED = {
    "cosine": ("--warmup-epochs", "1", "--nesterov"),
    "step": ("--schedule", "step", "--lr-milestones", "1,2", "--optimizer", "adamw", "--lr", "0.01"),
    "one-cycle": ("--schedule", "one-cycle", "--max-steps", "8"),
    "constant": ("--schedule", "constant", "--optimizer", "adamw", "--lr", "0.01", "--accumulate", "2"),
}


def state(folder):
    found = torch.load(folder / "last.ckpt", weights_only=True)
    return {name: found[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")}


def assert_equal(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_equal(*pair)
    else:
        assert one == other


def interrupt(monkeypatch, writer, name, words, output, times=1):
    """End a training when a file of that name is written for so many times."""
    write, seen = files.write_atomic, []

    def full(path, content):
        seen.append(Path(path).name)
        if seen.count(name) == times:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(f"amkd_fast.distill.{writer}", full)
        assert main(["train", *words, "--output", str(output)]) == 2


@pytest.mark.parametrize("words", INTERRUPTED.values(), ids=INTERRUPTED)
def test_resumed_is_bit_for_bit_what_was_never_interrupted(words, tmp_path, monkeypatch):
    words = ["--method", "student", *SMALL, *words]
    assert main(["train", *words, "--output", str(tmp_path / "straight")]) == 0
    interrupt(monkeypatch, *EPOCH_TWO, words, tmp_path / "broken", 2)
    assert main(["train", "--resume", *words, "--output", str(tmp_path / "broken")]) == 0
    assert_equal(state(tmp_path / "straight"), state(tmp_path / "broken"))
    assert state(tmp_path / "straight")["optimizer_states"][0]["state"]


def test_a_run_of_an_earlier_version_goes_on(tmp_path, monkeypatch):
    words = ["--method", "student", *SMALL]
    assert main(["train", *words, "--output", str(tmp_path / "straight")]) == 0
    interrupt(monkeypatch, *EPOCH_TWO, words, tmp_path / "old", 2)
    partial = next(path for path in tmp_path.iterdir() if path.name not in ("straight", "old"))
    started, last = json.loads((partial / "run.json").read_text()), torch.load(partial / "last.ckpt", weights_only=True)
    for settings in (started["settings"], last["amkd_fast"]["settings"]):
        for name in NEW:
            del settings[name]
    (partial / "run.json").write_text(json.dumps(started))
    torch.save(last, partial / "last.ckpt")
    assert main(["train", "--resume", "--output", str(tmp_path / "old")]) == 0
    assert_equal(state(tmp_path / "straight"), state(tmp_path / "old"))


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda found: found["state"][0].pop("exp_avg_sq"), "must hold the averages of every parameter"),
        (lambda found: found.update(state={}), "must hold the averages of every parameter"),
        (lambda found: found["param_groups"][0].pop("betas"), "must hold the momentum of SGD or the betas of AdamW"),
    ],
)
def test_a_spoilt_state_of_adamw_is_named(spoil, line):
    weight = nn.Parameter(torch.ones(3))
    optimizer = optimizers.build([weight], Settings(optimizer="adamw"))
    weight.sum().backward()
    optimizer.step()
    found = optimizer.state_dict()
    schemas.check(schemas.Optimizer, found, "file")
    spoil(found)
    with pytest.raises(UserError, match=line):
        schemas.check(schemas.Optimizer, found, "file")


def test_max_steps_that_were_taken_before_the_result_was_written(tmp_path, monkeypatch):
    words = ["--method", "student", *SMALL, "--max-steps", "2"]
    interrupt(monkeypatch, "train.write_atomic", "results.json", words, tmp_path / "out")
    (partial,) = tmp_path.iterdir()
    before = state(partial)
    assert main(["train", "--resume", "--output", str(tmp_path / "out")]) == 0
    assert_equal(state(tmp_path / "out"), before)


def test_max_steps_ends_within_an_epoch_with_all_that_an_end_has(tmp_path):
    words = ["train", "--method", "kd", *SMALL, "--max-steps", "2", "--output", str(tmp_path / "out")]
    assert main(words) == 0
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(result["epochs"]) == 1
    assert result["last"] == result["epochs"][0]["accuracy"]
    last = torch.load(tmp_path / "out" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2
