"""Labelled images, whole sets resident as uint8: digits, CIFAR, Tiny ImageNet, or a folder of pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from amkd_fast.distill.data import cifar, digits, folder, subsets, tiny_imagenet
from amkd_fast.distill.data.batches import Batches, InOrder, Labelled
from amkd_fast.distill.data.split import Source, Split
from amkd_fast.distill.errors import UserError, allocating
from amkd_fast.distill.settings import Settings
from amkd_fast.methods.base import Batch

__all__ = ["READERS", "Batch", "Batches", "Data", "InOrder", "Labelled", "Split", "load"]

READERS = {
    "digits": digits.read,
    "cifar10": cifar.read,
    "cifar100": cifar.read,
    "tiny-imagenet": tiny_imagenet.read,
}  # anything else is a folder


@dataclass(frozen=True, eq=False)
class Data:
    """What teacher and student learn from and are tested on.

    Attributes:
        teacher: Training set of the teacher.
        student: Some or all of it, training set of the student.
        test: Test set of both.
        classes: Names, in the order of the labels.
        mean: Of the teacher's images, one a channel, in [0, 1] pixel units; no image is normalised here.
        std: Their standard deviation, one number over all channels.
        stds: Likewise, one a channel.
        augment: ``none``, ``crop`` or ``crop+flip``.
        level: Pixel value of one uint8 level: 1/16 for digits, whose levels are 0 to 16, else 1/255.
        dropped: Labels of which the student gets no image.
    """

    teacher: Split
    student: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: float
    stds: tuple[float, ...]
    augment: str
    level: float
    dropped: tuple[int, ...] = ()

    @property
    def channels(self) -> int:
        return self.test.pixels.shape[1]

    def to(self, device: torch.device | str) -> Data:
        """The same data resident on ``device``; a student that learns from all of the teacher's shares its memory."""
        teacher, test = self.teacher.to(device), self.test.to(device)
        student = teacher if self.student is self.teacher else self.student.to(device)
        return replace(self, teacher=teacher, student=student, test=test)


def load(settings: Settings) -> Data:
    """Read the data that ``settings.data`` names.

    Args:
        settings: ``data`` is ``digits``, ``cifar10``, ``cifar100``, ``tiny-imagenet`` (these three unpacked under
            ``data_root``; nothing is downloaded) or a folder with ``train/<class>/`` and ``test/<class>/`` or
            ``val/<class>/``. ``classes`` keeps some classes; ``teacher_images`` and ``student_images``,
            ``student_shots`` or ``student_fraction`` keep some images of each.

    Returns:
        Resident data on the CPU.

    Raises:
        UserError: The data is missing, empty, unreadable, or the classes or images wished for are not there.
    """
    what = f"--data {settings.data}" + (f" --image-size {settings.image_size}" if settings.image_size else "")
    with allocating(what):
        return _load(settings)


def _load(settings: Settings) -> Data:
    source: Source = READERS.get(settings.data, folder.read)(settings)
    _check(source, settings.data)
    train, test = (replace(split, level=source.level) for split in (source.train, source.test))
    wish = settings.teacher_images or 0
    teacher = subsets.stratified(train, wish, len(source.classes), settings.data_seed, "--teacher-images")
    student = subsets.of_student(teacher, source.classes, settings)
    student, dropped = subsets.without(student, source.classes, settings.drop_labels)
    mean, std, stds = _statistics(teacher.pixels, source.level)
    if std == 0.0:
        raise UserError(f"--data {settings.data}: all training images are of one colour")
    augment = "none" if settings.data == "digits" else "crop+flip"
    return Data(
        teacher=teacher,
        student=student,
        test=test,
        classes=source.classes,
        mean=mean,
        std=std,
        stds=stds,
        augment=augment if settings.augment == "auto" else settings.augment,
        level=source.level,
        dropped=dropped,
    )


def _check(source: Source, name: str) -> None:
    for part, split in (("training", source.train), ("test", source.test)):
        counts = torch.bincount(split.labels, minlength=len(source.classes))
        empty = [name for name, count in zip(source.classes, counts.tolist(), strict=True) if count == 0]
        if empty:
            raise UserError(f"--data {name}: no {part} images of {', '.join(empty[:5])}")


def _statistics(pixels: Tensor, level: float) -> tuple[tuple[float, ...], float, tuple[float, ...]]:
    """Means per channel, standard deviation over all and per channel, from histograms: exact, no float copy of all."""
    counts = torch.stack([torch.bincount(pixels[:, c].flatten(), minlength=256) for c in range(pixels.shape[1])])
    values = torch.arange(256)
    sums, squares = ((counts * values**power).sum(1).tolist() for power in (1, 2))  # [C], Python's integers
    each = int(counts[0].sum())

    def spread(count: int, total: int, square: int) -> float:
        return level * math.sqrt((square * count - total * total) / (count * max(count - 1, 1)))

    stds = tuple(spread(each, *of_channel) for of_channel in zip(sums, squares, strict=True))
    return tuple(level * value / each for value in sums), spread(each * len(sums), sum(sums), sum(squares)), stds
