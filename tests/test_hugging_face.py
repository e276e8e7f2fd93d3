"""Folders of Hugging Face's ``datasets``, whose interface a stand-in has as far as it is used; and of the real one."""

from __future__ import annotations

import io
import sys
import types

import pytest
import torch

pytest.importorskip("lightning", reason="the extra `train` is not installed")
pytest.importorskip("PIL", reason="the extra `train` is not installed")

from folders import noise, picture_folder
from PIL import Image as Pictures

from amkd_fast.distill import data as datasets
from amkd_fast.distill.cli import main
from amkd_fast.distill.data import InOrder, hugging_face, streamed
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.settings import Settings


class Image:
    def __init__(self, decode=True):
        self.decode = decode


class ClassLabel:
    def __init__(self, names):
        self.names = names


class Dataset:
    """Columns by name; ``origin`` is the file that it was read from."""

    def __init__(self, columns, features, origin=None, formatted=False):
        self.columns, self.features, self.origin, self.formatted = columns, features, origin, formatted
        self.cache_files = [] if origin is None else [{"filename": str(origin)}]

    def __getitem__(self, key):
        found = {name: values[key] for name, values in self.columns.items()}
        if self.formatted:
            raise AssertionError("values of another format")
        for name in found:
            if isinstance(self.features[name], Image):
                assert not self.features[name].decode
        return found

    def with_format(self, kind):
        return Dataset(self.columns, self.features, self.origin)

    def select_columns(self, names):
        parts = ({name: part[name] for name in names} for part in (self.columns, self.features))
        return Dataset(*parts, self.origin, self.formatted)

    def cast_column(self, name, feature):
        return Dataset(self.columns, {**self.features, name: feature}, self.origin, self.formatted)

    @staticmethod
    def from_parquet(paths, keep_in_memory):
        parts = [saved[path] for path in paths]
        joined = {name: [value for part in parts for value in part.columns[name]] for name in parts[0].columns}
        return Dataset(joined, parts[0].features, paths[0])


saved = {}  # data sets by path


@pytest.fixture
def package(monkeypatch):
    module = types.ModuleType("datasets")
    module.Image, module.ClassLabel, module.Dataset, module.DatasetDict = Image, ClassLabel, Dataset, dict
    module.load_from_disk = lambda path, keep_in_memory: saved[path]
    module.disable_progress_bars = lambda: None
    monkeypatch.setitem(sys.modules, "datasets", module)
    yield module
    saved.clear()


def encoded(pixels, form="PNG"):
    file = io.BytesIO()
    Pictures.fromarray(pixels).save(file, form)
    return {"bytes": file.getvalue(), "path": None}


def table(count=6, names=("cat", "dog"), seed=0, **more):
    """As many pictures, of the classes in turns."""
    columns = {
        "image": [encoded(pixels) for pixels in noise(count, seed=seed)],
        "label": [number % len(names) for number in range(count)],
        "id": list(range(count)),
    }
    features = {"image": Image(), "label": ClassLabel(list(names)), "id": "int64"}
    for name, (values, feature) in more.items():
        columns[name], features[name] = values, feature
    return Dataset(columns, features)


def save(root, sets):
    """Where load_from_disk finds it."""
    root.mkdir(parents=True, exist_ok=True)
    marker = root / ("state.json" if isinstance(sets, Dataset) else "dataset_dict.json")
    marker.touch()
    for found in [sets] if isinstance(sets, Dataset) else sets.values():
        found.__init__(found.columns, found.features, marker, True)
    saved[str(root)] = sets
    return root


def load(root, **settings):
    return datasets.load(Settings(data=f"hf:{root}", image_size=12, **settings))


def complaint(root, **settings):
    with pytest.raises(UserError) as caught:
        load(root, **settings)
    return str(caught.value)


