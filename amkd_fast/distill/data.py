"""Labelled images, whole sets resident as tensors: scikit-learn's digits, or a folder of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from amkd_fast.distill.errors import UserError
from amkd_fast.distill.settings import Settings

PICTURES = (".png", ".jpg", ".jpeg")


class Batch(NamedTuple):
    """Normalised images [B, C, H, W], labels [B], rows of the training set [B]."""

    images: Tensor
    labels: Tensor
    index: Tensor


class Split(NamedTuple):
    """A labelled set: normalised images [N, C, H, W] and int64 labels [N]."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Data:
    """What teacher and student learn from and are tested on."""

    teacher: Split
    student: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]  # per channel, in [0, 1] pixel units
    std: float  # one for all channels, so that a radius in pixels is one number
    augment: str

    @property
    def channels(self) -> int:
        return self.test.images.shape[1]

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The pixel range [0, 1] in normalised units, per channel: lower [C], upper [C]."""
        mean = torch.tensor(self.mean)
        return (0.0 - mean) / self.std, (1.0 - mean) / self.std

    def to(self, device: torch.device) -> Data:
        """The same data resident on ``device``."""
        move = {part: Split(*(x.to(device) for x in getattr(self, part))) for part in ("teacher", "student", "test")}
        return replace(self, **move)

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised images back to [0, 1]."""
        return images * self.std + torch.tensor(self.mean, device=images.device).view(-1, 1, 1)


def load(settings: Settings) -> Data:
    """Read the data that ``settings.data`` names.

    Raises:
        UserError: The folder is missing, empty, unreadable, or its classes do not fit.
    """
    if settings.data == "digits":
        train, test, classes = _digits(settings.data_seed)
        teacher_images, student_images, augment = 1000, 200, "none"
    else:
        train, test, classes = _folder(Path(settings.data), settings.image_size, settings.grayscale)
        teacher_images, student_images, augment = 0, 0, "crop+flip"
    if settings.teacher_images is not None:
        teacher_images = settings.teacher_images
    if settings.student_images is not None:
        student_images = settings.student_images
    teacher = _subset(train, teacher_images, len(classes), settings.data_seed, "--teacher-images")
    student = _subset(teacher, student_images, len(classes), settings.data_seed, "--student-images")
    mean = teacher.images.mean((0, 2, 3))
    std = float(teacher.images.std())
    if std == 0.0:
        raise UserError(f"--data {settings.data}: all training images are of one colour")

    def normalised(split: Split) -> Split:
        return Split((split.images - mean.view(-1, 1, 1)) / std, split.labels)

    return Data(
        teacher=normalised(teacher),
        student=normalised(student),
        test=normalised(test),
        classes=classes,
        mean=tuple(mean.tolist()),
        std=std,
        augment=augment if settings.augment == "auto" else settings.augment,
    )


def _digits(seed: int) -> tuple[Split, Split, tuple[str, ...]]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).div_(16.0).unsqueeze_(1)  # [1797, 1, 8, 8]
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    train, test = order[:1000], order[1000:]
    return Split(images[train], labels[train]), Split(images[test], labels[test]), tuple("0123456789")


def _folder(root: Path, size: int, grayscale: bool) -> tuple[Split, Split, tuple[str, ...]]:
    if not root.is_dir():
        raise UserError(
            f"--data {root}: no such folder (give 'digits' or a folder with train/<class>/ and test/<class>/)"
        )
    names = {part: _class_names(root / part) for part in ("train", "test")}
    if names["train"] != names["test"]:
        odd = ", ".join(sorted(set(names["train"]) ^ set(names["test"])))
        raise UserError(
            f"--data {root}: train has {len(names['train'])} classes and test {len(names['test'])}; not in both: {odd}"
        )
    if len(names["train"]) < 2:
        raise UserError(f"--data {root}: one class only; at least two are needed")
    classes = tuple(names["train"])
    return (
        _pictures(root / "train", classes, size, grayscale),
        _pictures(root / "test", classes, size, grayscale),
        classes,
    )


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"--data: {folder} is missing")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"--data: {folder} holds no class folders")
    return names


