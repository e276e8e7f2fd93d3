"""Data sets: every reader on tiny files made here, subsets, batches on one rank or several."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import sys
import types
import zlib

import pytest
import torch

pytest.importorskip("sklearn", reason="the extra `train` is not installed")
pytest.importorskip("PIL", reason="the extra `train` is not installed")

from folders import noise, picture_folder
from PIL import Image

from amkd_fast.distill import data as datasets
from amkd_fast.distill.data import Batches, InOrder, Split, cifar, folder, pictures, subsets, unpickle
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.settings import Settings


@pytest.fixture(scope="module")
def digits():
    return datasets.load(Settings())


def complaint(**settings):
    with pytest.raises(UserError) as caught:
        datasets.load(Settings(**settings))
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- digits


def test_digits_are_split_without_overlap(digits):
    assert (len(digits.teacher), len(digits.student), len(digits.test)) == (1000, 200, 797)
    everything = {tuple(image.flatten().tolist()) for image in digits.teacher.images}
    assert not any(tuple(image.flatten().tolist()) in everything for image in digits.test.images)
    assert all(tuple(image.flatten().tolist()) in everything for image in digits.student.images)
    assert torch.bincount(digits.student.labels, minlength=10).min() >= 15
    for split in (digits.teacher, digits.test):
        assert (split.images.min(), split.images.max()) == (0.0, 1.0)


def test_digits_are_exact_levels_beside_mean_and_std_of_the_teachers(digits):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16.0
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    train, test = pixels[order[:1000]], pixels[order[1000:]]
    assert torch.equal(digits.teacher.images, train)
    assert torch.equal(digits.test.images, test)
    assert digits.mean == pytest.approx((train.double().mean().item(),), rel=1e-12)
    assert digits.stds == (digits.std,) == pytest.approx((train.double().std().item(),), rel=1e-12)
    assert digits.test.labels.tolist() == [int(bunch.target[row]) for row in order[1000:]]
    assert digits.level == 1 / 16
    assert digits.teacher.level == digits.student.level == digits.test.level == digits.level


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({}, ("31893142c6de1deb", "74163334a9316c84", "d394edecc53f9752")),
        (
            {"teacher_images": 128, "student_images": 48},
            ("bbd3bb37fdb452cd", "1dbfb861087e19bc", "d394edecc53f9752"),
        ),
        ({"data_seed": 3, "student_images": 37}, ("246d285c5495fd05", "16fc2fae8c28a0ad", "42b523aff58ad967")),
    ],
)
def test_digits_are_the_rows_of_every_earlier_result(wish, expected):
    data = datasets.load(Settings(**wish))
    found = (
        hashlib.sha256(bytes(split.pixels.flatten().tolist()) + bytes(split.labels.tolist())).hexdigest()[:16]
        for split in (data.teacher, data.student, data.test)
    )
    assert tuple(found) == expected


def test_sets_are_resident_as_bytes(digits):
    for split in (digits.teacher, digits.student, digits.test):
        assert split.pixels.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        assert split.images.dtype == torch.float32
    assert digits.channels == 1
    moved = digits.to("meta")
    assert moved.teacher.pixels.device.type == moved.test.labels.device.type == "meta"
    everything = datasets.load(Settings(student_images=0))
    assert everything.student is everything.teacher
    moved = everything.to("meta")
    assert moved.student is moved.teacher
    part = digits.test.take(torch.tensor([5, 2]))
    assert torch.equal(part.images, digits.test.images[[5, 2]])
    assert torch.equal(part.labels, digits.test.labels[[5, 2]])


# --- subsets


def test_classes_by_name_and_by_number(digits):
    data = datasets.load(Settings(classes="7, 0-2"))
    assert data.classes == ("0", "1", "2", "7")
    assert len(data.student) == 80
    rows = torch.isin(digits.test.labels, torch.tensor([0, 1, 2, 7]))
    assert torch.equal(data.test.pixels, digits.test.pixels[rows])
    assert torch.equal(torch.tensor([0, 1, 2, 7])[data.test.labels], digits.test.labels[rows])
    assert subsets.choose(("cat", "0-1", "dog"), "0-1,dog") == [1, 2]
    assert subsets.choose(("cat", "dog"), " ") == [0, 1]


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ("fish", "no class 'fish'"),
        ("3", "one class only"),
        ("3,3", "names '3' twice"),
        ("0-4,2", "names '2' twice"),
        ("5-12", "no range within 0-9"),
        ("4-2", "no range within 0-9"),
        ("1,,2", "no class ''"),
    ],
)
def test_classes_that_are_not_there(wish, expected):
    message = complaint(classes=wish)
    assert message.startswith(f"--classes {wish}: ")
    assert expected in message


def test_shots_and_fractions(digits):
    five = datasets.load(Settings(student_shots=5)).student
    assert torch.bincount(five.labels).tolist() == [5] * 10
    nine = {bytes(image.flatten().tolist()) for image in datasets.load(Settings(student_shots=9)).student.pixels}
    assert {bytes(image.flatten().tolist()) for image in five.pixels} <= nine
    tenth = datasets.load(Settings(student_fraction=0.1)).student
    assert torch.equal(tenth.pixels, datasets.load(Settings(student_images=100)).student.pixels)
    share = torch.bincount(digits.teacher.labels) * 0.1
    assert ((torch.bincount(tenth.labels) - share).abs() <= 1).all()
    assert len(datasets.load(Settings(student_fraction=1.0)).student) == 1000


def test_dropped_labels_leave_the_other_images_as_they_were(digits):
    data = datasets.load(Settings(drop_labels="3, 7-8"))
    assert data.dropped == (3, 7, 8)
    kept = ~torch.isin(digits.student.labels, torch.tensor([3, 7, 8]))
    assert torch.equal(data.student.pixels, digits.student.pixels[kept])
    assert torch.equal(data.student.labels, digits.student.labels[kept])
    assert (data.classes, data.mean, data.std) == (digits.classes, digits.mean, digits.std)
    for part in ("teacher", "test"):
        assert torch.equal(getattr(data, part).labels, getattr(digits, part).labels)
    assert digits.dropped == ()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"student_images": 5}, "--student-images 5: must be 0 (all) or from 10"),
        ({"student_images": 1001}, "--student-images 1001: must be"),
        ({"teacher_images": 9}, "--teacher-images 9: must be"),
        ({"student_shots": 0}, "--student-shots 0: must be at least 1"),
        ({"student_shots": 500}, "--student-shots 500: class '0' has"),
        ({"student_fraction": 0.0}, "--student-fraction 0: must be above 0"),
        ({"student_fraction": float("nan")}, "--student-fraction nan: must be above 0"),
        ({"student_fraction": 1.5}, "--student-fraction 1.5: must be"),
        ({"student_fraction": 0.001}, "--student-fraction 0.001: is 1 of 1000 images"),
        ({"student_fraction": 0.5, "student_images": 0}, "--student-images and --student-fraction: give one"),
        ({"student_fraction": 0.5, "student_shots": 3}, "--student-shots and --student-fraction: give one"),
        ({"drop_labels": "12"}, "--drop-labels 12: there is no class '12'"),
        ({"drop_labels": "3,3"}, "--drop-labels 3,3: names '3' twice"),
        ({"drop_labels": "0-8"}, "--drop-labels 0-8: leaves fewer than two labels"),
    ],
)
def test_wishes_that_cannot_be_met(settings, expected):
    assert expected in complaint(**settings)


def test_a_class_without_images_is_named():
    split = Split(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 1]))
    with pytest.raises(UserError, match="no test images of b"):
        datasets._check(datasets.Source(split, split.take(slice(0, 2)), ("a", "b"), 1.0), "pets")


# --- folders


def test_folder_of_pictures(tmp_path):
    root = picture_folder(tmp_path / "pets")
    data = datasets.load(Settings(data=str(root), image_size=8))
    assert data.classes == ("cat", "dog")
    assert data.teacher.images.shape == (12, 3, 8, 8)
    assert data.augment == "crop+flip"
    assert data.level == 1 / 255
    grey = datasets.load(Settings(data=str(root), image_size=12, grayscale=True))
    assert grey.test.images.shape == (12, 1, 12, 12)
    assert datasets.load(Settings(data=str(root))).test.pixels.shape[2:] == (32, 32)
    exact = datasets.load(Settings(data=str(root), image_size=12)).teacher.pixels[1]  # cat/1.png
    assert torch.equal(exact, torch.from_numpy(noise(24)[1]).permute(2, 0, 1))
    assert torch.equal(grey.teacher.pixels[1:2], pictures.grey(exact[None]))


def test_mean_and_scale_are_those_of_the_images(tmp_path):
    data = datasets.load(Settings(data=str(picture_folder(tmp_path / "pets")), image_size=12, teacher_images=7))
    images = data.teacher.pixels.double() / 255
    torch.testing.assert_close(torch.tensor(data.mean).double(), images.mean((0, 2, 3)))
    assert data.std == pytest.approx(float(images.std()), rel=1e-12)
    assert data.stds == pytest.approx(images.transpose(0, 1).flatten(1).std(1).tolist(), rel=1e-12)
    torch.testing.assert_close(data.teacher.images.double(), images, rtol=0, atol=1e-6)


def test_folders_nested_and_named_in_other_ways(tmp_path):
    root = picture_folder(tmp_path / "pets", classes=("bird", "cat", "dog"), parts=("train", "val"))
    some = root / "train" / "cat"
    (some / "black" / "old").mkdir(parents=True)
    picture = Image.fromarray(noise(1)[0])
    for name in ("a.JPG", "black/b.JpEg", "black/c.BMP", "black/old/d.webp", "black/old/e.PPM"):
        picture.save(some / name)
    (some / "black" / "notes.txt").write_text("not a picture")
    (some / "._a.jpg").write_bytes(b"what another system left")
    (root / "train" / ".thumbnails").mkdir()
    (tmp_path / "more").mkdir()
    picture.save(tmp_path / "more" / "f.png")
    (some / "linked").symlink_to(tmp_path / "more")
    data = datasets.load(Settings(data=str(root), image_size=8, classes="cat,dog"))
    assert data.classes == ("cat", "dog")
    assert torch.bincount(data.teacher.labels).tolist() == [12, 6]
    assert len(data.test) == 12
    names = [path.relative_to(some).as_posix() for path in folder.found(some)]
    assert names == sorted(names, key=lambda name: name.split("/"))


def test_bad_folders(tmp_path):
    assert "nowhere: no such folder" in complaint(data="nowhere")
    root = picture_folder(tmp_path / "a", parts=("train",))
    assert f"{root / 'test'} is missing" in complaint(data=str(root))
    root = picture_folder(tmp_path / "b")
    (root / "test" / "empty").mkdir()
    (root / "train" / "empty").mkdir()
    assert "holds no .png or .jpg" in complaint(data=str(root))
    root = picture_folder(tmp_path / "c")
    (root / "train" / "cat" / "again").symlink_to(root / "train")
    assert "cat/again/cat leads back to a folder around it" in complaint(data=str(root))
    root = picture_folder(tmp_path / "d")
    (root / "train" / "dog").rename(root / "train" / "fish")
    assert "train has 2 classes and test 2; not in both: dog, fish" in complaint(data=str(root))


def test_pictures_of_one_colour(tmp_path):
    root = picture_folder(tmp_path / "pets")
    for path in (root / "train").rglob("*.*"):
        Image.new("L", (4, 4), 77).save(path)
    assert "all training images are of one colour" in complaint(data=str(root))


# --- pictures


def png(width, height):
    """The beginning of a picture that claims a size; no pixels follow."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def encoded(form, **options):
    buffer = io.BytesIO()
    Image.fromarray(noise(1, 64)[0]).save(buffer, form, **options)
    return buffer.getvalue()


