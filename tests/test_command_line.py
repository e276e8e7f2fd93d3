"""Command lines that are hostile, broken or unlucky: input → exit code, line, and what must still be there."""

from __future__ import annotations

import contextlib
import copy
import errno
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures.process import _ExecutorManagerThread as Manager
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the extra `train` is not installed")

import processes
from folders import picture_folder
from lightning_utilities.core import imports

import amkd_fast
from amkd_fast.distill import broken_torchvision, epoch_log, exit_codes, files, training_runs
from amkd_fast.distill.cli import main
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.lock import locked
from amkd_fast.distill.settings import CompareSettings, TrainSettings
from amkd_fast.distill.teacher import Teacher

pytestmark = pytest.mark.usefixtures("one_thread")

NET = ("--student-network", "small-2-1", "--teacher-network", "small-2-1", "--student-images", "48")
SMALL = (*NET, "--teacher-images", "64", "--teacher-epochs", "2", "--epochs", "3")
RANKS = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
ABOUT = "amkd_fast"


def changed(checkpoint, change):
    found = copy.deepcopy(checkpoint)
    change(found)
    return found


def spoil(weights):
    for value in weights.values():
        if value.is_floating_point():
            value.fill_(float("nan"))


# How checkpoints are broken, and what is said of them where they are evaluated.
BROKEN = {
    "list": (lambda c: c.update({ABOUT: [1]}), "content=[1]: must be values by name"),
    "none": (lambda c: c.update({ABOUT: None}), "content=None: must be values by name"),
    "foreign": (lambda c: c.pop(ABOUT), "was not written by amkd-distill"),
    "weightless": (lambda c: c.update(state_dict=[1]), "was not written by amkd-distill"),
    "old": (lambda c: c[ABOUT].update(format=1), "format 1, this version reads 2"),
    "formatless": (lambda c: c[ABOUT].pop("format"), "format is missing"),
    "wordy": (lambda c: c[ABOUT].update(network="small"), "network='small': must be values by name"),
    "nameless": (lambda c: c[ABOUT]["network"].pop("name"), "network.name is missing"),
    "classless": (lambda c: c[ABOUT]["network"].update(classes=0), "network.classes=0: must be at least 1"),
    "unknown": (lambda c: c[ABOUT]["network"].update(name="small-0"), "network small-0: must be resnet8"),
    "other": (lambda c: c[ABOUT]["network"].update(name="small-3-1"), "do not fit the network"),
    "code": (lambda c: c[ABOUT]["network"].update(name="os:system"), "its network is code"),
    "bytes": (lambda c: c["state_dict"].update({next(iter(c["state_dict"])): b"x"}), "do not fit the network"),
}
# Of what only an evaluation asks for.
UNTOLD = {
    "methodless": (lambda c: c[ABOUT].pop("method"), "method is missing"),
    "unset": (lambda c: c[ABOUT].pop("settings"), "settings is missing"),
    "listed": (lambda c: c[ABOUT].update(settings=[1]), "settings=[1]: must be values by name"),
    "seedy": (lambda c: c[ABOUT]["settings"].update(data_seed="x"), "data_seed='x': must be a whole number"),
    "mean": (lambda c: c[ABOUT].update(mean=[None]), "mean [None] is not one number"),
    "std": (lambda c: c[ABOUT].update(std="x" * 999), "is not one number above 0"),
}
# Of what only --resume asks for.
STATELESS = {
    "loopless": (lambda c: c.pop("loops"), "loops is missing"),
    "unlooped": (lambda c: c.update(loops={"fit_loop": {}}), "loops.fit_loop={}: "),
    "stateless": (lambda c: c.update(optimizer_states=[]), "optimizer_states=[]: "),
    "forgetful": (lambda c: c["optimizer_states"][0].update(state={}), "must hold the momentum of every parameter"),
    "rateless": (lambda c: c.update(lr_schedulers=[]), "lr_schedulers=[]: "),
    "rate": (lambda c: c.update(lr_schedulers=[{}]), "last_epoch is missing"),
    "logless": (lambda c: c["callbacks"].pop("Journal"), "callbacks.Journal is missing"),
    "short": (lambda c: c["callbacks"]["Journal"].update(rows=[]), "must have a row in its log for every epoch"),
    "worst": (lambda c: c.update(callbacks={"Journal": c["callbacks"]["Journal"]}), "must hold the state of the best"),
    "seed": (lambda c: c[ABOUT].update(seed=7), "is of another run (seed 7, not 0)"),
    "teacher": (lambda c: c[ABOUT].pop("method"), "is of another run (method None, not 'student')"),
    "rates": (lambda c: c[ABOUT]["settings"].update(lr=7.0), "is of another run (settings "),
    "weights": (lambda c: c["state_dict"].pop(next(iter(c["state_dict"]))), "does not fit this training"),
    "words": (lambda c: c.update(epoch="x"), "epoch='x': must be a whole number"),
}

