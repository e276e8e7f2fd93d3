"""Decoded pictures in a cache, and sets that are decoded as they are needed."""

from __future__ import annotations

import json
import os
import threading

import pytest
import torch

pytest.importorskip("lightning", reason="the extra `train` is not installed")
pytest.importorskip("PIL", reason="the extra `train` is not installed")

from folders import noise, picture_folder
from PIL import Image

from amkd_fast.distill import data as datasets
from amkd_fast.distill.cli import main
from amkd_fast.distill.data import Batches, InOrder, Split, memory, pictures, streamed
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.settings import Settings


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return picture_folder(tmp_path_factory.mktemp("streamed") / "pets", parts=("train", "test", "val"), count=9)


def load(root, **settings):
    return datasets.load(Settings(data=str(root), image_size=12, **settings))


def counted(monkeypatch):
    """Paths of the pictures that are decoded from now on."""
    seen, picture = [], pictures._picture

    def noted(path, *rest):
        seen.append(path)
        return picture(path, *rest)

    monkeypatch.setattr(pictures, "_picture", noted)
    return seen


# --- cache


def test_a_set_is_decoded_once(root, tmp_path, monkeypatch):
    plain, seen = load(root), counted(monkeypatch)
    first = load(root, cache=str(tmp_path / "a" / "cache"))
    assert len(seen) == 54
    again = load(root, cache=str(tmp_path / "a" / "cache"))
    assert len(seen) == 54
    for data in (first, again):
        for part in ("teacher", "test", "validation"):
            assert torch.equal(getattr(data, part).pixels, getattr(plain, part).pixels)
            assert torch.equal(getattr(data, part).labels, getattr(plain, part).labels)
    again.test.pixels.zero_()  # of the mapping alone
    assert torch.equal(load(root, cache=str(tmp_path / "a" / "cache")).test.pixels, plain.test.pixels)
    assert len(list((tmp_path / "a" / "cache").iterdir())) == 3
    for change in ({"grayscale": True}, {"resize": "crop"}, {"classes": "0-1", "image_size": 13}):
        datasets.load(
            Settings(**{"data": str(root), "image_size": 12, "cache": str(tmp_path / "a" / "cache"), **change})
        )
    assert len(list((tmp_path / "a" / "cache").iterdir())) == 12


def test_changed_pictures_are_decoded_anew(tmp_path, monkeypatch):
    root = picture_folder(tmp_path / "pets", count=2)
    kept = str(tmp_path / "cache")
    load(root, cache=kept)
    path, seen = root / "train" / "cat" / "1.png", counted(monkeypatch)
    about = path.stat()
    Image.fromarray(noise(1, seed=5)[0]).save(path)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    assert torch.equal(load(root, cache=kept).teacher.pixels, load(root).teacher.pixels)
    assert len(seen) == 4 + 8
    path.rename(path.with_name("0.png"))
    assert torch.equal(load(root, cache=kept).teacher.pixels, load(root).teacher.pixels)
    assert len(seen) == 4 + 8 + 4 + 8


@pytest.mark.parametrize("damage", ["cut", "longer", "a bit", "the digest"])
def test_a_damaged_file_is_told_of_and_written_anew(root, tmp_path, monkeypatch, capsys, damage):
    want = load(root, cache=str(tmp_path)).test.pixels.clone()
    for path in tmp_path.iterdir():
        content = bytearray(path.read_bytes())
        if damage == "a bit":
            content[7] ^= 1
        elif damage == "the digest":
            content[-1] ^= 1
        path.write_bytes(content[:-1] if damage == "cut" else content + b"x" * (damage == "longer"))
    seen = counted(monkeypatch)
    assert torch.equal(load(root, cache=str(tmp_path)).test.pixels, want)
    assert len(seen) == 54
    told = capsys.readouterr().err
    assert told.count(".pixels is damaged; its pictures are decoded anew") == 3
    assert torch.equal(load(root, cache=str(tmp_path)).test.pixels, want)
    assert len(seen) == 54


def test_nothing_is_kept_of_a_set_with_a_bad_picture(tmp_path):
    root = picture_folder(tmp_path / "pets", parts=("train", "test"), count=2)
    (root / "test" / "dog" / "1.png").write_bytes(b"no picture")
    for _ in range(2):
        with pytest.raises(UserError, match=r"cannot read the picture .*dog/1\.png"):
            load(root, cache=str(tmp_path / "cache"))
    assert len(list((tmp_path / "cache").iterdir())) <= 1  # the other part's
    with pytest.raises(UserError, match=r"--cache .*1\.png: cannot be made"):
        load(root, cache=str(root / "test" / "dog" / "1.png"))


# --- streaming


def batches(data, split="student", epoch=2, **options):
    found = Batches(getattr(data, split), 5, 3, options.pop("augment", data.augment), **options)
    found.set_epoch(epoch)
    return list(found)