def _pictures(folder: Path, classes: tuple[str, ...], size: int, grayscale: bool) -> Split:
    images, labels = [], []
    for label, name in enumerate(classes):
        paths = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in PICTURES)
        if not paths:
            raise UserError(f"--data: {folder / name} holds no .png or .jpg")
        images += [_picture(path, size, grayscale) for path in paths]
        labels += [label] * len(paths)
    return Split(torch.stack(images).float().div_(255.0), torch.tensor(labels))


def _picture(path: Path, size: int, grayscale: bool) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            picture = picture.convert("L" if grayscale else "RGB")
            if picture.size != (size, size):
                picture = picture.resize((size, size), Image.Resampling.BILINEAR)
            pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise UserError(f"--data: cannot read the picture {path}: {error}") from error
    return pixels.view(size, size, -1).permute(2, 0, 1)


def _subset(split: Split, count: int, classes: int, seed: int, option: str) -> Split:
    """``count`` rows (0: all), every class in its share, at least one each."""
    total = len(split.labels)
    if count == 0 or count == total:
        return split
    if not classes <= count <= total:
        raise UserError(f"{option} {count}: must be 0 (all) or from {classes} (one a class) to {total}")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed + 1))
    labels = split.labels[order]
    rank = torch.empty(total, dtype=torch.float64)
    for label in range(classes):
        rows = labels == label
        size = int(rows.sum())
        rank[rows] = (torch.arange(size, dtype=torch.float64) + 0.5) / size
        rank[rows.nonzero()[:1]] = -1.0  # the first of each class is always in
    keep = order[rank.argsort(stable=True)[:count]]
    return Split(split.images[keep], split.labels[keep])


class Batches:
    """Shuffled batches of a resident set; the order and the augmentation depend on ``seed`` and epoch alone.

    Lightning calls ``sampler.set_epoch`` before each epoch, after a resume too.
    """

    def __init__(self, split: Split, batch_size: int, seed: int, augment: str, lower: Tensor) -> None:
        self.split, self.batch_size, self.seed, self.augment, self.lower = split, batch_size, seed, augment, lower
        self.epoch = 0
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.split.labels) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        draws = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order = torch.randperm(len(self.split.labels), generator=draws)
        for index in order.to(self.split.images.device).split(self.batch_size):
            images = self.split.images[index]
            if self.augment != "none":
                images = crop(images, self.lower, draws)
            if self.augment == "crop+flip":
                mirrored = (torch.rand(len(index), generator=draws) < 0.5).to(images.device)
                images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
            yield Batch(images, self.split.labels[index], index)


class InOrder:
    """Large batches of a resident set, unchanged and in order: for the evaluation."""

    def __init__(self, split: Split, batch_size: int = 1024) -> None:
        self.parts = [Split(*part) for part in zip(*(x.split(batch_size) for x in split), strict=True)]

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Split]:
        return iter(self.parts)


def crop(images: Tensor, lower: Tensor, draws: torch.Generator) -> Tensor:
    """Shift each image by up to an eighth of its size; the border is filled with black (``lower`` [C])."""
    count, channels, height, width = images.shape
    pad = max(1, height // 8)
    base = lower.to(images.device).view(1, -1, 1, 1)
    padded = F.pad(images - base, (pad, pad, pad, pad))  # zero is now the darkest value
    shift = torch.randint(2 * pad + 1, (2, count, 1), generator=draws)
    rows = (shift[0] + torch.arange(height)).view(count, 1, height, 1).to(images.device)
    columns = (shift[1] + torch.arange(width)).view(count, 1, 1, width).to(images.device)
    sample = torch.arange(count, device=images.device).view(count, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    return padded[sample, channel, rows, columns] + base
