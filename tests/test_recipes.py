"""Recipes: that each is complete and trains, what goes before what; and the published table beside results."""

from __future__ import annotations

import json

import pytest
import yaml

pytest.importorskip("lightning", reason="the extra `train` is not installed")

import torch
from folders import noise

from amkd_fast.distill import build, networks, options, published, recipes
from amkd_fast.distill.cli import main
from amkd_fast.distill.data.cifar import ARCHIVES
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.published import measured, tables
from amkd_fast.distill.settings import CompareSettings, TrainSettings

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = recipes.names()
TINY = ("--teacher-network", "small-2-1", "--student-network", "small-2-1")
TABLE = "cifar100-240"


def cifar(root, name, classes, images):
    """The binary version of a set of noise."""
    archive = ARCHIVES[name]
    folder = root / archive.binary
    folder.mkdir()
    (folder / archive.names).write_text("".join(f"class {number}\n" for number in range(classes)))
    for number, file in enumerate((*archive.train, *archive.test)):
        pixels = torch.from_numpy(noise(images, 32, seed=number)).reshape(images, -1)
        labels = (torch.arange(images) % classes).to(torch.uint8)[:, None]
        rows = torch.cat([*[labels] * (archive.skip + 1), pixels], 1)
        (folder / f"{file}.bin").write_bytes(rows.numpy().tobytes())


def tiny_imagenet(root, classes=("n01", "n02"), images=12):
    from PIL import Image

    val, lines = root / "tiny-imagenet-200" / "val", []
    (val / "images").mkdir(parents=True)
    for name in classes:
        train = root / "tiny-imagenet-200" / "train" / name / "images"
        train.mkdir(parents=True)
        for number, pixels in enumerate(noise(images, 64)):
            Image.fromarray(pixels).save(train / f"{number}.png")
        Image.fromarray(noise(1, 64)[0]).save(val / "images" / f"{name}.png")
        lines.append(f"{name}.png\t{name}\t0\t0\t62\t62\n")
    (val / "val_annotations.txt").write_text("".join(lines))


DATA = {
    "cifar10": lambda root: cifar(root, "cifar10", 10, 12),
    "cifar100": lambda root: cifar(root, "cifar100", 100, 100),
    "tiny-imagenet": tiny_imagenet,
    "digits": lambda root: None,
}