def refused(path):
    with pytest.raises(UserError) as caught:
        pictures.read([path], 8, False)
    message = str(caught.value)
    assert message.startswith(f"--data: cannot read the picture {path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the file is empty"),
        (b"no picture", "no JPEG, PNG, BMP, WEBP, PPM or TIFF picture"),
        (b"\xff\xd8\xff\xe0", ""),
        (encoded("JPEG")[:-400], "truncated"),
        (encoded("PNG")[:-400], ""),
        (encoded("PNG").replace(b"IDAT", b"IDAX", 1), ""),
        (encoded("WEBP")[:200], ""),
        (encoded("BMP")[:200], "truncated"),
        (encoded("PPM")[:200], ""),
        (encoded("GIF"), "no JPEG, PNG, BMP, WEBP, PPM or TIFF picture"),
        (encoded("TIFF")[:200], ""),
        (png(8_001, 8_000), "8001 x 8000 are more than 64 megapixels"),
        (png(12_000, 8_000), "12000 x 8000 are more than 64 megapixels"),  # where PIL only warns
        (png(60_000, 60_000), "more than 64 megapixels"),  # a bomb to PIL, too
        (b"P6 99999999 99999999 255\n" + bytes(99), "more than 64 megapixels"),
        (b"P6 9 x9 255\n" + bytes(99), ""),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_pictures_are_refused_by_name(tmp_path, content, expected):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    assert expected in refused(path)