def test_pictures_are_those_of_a_folder_of_files(package, tmp_path):
    folder = picture_folder(tmp_path / "pets", parts=("train", "test", "val"))
    sets = {}
    for part in ("train", "test", "val"):
        paths = [path for name in ("cat", "dog") for path in sorted((folder / part / name).iterdir())]
        rows = [{"bytes": path.read_bytes(), "path": path.name} for path in paths[1:]]
        rows.insert(0, {"bytes": None, "path": str(paths[0])})  # as a folder of pictures is described
        features = {"image": Image(), "label": ClassLabel(["cat", "dog"])}
        sets[part] = Dataset({"image": rows, "label": [0] * 6 + [1] * 6}, features)
    root = save(tmp_path / "hf", {**sets, "unsupervised": table(1)})
    for more in ({}, {"resize": "crop", "grayscale": True}, {"classes": "dog,cat"}, {"val_fraction": 0.0}):
        found, want = load(root, **more), datasets.load(Settings(data=str(folder), image_size=12, **more))
        assert found.classes == want.classes
        assert (found.validation is None) == (want.validation is None)
        for one, other in zip((found.teacher, *found.tested_on), (want.teacher, *want.tested_on), strict=True):
            assert torch.equal(one.pixels, other.pixels)
            assert torch.equal(one.labels, other.labels)
        assert (found.mean, found.stds) == (want.mean, want.stds)


def test_some_classes_in_their_order(package, tmp_path):
    root = save(tmp_path / "hf", {"train": table(9, "abc"), "test": table(6, "abc", seed=1)})
    whole, some = load(root), load(root, classes="c,a")
    assert some.classes == ("a", "c")
    assert some.teacher.labels.tolist() == [0, 1] * 3
    assert torch.equal(some.teacher.pixels, whole.teacher.pixels[whole.teacher.labels != 1])


def test_one_set_is_split(package, tmp_path):
    root = save(tmp_path / "hf", table(20))
    data = load(root, test_fraction=0.2, val_fraction=0.25)
    parts = (data.teacher, *data.tested_on)
    assert [torch.bincount(part.labels).tolist() for part in parts] == [[6, 6], [2, 2], [2, 2]]
    assert "test is missing, and so is val; --test-fraction 0.2 takes that share" in complaint(root)


def test_parquet_files_by_the_names_of_their_splits(package, tmp_path):
    names = ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001", "validation-00000-of-00001")
    for number, name in enumerate(names):
        path = tmp_path / "repository" / "valid" / f"{name}.parquet"  # whose files say something else
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        saved[str(path)] = table(4, seed=number)
    data = load(tmp_path / "repository")
    assert [len(part) for part in (data.teacher, *data.tested_on)] == [8, 4, 4]
    assert torch.equal(data.teacher.pixels[4:].permute(0, 2, 3, 1), torch.from_numpy(noise(4, seed=1)))
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "0000.parquet").touch()
    saved[str(tmp_path / "plain" / "0000.parquet")] = table(4)
    assert len(load(tmp_path / "plain", test_fraction=0.5).test) == 2


def test_streamed_and_kept_pictures_are_the_resident_ones(package, tmp_path):
    root = save(tmp_path / "hf", {"train": table(), "test": table(seed=1)})
    want, kept = load(root), str(tmp_path / "cache")
    for more in ({"resident": 0.0}, {"cache": kept}, {"cache": kept, "resident": 0.0}):
        data = load(root, **more)
        assert isinstance(data.test.pixels, streamed.Streamed) == ("resident" in more)
        assert torch.equal(data.test.images, want.test.images)
        assert len(list(InOrder(data.test, 4))) == 2
    assert len(list((tmp_path / "cache").iterdir())) == 2
    (root / "dataset_dict.json").write_text("changed")  # as a set that is saved anew is
    saved[str(root)]["test"].columns["image"].reverse()
    assert torch.equal(load(root, cache=kept).test.pixels, want.test.pixels.flip(0))