@pytest.mark.parametrize("name", NAMES)
def test_ten_steps_of_every_recipe(name, tmp_path):
    data = recipes.load(name)["settings"]["data"]
    DATA[data](tmp_path)
    words = [*TINY, "--data-root", str(tmp_path), "--max-steps", "10", "--output", str(tmp_path / "out")]
    assert main(["train", "--recipe", name, *words]) == 0
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    recipe = recipes.load(name)
    assert result["method"] == recipe["train"]["method"]
    stored = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert stored["recipe"] == name
    own = {setting: value for setting, value in recipe["settings"].items() if not setting.endswith("_network")}
    assert own.items() <= stored.items()
    last = torch.load(tmp_path / "out" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 10
    found = measured.runs(tmp_path / "out", name)
    assert [run.method for run in found] == [result["method"], "teacher"]
    assert {run.pair for run in found} == {("small-2-1", "small-2-1")}
    assert all(run.otherwise == {"max_steps": 10} and 0.0 <= run.accuracy <= 100.0 for run in found)
    again = options.resolve(TrainSettings, str(tmp_path / "out" / "config.yaml"), {})  # everything is resolved there
    assert again.as_dict() == stored


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_says_what_it_is(name):
    recipe = recipes.load(name)
    assert set(recipe) <= {"about", "source", "deviations", "settings", "train", "compare", "cases"}
    assert recipe["about"]
    assert recipe["source"]
    assert recipe["deviations"] or name == "digits"
    for kind in (TrainSettings, CompareSettings):
        build.check(options.resolve(kind, None, {"recipe": name}), torch.device("cpu"))


def test_digits_are_the_defaults():
    """Of which some wait for the data."""
    for kind in (TrainSettings, CompareSettings):
        found, default = options.resolve(kind, None, {"recipe": "digits"}).as_dict(), kind().as_dict()
        changed = {name: value for name, value in found.items() if value != default[name]}
        waiting = {"augment": "none", "teacher_images": 1000, "student_images": 200, "mean": "data", "std": "data"}
        networks = {f"{role}_network": kind().network(role) for role in ("teacher", "student")}
        assert changed == {**waiting, **networks, "recipe": "digits"}


def test_words_go_before_the_file_and_the_file_before_the_recipe(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"recipe: {TABLE}\nlr: 0.3\nepochs: 200\nlr_milestones: 150,180\n")
    found = options.resolve(TrainSettings, str(tmp_path / "mine.yaml"), {"epochs": 190})
    assert (found.recipe, found.lr, found.epochs, found.lr_milestones) == (TABLE, 0.3, 190, "150,180")
    assert (found.batch_size, found.weight_decay) == (64, 5e-4)
    found = options.resolve(TrainSettings, str(tmp_path / "mine.yaml"), {"recipe": "bss-cifar10"})
    assert (found.recipe, found.lr, found.boundary_samples) == ("bss-cifar10", 0.3, 64)
    assert main(["train", "--recipe", "none", "--output", str(tmp_path / "out")]) == 2


def test_cases_of_the_table():
    def of(teacher, student, **more):
        stated = {"recipe": TABLE, "teacher_network": teacher, "student_network": student, **more}
        found = options.resolve(TrainSettings, None, stated)
        return found.lr, found.of_teacher().lr, found.dkd_other_weight

    assert of("resnet32x4", "resnet8x4") == (0.05, 0.05, 8.0)
    assert of("resnet32x4", "shufflenetv2") == (0.01, 0.05, 8.0)
    assert of("wrn-40-2", "wrn-40-1") == (0.05, 0.05, 6.0)
    assert of("wrn-40-2", "shufflenetv1") == (0.01, 0.05, 8.0)
    assert of("vgg13", "mobilenetv2", lr=0.02) == (0.02, 0.05, 6.0)
    assert of("resnet56-b", "resnet20-b", dkd_other_weight=3.0) == (0.05, 0.05, 3.0)


def test_another_schedule_than_the_recipes():
    for name in ("cifar100-240", "bss-cifar10", "tiny-imagenet"):
        found = options.resolve(TrainSettings, None, {"recipe": name, "schedule": "cosine"})
        assert (found.lr_milestones, found.teacher_lr_milestones) == ("", None)
        build.check(found, torch.device("cpu"))
    found = options.resolve(TrainSettings, None, {"recipe": "bss-cifar10"})
    assert (found.lr_milestones, found.of_teacher().lr_milestones) == ("39,59", "160,240")


def test_a_wrong_value_in_a_recipe_is_named(monkeypatch):
    monkeypatch.setattr(recipes, "text", lambda name: "settings: {epochs: 0}\n")
    with pytest.raises(UserError, match="--recipe mine: epochs=0: must be at least 1"):
        options.resolve(TrainSettings, None, {"recipe": "mine"})


def test_recipes_are_listed_and_shown(capsys):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{listed}" for name in NAMES)
    assert main(["recipes", TABLE]) == 0
    shown = capsys.readouterr().out
    assert "deviations:" in shown
    assert yaml.safe_load(shown) == recipes.load(TABLE)
    assert main(["recipes", "none"]) == 2
    assert "must be one of bss-cifar10, " in capsys.readouterr().err


# --- the table


def result(folder, runs, *, teacher=79.0, recipe=TABLE, kind="compare", **stated):
    """A result folder by the recipe."""
    settings = options.resolve(
        CompareSettings if kind == "compare" else TrainSettings, None, {"recipe": recipe, **stated}
    )
    found = {"kind": kind, "settings": settings.as_dict(), "teacher_accuracy": teacher}
    if kind == "compare":
        found["runs"] = [{"method": method, "seed": seed, "last": last} for method, seed, last in runs]
    else:
        ((found["method"], found["seed"], found["last"]),) = runs
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(found))
    return str(folder)


def line(text, start):
    return [found for found in text.splitlines() if found.startswith(start)]


def test_the_published_table_is_whole():
    found = tables.load("cifar100")
    pairs = [tuple(pair) for block in found["blocks"] for pair in block]
    assert len(set(pairs)) == len(pairs) == 13
    assert {row["source"] for row in found["rows"]} == found["sources"].keys()
    for name in {name for pair in pairs for name in pair}:
        networks.check(name, "cifar100.yaml")
    by = {row["method"]: dict(zip(pairs, row["accuracy"], strict=True)) for row in found["rows"]}
    for place, role in enumerate(("teacher", "student")):  # a network has one accuracy
        known = {}
        for pair in pairs:
            assert known.setdefault(pair[place], by[role][pair]) == by[role][pair]
    assert by["kd"]["resnet56-b", "resnet20-b"] == 70.66
    assert by["dkd"]["resnet32x4", "shufflenetv2"] == 77.07
    assert by["reviewkd"]["wrn-40-2", "wrn-40-1"] == 75.09