def test_what_is_no_readable_file(tmp_path, monkeypatch):
    assert "No such file" in refused(tmp_path / "missing.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert "symbolic links" in refused(tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "no file" in refused(tmp_path / "pipe.png")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(pictures.MOST_BYTES + 1)
    assert "larger than 64 MiB" in refused(tmp_path / "large.png")
    (tmp_path / "secret.png").write_bytes(encoded("PNG"))

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pictures, "open", forbidden, raising=False)
    assert "Permission denied" in refused(tmp_path / "secret.png")


def test_a_loop_of_links_in_a_class_folder(tmp_path):
    root = picture_folder(tmp_path / "pets")
    (root / "train" / "cat" / "loop.png").symlink_to("loop.png")
    assert "loop.png: Too many levels" in complaint(data=str(root))


def test_the_first_bad_picture_is_named_whatever_the_threads_do(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_threads", lambda: 4)
    paths = [tmp_path / f"{number:03}.png" for number in range(100)]
    for number, path in enumerate(paths):
        path.write_bytes(b"" if number in (37, 80, 99) else encoded("PNG"))
    with pytest.raises(UserError, match=r"037\.png"):
        pictures.read(paths, 8, False)


def test_pictures_keep_their_order_and_are_what_pil_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_threads", lambda: 4)
    monkeypatch.setattr(pictures, "PLACED", 5000)
    modes = ("RGB", "L", "RGBA", "P", "1", "LA", "CMYK")
    paths = []
    for number, pixels in enumerate(noise(70)):
        mode = modes[number % len(modes)]
        paths.append(tmp_path / f"{number}.{'jpg' if mode == 'CMYK' else 'png'}")
        Image.fromarray(pixels).convert(mode).resize((12 + number % 5, 12)).save(paths[-1])
    for size, grayscale in ((12, False), (12, True), (9, False)):
        found = pictures.read(paths, size, grayscale)
        assert found.dtype == torch.uint8
        assert found.shape == (70, 1 if grayscale else 3, size, size)
        assert found.is_contiguous()
        for path, image in zip(paths, found, strict=True):
            with Image.open(path) as picture:
                want = picture.convert("L" if grayscale else "RGB").resize((size, size), Image.Resampling.BILINEAR)
            assert image.permute(1, 2, 0).flatten().tolist() == list(want.tobytes())


def test_grey_is_the_grey_of_picture_files():
    colours = noise(1, 200)[0]
    want = torch.frombuffer(bytearray(Image.fromarray(colours).convert("L").tobytes()), dtype=torch.uint8)
    assert torch.equal(pictures.grey(torch.from_numpy(colours).permute(2, 0, 1)[None]).flatten(), want)


# --- CIFAR

NAMES = {"cifar10": [f"kind{number}" for number in range(10)], "cifar100": [f"fine{number}" for number in range(100)]}


def cifar_images(name, rows, seed=0):
    draws = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (rows, 3072), generator=draws, dtype=torch.uint8)
    return pixels, (torch.arange(rows) * 7 + seed) % len(NAMES[name])