YAML = {
    "date": ("data: 2020-13-45", "--data 2020-13-45: no such folder"),
    "digits": (f"lr: {'1' * 400}", "must be a number"),
    "more digits": (f"epochs: {'1' * 5000}", "is no YAML file of settings"),
    "nested": ("[" * 5000, "brackets within brackets"),
    "bomb": (
        "data:\n - &a0 [x, x]\n" + "".join(f" - &a{i + 1} [{','.join([f'*a{i}'] * 9)}]\n" for i in range(20)),
        "text",
    ),
    "merges": (
        "&b0 lr: &a0 {x: 1}\n" + "".join(f"k{i}: &a{i + 1} {{<<: [{','.join([f'*a{i}'] * 9)}]}}\n" for i in range(20)),
        "there is no setting 'k0'",
    ),
    "twice": ("lr: 1\nlr: 2", "holds 'lr' twice"),
    "null byte": ('data: "a\\0b"', "must be text without control characters"),
    "scientific": ("lr: 1e-3\nepochs: 0", "epochs=0: must be at least 1"),
    "list": ("methods: [kd]", "there is no setting 'methods'"),
    "list of data": ("data: [kd]", "data=['kd']: must be text"),
    "settings in settings": ("lr: {lr: 1}", "lr={'lr': 1}: must be a number"),
    "number for a key": ("1: 2", "there is no setting 1"),
    "list for a key": ("[1]: 2", "is no YAML file of settings"),
    "true": ("epochs: yes", "epochs=True: must be a whole number"),
    "seed": (f"seed: {2**63 - 1}", "must be at most 4294967295"),
    "bytes": ("data: !!binary aGVsbG8=", "must be text"),
    "code": ("data: !!python/name:os.system", "is no YAML file of settings"),
    "long word": (f"{'x' * 900}: 1", "there is no setting 'xxx"),
    "infinite": ("margin: .inf", "margin=inf: must be a finite number"),
    "large": ("#" * (1 << 20 | 1), "has more than 1048576 bytes"),
    "latin": (b"data: caf\xe9", "is no YAML file of settings"),
}

NUMBERS = [
    ("--seed 9223372036854775807", "--seed 9223372036854775807: must be at most 4294967295"),
    ("--seed 99999999999999999999", "must be at most 4294967295"),
    ("--seed -1", "--seed -1: must be at least 0"),
    ("--seed 1.5", "--seed '1.5': must be a whole number"),
    (f"--seed {'9' * 5000}", "must be a whole number"),
    ("--data-seed 99999999999999999999", "must be at most 4294967295"),
    ("--batch-size 99999999999999999999", "must be at most 2147483647"),
    ("--batch-size 1", "must be at least 2"),
    ("--batch-size", "--batch-size: expected one argument"),
    ("--epochs 99999999999", "must be at most 1000000"),
    ("--teacher-epochs 0", "must be at least 1"),
    ("--accumulate 99999999999999999999", "must be at most 2147483647"),
    ("--threads 99999999999", "--threads 99999999999: must be at most 1024"),
    ("--threads 1000000", "must be at most 1024"),
    ("--threads x", "--threads x: must be a whole number"),
    ("--lr 1e308", "--lr 1e308: must be at most 1e+38"),
    ("--lr 1e999", "must be a finite number"),
    ("--lr nan", "--lr nan: must be a finite number"),
    ("--lr 0", "must be above 0"),
    ("--lr fast", "--lr 'fast': must be a number"),
    ("--weight-decay 1e300", "must be at most 1e+18"),
    ("--momentum -0.1", "must be at least 0"),
    ("--temperature 0", "must be above 0"),
    ("--tald-particles 65", "must be at most 64"),
    ("--memory 100000000000", "must be at most 2147483647"),
    ("--memory 2000000000", "--memory 2000000000: needs more memory than there is"),
    ("--image-size 100000", "must be at most 16384"),
    ("--image-size 7", "must be at least 8"),
    ("--jda-probability 1.5", "--jda-probability 1.5: must be at most 1"),
    ("--boundary-samples 0", "must be at least 1"),
    ("--student-fraction 0", "must be above 0"),
    ("--student-fraction 2 --teacher-images 64", "--student-fraction"),
    ("--student-images 3 --student-shots 3", "give one of them"),
    ("--student-images 9999999", "--student-images 9999999"),
    ("--teacher-images 9", "--teacher-images 9"),
    ("--bn best", "--bn 'best': must be one of separate, concatenated, frozen_stats"),
    (f"--bn {'b' * 5000}", "must be one of separate"),
    ("--method magic", "must be one of student, kd"),
    ("--classes 3", "--classes 3: "),
    ("--classes 0-99999999999", "there is no class"),
    ("--drop-labels 0-8", "leaves fewer than two labels"),
    ("--precision fp16", "--precision fp16: needs a GPU"),
    ("--compile --space features --variant student_space", "--compile: hides the features"),
    ("--whole-step", "--whole-step: records a CUDA graph"),
    ("--negatives target --amkd-preset official", "force"),
    ("--device tpu", "invalid choice: 'tpu'"),
    ("--device cuda", "--device cuda: torch sees no GPU"),
    ("--overwrite --resume", "--overwrite, --resume: give one of them"),
    ("--magic 3", "unrecognized arguments: --magic 3"),
    ("more words", "unrecognized arguments: more words"),
]

