"""What is told while trainings run: lines of epochs, the time left, loggers, the page that grows."""

from __future__ import annotations

import builtins
import doctest
import glob
import itertools
import json
import multiprocessing
import sys

import pytest

pytest.importorskip("lightning", reason="the extra `train` is not installed")

from amkd_fast.distill import forecast, progress
from amkd_fast.distill.cli import main
from amkd_fast.distill.epoch_log import PARTS
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.forecast import Expected, Forecast
from amkd_fast.distill.loggers import check
from amkd_fast.distill.progress import Epoch, Progress, duration, line, receive, send
from amkd_fast.distill.report import live
from amkd_fast.distill.report.live import LivePage
from amkd_fast.methods import COUNTS

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = [
    *("--teacher-network", "small-2-1", "--student-network", "small-2-1", "--teacher-images", "64"),
    *("--student-images", "32", "--batch-size", "32", "--teacher-epochs", "2", "--epochs", "3", "--method", "kd"),
]


def epoch(number, method="kd", seed=0, epochs=60, **row):
    found = {
        "epoch": number - 1,
        "lr": 0.1,
        "accuracy": 91.234,
        "total": 1.5,
        "ce": 0.5,
        "kl": 0.25,
        "ms_per_step": 4.0,
    }
    return Epoch(method, seed, epochs, {**found, **row}, 5312.4, 2.0)


# --- the time left


def test_examples_in_the_docstrings():
    for module in (forecast, progress):
        found = doctest.testmod(module)
        assert found.failed == 0
        assert found.attempted > 1


def test_time_left_by_hand():
    found = Forecast({("teacher", 0): Expected(4, 1000), ("kd", 0): Expected(10, 100), ("amkd", 0): Expected(10, 100)})
    found.epoch(("teacher", 0), 1, 5.0)
    # Three of the teacher's of 5 s; nothing is known of students but that they have a tenth of its images.
    assert found.left() == pytest.approx(15.0 + 20 * 0.5)
    for number in range(2, 5):
        found.epoch(("teacher", 0), number, 5.0)
    found.end(("teacher", 0))
    found.epoch(("kd", 0), 1, 1.0)
    assert found.left() == pytest.approx(9.0 + 10.0)
    for number in range(2, 11):
        found.epoch(("kd", 0), number, 1.0)
    found.end(("kd", 0), 16.0)  # six seconds for what is measured afterwards
    assert found.left() == pytest.approx(10.0 + 6.0)
    found.epoch(("amkd", 0), 1, 3.0)
    assert found.left() == pytest.approx(27.0 + 6.0)
    found.end(("amkd", 0), 40.0)
    assert found.left() == 0.0


def test_several_jobs_share_the_time_but_no_training():
    trainings = {("kd", seed): Expected(10, 100) for seed in range(4)}
    two = Forecast(trainings, jobs=2)
    two.epoch(("kd", 0), 10, 1.0)
    two.end(("kd", 0))
    assert two.left() == pytest.approx(30.0 / 2)
    many = Forecast(trainings, jobs=8)
    many.epoch(("kd", 0), 1, 1.0)
    assert many.left() == pytest.approx(10.0)


def test_a_resumed_training_has_fewer_epochs_left():
    found = Forecast({("kd", 0): Expected(60, 100)})
    found.epoch(("kd", 0), 51, 2.0)
    assert found.left() == pytest.approx(18.0)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "0 s"), (99.4, "99 s"), (100.0, "2 min"), (5970.0, "1 h 40 min"), (172800.0, "2 d 0 h")]
)
def test_durations(seconds, said):
    assert duration(seconds) == said


# --- lines