def cifar_archive(root, name, version, rows=None, protocol=2):
    """A set like the real one but tiny; returns pixels and labels of its training and test part."""
    archive = cifar.ARCHIVES[name]
    folder = root / (archive.python if version == "python" else archive.binary)
    folder.mkdir(parents=True)
    made = {"train": [], "test": []}
    rows = rows or len(NAMES[name])
    for seed, file in enumerate((*archive.train, *archive.test)):
        pixels, labels = cifar_images(name, rows, seed)
        made["test" if file in archive.test else "train"].append((pixels, labels))
        if version == "python":
            content = {b"data": pixels.numpy(), archive.labels.encode(): labels.tolist(), b"filenames": [b"x.png"]}
            (folder / file).write_bytes(pickle.dumps(content, protocol))
        else:
            coarse = torch.zeros(rows, archive.skip, dtype=torch.uint8)
            records = torch.cat([coarse, labels.to(torch.uint8)[:, None], pixels], 1)
            (folder / f"{file}.bin").write_bytes(records.numpy().tobytes())
    if version == "python":
        names = [word.encode() for word in NAMES[name]]
        (folder / archive.meta[0]).write_bytes(pickle.dumps({archive.meta[1].encode(): names}, protocol))
    else:
        (folder / archive.names).write_text("\n".join(NAMES[name]) + "\n\n")
    return {part: tuple(map(torch.cat, zip(*files, strict=True))) for part, files in made.items()}