NETWORKS = [
    ("small-0-1", "must be resnet8"),
    ("", "must be resnet8"),
    ("resnet9", "must be resnet8"),
    ("wrn-9999-9999x", "must be resnet8"),
    ("timm:vit", "with a torchvision that matches your torch"),
    ("nowhere:make", "there is no module nowhere"),
    ("os:", "must be module:factory"),
    ("os:nothing", "module os has no nothing"),
    ("os:getcwd", "raised TypeError"),
    ("shapes:Large", "Input height (8) doesn't match model (224)); --image-size"),
    ("shapes:Wrong", "must be logits of shape (1, 10)"),
    ("shapes:exits", "raised SystemExit"),
]

ENVIRONMENTS = [
    ({"WORLD_SIZE": "abc"}, "environment: WORLD_SIZE='abc': must be a whole number"),
    ({"WORLD_SIZE": ""}, "environment: WORLD_SIZE='': must be a whole number"),
    ({"WORLD_SIZE": "0"}, "environment: WORLD_SIZE='0': must be at least 1"),
    ({"WORLD_SIZE": "-1"}, "environment: WORLD_SIZE='-1': must be at least 1"),
    ({"WORLD_SIZE": "2"}, "RANK, MASTER_ADDR, MASTER_PORT not set: start with torchrun"),
    ({"WORLD_SIZE": "9" * 30}, "must be at most"),
    ({**RANKS, "RANK": "2"}, "environment: RANK=2: must be below WORLD_SIZE=2"),
    ({**RANKS, "RANK": "one"}, "environment: RANK='one': must be a whole number"),
    ({**RANKS, "MASTER_PORT": "99999"}, "must be at most 65535"),
    ({"RANK": "x"}, "environment: RANK='x': must be a whole number"),
]

FOLDERS = [
    ("train --output file", "file: is a file, not a folder"),
    ("train --output letters", "holds files that are no result of amkd-distill"),
    ("train --output letters --overwrite", "holds files that are no result of amkd-distill"),
    ("train --output letters --resume", "holds files that are no result of amkd-distill"),
    ("train --output file/result", "cannot be made"),
    ("train --output /proc/result", "/proc/result"),
    (f"train --output {'x' * 300}", "File name too long"),
    ("train --output done", "holds an earlier result"),
    ("train --output half", "an unfinished run is in"),
    ("train --output nothing --resume", "there is no run to continue in nothing"),
    ("compare --output done --resume", "is a run of train, not of compare"),
    ("compare --output half --resume", "is a run of train, not of compare"),
    ("train --output compared --resume", "is a run of compare, not of train"),
    ("train --output versus --resume", "is a run of compare, not of train"),
    ("train --output older --resume", "is a run of compare, not of train"),
    ("compare --output half", "an unfinished run is in"),
    ("train --output half --resume --epochs 9", "was started with --epochs 3, not 9"),
    ("train --output half --resume --config sci.yaml", "was started with --teacher-images 64, not None"),
    ("train --output unset --resume", "settings='x': must be values by name"),
    ("train --output array --resume", "content=[]: must be values by name"),
    ("train --output typed --resume", "run.json: epochs='many': must be a whole number"),
    ("train --output broken --resume", "run.json is missing or damaged"),
    ("train --output deep --resume", "run.json is missing or damaged"),
    ("train --output bare --resume", "run.json is missing or damaged"),
    ("train --output bestless --resume", "best.ckpt is missing"),
    ("compare --output damaged --resume --jobs 1", "student-0.json is missing or damaged"),
    ("compare --output rowless --resume --jobs 1", "student-0.json: the last row has no accuracy"),
    ("compare --output wordy --resume --jobs 1", "student-0.json: rows.0.accuracy='x': must be a number"),
    ("train --output half --overwrite --data nowhere", "nowhere: no such folder"),
    ("train --output half --overwrite --student-network os:getcwd", "raised TypeError"),
    ("train --output done --overwrite --data nowhere", "nowhere: no such folder"),
]