def test_a_line():
    assert line(epoch(3), 65.0) == (
        "seed 0 kd                 epoch  3/60  accuracy 91.2 %  total 1.5  ce 0.5  kl 0.25  5312 images/s  65 s left"
    )
    assert line(epoch(1, "teacher", epochs=40), None).startswith("teacher                   epoch  1/40  accuracy")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 11, 21, 30]),  # ten seconds, and the last
        ({"every": 0.0}, list(range(1, 31))),
        ({"every": 25.0}, [1, 26, 30]),
        ({"quiet": True}, []),
        ({"bar": True}, []),
        ({"every": 25.0, "bar": True}, [1, 26, 30]),
    ],
)
def test_lines_are_apart_and_the_last_epoch_has_one(options, expected, capsys, monkeypatch):
    clock = itertools.count(1000.0)  # an epoch a second
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    lines = Progress(**options)
    lines.expect({("kd", 0): Expected(30, 100)})
    for number in range(1, 31):
        lines.epoch(epoch(number, epochs=30))
    printed = capsys.readouterr().out.splitlines()
    assert [int(text.split("epoch")[1].split("/")[0]) for text in printed] == expected


def test_others_are_told_of_every_epoch_and_end():
    lines, seen = Progress(quiet=True), []
    lines.expect({("kd", 1): Expected(60, 100)})
    lines.changed = lambda: seen.append({task: len(rows) for task, rows in lines.rows.items()})
    lines.epoch(epoch(1, seed=1))
    lines.epoch(epoch(2, seed=1))
    lines.end(("kd", 1), 9.0)
    assert seen == [{("kd", 1): 1}, {("kd", 1): 2}, {}]


def test_what_another_process_tells_fits_into_a_pipe_at_once(monkeypatch):
    here, there = multiprocessing.Pipe(duplex=False)
    assert list(receive(here)) == []
    everything = dict.fromkeys((*PARTS, *COUNTS), -1.2345678901234567e-123)
    long = epoch(999_999, "bss-near_boundary", 2**32 - 1, 10**6, **everything)
    size = []
    send(long, to=type("Spy", (), {"send_bytes": lambda self, message: size.append(len(message))})())
    assert size[0] + 4 <= progress.PIPE_BUF  # with the length that a Connection writes before it
    monkeypatch.setattr(progress, "MOST", 200)
    send(long, to=there)
    (cut,) = receive(here)
    assert list(cut.row) == ["epoch", "accuracy", "total", "ce", "kl", *PARTS[: len(cut.row) - 5]]
    assert len(cut.row) < 8
    monkeypatch.undo()
    send(long, to=there)
    send(epoch(2), to=there)
    first, second = receive(here)
    assert (first.method, first.seed, first.row["epoch"]) == ("bss-near_boundary", 2**32 - 1, 999_998)
    assert second.row == {"epoch": 1, "accuracy": 91.234, "total": 1.5, "ce": 0.5, "kl": 0.25}
    assert (second.images_per_second, second.seconds) == (5312.4, 2.0)


# --- a training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A result folder of a train without any option of this file."""
    folder = tmp_path_factory.mktemp("trained") / "kd"
    assert main(["train", *SMALL, "--output", str(folder)]) == 0
    return folder


def test_a_training_tells_every_epoch(trained, tmp_path, capsys):
    assert main(["train", *SMALL, "--log-every", "0", "--output", str(tmp_path / "told")]) == 0
    printed = capsys.readouterr()
    lines = [text for text in printed.out.splitlines() if " epoch " in text and "images/s" in text]
    assert [text.split("  accuracy")[0] for text in lines] == [
        *(f"{'teacher':25} epoch {number}/2" for number in (1, 2)),
        *(f"{'seed 0 kd':25} epoch {number}/3" for number in (1, 2, 3)),
    ]
    assert "total" in lines[0]
    assert "kl" not in lines[0]
    assert "  kl " in lines[-1]
    assert lines[-1].endswith("0 s left")
    assert printed.err == ""
    assert (tmp_path / "told" / "log.csv").read_text().split("\n")[0] == (trained / "log.csv").read_text().split("\n")[
        0
    ]


def test_quiet(trained, tmp_path, capsys):
    words = ["train", *SMALL, "--teacher", str(trained / "teacher.ckpt")]
    assert main([*words, "--quiet", "--output", str(tmp_path / "quiet")]) == 0
    assert "epoch 3/3" not in capsys.readouterr().out
    assert main([*words, "--quiet", "--log-every", "3", "--output", str(tmp_path / "x")]) == 2
    assert "--quiet: goes neither with --progress nor with --log-every" in capsys.readouterr().err
    assert main([*words, "--log-every", "-1", "--output", str(tmp_path / "x")]) == 2
    assert "--log-every -1: must be at least 0" in capsys.readouterr().err