@pytest.mark.parametrize("cached", [False, True])
def test_streamed_batches_are_the_resident_ones_bit_by_bit(root, tmp_path, cached):
    kept = {"cache": str(tmp_path)} if cached else {}
    resident, stream = load(root, student_images=12), load(root, student_images=12, resident=0.0, **kept)
    assert isinstance(resident.student.pixels, torch.Tensor)
    assert isinstance(stream.student.pixels, streamed.Streamed)
    assert (resident.mean, resident.std, resident.stds) == (stream.mean, stream.std, stream.stds)
    ways = [{"augment": augment} for augment in ("none", "crop", "crop+flip")]
    ways += [{"balance": True}, {"rank": 1, "world": 2}, {"rank": 2, "world": 3, "balance": True}]
    for way in ways:
        for want, found in zip(batches(resident, **way), batches(stream, **way), strict=True):
            assert torch.equal(want.images, found.images)
            assert torch.equal(want.labels, found.labels)
            assert torch.equal(want.index, found.index)
            assert want.images.stride() == found.images.stride()
    for part in ("teacher", "test", "validation"):
        for want, found in zip(InOrder(getattr(resident, part), 7), InOrder(getattr(stream, part), 7), strict=True):
            assert torch.equal(want.images, found.images)
    assert stream.channels == 3
    some = stream.test.take(torch.tensor([5, 2, 5]))
    assert torch.equal(some.take(slice(1, 3)).images, resident.test.take(torch.tensor([2, 5])).images)
    assert stream.to("cpu").student.pixels.device == torch.device("cpu")


def test_the_largest_parts_are_streamed(root):
    bytes_of = 12 * 12 * 3

    def kinds(pictures_that_fit):
        data = load(root, resident=(pictures_that_fit * bytes_of + 0.5) / memory.GIB, classes="cat,dog")
        return [isinstance(split.pixels, torch.Tensor) for split in (data.teacher, data.test, data.validation)]

    assert kinds(54) == [True, True, True]
    assert sum(kinds(53)) == 2
    assert sum(kinds(18)) == 1
    assert kinds(17) == [False, False, False]


def test_pictures_are_decoded_ahead_and_no_further():
    begun, release = [], threading.Event()

    def read(rows):
        begun.append(int(rows[0]))
        if rows[0] > 0:
            release.wait(20)
        return rows.to(torch.uint8).view(-1, 1, 1, 1)

    whole = streamed.Streamed(read, torch.arange(10), (1, 1, 1))
    parts = streamed.ahead(whole[slice(row, row + 1)] for row in range(10))
    assert int(next(parts)) == 0  # while the next ones wait
    release.set()
    assert int(next(parts)) == 1
    assert max(begun) <= 1 + streamed.AHEAD
    assert [int(levels) for levels in parts] == list(range(2, 10))
    some = streamed.ahead(whole[slice(row, row + 1)] for row in range(10))
    next(some)
    some.close()
    assert max(begun[10:]) <= streamed.AHEAD


def test_a_bad_picture_is_named_when_it_is_met(tmp_path):
    root = picture_folder(tmp_path / "pets", count=4)
    (root / "test" / "dog" / "1.png").write_bytes(b"no picture")
    data = load(root, resident=0.0)
    with pytest.raises(UserError, match=r"cannot read the picture .*dog/1\.png"):
        list(InOrder(data.test))
    (root / "train" / "dog" / "1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"cannot read the picture .*train/dog/1\.png"):
        batches(data)
    with pytest.raises(UserError, match=r"cannot read the picture .*train/dog/1\.png"):
        load(root, resident=0.0).mean  # noqa: B018 - looks at all of them


def test_training_on_a_stream_is_training(root, tmp_path):
    networks = "--teacher-network small-4-1 --student-network small-4-1 --batch-size 6 --threads 1"
    words = f"train --image-size 12 --method kd --epochs 2 --teacher-epochs 1 {networks} --data".split()
    for name, resident in (("resident", "1"), ("stream", "0")):
        assert main([*words, str(root), "--resident", resident, "--output", str(tmp_path / name)]) == 0
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("resident", "stream")]
    for result in results:
        for row in result["epochs"]:
            del row["ms_per_step"]
    assert results[0]["epochs"] == results[1]["epochs"]
    assert results[0]["classes"] == results[1]["classes"]


def test_an_evaluation_decodes_the_test_images_alone(root, tmp_path, monkeypatch):
    seen = counted(monkeypatch)
    whole = load(root)
    assert len(seen) == 54
    data = datasets.load(Settings(data=str(root), image_size=12), test_alone=True)
    assert len(seen) == 54 + 18
    assert torch.equal(data.test.pixels, whole.test.pixels)
    assert (data.mean, data.std, data.stds) == (whole.mean, whole.std, whole.stds)  # where they are asked for
    assert len(seen) == 54 + 18 + 18
    assert data.stds == whole.stds
    datasets.load(Settings(data=str(root), image_size=12, cache=str(tmp_path)), test_alone=True)
    assert len(seen) == 54 + 18 + 18 + 18


# --- how much stays


def test_half_of_what_is_free_stays(tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    info, most, used = (tmp_path / name for name in ("meminfo", "max", "current"))
    monkeypatch.setattr(memory, "_MEMINFO", info)
    monkeypatch.setattr(memory, "_GROUPS", ((most, used),))
    cpu = torch.device("cpu")
    assert memory.limit(None, cpu) == float("inf")
    assert memory.limit(2.5, cpu) == 2.5 * 2**30
    info.write_text("MemTotal: 900 kB\nMemAvailable:   800 kB\n")
    assert memory.limit(None, cpu) == 400 * 1024
    most.write_text("max\n")
    used.write_text("5\n")
    assert memory.limit(None, cpu) == 400 * 1024
    most.write_text("1005\n")
    assert memory.limit(None, cpu) == 500
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.limit(None, cpu) == 125


def test_a_level_is_the_same_for_all(root):
    data = load(root, resident=0.0)
    assert {split.level for split in (data.teacher, data.student, *data.tested_on)} == {1 / 255}
    assert isinstance(data.teacher, Split)
