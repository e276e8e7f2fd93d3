"""Labelled images as uint8, resident or streamed: digits, CIFAR, Tiny ImageNet, or folders of pictures or tables."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from amkd_fast.distill.data import (
    cifar,
    digits,
    folder,
    hugging_face,
    memory,
    subsets,
    tiny_imagenet,
    torchvision_transforms,
)
from amkd_fast.distill.data.batches import Batches, InOrder, Labelled
from amkd_fast.distill.data.memory import Room
from amkd_fast.distill.data.split import Source, Split
from amkd_fast.distill.data.statistics import Statistics
from amkd_fast.distill.data.torchvision_transforms import Mixing, RandAugment
from amkd_fast.distill.errors import UserError, allocating
from amkd_fast.distill.settings import Settings
from amkd_fast.methods.base import Batch

__all__ = ["Batch", "Batches", "Data", "InOrder", "Labelled", "Split", "load"]

RESIDENT = {"digits": digits.read, "cifar10": cifar.read, "cifar100": cifar.read}
PICTURES = {"tiny-imagenet": tiny_imagenet.read}  # as anything else, a folder


@dataclass(frozen=True, eq=False)
class Data:
    """What teacher and student learn from and are tested on.

    Attributes:
        teacher: Training set of the teacher.
        student: Some or all of it, training set of the student.
        test: Test set of both.
        validation: What best.ckpt is chosen on; None: on the test set.
        classes: Names, in the order of the labels.
        statistics: Of the teacher's images; no image is normalised here.
        augment: ``none``, ``crop`` or ``crop+flip``.
        erase: Probability of a black rectangle in a training image.
        rand_augment: What else is done to a training image.
        mixing: How training images and their labels are mixed.
        level: Pixel value of one uint8 level: 1/16 for digits, whose levels are 0 to 16, else 1/255.
        dropped: Labels of which the student gets no image.
    """

    teacher: Split
    student: Split
    test: Split
    classes: tuple[str, ...]
    statistics: Statistics
    augment: str
    level: float
    dropped: tuple[int, ...] = ()
    validation: Split | None = None
    erase: float = 0.0
    rand_augment: RandAugment | None = None
    mixing: Mixing | None = None

    @property
    def augmented(self) -> bool:
        """Whether training images change from epoch to epoch."""
        plain = self.augment == "none" and self.rand_augment is None and self.mixing is None
        return not plain or self.erase > 0.0

    @property
    def channels(self) -> int:
        return self.test.pixels.shape[1]

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the teacher's images, one a channel, in [0, 1] pixel units."""
        return self.statistics.moments.mean

    @property
    def std(self) -> float:
        """Their standard deviation, one number over all channels."""
        return self.statistics.moments.std

    @property
    def stds(self) -> tuple[float, ...]:
        """Likewise, one a channel."""
        return self.statistics.moments.stds

    @property
    def tested_on(self) -> tuple[Split, ...]:
        """The test set and, where there is one, the validation set."""
        return (self.test,) if self.validation is None else (self.test, self.validation)

    @property
    def chosen_on(self) -> str:
        """The images by whose accuracy best.ckpt is chosen, in words."""
        return "the test set" if self.validation is None else f"{len(self.validation)} validation images"

    def to(self, device: torch.device | str) -> Data:
        """The same data on ``device``; a student that learns from all of the teacher's shares its memory."""
        teacher, test = self.teacher.to(device), self.test.to(device)
        student = teacher if self.student is self.teacher else self.student.to(device)
        validation = None if self.validation is None else self.validation.to(device)
        return replace(self, teacher=teacher, student=student, test=test, validation=validation)


def load(settings: Settings, device: torch.device | str = "cpu", *, test_alone: bool = False) -> Data:
    """Read the data that ``settings.data`` names.

    Args:
        settings: ``data`` is ``digits``, ``cifar10``, ``cifar100``, ``tiny-imagenet`` (these three unpacked under
            ``data_root``; nothing is downloaded), a folder (see :func:`.folder.read`), or ``hf:`` and a folder of
            ``datasets`` (:func:`.hugging_face.read`). ``val_fraction`` of the
            training images are the validation set. ``classes`` keeps some classes; ``teacher_images`` and
            ``student_images``, ``student_shots`` or ``student_fraction`` keep some images of each. What exceeds
            ``resident`` GiB of pictures is streamed.
        device: Where the data will lie.
        test_alone: Only the test images are wanted: other pictures are streamed, and so decoded by who asks for them.

    Returns:
        Data on the CPU.

    Raises:
        UserError: The data is missing, empty, unreadable, or the classes or images wished for are not there.
    """
    what = f"--data {settings.data}" + (f" --image-size {settings.image_size}" if settings.image_size else "")
    with allocating(what):
        return _load(settings, Room(memory.limit(settings.resident, torch.device(device)), test_alone))


def _load(settings: Settings, room: Room) -> Data:
    source: Source
    hugging = settings.data.startswith(hugging_face.PREFIX)
    if settings.label_column is not None and not hugging:
        raise UserError(f"--label-column {settings.label_column}: is for --data {hugging_face.PREFIX}FOLDER")
    if hugging:
        source = hugging_face.read(settings, room)
    elif settings.data in RESIDENT:
        source = RESIDENT[settings.data](settings)
    else:
        source = PICTURES.get(settings.data, folder.read)(settings, room)
    _check(source, settings.data)
    if settings.test_fraction is not None and settings.data in (*RESIDENT, *PICTURES):
        raise UserError(f"--test-fraction {settings.test_fraction:g}: {settings.data} has a test set already")
    train, test = (replace(split, level=source.level) for split in (source.train, source.test))
    validation = source.validation and replace(source.validation, level=source.level)
    if settings.val_fraction:
        rest, out = subsets.held_out(
            train.labels, settings.val_fraction, source.classes, settings.data_seed, "--val-fraction"
        )
        train, validation = train.take(rest), train.take(out)
    wish = settings.teacher_images or 0
    teacher = subsets.stratified(train, wish, len(source.classes), settings.data_seed, "--teacher-images")
    student = subsets.of_student(teacher, source.classes, settings)
    student, dropped = subsets.without(student, source.classes, settings.drop_labels)
    statistics = Statistics(teacher, settings.data)
    if isinstance(teacher.pixels, Tensor):
        _ = statistics.moments  # refuses images of one colour now
    augment = "none" if settings.data == "digits" else "crop+flip"
    return Data(
        teacher=teacher,
        student=student,
        test=test,
        classes=source.classes,
        statistics=statistics,
        augment=augment if settings.augment == "auto" else settings.augment,
        level=source.level,
        dropped=dropped,
        validation=validation,
        erase=settings.erase,
        rand_augment=torchvision_transforms.rand_augment(settings),
        mixing=torchvision_transforms.mixing(settings),
    )


def _check(source: Source, name: str) -> None:
    for part, split in (("training", source.train), ("test", source.test), ("validation", source.validation)):
        if split is None:
            continue
        counts = torch.bincount(split.labels, minlength=len(source.classes))
        empty = [name for name, count in zip(source.classes, counts.tolist(), strict=True) if count == 0]
        if empty:
            raise UserError(f"--data {name}: no {part} images of {', '.join(empty[:5])}")
