"""What a training leaves to use: kept students, loading, predicting, exporting, the model card."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the extra `train` is not installed")

import processes
from folders import picture_folder
from matplotlib.backends.backend_agg import FigureCanvasAgg

import amkd_fast
from amkd_fast.distill import checkpoint, cost, exit_codes, networks
from amkd_fast.distill import data as datasets
from amkd_fast.distill import export as exports
from amkd_fast.distill.cli import main
from amkd_fast.distill.data import pictures
from amkd_fast.distill.networks import Spec
from amkd_fast.distill.networks.normalised import Normalised
from amkd_fast.distill.report.card import _cell
from amkd_fast.distill.settings import Settings
from amkd_fast.distill.teacher import accuracy

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = Spec("small-2-1", channels=3, classes=3)
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
ABOUT = {
    "method": "kd",
    "seed": 0,
    "classes": ["cat", "dog", "a | b"],
    "settings": Settings(data="pictures", image_size=12).as_dict(),
}
TINY = [
    *("--teacher-network", "small-2-1", "--student-network", "small-2-1", "--teacher-images", "64"),
    *("--student-images", "32", "--teacher-epochs", "1", "--epochs", "3", "--batch-size", "32"),
    *("--quality-images", "20"),
]


@pytest.fixture(scope="module")
def network():
    """A colour network for pictures of 12 x 12, with running statistics that are not 0 and 1."""
    built = networks.build(SPEC, seed=3)
    with torch.no_grad():
        built(torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(0)))
    return Normalised(built.eval(), MEAN, STD)


@pytest.fixture(scope="module")
def student_file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("student") / "best.ckpt"
    checkpoint.save_network(path, network, SPEC, ABOUT)
    return path


def images(count=5):
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def logits(network, images):
    with torch.no_grad():
        return network(images)


# --- loading


def test_a_loaded_student_answers_pixels_as_its_network_does(student_file, network):
    student = amkd_fast.load_student(student_file)
    assert (student.classes, student.shape) == (("cat", "dog", "a | b"), (3, 12, 12))
    assert not any(module.training for module in student.modules())
    assert torch.equal(logits(student, images()), logits(network, images()))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    inner = logits(network.network, (images() - mean) / std)
    torch.testing.assert_close(logits(student, images()), inner, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_loaded_is_told(student_file, network, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.ckpt"):
        amkd_fast.load_student(tmp_path / "gone.ckpt")
    (tmp_path / "half.ckpt").write_bytes(student_file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"half\.ckpt: cannot be read, damaged or no checkpoint"):
        amkd_fast.load_student(tmp_path / "half.ckpt")
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="was not written by amkd-distill"):
        amkd_fast.load_student(tmp_path / "other.ckpt")
    checkpoint.save_network(tmp_path / "two.ckpt", network, SPEC, {**ABOUT, "classes": ["a", "b"]})
    with pytest.raises(ValueError, match="has 2 names for its network's 3 classes"):
        amkd_fast.load_student(tmp_path / "two.ckpt")


def test_a_network_of_the_users_own_needs_its_name(network, tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(
        "from amkd_fast.distill import networks\n"
        "def make(channels, classes):\n"
        "    return networks.build(networks.Spec('small-2-1', channels, classes), seed=0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path, name = tmp_path / "own.ckpt", "own_networks:make"
    checkpoint.save_network(path, network, SPEC._replace(name=name), ABOUT)
    with pytest.raises(ValueError, match=f"its network is code; network = {name} allows it to run"):
        amkd_fast.load_student(path)
    student = amkd_fast.load_student(path, network=name)
    assert torch.equal(logits(student, images()), logits(network, images()))


# --- what a comparison keeps


@pytest.fixture
def unpainted(monkeypatch):
    monkeypatch.setattr(FigureCanvasAgg, "print_figure", lambda self, file, **_: file.write(b"\x89PNG"))


def test_a_killed_comparison_resumes_and_still_has_its_students(tmp_path, unpainted):
    """Every student classifies the test set as its run did, those of before the kill, too."""
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    words = ["compare", "--methods", "student,kd", "--seeds", "2", *TINY, "--val-fraction", "0.2", "--jobs", "1"]
    words += ["--output", str(out)]
    command = processes.start(words, tmp_path / "errors")
    until = time.perf_counter() + 120.0
    while not list(partial.glob("runs/*.json")) and time.perf_counter() < until:
        time.sleep(0.002)
    command.process.kill()
    command.wait()
    done = [path.stem for path in partial.glob("runs/*.json")]
    assert done, command.errors.read_text()
    before = {path: path.read_bytes() for name in done for path in (partial / "students" / name).iterdir()}
    assert len(before) == 2 * len(done)
    assert main(["compare", "--resume", "--jobs", "1", "--output", str(out)]) == 0
    for path, content in before.items():
        assert (out / path.relative_to(partial)).read_bytes() == content
    result = json.loads((out / "results.json").read_text())
    test = datasets.load(Settings()).test
    for run in result["runs"]:
        folder = out / "students" / f"{run['method']}-{run['seed']}"
        for name in ("best", "last"):
            student = amkd_fast.load_student(folder / f"{name}.ckpt")
            assert accuracy(student, test) == pytest.approx(run[name], abs=1e-4)
    for method in ("student", "kd"):
        best = max((run for run in result["runs"] if run["method"] == method), key=lambda run: run["best"])
        (card,) = out.glob(f"students/{method}-*/card.md")
        assert f"highest accuracy on {result['chosen_on']}; `last.ckpt`" in card.read_text()
        assert card.parent.name == f"{method}-{best['seed']}"
        assert f"| accuracy, % | {best['best']:.2f} | {best['last']:.2f} | {result['teacher_accuracy']:.2f} |" in (
            card.read_text()
        )


def test_nothing_is_kept_where_nothing_is_wanted(tmp_path, unpainted):
    words = ["compare", "--methods", "student", "--seeds", "1", *TINY, "--jobs", "1", "--no-keep-students"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out" / "students").exists()


# --- the model card


def test_a_card_tells_what_results_tell_and_its_lines_run(tmp_path, monkeypatch):
    assert main(["train", "--method", "kd", *TINY, "--output", str(tmp_path / "out")]) == 0
    monkeypatch.chdir(tmp_path / "out")
    card, result = Path("card.md").read_text(), json.loads(Path("results.json").read_text())
    (code,) = re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {"images": torch.rand(3, 1, 8, 8)}
    exec(compile(code, "card.md", "exec"), names)
    assert len(names["names"]) == 3
    for name in ("student", "teacher"):
        found = result["networks"][name]
        assert found["parameters"] == 1384
        assert found["multiply_adds"] > 10_000
        assert found["images_per_second"] > 0.0
    assert "| parameters | 1,384 | 1,384 |" in card
    assert "method_option" not in card  # a setting that nobody has changed
    for quality, heading, digits in (("accuracy", "accuracy, %", 2), ("ece", "ECE, %", 2), ("nll", "NLL, nat", 3)):
        best, last = (result["qualities"][name][quality] for name in ("best", "last"))
        assert f"| {heading} | {best:.{digits}f} | {last:.{digits}f} |" in card
    assert result["qualities"]["last"]["accuracy"] == pytest.approx(result["last"], abs=1e-4)
    assert result["qualities"]["best"]["accuracy"] == pytest.approx(result["best"], abs=1e-4)


def test_names_cannot_break_a_table():
    assert _cell("a | b\n# c [d](e) <f>") == r"a \| b # c \[d\](e) \<f\>"


def test_costs_are_those_counted_by_hand():
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    found = cost.measure(layers.append(torch.nn.Linear(4 * 6 * 6, 10)), torch.rand(5, 3, 8, 8))
    assert found["parameters"] == (3 * 4 * 9 + 4) + 2 * 4 + (4 * 36 * 10 + 10)
    assert found["bytes"] == 4 * (found["parameters"] + 2 * 4) + 8  # running statistics; batches, counted in int64
    assert found["multiply_adds"] == 36 * (3 * 4 * 9) + 4 * 36 * 10
    assert found["images_per_second"] > 0.0
    assert layers.training


# --- predicting


def test_a_broken_picture_is_named_and_the_others_are_predicted(student_file, tmp_path, capsys):
    root = picture_folder(tmp_path / "pictures", parts=("test",), count=2)
    broken = root / "test" / "cat" / "broken.png"
    broken.write_bytes(b"\x89PNG of a kind")
    out = tmp_path / "found.json"
    words = ["predict", str(student_file), str(root), "--top", "2", "--batch-size", "3", "--json", str(out)]
    assert main(words) == exit_codes.PARTLY == 4
    printed = capsys.readouterr()
    assert f"cannot read the picture {broken}: no JPEG" in printed.err
    assert printed.err.rstrip().endswith("1 of 5 pictures could not be read; the others are predicted")
    found = json.loads(out.read_text())
    assert [entry["file"] for entry in found["unreadable"]] == [str(broken)]
    paths = sorted(path for path in root.rglob("*.*") if path != broken)
    assert [entry["file"] for entry in found["predictions"]] == list(map(str, paths))
    student = amkd_fast.load_student(student_file)
    expected = logits(student, pictures.read(paths, 12, False) / 255.0).softmax(1).topk(2, 1)
    for entry, values, numbers in zip(found["predictions"], *map(torch.Tensor.tolist, expected), strict=True):
        assert [one["class"] for one in entry["classes"]] == [student.classes[number] for number in numbers]
        assert [one["probability"] for one in entry["classes"]] == pytest.approx(values, rel=1e-4)
    assert printed.out.count("\n") == 4
    assert main(words) == 2  # the file is there


def test_predictions_as_csv_on_stdout(student_file, tmp_path, capsys):
    path = picture_folder(tmp_path / "pictures", parts=("test",), count=1) / "test" / "cat" / "0.jpg"
    assert main(["predict", str(student_file), str(path), "--csv", "-"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert {row["class"] for row in rows} == {"cat", "dog", "a | b"}
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(1.0)
    path.write_bytes(b"")
    assert main(["predict", str(student_file), str(path)]) == 2
    assert "none of 1 pictures could be read" in capsys.readouterr().err


# --- exporting


def exported(student_file, kind, name, folder, *words):
    assert main(["export", str(student_file), "--format", kind, "--output", str(folder / name), *words]) == 0
    return folder / name


def test_weights_as_a_state_dict(student_file, network, tmp_path):
    found = torch.load(exported(student_file, "torch", "s.pt", tmp_path), weights_only=True)
    assert (found["mean"], found["std"], found["classes"]) == (MEAN, STD, ABOUT["classes"])
    again = networks.build(Spec(found["network"], found["channels"], 3), seed=0)
    again.load_state_dict(found["state_dict"])
    again = Normalised(again.eval(), found["mean"], found["std"])
    assert torch.equal(logits(again, images()), logits(network, images()))


def test_weights_as_safetensors(student_file, network, tmp_path):
    safetensors = pytest.importorskip("safetensors", reason="safetensors is not installed")
    path = exported(student_file, "safetensors", "s.safetensors", tmp_path)
    with safetensors.safe_open(path, "pt") as file:
        about = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert json.loads(about["classes"]) == ABOUT["classes"]
    assert (json.loads(about["mean"]), json.loads(about["std"]), about["network"]) == (MEAN, STD, "small-2-1")
    expected = network.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_program_takes_batches_of_any_size(student_file, network, tmp_path, capsys):
    extra = {"about.json": ""}
    path = exported(student_file, "torch", "s.pt2", tmp_path)
    assert "largest difference from the network's logits 0" in capsys.readouterr().out
    program = torch.export.load(path, extra_files=extra).module()
    for count in (1, 5, 9):
        torch.testing.assert_close(program(images(count)), logits(network, images(count)), rtol=0.0, atol=1e-6)
    assert json.loads(extra["about.json"])["classes"] == ABOUT["classes"]


def test_onnx_answers_as_the_network(student_file, network, tmp_path, capsys):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    import onnxruntime

    session = onnxruntime.InferenceSession(exported(student_file, "onnx", "s.onnx", tmp_path).read_bytes())
    assert "opset 18" in capsys.readouterr().out
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ABOUT["classes"]
    for count in (1, 5):
        (found,) = session.run(None, {"images": images(count).numpy()})
        torch.testing.assert_close(torch.from_numpy(found), logits(network, images(count)), rtol=1e-5, atol=1e-5)


def test_a_file_that_answers_otherwise_is_not_left(student_file, tmp_path, monkeypatch, capsys):
    def wrong(student, options):
        return b"", exports._compared(student, lambda images: student(images) + 1e-4, options)

    monkeypatch.setattr(exports, "_program", wrong)
    assert main(["export", str(student_file), "--format", "torch", "--output", str(tmp_path / "s.pt2")]) == 2
    assert "differ from the network's by 0.0001, more than 1" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "package"), [("onnx", "onnxscript"), ("safetensors", "safetensors")])
def test_a_missing_package_is_named(kind, package, student_file, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    hidden = {"onnx": find("json"), "onnxscript": None, "safetensors": None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: hidden[name] if name in hidden else find(name))
    assert main(["export", str(student_file), "--format", kind, "--output", str(tmp_path / f"s.{kind}")]) == 2
    assert f"--format {kind} needs {package}: run `pip install {package}`" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_options_that_do_not_go_together(student_file, tmp_path, capsys):
    words = ["export", str(student_file), "--output", str(tmp_path / "s.pt")]
    assert main([*words, "--format", "onnx"]) == 2
    assert "--format onnx ends in .onnx" in capsys.readouterr().err
    assert main([*words, "--format", "torch", "--opset", "18"]) == 2
    assert "--opset: is for --format onnx" in capsys.readouterr().err
    assert main(["predict", str(student_file), "x.png", "--overwrite"]) == 2
    assert "--overwrite: is for --json FILE and --csv FILE" in capsys.readouterr().err