def test_what_is_wrong_is_named(package, tmp_path):
    label, two = table().features["label"], ([0] * 6, ClassLabel(["x", "y"]))
    wrong = {
        "has no split train, but test": {"test": table()},
        "train and test differ in their image column or the classes of label": {
            "train": table(),
            "test": table(names=("dog", "cat")),
        },
        "image, other of its columns (image, label, id, other) is an Image: must be one": table(
            other=([None] * 6, Image())
        ),
        "label, coarse are ClassLabels: choose one by --label-column": table(coarse=two),
        "none of its columns (image, label, id) is a ClassLabel; class_encode_column": table(label=([0] * 6, "int64")),
        "one class only": {"train": table(names=["cat"]), "test": table(names=["cat"])},
        "test, row 2: label -1: must be from 0 to 1": {"train": table(), "test": table(label=([0, 1, -1], label))},
        "test, row 1: label None: must be from 0 to 1": {"train": table(), "test": table(label=([0, None], label))},
    }
    for number, (message, sets) in enumerate(wrong.items()):
        both = {"train": sets, "test": table()} if isinstance(sets, Dataset) else sets
        assert message in complaint(save(tmp_path / f"{number}", both))
    coarse = save(tmp_path / "coarse", {"train": table(coarse=two), "test": table(coarse=two)})
    assert "--label-column id: must be a ClassLabel, as label, coarse is" in complaint(coarse, label_column="id")
    assert load(coarse, label_column="label").classes == ("cat", "dog")
    assert "no training images of y" in complaint(coarse, label_column="coarse")
    assert "there is no folder" in complaint(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds neither what save_to_disk writes" in complaint(tmp_path / "empty")
    (tmp_path / "empty" / "state.json").touch()
    assert "datasets cannot read it (KeyError: " in complaint(tmp_path / "empty")
    with pytest.raises(UserError, match=r"--label-column label: is for --data hf:FOLDER"):
        datasets.load(Settings(label_column="label"))


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        ({"bytes": b"no picture", "path": "a.png"}, "no JPEG"),
        ({"bytes": b"", "path": None}, "empty"),
        ({"bytes": None, "path": "nowhere.png"}, "No such file"),
        ({"bytes": None, "path": "https://example.org/a.png"}, "No such file"),  # nothing is downloaded
        (None, "there is none"),
    ],
)
def test_a_broken_picture_is_named_by_its_row(package, tmp_path, picture, reason):
    root = save(tmp_path / "hf", {"train": table(), "test": table(seed=1)})
    saved[str(root)]["test"].columns["image"][3] = picture
    told = complaint(root)
    assert told.startswith(f"--data: cannot read the picture {root} test, row 3: ")
    assert reason in told


def test_without_datasets_it_is_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", types.ModuleType("datasets"))  # as any folder of that name is
    assert complaint(tmp_path).endswith(": datasets is not installed: run `pip install datasets`")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert complaint(tmp_path).endswith(": datasets is not installed: run `pip install datasets`")

    def broken(name):
        raise RuntimeError("of another\nyear")

    monkeypatch.setattr(hugging_face.importlib, "import_module", broken)
    assert "datasets cannot be imported (RuntimeError: of another year)" in complaint(tmp_path)


def test_a_student_learns_from_it_and_is_evaluated(package, tmp_path):
    root = save(tmp_path / "hf", {"train": table(), "test": table(seed=1)})
    network = ["--student-network", "small-4-1", "--threads", "1", "--max-steps", "1"]
    words = ["train", "--method", "student", "--image-size", "12", *network]
    assert main([*words, "--data", f"hf:{root}", "--output", str(tmp_path / "run")]) == 0
    assert main(["evaluate", str(tmp_path / "run" / "last.ckpt")]) == 0
    assert main(["evaluate", str(tmp_path / "run" / "last.ckpt"), "--data", f"hf:{root}"]) == 0


def test_the_real_package(tmp_path, monkeypatch):
    package = pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", str(tmp_path / "home"))
    kinds = {"img": package.Image(), "label": package.ClassLabel(names=["cat", "dog"]), "id": package.Value("int64")}
    features = package.Features(kinds)

    def made(seed):
        rows = {"img": [encoded(pixels) for pixels in noise(6, seed=seed)], "label": [0, 1] * 3, "id": list(range(6))}
        table = package.table.InMemoryTable.from_pydict(rows, schema=features.arrow_schema)
        # Not from_dict, whose fingerprint pickles the table, at which datasets 5.2.0 fails.
        return package.Dataset(table, package.DatasetInfo(features=features), fingerprint=f"of{seed}")

    sets = package.DatasetDict({"train": made(0), "test": made(1)})
    sets.save_to_disk(str(tmp_path / "dict"))
    sets["train"].with_format("torch").save_to_disk(str(tmp_path / "one"))
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    for name, part in sets.items():
        part.to_parquet(str(tmp_path / "parquet" / "data" / f"{name}-00000-of-00001.parquet"))
    want = torch.from_numpy(noise(6, seed=0)).permute(0, 3, 1, 2)
    for found in (load(tmp_path / "dict"), load(tmp_path / "parquet"), load(tmp_path / "dict", resident=0.0)):
        assert found.classes == ("cat", "dog")
        assert torch.equal(found.teacher.levels, want)
        assert found.test.labels.tolist() == [0, 1] * 3
    assert len(load(tmp_path / "one", test_fraction=0.34).test) == 2
    kept = [load(tmp_path / name, cache=str(tmp_path / "cache")).test.pixels for name in ("dict", "dict", "parquet")]
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], kept[2])
    assert len(list((tmp_path / "cache").iterdir())) == 4