# --- loggers


def test_loggers_that_cannot_be_had_are_named_before_any_work(tmp_path, monkeypatch, capsys):
    for names, said in (
        ("tensorbored", "--logger tensorbored: must be of csv, tensorboard, wandb"),
        ("csv,", "--logger csv,: must be of"),
    ):
        assert main(["train", *SMALL, "--logger", names, "--output", str(tmp_path / "x")]) == 2
        assert said in capsys.readouterr().err
    found = builtins.__import__

    def missing(name, *rest, **options):
        if name.split(".")[0] in ("tensorboard", "wandb"):
            raise ModuleNotFoundError(f"No module named '{name}'")
        return found(name, *rest, **options)

    for name in [name for name in sys.modules if name.startswith(("torch.utils.tensorboard", "tensorboard", "wandb"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", missing)
    monkeypatch.setitem(sys.modules, "wandb", None)
    for name in ("tensorboard", "wandb"):
        assert main(["train", *SMALL, "--logger", f"csv,{name}", "--output", str(tmp_path / "x")]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"amkd-distill: --logger {name}: {name} is not installed")
        assert error.rstrip().endswith(f"run `pip install {name}`")
        assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "x.partial").exists()


def test_no_csv_without_its_name(trained, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    words = ["train", *SMALL, "--teacher", str(trained / "teacher.ckpt"), "--logger", "tensorboard"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out" / "log.csv").exists()


def test_tensorboard_goes_on_in_the_same_log(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from amkd_fast.distill import loggers

    words = ["train", *SMALL, "--logger", "csv,tensorboard", "--output", str(tmp_path / "out")]
    log = loggers.EpochLoggers.on_train_epoch_end

    def stopped(self, trainer, module):
        log(self, trainer, module)
        if self.name == "kd-0" and len(self.epoch_log.rows) == 2:  # logged, but no checkpoint has it
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loggers.EpochLoggers, "on_train_epoch_end", stopped)
        assert main(words) == 130
    assert main(["train", "--resume", "--output", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["epochs"]
    for name, values in (("teacher", 2), ("kd-0", 3)):
        found = EventAccumulator(str(tmp_path / "out" / "tensorboard" / name)).Reload()
        assert [event.step for event in found.Scalars("accuracy")] == list(range(1, values + 1))
    assert [event.value for event in found.Scalars("loss/kl")] == pytest.approx([row["kl"] for row in rows])
    assert {"accuracy", "lr", "loss/total", "loss/ce", "loss/kl", "ms_per_step"} <= set(found.Tags()["scalars"])


def test_wandb_offline(trained, tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = ["train", *SMALL, "--teacher", str(trained / "teacher.ckpt"), "--logger", "csv,wandb"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    assert len(glob.glob(str(tmp_path / "out" / "wandb" / "offline-run-*" / "run-*.wandb"))) == 1
    assert (tmp_path / "out" / "log.csv").is_file()
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr("wandb.login", lambda: False)
    with pytest.raises(UserError, match=r"nobody is logged in.*WANDB_MODE=offline"):
        check("wandb")


# --- the page that grows


def test_the_page_is_written_now_and_then(tmp_path, monkeypatch):
    clock, cost, written = [100.0], [0.0], []
    monkeypatch.setattr(live.time, "monotonic", lambda: clock[0])
    page = LivePage(tmp_path / "report.html", "../x/report.html", Progress(), dict, dict)

    def write():
        written.append(clock[0] - 100.0)
        clock[0] += cost[0]

    monkeypatch.setattr(page, "write", write)
    for cost[0], moments in ((0.0, (0.0, 5.0, 14.0, 16.0, 20.0)), (1.0, (1000.0, 1040.0, 1052.0))):
        for moment in moments:
            clock[0] = 100.0 + moment
            page.update()
    # Every quarter of a minute, and where it takes a second, every fifty of them.
    assert written == [0.0, 16.0, 1000.0, 1052.0]