@pytest.fixture
def no_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)


@pytest.mark.usefixtures("no_torchvision")
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(("version", "protocol"), [("python", 2), ("python", 4), ("python", 5), ("binary", 0)])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(tmp_path, name, version, protocol, inside):
    made = cifar_archive(tmp_path, name, version, protocol=protocol)
    root = next(tmp_path.iterdir()) if inside else tmp_path
    data = datasets.load(Settings(data=name, data_root=str(root)))
    assert data.classes == tuple(NAMES[name])
    assert data.level == 1 / 255
    assert data.augment == "crop+flip"
    for part, split in (("train", data.teacher), ("test", data.test)):
        assert torch.equal(split.pixels, made[part][0].view(-1, 3, 32, 32))
        assert torch.equal(split.labels, made[part][1])
        assert split.pixels.is_contiguous()
    some = datasets.load(Settings(data=name, data_root=str(root), classes="3-5", grayscale=True, image_size=32))
    assert some.classes == tuple(NAMES[name][3:6])
    assert some.test.pixels.shape == (3, 1, 32, 32)


# As Python 2 wrote it: bytes in the strings, numpy's names of then.
OLD = (
    b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05("
    b"K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
    b"K\x00tb%sT\x00\x18\x00\x00%stbU\x06labelsq\x08]q\x09(K\x06K\x09eu."
)


@pytest.mark.usefixtures("no_torchvision")
@pytest.mark.parametrize("fortran", [False, True])
def test_cifar_as_python_2_wrote_it(tmp_path, fortran):
    made = cifar_archive(tmp_path, "cifar10", "python")
    pixels, _ = cifar_images("cifar10", 2, 5)
    stored = pixels.t().contiguous() if fortran else pixels
    content = OLD % (b"\x88" if fortran else b"\x89", stored.numpy().tobytes())
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    source = cifar.read(Settings(data="cifar10", data_root=str(tmp_path)))
    assert torch.equal(source.test.pixels, pixels.view(2, 3, 32, 32))
    assert source.test.labels.tolist() == [6, 9]
    assert torch.equal(source.train.labels, made["train"][1])


class Harm:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.usefixtures("no_torchvision")
@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    ("function", "arguments"), [(os.mkdir, ("harm",)), (eval, ("open('harm', 'w')",)), (getattr, (os, "mkdir"))]
)
def test_a_pickle_runs_nothing(tmp_path, monkeypatch, function, arguments, protocol):
    monkeypatch.chdir(tmp_path)
    cifar_archive(tmp_path, "cifar10", "python")
    harm = function if function is getattr else Harm(function, *arguments)
    for file in ("data_batch_3", "batches.meta"):
        path = tmp_path / "cifar-10-batches-py" / file
        path.write_bytes(pickle.dumps({b"data": harm, b"label_names": harm}, protocol))
        message = complaint(data="cifar10", data_root=str(tmp_path))
        assert f"{file}: names " in message
        assert f".{function.__name__}, which no array needs" in message
        assert not (tmp_path / "harm").exists()