DATA = [
    ("nowhere", "nowhere: no such folder"),
    ("file", "file: no such folder"),
    ("", "is missing"),
    ("x" * 5000, "--data"),
    ("cifar10", "there is no cifar-10-batches-py/data_batch_1"),
    ("tiny-imagenet", "tiny-imagenet"),
    ("trees", "goes more than 32 folders deep"),
    ("lonely", "one class only"),
    ("letters", "is missing"),
    ("pets --image-size 16000", "--data pets --image-size 16000: needs more memory than there is"),
]

PLANS = [
    ("", "the following arguments are required: checkpoint"),
    ("nowhere.ckpt", "nowhere.ckpt: no such file"),
    (".", "no such file"),
    ("/dev/zero", "no such file"),
    ("file", "cannot be read, damaged or no checkpoint"),
    ("good.ckpt --seed 99999999999999999999", "must be at most 4294967295"),
    ("good.ckpt --batch-size 99999999999999999999", "must be at most 2147483647"),
    ("good.ckpt --attack pgd --eps nan", "--eps nan: must be at least 0, at most 1e+18"),
    ("good.ckpt --attack pgd --eps 1e300", "must be at least 0, at most 1e+18"),
    ("good.ckpt --attack pgd --eps big", "--eps big: must be a number"),
    ("good.ckpt --attack pgd --step-size 0", "must be above 0, at most 1e+18"),
    ("good.ckpt --eps 0.1", "is for --attack pgd"),
    ("good.ckpt --output letters", "letters: is a folder, not a file"),
    ("good.ckpt --output file", "file: exists"),
    ("good.ckpt --output none/x.json", "there is no folder none"),
    ("good.ckpt --output file/x.json", "there is no folder file"),
    ("good.ckpt --data pets", "is for 10 classes and 1 channels"),
    ("good.ckpt --attack boundary --compare nowhere.ckpt", "nowhere.ckpt: no such file"),
    ("good.ckpt --attack boundary --compare list.ckpt", "content=[1]: must be values by name"),
]

REFUSED = [
    *((f"train {words}", {}, line) for words, line in NUMBERS),
    *((["train", "--config", f"{name}.yaml"], {}, line) for name, (_, line) in YAML.items()),
    *(
        (f"train --config {name}", {}, line)
        for name, line in (("/dev/zero", "no file"), ("pipe", "no file"), (".", "no file"))
    ),
    *((["train", "--student-network", name], {}, line) for name, line in NETWORKS),
    *(("train", names, line) for names, line in ENVIRONMENTS),
    ("compare", RANKS, "compare: runs in one process"),
    ("evaluate good.ckpt", RANKS, "evaluate: runs in one process"),
    *((words, {}, line) for words, line in FOLDERS),
    *((["train", "--data", *words.split(" ")], {}, line) for words, line in DATA),
    *((f"evaluate {words}", {}, line) for words, line in PLANS),
    *((f"evaluate {name}.ckpt", {}, line) for name, (_, line) in {**BROKEN, **UNTOLD}.items()),
    *((f"train --teacher {name}.ckpt --data nowhere", {}, line) for name, (_, line) in list(BROKEN.items())[:9]),
    *((f"train --output last-{name} --resume", {}, line) for name, (_, line) in STATELESS.items()),
    ("train --teacher nowhere.ckpt --data nowhere", {}, "nowhere.ckpt: no such file"),  # before the data
    ("compare --teacher nowhere.ckpt --data nowhere", {}, "nowhere.ckpt: no such file"),
    ("compare --seeds 99999999", {}, "must be at most 10000"),
    ("compare --methods kd,,kd", {}, "unknown method ''"),
    ("compare --methods kd,kd", {}, "name each method once"),
    ("compare --jobs 99999999999", {}, "must be at most 1024"),
    ("distil", {}, "invalid choice: 'distil'"),
    ("--output x", {}, "amkd-distill --help"),
]