def test_results_stand_below_the_published_rows(tmp_path):
    wrn = {"teacher_network": "wrn-40-2", "student_network": "wrn-16-2"}
    runs = [("student", 0, 73.0), ("kd", 0, 75.0), ("kd", 1, 74.0), ("amkd", 0, 75.5), ("dkd", 0, None)]
    result(tmp_path / "a", runs, teacher=75.7, **wrn)
    result(tmp_path / "b", [("kd", 2, 73.0)], kind="train", **wrn, epochs=220)
    result(tmp_path / "c", [("kd", 0, 60.0)], recipe="bss-cifar10", kind="train")
    result(tmp_path / "d", [("kd", 0, 73.3)], kind="train")
    result(tmp_path / "e", [("student", 0, 70.0)], kind="train", student_network="vgg8", teacher=None)
    result(tmp_path / "f", [("dkd", 0, 74.0)], kind="train", student_network="vgg8")
    about = {"format": 2, "network": {"name": "vgg13", "channels": 3, "classes": 100}}
    torch.save({"amkd_fast": about, "state_dict": {}}, tmp_path / "f" / "teacher.ckpt")  # not what the settings name
    text = published.table("cifar100", [str(tmp_path)])
    kd = text.splitlines().index(line(text, "KD")[0])
    assert text.splitlines()[kd + 1].split() == ["here", "73.30", "(1)", "74.50", "(2)"]
    assert [found.split() for found in line(text, "dkd, here") + line(text, "amkd, here")] == [
        ["amkd,", "here", "75.50", "(1)"]
    ]
    assert "  here" in text.splitlines()[text.splitlines().index(line(text, "DKD")[0]) + 1]
    assert "diverged" in text
    flat = " ".join(text.split())
    assert f"* {tmp_path / 'b'}: not as recipe {TABLE} is (epochs 220), counted where nothing else is." in flat
    assert f"Left out, not by --recipe {TABLE} or of other networks: {tmp_path / 'c'}." in flat
    assert "Not measured here: fitnet, at, sp, rkd, crd, reviewkd of wrn-40-2 → wrn-16-2." in flat
    assert "Not measured here: student, fitnet, at, sp, rkd, crd, reviewkd, dkd of resnet32x4 → resnet8x4." in flat
    assert f"* {tmp_path / 'f'}: not as recipe {TABLE} is (dkd_other_weight 8.0), counted" in flat
    assert "74.00 (1)*" in text
    assert "Not measured here: kd, fitnet, at, sp, rkd, crd, reviewkd of vgg13 → vgg8." in flat
    assert "Not measured here: kd, fitnet, at, sp, rkd, crd, reviewkd, dkd of resnet50 → vgg8." in flat
    marked = published.table("cifar100", [str(tmp_path / "a")], markdown=True)
    assert "| KD | 70.66 | 70.67 | 73.08 | 73.33 | 74.92 | 73.54 | 72.98 |\n" in marked
    assert "| here |  |  |  |  | 74.50 (2) |  |  |\n" in marked
    assert max(map(len, text.splitlines())) <= max(tables.WIDTH, len(str(tmp_path)) + 4)


def test_the_table_without_results(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["table", "cifar100"]) == 0
    assert not line(capsys.readouterr().out, "  here")
    result(tmp_path / "runs" / "one", [("kd", 0, 73.3)], kind="train")
    assert main(["table", "cifar100"]) == 0
    assert "73.30 (1)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "is no result of train or compare, and has none in it"),
        ("{", "is missing or damaged"),
        ('{"kind": "train"}', "settings is missing"),
        (
            '{"kind": "train", "settings": {"recipe": "cifar100-240", "epochs": "x"}}',
            "epochs='x': must be a whole number",
        ),
        ('{"kind": "compare", "settings": {}, "runs": [{"method": "kd", "last": "x"}]}', "last='x': must be a number"),
    ],
)
def test_results_that_cannot_be_read(content, expected, tmp_path, capsys):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    assert main(["table", "cifar100", str(tmp_path)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert expected in said