@pytest.mark.usefixtures("no_torchvision")
def test_broken_files_of_cifar(tmp_path):
    cifar_archive(tmp_path, "cifar10", "python")
    pixels, labels = (part.numpy() for part in cifar_images("cifar10", 10))
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    whole = path.read_bytes()

    def broken(content):
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, 2))
        message = complaint(data="cifar10", data_root=str(tmp_path))
        assert str(path) in message
        return message

    broken(b"")
    broken(b"hello")
    broken(whole[: len(whole) // 2])
    assert "holds a list" in broken([1])
    assert "no pixels under the key data" in broken({"labels": [1]})
    assert "bytes in rows of 3072" in broken({"data": pixels[:, :-1], "labels": labels.tolist()})
    assert "bytes in rows of 3072" in broken({"data": pixels.astype("float32"), "labels": labels.tolist()})
    assert "bytes in rows of 3072" in broken({"data": pixels.astype("object"), "labels": labels.tolist()})
    assert "labels are not 10 numbers from 0 to 9" in broken({"data": pixels, "labels": [0] * 9})
    assert "labels are not 10 numbers from 0 to 9" in broken({"data": pixels, "labels": [10] * 10})
    assert "labels are not 10 numbers from 0 to 9" in broken({"data": pixels})
    path.unlink()
    assert "No such file" in complaint(data="cifar10", data_root=str(tmp_path))
    path.write_bytes(whole)
    (tmp_path / "cifar-10-batches-py" / "batches.meta").write_bytes(pickle.dumps({"label_names": 3}))
    assert "no names under the key label_names" in complaint(data="cifar10", data_root=str(tmp_path))


@pytest.mark.usefixtures("no_torchvision")
def test_no_pickle_that_ends_early_gets_through(tmp_path):
    cifar_archive(tmp_path, "cifar10", "python")
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    whole = path.read_bytes()
    for length in (*range(300), *range(300, len(whole), 997), *range(len(whole) - 100, len(whole))):
        with pytest.raises(UserError, match="test_batch"):
            unpickle.load(whole[:length], path)


def test_broken_records_of_cifar(tmp_path):
    cifar_archive(tmp_path, "cifar100", "binary")
    path = tmp_path / "cifar-100-binary" / "test.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert "no whole records of 3074" in complaint(data="cifar100", data_root=str(tmp_path))
    path.write_bytes(b"\0\xff" + whole[2:])
    assert "test.bin: holds labels beyond 99" in complaint(data="cifar100", data_root=str(tmp_path))
    (tmp_path / "cifar-100-binary" / "fine_label_names.txt").unlink()
    assert "fine_label_names.txt: No such file" in complaint(data="cifar100", data_root=str(tmp_path))


def test_cifar_that_is_not_there(tmp_path):
    message = complaint(data="cifar10", data_root=str(tmp_path))
    assert str(tmp_path) in message
    assert "unpack cifar-10-python.tar.gz there" in message
    assert "unpack cifar-100-python.tar.gz there" in complaint(data="cifar100", data_root="nowhere")
    assert "--image-size 64: the images of cifar10 are 32 x 32" in complaint(data="cifar10", image_size=64)


def test_cifar_by_torchvision(tmp_path, monkeypatch):
    made = cifar_archive(tmp_path, "cifar10", "python")
    wrong = None

    class CIFAR10:
        classes = NAMES["cifar10"]

        def __init__(self, root, train, download):
            assert (root, download) == (str(tmp_path), False)
            if wrong:
                raise RuntimeError(wrong)
            pixels, labels = made["train" if train else "test"]
            self.data = pixels.view(-1, 3, 32, 32).permute(0, 2, 3, 1).contiguous().numpy()
            self.targets = labels.tolist()

    module = types.ModuleType("torchvision")
    module.datasets = types.SimpleNamespace(CIFAR10=CIFAR10)
    monkeypatch.setitem(sys.modules, "torchvision", module)
    for root in (tmp_path, tmp_path / "cifar-10-batches-py"):
        data = datasets.load(Settings(data="cifar10", data_root=str(root)))
        assert torch.equal(data.teacher.pixels, made["train"][0].view(-1, 3, 32, 32))
        assert torch.equal(data.test.labels, made["test"][1])
        assert data.classes == tuple(NAMES["cifar10"])
    wrong = "Dataset not found or\ncorrupted"
    assert "torchvision refuses" in complaint(data="cifar10", data_root=str(tmp_path))


# --- Tiny ImageNet


def tiny_imagenet(root, classes=("n01", "n02", "n03")):
    lines = []
    (root / "val" / "images").mkdir(parents=True)
    for number, (name, pixels) in enumerate(zip(classes, noise(len(classes), 64), strict=True)):
        (root / "train" / name / "images").mkdir(parents=True)
        (root / "train" / name / f"{name}_boxes.txt").write_text("x")
        Image.fromarray(pixels).save(root / "train" / name / "images" / f"{name}_0.JPEG")
        file = f"val_{len(classes) - number}.JPEG"
        Image.fromarray(pixels).save(root / "val" / "images" / file)
        lines.append(f"{file}\t{name}\t0\t32\t44\t62")
    (root / "val" / "val_annotations.txt").write_text("\n".join(reversed(lines)) + "\n")


def test_tiny_imagenet(tmp_path):
    tiny_imagenet(tmp_path / "tiny-imagenet-200")
    for root in (tmp_path, tmp_path / "tiny-imagenet-200"):
        data = datasets.load(Settings(data="tiny-imagenet", data_root=str(root)))
        assert data.classes == ("n01", "n02", "n03")
        assert data.teacher.pixels.shape == (3, 3, 64, 64)
        assert torch.equal(data.teacher.pixels, data.test.pixels)
        assert data.test.labels.tolist() == [0, 1, 2]
    some = datasets.load(Settings(data="tiny-imagenet", data_root=str(tmp_path), classes="n03,n01", image_size=16))
    assert some.test.pixels.shape == (2, 3, 16, 16)


def test_tiny_imagenet_that_is_not_whole(tmp_path):
    wish = {"data": "tiny-imagenet", "data_root": str(tmp_path)}
    assert "unpack tiny-imagenet-200.zip there" in complaint(**wish)
    tiny_imagenet(tmp_path / "tiny-imagenet-200")
    notes = tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    whole = notes.read_text()
    for line in ("x.JPEG\tn99\t1", "../val_1.JPEG\tn01\t1", "\tn01", "x.JPEG"):
        notes.write_text(whole + line + "\n")
        assert "val_annotations.txt, line 4: " in complaint(**wish)
    notes.write_text(whole.splitlines()[0])
    assert "no test images of n01, n02" in complaint(**wish)
    notes.write_text(whole)
    (tmp_path / "tiny-imagenet-200" / "val" / "images" / "val_2.JPEG").unlink()
    assert "val_2.JPEG: No such file" in complaint(**wish)


# --- batches


def shuffled(split, epoch=0, size=32, seed=0, augment="crop+flip", **share):
    batches = Batches(split, size, seed, augment, **share)
    batches.sampler.set_epoch(epoch)
    found = list(batches)
    assert len(found) == len(batches)
    return found


def test_batches_depend_on_seed_and_epoch_alone(digits):
    def order(seed, epoch, augment="crop+flip"):
        return shuffled(digits.student, epoch, 32, seed, augment)

    for one, other in zip(order(1, 2), order(1, 2), strict=True):
        assert torch.equal(one.images, other.images)
    assert not torch.equal(order(1, 2)[0].index, order(1, 3)[0].index)
    assert not torch.equal(order(1, 2)[0].index, order(2, 2)[0].index)
    rows = torch.cat([batch.index for batch in order(0, 0)])
    assert rows.sort().values.tolist() == list(range(200))
    for batch in order(0, 0, "none"):
        assert torch.equal(batch.images, digits.student.images[batch.index])
        assert torch.equal(batch.labels, digits.student.labels[batch.index])
        assert batch.teacher_logits is None


def test_the_order_is_that_of_every_earlier_result(digits):
    draws = torch.Generator().manual_seed(3 * 100_003 + 7)
    want = torch.randperm(200, generator=draws)
    assert torch.equal(torch.cat([batch.index for batch in shuffled(digits.student, 7, 64, 3)]), want)


@pytest.mark.parametrize("augment", ["crop", "crop+flip"])
def test_augmented_images_are_windows_filled_with_black(augment):
    pixels = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).expand(300, 1, 8, 8).contiguous()
    split = Split(pixels, torch.zeros(300, dtype=torch.int64), 0.5)
    padded = torch.nn.functional.pad(pixels[0, 0] * 0.5, (1, 1, 1, 1), value=0.0)
    windows = [padded[i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    windows += [window.flip(1) for window in windows] if augment == "crop+flip" else []

    def draws(epoch, seed=0):
        batches = shuffled(split, epoch, 300, seed, augment)
        found = torch.zeros(300, dtype=torch.int64)
        for batch in batches:
            for row, image in zip(batch.index, batch.images, strict=True):
                found[row] = next(n for n, window in enumerate(windows) if torch.allclose(window, image[0]))
        return found

    first = draws(0)
    assert len(first.unique()) == len(windows)
    assert not torch.equal(first, draws(1))
    assert not torch.equal(first, draws(0, seed=1))


@pytest.mark.parametrize("size", [32, 7, 3])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_ranks_together_are_one_process(digits, world, size):
    split = digits.student.take(slice(0, 100))
    alone = shuffled(split, 4, size)
    ranks = [shuffled(split, 4, size, rank=rank, world=world) for rank in range(world)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
        assert torch.equal(torch.cat([part.index for part in parts]), whole.index)
        lengths = [len(part.labels) for part in parts]
        assert max(lengths) - min(lengths) <= 1
        assert min(lengths) > 0 or len(whole.labels) < min(size, world)
    ranks = [InOrder(split, size, rank=rank, world=world) for rank in range(world)]
    found = [torch.cat(parts) for shares in zip(*ranks, strict=True) for parts in zip(*shares, strict=True)]
    assert torch.equal(torch.cat(found[::2]), split.images)
    assert torch.equal(torch.cat(found[1::2]), split.labels)


def test_in_order(digits):
    batches = InOrder(digits.test, 300)
    assert [len(labels) for _, labels in batches] == [300, 300, 197]
    assert len(batches) == 3
    assert torch.equal(torch.cat([batch.images for batch in batches]), digits.test.images)


def test_shares_that_there_are_not(digits):
    for maker in (
        lambda **share: Batches(digits.test, 2, 0, "none", **share),
        lambda **s: InOrder(digits.test, 2, **s),
    ):
        with pytest.raises(ValueError, match="rank=2: must be from 0"):
            maker(rank=2, world=2)
        with pytest.raises(ValueError, match="batch_size=2: must be at least world=3"):
            maker(rank=0, world=3)
    with pytest.raises(ValueError, match="augment='auto'"):
        Batches(digits.test, 2, 0, "auto")