TOLD = [
    ("", ["exit codes: 0 done; 1 a bug", "train|compare|evaluate"]),
    ("--help", ["exit codes"]),
    ("--version", ["amkd_fast "]),
    ("train --help", ["exit codes", "\nboundary samples: bss-*, amkd:\n", "--data X", "\ntraining:\n"]),
    ("compare --help", ["--jobs", "\nmachine:\n"]),
    ("evaluate --help", ["with --attack pgd"]),
    ("train --resume --output done", ["done is complete: there is nothing left to do"]),
    ("evaluate good.ckpt --limit 20", ["on 20 clean test images"]),
]

DIVERGED = [
    ("train --method student --lr 1e30", "student diverged in epoch 2 of 3 (ce is nan); "),
    ("train --method kd --lr 1e30", "last.ckpt is of epoch 1, the last good one"),
    ("train --method kd --teacher nan.ckpt", "kd diverged in epoch 1 of 3 (kl is nan); no epoch was good"),
    ("train --method student --weight-decay 1e9", "student diverged in epoch "),
    ("evaluate nan.ckpt", "checkpoint nan.ckpt: its network's logits are not finite"),
    ("evaluate inf.ckpt --attack pgd", "checkpoint inf.ckpt: its network's logits are not finite"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with results, finished and not, and with whatever can be wrong."""
    place = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        words = ["train", "--method", "student", *SMALL]
        assert main([*words, "--output", "done"]) == 0
        write = files.write_atomic

        def full(path, content):
            if content.count("\n") > 2:
                raise KeyboardInterrupt
            write(path, content)

        patch.setattr(epoch_log, "write_atomic", full)
        assert main([*words, "--output", "half"]) == 130
        for name in ("runs", "letters", "pets"):
            os.mkdir(name)
        picture_folder(place / "pets", count=50)
        picture_folder(place / "lonely", classes=("cat",), count=1)
        picture_folder(place / "trees", count=1)
        deep = place / "trees" / "train" / "cat"
        for _ in range(40):
            deep /= "d"
        os.makedirs(deep)
        os.mkfifo("pipe")
        for name in ("file", "letters/dear.txt"):
            (place / name).write_bytes(b"dear")
        (place / "shapes.py").write_text(SHAPES)
        good = torch.load("done/last.ckpt", weights_only=True)
        torch.save(good, "good.ckpt")
        for name, (change, _) in {**BROKEN, **UNTOLD}.items():
            torch.save(changed(good, change), f"{name}.ckpt")
        torch.save(changed(good, lambda c: spoil(c["state_dict"])), "nan.ckpt")
        torch.save(changed(good, lambda c: next(iter(c["state_dict"].values())).fill_(float("inf"))), "inf.ckpt")
        last = torch.load("half.partial/last.ckpt", weights_only=True)
        for name, (change, _) in STATELESS.items():
            shutil.copytree("half.partial", f"last-{name}.partial")
            torch.save(changed(last, change), f"last-{name}.partial/last.ckpt")
        shutil.copytree("half.partial", "bestless.partial")
        os.unlink("bestless.partial/best.ckpt")
        for name, (content, _) in YAML.items():
            (place / f"{name}.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        (place / "sci.yaml").write_text("lr: 1e-3\n")
        comparison = {"settings": {**CompareSettings(methods="student", seeds=1, teacher="good.ckpt").as_dict()}}
        settings = TrainSettings().as_dict()
        unfinished = {
            "versus": {"command": "compare", **comparison},
            "older": comparison,
            "unset": {"settings": "x"},
            "array": [],
            "typed": {"command": "train", "settings": {**settings, "epochs": "many"}},
            "damaged": comparison,
            "rowless": comparison,
            "wordy": comparison,
        }
        for name, about in unfinished.items():
            (place / f"{name}.partial" / "runs").mkdir(parents=True)
            (place / f"{name}.partial" / "run.json").write_text(json.dumps(about))
        runs = {
            "damaged": "{",
            "rowless": {"rows": [], "qualities": {}},
            "wordy": {"rows": [{"accuracy": "x"}], "qualities": {}},
        }
        for name, run in runs.items():
            shutil.copy("good.ckpt", f"{name}.partial/teacher.ckpt")
            run = run if isinstance(run, str) else json.dumps(run)
            (place / f"{name}.partial" / "runs" / "student-0.json").write_text(run)
        for name, content in {"broken": "{", "deep": "[" * 100_000}.items():
            (place / f"{name}.partial").mkdir()
            (place / f"{name}.partial" / "run.json").write_text(content)
        (place / "bare.partial").mkdir()
        (place / "compared").mkdir()
        for name in ("run.json", "results.json"):
            (place / "compared" / name).write_text(json.dumps(unfinished["versus"]))
    return place


SHAPES = """
import sys
from torch import nn
class Large(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.linear = nn.Linear(channels, classes)
    def forward(self, x):
        assert x.shape[-1] == 224, f"Input height ({x.shape[-1]}) doesn't match model (224)"
class Wrong(Large):
    def forward(self, x):
        return x
def exits(channels, classes):
    sys.exit(0)
"""


def everything(place):
    """Every file with its size and the time of its last change, every folder."""
    found = {}
    for path in place.rglob("*"):
        about = path.lstat()
        if "__pycache__" not in str(path):
            found[str(path)] = None if path.is_dir() else (about.st_size, about.st_mtime_ns, about.st_ino)
    return found


def run(place, words, names, monkeypatch, capfd):
    """Exit code, and what was printed and complained of."""
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    words = words.split() if isinstance(words, str) else words
    code = main(words)
    told = capfd.readouterr()
    assert "Traceback" not in told.err
    return code, told.out, told.err


@pytest.mark.parametrize(("words", "names", "line"), REFUSED, ids=lambda value: str(value)[:40])
def test_refused_in_one_line_and_nothing_changes(place, words, names, line, monkeypatch, capfd):
    before = everything(place)
    code, printed, told = run(place, words, names, monkeypatch, capfd)
    assert (code, told.count("\n")) == (2, 1), told
    assert told.startswith("amkd-distill: ")
    assert line in told
    assert len(told) < 1000
    assert "teacher trained" not in printed  # what can be known before is said before
    assert everything(place) == before


@pytest.mark.parametrize(("words", "lines"), TOLD, ids=lambda value: str(value)[:40])
def test_told(place, words, lines, monkeypatch, capfd):
    before = everything(place)
    code, printed, told = run(place, words, {}, monkeypatch, capfd)
    assert (code, told) == (0, "")
    for line in lines:
        assert line in printed
    assert everything(place) == before


@pytest.mark.parametrize(("words", "line"), DIVERGED, ids=lambda value: str(value)[:40])
def test_diverged(place, words, line, monkeypatch, capfd, tmp_path):
    before = everything(place)
    more = [*SMALL, "--output", str(tmp_path / "out")] if words.startswith("train") else []
    code, _, told = run(place, [*words.split(), *more], {}, monkeypatch, capfd)
    assert (code, told.count("\n")) == (3, 1), told
    assert line in told
    assert everything(place) == before
    assert not (tmp_path / "out").exists()


# --- what a table cannot show


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_one_interruption_whatever_they_become(number, capfd):
    def work():
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        except KeyboardInterrupt:
            raise ImportError("an import that was interrupted") from None

    outside = signal.signal(number, signal.SIG_DFL)  # under nohup a hangup is ignored, and stays so
    try:
        before = [signal.getsignal(one) for one in exit_codes.STOPPING]
        assert exit_codes.guarded(work) == 130
        assert capfd.readouterr().err == "amkd-distill: interrupted\n"
        assert [signal.getsignal(one) for one in exit_codes.STOPPING] == before
    finally:
        signal.signal(number, outside)


def test_a_bug_shows_its_traceback_and_how_to_report_it(capfd):
    assert exit_codes.guarded(lambda: {}["key"]) == 1
    *lines, last = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "KeyError: 'key'"
    assert last.startswith("amkd-distill: this is a bug of amkd_fast ")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("can't start new thread"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 bytes"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
    ids=lambda error: f"{type(error).__name__} {str(error)[:20]}",
)
def test_a_machine_that_has_no_more_to_give_is_no_bug(error, capfd):
    def work():
        raise error

    assert exit_codes.guarded(work) == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_nothing_that_is_printed_is_long_or_moves_the_cursor(capfd):
    def work():
        raise UserError(f"--data \x1b[2J{'x' * 10_000}\udcff: no")

    assert exit_codes.guarded(work) == 2
    told = capfd.readouterr().err
    assert told.startswith("amkd-distill: --data \\x1b[2Jxxx")
    assert len(told) < 500


def closed(words, errors):
    """The command with nothing behind its standard output."""
    os.dup2(os.open(errors, os.O_WRONLY), 2)
    os.close(1)
    sys.stdout = None
    sys.exit(main(words))


def test_a_closed_stdout(place, tmp_path):
    (tmp_path / "errors").touch()
    words = ["evaluate", str(place / "good.ckpt")]
    process = processes.FORKING.Process(target=closed, args=(words, tmp_path / "errors"))
    process.start()
    process.join()
    assert process.exitcode == 2
    told = (tmp_path / "errors").read_text()
    assert told == "amkd-distill: standard output is closed: give it a file, or /dev/null\n"


def test_interrupted_while_torch_is_imported(tmp_path):
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    words = [sys.executable, "-m", "amkd_fast.distill", "train", "--method", "kd"]
    root = Path(amkd_fast.__file__).parents[1]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": root}
    with subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(tmp_path)}, **options) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert process.stderr.read() == "amkd-distill: interrupted\n"


def test_a_torchvision_that_does_not_match_is_put_aside(tmp_path, monkeypatch, capfd):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "from torchvision import ops\nraise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    (tmp_path / "torchvision" / "ops.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(imports, "_version", lambda name: "0.99")
    assert bool(imports.RequirementCache("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision", None)  # what put_aside leaves is taken back, also where nothing was
    monkeypatch.delitem(sys.modules, "torchvision")
    broken_torchvision.put_aside()
    assert not bool(imports.RequirementCache("torchvision"))
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("torchvision.ops")
    told = capfd.readouterr().err
    assert told.startswith("amkd-distill: going on without torchvision: it does not match torch ")
    assert "operator torchvision::nms does not exist" in told
    broken_torchvision.put_aside()  # once is enough
    assert capfd.readouterr().err == ""


# --- one folder, two processes


def hold(place, told):
    with locked(place, str(place)):
        told.send("held")
        time.sleep(600)


@pytest.fixture
def holder(place):
    """Holds results of the place for itself, in a process of its own."""
    mine, theirs = processes.FORKING.Pipe()
    started = []

    def start(name):
        started.append(processes.FORKING.Process(target=hold, args=(place / name, theirs)))
        started[0].start()
        assert mine.recv() == "held"
        return started[0]

    yield start
    for process in started:
        process.kill()
        process.join()


@pytest.mark.parametrize("name", ["done", "half", "fresh", "versus", "compared"])
def test_a_result_in_use_is_left_alone(place, name, holder, monkeypatch, capfd):
    process = holder(name)
    before = everything(place)
    who = f"--output {name}: in use by process {process.pid} on {socket.gethostname()} since 20"
    for command in ("train", "compare"):
        for flags in ([], ["--overwrite"], ["--resume"]):
            code, _, told = run(place, [command, "--output", name, *flags], {}, monkeypatch, capfd)
            assert (code, told.count("\n")) == (2, 1)
            assert who in told
            assert everything(place) == before
    process.kill()
    process.join()
    assert (place / f".{name}.lock").exists()  # of a dead process: no claim
    with locked(place / name, name):
        assert json.loads((place / f".{name}.lock").read_text())["process"] == os.getpid()
    assert not (place / f".{name}.lock").exists()


def test_an_evaluation_does_not_write_over_another(place, holder, monkeypatch, capfd):
    process = holder("found.json")
    words = "evaluate good.ckpt --limit 20 --output found.json"
    code, _, told = run(place, words, {}, monkeypatch, capfd)
    assert code == 2
    assert f"--output found.json: in use by process {process.pid} on " in told
    assert not (place / "found.json").exists()


@pytest.mark.parametrize("left", ["earlier", "discarded"])
def test_what_a_kill_leaves_between_two_renames_comes_back(place, left, tmp_path, monkeypatch, capfd):
    name, kept = {"earlier": ("done", "out"), "discarded": ("half.partial", "out.partial")}[left]
    shutil.copytree(place / name, tmp_path / f"out.{left}")
    code, _, told = run(place, ["train", "--output", str(tmp_path / "out")], {}, monkeypatch, capfd)
    assert code == 2
    assert {"earlier": "holds an earlier result", "discarded": "an unfinished run is in"}[left] in told
    assert os.listdir(tmp_path) == [kept]


def test_an_unfinished_run_is_discarded_only_for_one_that_begins(place, tmp_path, monkeypatch, capfd):
    shutil.copytree(place / "half.partial", tmp_path / "out.partial")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out.partial").iterdir()}
    words = ["train", "--method", "student", *SMALL, "--output", str(tmp_path / "out"), "--overwrite"]
    assert run(place, [*words, "--data", "nowhere"], {}, monkeypatch, capfd)[0] == 2
    after = {path.name: path.read_bytes() for path in (tmp_path / "out.partial").iterdir()}
    assert after == before


# --- workers


WORKER = """
import multiprocessing, os, time
from pathlib import Path
from torch import nn
class Net(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.linear = nn.Linear(64 * channels, classes)
    def forward(self, x):
        if multiprocessing.parent_process() is not None:
            here = Path(__file__).parent
            (here / str(os.getpid())).touch()
            while not (here / "go").exists():
                time.sleep(0.01)
            if (here / "die").exists():
                os.kill(os.getpid(), 9)
        return self.linear(x.flatten(1))
"""


def test_a_killed_worker_is_one_line_and_resume_goes_on(place, tmp_path, monkeypatch, capfd):
    (tmp_path / "worker_for_a_test.py").write_text(WORKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("go", "die"):
        (tmp_path / name).touch()
    words = ["compare", *SMALL, "--methods", "student,kd", "--seeds", "1", "--jobs", "2"]
    words += ["--teacher", "good.ckpt", "--student-network", "worker_for_a_test:Net", "--output", str(tmp_path / "out")]
    code, _, told = run(place, words, {}, monkeypatch, capfd)
    assert (code, told.count("\n")) == (2, 1), told
    assert "a process of --jobs was killed" in told
    assert "--resume goes on" in told
    assert json.loads((tmp_path / "out.partial" / "run.json").read_text())["command"] == "compare"


@pytest.mark.skipif(not Path("/proc/self/wchan").exists(), reason="asks Linux what a process waits for")
def test_a_worker_killed_after_the_last_run_holds_nobody_up(place, tmp_path, monkeypatch, capfd):
    """It waits for work with the queue's lock, which no other worker gets after its death."""
    late = threading.Event()
    join = Manager.join_executor_internals

    def struck(self):
        workers = list(self.processes.values())
        for worker in workers:
            with contextlib.suppress(OSError):  # it has ended
                if "pipe" in Path(f"/proc/{worker.pid}/wchan").read_text():
                    worker.kill()
                    worker.join()

        def end():
            late.set()
            for worker in workers:
                worker.kill()

        timer = threading.Timer(20.0, end)
        timer.start()
        join(self)
        timer.cancel()

    monkeypatch.setattr(Manager, "join_executor_internals", struck)
    out = tmp_path / "out"
    words = ["compare", *SMALL, "--methods", "student,kd", "--seeds", "1", "--jobs", "2", "--teacher", "good.ckpt"]
    code, _, told = run(place, [*words, "--quality-images", "20", "--output", str(out)], {}, monkeypatch, capfd)
    assert (code, told, late.is_set()) == (0, "", False)
    assert (out / "results.json").exists()


# --- a report is made of whatever there is


def test_methods_that_diverge_are_told_and_the_others_go_on(place, tmp_path, monkeypatch, capfd):
    train = training_runs.train_student

    def with_a_nan_teacher(name, seed, teacher, *rest, **options):
        if name == "rkd":
            network = copy.deepcopy(teacher.network)
            spoil(network.state_dict())
            teacher = Teacher(network, rest[0])
        return train(name, seed, teacher, *rest, **options)

    monkeypatch.setattr(training_runs, "train_student", with_a_nan_teacher)
    out = tmp_path / "out"
    words = ["compare", *SMALL, "--methods", "student,kd,bss-official,dkd,rkd", "--seeds", "2", "--jobs", "1"]
    words += ["--dkd-other-weight", "1e18", "--teacher", "good.ckpt", "--quality-images", "20", "--output", str(out)]
    code, printed, told = run(place, words, {}, monkeypatch, capfd)
    assert (code, told) == (0, "")
    result = json.loads((out / "results.json").read_text())
    lost = {method for method, found in result["methods"].items() if found["diverged"]}
    assert lost == {"dkd", "rkd"}
    for method, found in result["methods"].items():
        assert found["last"]["n"] == (0 if method in lost else 2)
        assert found["diverged"].keys() == ({"0", "1"} if method in lost else set())
    assert "rkd                diverged in epoch 1: distance is nan, angle is nan" in printed
    assert "Runs whose loss or weights were not finite any more" in (out / "report.html").read_text()
    for name in ("accuracy", "qualities", "loss_curves", "samples", "gaps"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_all_diverged(place, tmp_path, monkeypatch, capfd):
    words = ["compare", *SMALL, "--methods", "kd,dkd", "--seeds", "1", "--jobs", "1", "--teacher", "nan.ckpt"]
    code, printed, told = run(place, [*words, "--output", str(tmp_path / "out")], {}, monkeypatch, capfd)
    assert (code, told) == (3, "")
    assert "diverged" in printed
    assert (tmp_path / "out" / "report.html").exists()
