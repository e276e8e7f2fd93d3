"""Training runs, comparisons and the command line, in the smallest sizes that still do everything."""

from __future__ import annotations

import copy
import csv
import errno
import json
import math
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the extra `train` is not installed")

import processes
from folders import picture_folder
from matplotlib.backends.backend_agg import FigureCanvasAgg

from amkd_fast.distill import data as datasets
from amkd_fast.distill import errors, files, robustness, training_runs
from amkd_fast.distill.checkpoint import load_network
from amkd_fast.distill.cli import main
from amkd_fast.distill.evaluate_settings import EvaluateSettings
from amkd_fast.distill.evaluation_data import images_for
from amkd_fast.distill.lightning_module import Distillation
from amkd_fast.distill.networks import Spec
from amkd_fast.distill.progress import progress_bar
from amkd_fast.distill.settings import METHODS, USUAL, Settings

TINY = {
    "teacher_images": 128,
    "student_images": 48,
    "teacher_network": "small-2-1",
    "teacher_epochs": 2,
    "student_network": "small-2-1",
    "epochs": 4,
    "batch_size": 32,
    "boundary_samples": 4,
    "quality_images": 40,
}
WORDS = [word for name, value in TINY.items() for word in ("--" + name.replace("_", "-"), str(value))]
PLOTS = ("accuracy", "accuracy_curves", "qualities", "differences", "loss_curves", "gaps", "samples")
FILES = (
    "results.json",
    "run.json",
    "config.yaml",
    "results.csv",
    "summary.csv",
    "report.html",
    "teacher.ckpt",
    "students",
    *(f"{name}.png" for name in PLOTS),
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    """A teacher good enough to have boundary samples, and the folder of the comparison that trained it."""
    folder = tmp_path_factory.mktemp("first") / "compare"
    words = ["compare", *WORDS, "--teacher-epochs", "12", "--seeds", "2", "--jobs", "1"]
    assert main([*words, "--output", str(folder)]) == 0
    return folder / "teacher.ckpt"


@pytest.fixture
def unpainted(monkeypatch):
    """Figures are made, but not painted, which takes longer than the trainings."""
    monkeypatch.setattr(FigureCanvasAgg, "print_figure", lambda self, file, **_: file.write(b"\x89PNG"))


@pytest.fixture
def digits():
    return datasets.load(Settings(**TINY))


def numbers(folder):
    """All results but the times."""
    result = json.loads((folder / "results.json").read_text())
    runs = [[{k: v for k, v in row.items() if k != "ms_per_step"} for row in run["epochs"]] for run in result["runs"]]
    return runs, [run["qualities"] for run in result["runs"]], result["qualities"], result["tests"]


# --- compare


def test_compare_writes_everything(teacher_file):
    folder = teacher_file.parent
    assert sorted(os.listdir(folder)) == sorted(FILES)
    assert os.listdir(folder.parent) == ["compare"]  # no working folder is left
    result = json.loads((folder / "results.json").read_text())
    assert list(result["methods"]) == list(USUAL)
    for method, found in result["methods"].items():
        runs = [run for run in result["runs"] if run["method"] == method]
        assert found["last"]["values"] == [run["epochs"][-1]["accuracy"] for run in runs]
        assert found["best"]["values"] == [max(row["accuracy"] for row in run["epochs"]) for run in runs]
        attacking = method in ("bss-official", "bss-paper", "bss-near_boundary", "amkd")  # the zoo waits ten epochs
        assert (found["attacked"] > 0) == attacking
        assert found["qualities"]["accuracy"]["values"] == pytest.approx(found["last"]["values"])
        for quality, values in found["qualities"].items():
            assert values["values"] == [run["qualities"][quality] for run in runs]
    assert result["qualities"]["teacher"]["accuracy"] == pytest.approx(result["teacher_accuracy"])
    assert {(test["method"], test["baseline"]) for test in result["tests"]} == {
        *((method, "kd") for method in USUAL if method != "kd"),
        *(("amkd", method) for method in USUAL if method.startswith("bss")),
    }
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(USUAL) * 2 * TINY["epochs"]
    for name in FILES:
        if name.endswith(".png"):
            assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_same_seeds_same_numbers_in_one_process_or_two(teacher_file, tmp_path, capsys, unpainted):
    words = ["compare", *WORDS, "--seeds", "2", "--jobs", "2", "--teacher", str(teacher_file)]
    assert main([*words, "--teacher-epochs", "12", "--output", str(tmp_path / "again")]) == 0
    assert numbers(tmp_path / "again") == numbers(teacher_file.parent)
    printed = capsys.readouterr()
    ends = [text.split("epoch 4/4")[0] for text in printed.out.splitlines() if "epoch 4/4" in text]
    assert sorted(ends) == sorted(f"{f'seed {seed} {method}':25} " for method in USUAL for seed in range(2))
    assert printed.err == ""


def test_an_interrupted_comparison_runs_only_what_is_missing(teacher_file, tmp_path, monkeypatch, capsys, unpainted):
    words = ["compare", *WORDS, "--seeds", "1", "--methods", "student,kd,amkd", "--jobs", "1"]
    words += ["--teacher", str(teacher_file)]
    assert main([*words, "--output", str(tmp_path / "straight")]) == 0
    train, begun = training_runs.train_student, []

    def stopped(name, *rest, **options):
        begun.append(name)
        if name == "amkd" and begun.count("amkd") == 1:
            raise KeyboardInterrupt
        return train(name, *rest, **options)

    monkeypatch.setattr(training_runs, "train_student", stopped)
    capsys.readouterr()
    assert main([*words, "--output", str(tmp_path / "broken")]) == 130
    assert one_line(capsys).endswith("interrupted (--resume goes on)")
    growing = (tmp_path / "broken.partial" / "report.html").read_text()
    assert '<meta http-equiv="refresh"' in growing
    assert '<a href="../broken/report.html">' in growing
    assert main(["compare", "--resume", "--epochs", "9", "--output", str(tmp_path / "broken")]) == 2
    assert "--epochs 4" in one_line(capsys)
    assert main(["compare", "--resume", "--jobs", "1", "--output", str(tmp_path / "broken")]) == 0
    assert begun == ["student", "kd", "amkd", "amkd"]
    assert "http-equiv" not in (tmp_path / "broken" / "report.html").read_text()
    assert numbers(tmp_path / "broken") == numbers(tmp_path / "straight")
    assert sorted(os.listdir(tmp_path / "broken")) == sorted(os.listdir(tmp_path / "straight"))


def test_every_method_trains_and_is_measured_on_dropped_labels(teacher_file, tmp_path, unpainted):
    words = [*WORDS, "--teacher", str(teacher_file), "--methods", "all", "--seeds", "1", "--drop-labels", "3,7"]
    assert main(["compare", *words, "--jobs", "1", "--output", str(tmp_path / "all")]) == 0
    result = json.loads((tmp_path / "all" / "results.json").read_text())
    assert list(result["methods"]) == list(METHODS)
    assert result["data"]["dropped"] == ["3", "7"]
    test = datasets.load(Settings(**TINY)).test
    for run in result["runs"]:
        assert all(math.isfinite(row["total"]) for row in run["epochs"])
        assert run["epochs"][0]["total"] != run["epochs"][-1]["total"]
        unseen, count = run["qualities"]["unseen_accuracy"], int(((test.labels == 3) | (test.labels == 7)).sum())
        assert 0.0 <= unseen <= 100.0
        assert unseen * count / 100.0 == pytest.approx(round(unseen * count / 100.0))
        assert unseen <= run["qualities"]["unseen_choice_accuracy"] <= 100.0
    teacher = result["qualities"]["teacher"]["unseen_accuracy"]
    assert teacher > 50.0  # it saw them
    (alone,) = result["methods"]["student"]["qualities"]["unseen_accuracy"]["values"]
    assert alone < teacher


def test_only_train_runs_in_several_processes(teacher_file, monkeypatch, capsys):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    for command in (["compare"], ["evaluate", str(teacher_file)]):
        assert main(command) == 2
        assert f"{command[0]}: runs in one process" in one_line(capsys)


# --- train, resume, evaluate


@pytest.mark.parametrize("method", ["amkd", "amkd --channels-last", "extended-kd"])
def test_interrupted_and_resumed_is_as_if_nothing_had_happened(method, teacher_file, tmp_path, capsys, monkeypatch):
    words = ["train", "--method", *method.split(), "--teacher", str(teacher_file)]
    assert main([*words, *WORDS, "--output", str(tmp_path / "straight")]) == 0
    write = files.write_atomic

    def full_in_the_third_epoch(path, content):
        if Path(path).name == "log.csv" and content.count("\n") > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("amkd_fast.distill.epoch_log.write_atomic", full_in_the_third_epoch)
        capsys.readouterr()
        assert main([*words, *WORDS, "--output", str(tmp_path / "broken")]) == 2
    assert one_line(capsys).endswith("No space left on device")
    assert not (tmp_path / "broken").exists()
    assert main([*words, *WORDS, "--output", str(tmp_path / "broken")]) == 2
    assert "--resume" in one_line(capsys)
    assert main(["train", "--resume", "--epochs", "9", "--output", str(tmp_path / "broken")]) == 2
    assert "--epochs 4" in one_line(capsys)
    assert main(["train", "--resume", "--output", str(tmp_path / "broken")]) == 0
    one, other = (load_network(tmp_path / name / "last.ckpt")[0].state_dict() for name in ("straight", "broken"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    whole = [
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("straight", "broken")
    ]
    assert all(torch.equal(whole[0][key], whole[1][key]) for key in whole[0])  # with what a method trains of its own
    assert len([key for key in whole[0] if key.startswith("method.")]) == (3 if method == "extended-kd" else 0)
    logs = [list(csv.DictReader((tmp_path / name / "log.csv").open())) for name in ("straight", "broken")]
    for rows in logs:
        assert len(rows) == 4
        for row in rows:
            del row["ms_per_step"]
    assert logs[0] == logs[1]
    names = ["best.ckpt", "card.md", "config.yaml", "last.ckpt", "log.csv", "results.json", "run.json", "teacher.ckpt"]
    assert sorted(os.listdir(tmp_path / "broken")) == names


def test_last_is_the_last_epoch_and_best_the_best(teacher_file, tmp_path, monkeypatch):
    falling = iter([50.0, 40.0, 30.0, 20.0])
    log = Distillation.log

    def logged(self, name, value, **options):
        log(self, name, torch.tensor(next(falling)) if name == "accuracy" else value, **options)

    monkeypatch.setattr(Distillation, "log", logged)
    words = ["train", "--method", "kd", "--teacher", str(teacher_file), *WORDS, "--output", str(tmp_path / "out")]
    assert main(words) == 0
    epochs = {
        name: torch.load(tmp_path / "out" / f"{name}.ckpt", weights_only=True)["epoch"] for name in ("best", "last")
    }
    assert epochs == {"best": 0, "last": 3}


def test_evaluate(teacher_file, tmp_path, capsys):
    assert main(["evaluate", str(teacher_file), "--attack", "pgd", "--eps", "0.2"]) == 0
    clean, attacked = capsys.readouterr().out.splitlines()
    result = json.loads((teacher_file.parent / "results.json").read_text())
    assert f"{result['teacher_accuracy']:.2f} %" in clean
    assert float(attacked.split()[-2]) < float(clean.split()[1]) - 5.0
    pets = picture_folder(tmp_path / "pets")
    assert main(["evaluate", str(teacher_file), "--data", str(pets)]) == 2
    assert "10 classes" in one_line(capsys)


def test_training_on_a_folder(tmp_path, capsys):
    pets = picture_folder(tmp_path / "pets", count=8)
    words = [
        "--data",
        str(pets),
        "--image-size",
        "8",
        "--epochs",
        "1",
        "--teacher-epochs",
        "1",
        "--student-network",
        "small-2-1",
    ]
    assert (
        main(["train", "--method", "kd", *words, "--teacher-network", "small-2-1", "--output", str(tmp_path / "out")])
        == 0
    )
    assert main(["evaluate", str(tmp_path / "out" / "best.ckpt")]) == 0


# --- bad input: one line, exit code 2, nothing destroyed


def one_line(capsys):
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("amkd-distill: ")
    return lines[0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["compare", "--methods", "student,magic"], "unknown method 'magic'"),
        (["compare", "--methods", "kd,kd"], "name each method once"),
        (["train", "--method", "magic"], "magic"),
        (["compare", "--data", "nowhere"], "nowhere: no such folder"),
        (["compare", "--seeds", "0"], "at least 1"),
        (["compare", "--epochs", "many"], "many"),
        (["compare", "--lr", "nan"], "must be a finite number"),
        (["compare", "--student-images", "5"], "--student-images 5"),
        (["compare", "--negatives", "target", "--amkd-preset", "official"], "force"),
        (["compare", "--variant", "teacher_anchor", "--space", "features"], "space='features'"),
        (["compare", "--teacher", "nowhere.ckpt"], "nowhere.ckpt: no such file"),
        (["train", "--resume"], "no run to continue"),
        (["evaluate", "nowhere.ckpt"], "nowhere.ckpt: no such file"),
        (["evaluate"], "checkpoint"),
        (["compare", "--output", "/proc/result"], "/proc/result"),
    ],
)
def test_bad_words(words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert expected in one_line(capsys)
    assert not (tmp_path / "runs" / "compare").exists()
    assert not (tmp_path / "runs" / "compare.partial").exists()


def test_bad_folders_of_pictures(tmp_path, capsys):
    def complaint(root):
        assert main(["compare", "--data", str(root), "--output", str(tmp_path / "out")]) == 2
        return one_line(capsys)

    assert "train is missing" in complaint(picture_folder(tmp_path / "a", parts=("test",)))
    assert "one class only" in complaint(picture_folder(tmp_path / "b", classes=("cat",)))
    root = picture_folder(tmp_path / "c")
    picture_folder(root, classes=("bird",), parts=("train",))
    assert "train has 3 classes and test 2; not in both: bird" in complaint(root)
    root = picture_folder(tmp_path / "d")
    (root / "train" / "cat" / "broken.png").write_bytes(b"no picture")
    assert "broken.png" in complaint(root)
    root = picture_folder(tmp_path / "e")
    (root / "test" / "empty").mkdir()
    (root / "train" / "empty").mkdir()
    assert "holds no .png or .jpg" in complaint(root)


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_bad_checkpoints(teacher_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    whole = teacher_file.read_bytes()
    network = torch.load(teacher_file, weights_only=True)
    network["amkd_fast"]["network"]["name"] = "small-3-1"
    contents = {
        "empty": b"",
        "text": b"hello",
        "half": whole[: len(whole) // 2],
        "harm": pickle.dumps(Harm(), protocol=2),
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.ckpt").write_bytes(content)
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    torch.save(Harm(), tmp_path / "harm2.ckpt")
    torch.save(network, tmp_path / "misfit.ckpt")
    for path in sorted(tmp_path.glob("*.ckpt")):
        assert main(["evaluate", str(path)]) == 2
        assert path.name in one_line(capsys)
    assert not (tmp_path / "harm").exists()
    pets = picture_folder(tmp_path / "pets")
    assert main(["compare", "--data", str(pets), "--grayscale", "--teacher", str(teacher_file)]) == 2
    assert "has 10 classes, the data has 2" in one_line(capsys)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_earlier_result_survives(teacher_file, tmp_path, monkeypatch, capsys, unpainted):
    out = tmp_path / "out"
    words = ["compare", *WORDS, "--seeds", "1", "--epochs", "1", "--methods", "student", "--output", str(out)]
    words += ["--teacher", str(teacher_file)]
    assert main(words) == 0
    before = contents(out)
    capsys.readouterr()

    assert main(words) == 2
    assert "--overwrite" in one_line(capsys)
    assert contents(out) == before

    for failing in ("fsync", "replace"):

        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(files.os, failing, full)
            assert main([*words, "--overwrite"]) == 2
        assert "No space left on device" in one_line(capsys)
        assert contents(out) == before
        assert sorted(os.listdir(tmp_path)) == ["out"]

    assert main([*words, "--overwrite", "--epochs", "2"]) == 0
    assert json.loads((out / "results.json").read_text())["settings"]["epochs"] == 2
    assert os.listdir(tmp_path) == ["out"]


def test_a_foreign_folder_is_never_touched(tmp_path, capsys):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("dear")
    for command in ("compare", "train"):
        assert main([command, "--overwrite", "--output", str(tmp_path / "letters")]) == 2
        assert "no result of amkd-distill" in one_line(capsys)
    (tmp_path / "file").write_text("x")
    assert main(["compare", "--output", str(tmp_path / "file")]) == 2
    assert "is a file" in one_line(capsys)
    assert (tmp_path / "letters" / "dear.txt").read_text() == "dear"


def test_write_atomic_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomic(path, "old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        files.write_atomic(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_behind_stdout(teacher_file, tmp_path):
    errors = tmp_path / "errors"
    errors.touch()
    process = processes.FORKING.Process(target=into_a_full_disk, args=(["evaluate", str(teacher_file)], errors))
    process.start()
    process.join()
    assert process.exitcode == 2
    assert errors.read_text() == "amkd-distill: No space left on device\n"


def into_a_full_disk(words, errors):
    for stream, path in ((1, "/dev/full"), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY), stream)
    sys.exit(main(words))


def test_a_missing_extra_is_named(monkeypatch, capsys):
    real = errors.importlib.util.find_spec
    monkeypatch.setattr(errors.importlib.util, "find_spec", lambda name: None if name == "sklearn" else real(name))
    assert main(["compare"]) == 2
    assert "pip install amkd_fast[train]" in one_line(capsys)


# --- evaluate: attacks, tables, files


def test_robust_accuracy_by_radius_norm_and_kept_iterate(teacher_file, tmp_path, capsys):
    out = tmp_path / "found.json"
    words = ["evaluate", str(teacher_file), "--attack", "pgd", "--limit", "100", "--steps", "4", "--output", str(out)]
    assert main([*words, "--eps", "0", "0.05", "0.3", "--batch-size", "64"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""  # no bar without a terminal
    assert "on 100 clean test images" in printed.out
    assert "95 % interval" in printed.out
    result = json.loads(out.read_text())
    rows = result["pgd"]
    assert [row["eps"] for row in rows] == [0.0, 0.05, 0.3]
    assert rows[0]["right"] == result["clean"]["right"]
    assert rows[0]["accuracy"] > rows[1]["accuracy"] > rows[2]["accuracy"]
    for row in (result["clean"], *rows):
        low, high = row["interval95"]
        assert low <= row["accuracy"] == row["right"] / row["images"] <= high
        assert row["images"] == 100
    assert result["kind"] == "evaluate"
    assert result["plan"]["limit"] == 100
    assert {"amkd_fast", "torch", "device"} <= set(result["environment"])
    last = rows[1]["right"]
    options = ["--keep", "first", "--restarts", "2", "--loss", "dlr"]
    assert main([*words, "--overwrite", "--eps", "0.05", *options, "--step-size", "0.03"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("under PGD (linf, eps 0.05, 4 steps, 2 restarts, loss dlr, keep first): ")
    assert json.loads(out.read_text())["pgd"][0]["right"] <= last + 2
    for norm, eps in (("l2", "0.5"), ("l1", "3")):
        assert main([*words, "--overwrite", "--norm", norm, "--eps", eps]) == 0
        assert f"({norm}, eps {eps}, 4 steps)" in capsys.readouterr().out
        assert json.loads(out.read_text())["pgd"][0]["right"] < result["clean"]["right"]


def test_a_radius_in_pixels_is_one_in_pixels(teacher_file, monkeypatch):
    network, spec, about = load_network(teacher_file)
    found = []
    count = robustness.robust_accuracy

    def spy(view, batches, attack, **options):
        images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
        found.append((images, attack(images, labels, seed=1).images))
        return count(view, batches, attack, **options)

    monkeypatch.setattr(robustness, "robust_accuracy", spy)
    for norm, order, eps in (("linf", torch.inf, 0.1), ("l2", 2, 0.7), ("l1", 1, 3.0)):
        options = EvaluateSettings(str(teacher_file), attack="pgd", norm=norm, eps=(eps,), limit=50)
        _, data = images_for(options, spec, about)
        robustness.measure(network, data, options, False)
        clean, attacked = found[-1]
        assert attacked.min() >= 0.0
        assert attacked.max() <= 1.0
        distance = torch.linalg.vector_norm((attacked - clean).flatten(1), order, dim=1)
        assert distance.max() <= eps * (1 + 1e-4)
        assert distance.max() > 0.9 * eps


def test_limited_images_come_from_every_class(tmp_path):
    pets = picture_folder(tmp_path / "pets", classes=("bird", "cat", "dog"))
    settings = Settings(data=str(pets), image_size=8)
    spec = Spec("small-2-1", 3, 3)
    data = datasets.load(settings)
    about = training_runs.describe("student", 0, data, settings)
    for limit in (3, 6, 17, 18, 99, 0):
        _, found = images_for(EvaluateSettings("net.ckpt", limit=limit), spec, about)
        counts = torch.bincount(found.test.labels, minlength=3)
        assert counts.sum() == min(limit or 18, 18)
        assert counts.max() - counts.min() <= 1
    torch.testing.assert_close(found.test.images, data.test.images)


def test_boundary_report_and_similarity(teacher_file, tmp_path, capsys):
    out = tmp_path / "found.json"
    words = ["evaluate", str(teacher_file), "--attack", "boundary", "--limit", "60", "--output", str(out)]
    assert main([*words, "--compare", str(teacher_file), "--batch-size", "32"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "MagSim 1.000 ± 0.000" in printed.out
    assert "AngSim 1.000 ± 0.000" in printed.out
    result = json.loads(out.read_text())
    assert list(result["boundary"]) == ["official", "paper", "zoo", "near_boundary"]
    for found in result["boundary"].values():
        assert found["images"] == result["clean"]["right"]
        assert sum(found["shares"].values()) == pytest.approx(1.0)
        assert found["distance"] == sorted(found["distance"])
        assert found["distance"][0] > 0.0
    similarity = result["similarity"]
    assert similarity["attempted"] == 9 * similarity["bases"] == 9 * result["clean"]["right"]
    assert similarity["count"] + sum(similarity["pairs_left_out"].values()) == similarity["attempted"]

    other = tmp_path / "other.ckpt"
    checkpoint = torch.load(teacher_file, weights_only=True)
    checkpoint["amkd_fast"].update(mean=[0.25], std=0.5)
    torch.save(checkpoint, other)
    words = [*words, "--overwrite", "--steps", "5"]
    assert main([*words, "--compare", str(other), "--preset", "paper", "--targets", "runner_up", "--progress"]) == 0
    assert "(paper, runner_up target)" in capsys.readouterr().out
    similarity = json.loads(out.read_text())["similarity"]
    assert similarity["attempted"] == similarity["bases"] > 0


def test_words_of_evaluate_that_do_not_go_together(teacher_file, tmp_path, capsys):
    def complaint(*words):
        assert main(["evaluate", str(teacher_file), *words]) == 2
        return one_line(capsys)

    assert "--eps: is for --attack pgd, not for --attack none" in complaint("--eps", "0.1")
    assert "--step-size: is for --attack pgd" in complaint("--attack", "boundary", "--step-size", "0.1")
    assert "--compare: is for --attack boundary" in complaint("--attack", "pgd", "--compare", "x.ckpt")
    assert "--targets: is for --compare" in complaint("--attack", "boundary", "--targets", "every")
    assert "--steps: is for --attack" in complaint("--steps", "3")
    assert "--overwrite: is for --output" in complaint("--overwrite")
    assert "at least 0, at most 1e+18" in complaint("--attack", "pgd", "--eps", "0.1", "inf")
    assert "l7" in complaint("--attack", "pgd", "--norm", "l7")
    assert "--restarts 0: must be at least 1" in complaint("--attack", "pgd", "--restarts", "0")
    assert "x.ckpt: no such file" in complaint("--attack", "boundary", "--limit", "5", "--compare", "x.ckpt")
    assert "is a folder" in complaint("--output", str(tmp_path))
    assert "there is no folder" in complaint("--output", str(tmp_path / "no" / "found.json"))
    (tmp_path / "found.json").write_text("precious")
    assert "--overwrite" in complaint("--output", str(tmp_path / "found.json"))
    assert (tmp_path / "found.json").read_text() == "precious"


def test_a_failed_evaluation_leaves_the_earlier_file(teacher_file, tmp_path, monkeypatch, capsys):
    out = tmp_path / "found.json"
    out.write_text("precious")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        assert main(["evaluate", str(teacher_file), "--output", str(out), "--overwrite"]) == 2
    assert one_line(capsys).endswith("found.json: No space left on device")
    assert out.read_text() == "precious"
    assert os.listdir(tmp_path) == ["found.json"]
    assert main(["evaluate", str(teacher_file), "--output", str(out), "--overwrite"]) == 0
    assert set(json.loads(out.read_text())) == {"kind", "environment", "method", "plan", "settings", "clean"}


def test_networks_that_an_evaluation_cannot_use(teacher_file, tmp_path, capsys):
    checkpoint = torch.load(teacher_file, weights_only=True)
    for name, value in (("std", [0.3, 0.4]), ("std", 0.0), ("std", float("nan")), ("mean", [0.1, 0.2]), ("mean", 0.3)):
        wrong = copy.deepcopy(checkpoint)
        wrong["amkd_fast"][name] = value
        torch.save(wrong, tmp_path / "wrong.ckpt")
        assert main(["evaluate", str(tmp_path / "wrong.ckpt")]) == 2
        assert f"{name} {value!r} is not one number" in one_line(capsys)
        words = ["evaluate", str(teacher_file), "--attack", "boundary", "--limit", "5", "--compare"]
        assert main([*words, str(tmp_path / "wrong.ckpt")]) == 2
        assert f"{name} {value!r} is not one number" in one_line(capsys)
    pets = picture_folder(tmp_path / "pets")
    words = ["--data", str(pets), "--image-size", "8", "--epochs", "1", "--student-network", "small-2-1"]
    assert main(["train", "--method", "student", *words, "--output", str(tmp_path / "out")]) == 0
    two = str(tmp_path / "out" / "best.ckpt")
    assert main(["evaluate", two, "--attack", "pgd", "--loss", "dlr"]) == 2
    assert "needs at least 3 classes, the data has 2" in one_line(capsys)
    assert main(["evaluate", str(teacher_file), "--attack", "boundary", "--limit", "5", "--compare", two]) == 2
    assert "is for 2 classes and 3 channels" in one_line(capsys)


def test_progress_bar(capsys):
    with progress_bar("counting", True) as report:
        report(1, 2)
        report(2, None)
    with progress_bar("nothing", False) as report:
        assert report is None
    assert capsys.readouterr().out == ""
