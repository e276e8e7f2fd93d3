"""Some classes, or some images of every class."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from amkd_fast.distill.data.split import Source, Split
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.settings import Settings

DIGITS_A_CLASS = 20  # the student's, unless the settings say otherwise


def choose(classes: tuple[str, ...], wish: str, option: str = "--classes") -> list[int]:
    """Numbers of the classes that ``wish`` names, in the set's order.

    Args:
        classes: All names.
        wish: Comma-separated names, or ranges of numbers such as ``0-4`` (both ends included; a class of that very
            name goes first); empty: all.
        option: Where it was wished for; it begins the message.

    Raises:
        UserError: There is no such class, one is named twice, or none.
    """
    if not wish.strip():
        return list(range(len(classes)))
    found: list[int] = []
    for word in (part.strip() for part in wish.split(",")):
        limits = re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})", word)
        if word in classes:
            found.append(classes.index(word))
        elif limits is None:
            some = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
            raise UserError(f"{option} {wish}: there is no class {word!r}, but {some} (or a range of numbers, 0-4)")
        else:
            first, last = map(int, limits.groups())
            if not first <= last < len(classes):
                raise UserError(f"{option} {wish}: {word} is no range within 0-{len(classes) - 1}")
            found += range(first, last + 1)
    for number in found:
        if found.count(number) > 1:
            raise UserError(f"{option} {wish}: names {classes[number]!r} twice")
    return sorted(found)


def of_classes(source: Source, wish: str) -> Source:
    """Only the classes that ``wish`` names (see :func:`choose`), relabelled from 0 in the set's order."""
    numbers = choose(source.classes, wish)
    if len(numbers) == len(source.classes):
        return source
    if len(numbers) < 2:
        raise UserError(f"--classes {wish}: one class only; at least two are needed")
    relabelled = torch.full((len(source.classes),), -1, dtype=torch.int64)
    relabelled[numbers] = torch.arange(len(numbers))

    def kept(split: Split) -> Split:
        labels = relabelled[split.labels]
        rows = (labels >= 0).nonzero()[:, 0]
        return Split(split.pixels[rows], labels[rows])

    names = tuple(source.classes[number] for number in numbers)
    return source._replace(train=kept(source.train), test=kept(source.test), classes=names)


def of_student(teacher: Split, classes: tuple[str, ...], settings: Settings) -> Split:
    """The student's share of the teacher's images; the smaller of two shares lies within the larger.

    Raises:
        UserError: More than one of the three options is given, or the share is not there.
    """
    options = {
        "--student-images": settings.student_images,
        "--student-shots": settings.student_shots,
        "--student-fraction": settings.student_fraction,
    }
    given = [option for option, value in options.items() if value is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)}: give one of them")
    if settings.student_shots is not None:
        return shots(teacher, settings.student_shots, classes, settings.data_seed)
    if settings.student_fraction is not None:
        return fraction(teacher, settings.student_fraction, len(classes), settings.data_seed)
    count = settings.student_images
    if count is None:
        count = DIGITS_A_CLASS * len(classes) if settings.data == "digits" else 0
    return stratified(teacher, count, len(classes), settings.data_seed, "--student-images")


def without(student: Split, classes: tuple[str, ...], wish: str) -> tuple[Split, tuple[int, ...]]:
    """The student's images without some labels, and these; the other images stay the same, and so do all numbers.

    Args:
        student: Its share of the teacher's images.
        classes: All names.
        wish: As of :func:`choose`; empty: none.

    Raises:
        UserError: There is no such class, or fewer than two are left.
    """
    if not wish.strip():
        return student, ()
    dropped = choose(classes, wish, "--drop-labels")
    if len(classes) - len(dropped) < 2:
        raise UserError(f"--drop-labels {wish}: leaves fewer than two labels")
    keep = ~torch.isin(student.labels, torch.tensor(dropped))
    return student.take(keep.nonzero()[:, 0]), tuple(dropped)


def stratified(split: Split, count: int, classes: int, seed: int, option: str) -> Split:
    """``count`` images (0: all), every class in its share, at least one each.

    Raises:
        UserError: There are not so many, or fewer than one a class are wished for; names ``option``.
    """
    total = len(split)
    if count == 0 or count == total:
        return split
    if not classes <= count <= total:
        raise UserError(f"{option} {count}: must be 0 (all) or from {classes} (one a class) to {total}")
    order, place, size = _places(split.labels, classes, seed)
    rank = (place.double() + 0.5) / size
    rank[place == 0] = -1.0  # the first of each class is always in
    return split.take(order[rank.argsort(stable=True)[:count]])


def fraction(split: Split, share: float, classes: int, seed: int) -> Split:
    """The nearest number of images to ``share`` of all, as :func:`stratified` chooses them.

    Raises:
        UserError: ``share`` is not above 0 and at most 1, or too small for one image a class.
    """
    if not 0.0 < share <= 1.0:
        raise UserError(f"--student-fraction {share:g}: must be above 0 and at most 1")
    count = round(share * len(split))
    if count < classes:
        raise UserError(
            f"--student-fraction {share:g}: is {count} of {len(split)} images; at least {classes} (one a class)"
            " are needed"
        )
    return stratified(split, count, classes, seed, "--student-fraction")


def shots(split: Split, count: int, classes: tuple[str, ...], seed: int) -> Split:
    """``count`` images of every class.

    Raises:
        UserError: ``count`` is below 1, or more than a class has.
    """
    if count < 1:
        raise UserError(f"--student-shots {count}: must be at least 1")
    for name, size in zip(classes, torch.bincount(split.labels, minlength=len(classes)).tolist(), strict=True):
        if size < count:
            raise UserError(f"--student-shots {count}: class {name!r} has {size} images only")
    order, place, _ = _places(split.labels, len(classes), seed)
    return split.take(order[place < count])


def held_out(labels: Tensor, share: float, classes: tuple[str, ...], seed: int, option: str) -> tuple[Tensor, Tensor]:
    """Rows that stay and rows that are held out, both in their order.

    Args:
        labels: int64 [N].
        share: Of every class's images, in (0, 1); one image at least is held out, and one stays.
        classes: All names.
        seed: Of the choice.
        option: Where it was wished for; it begins the message.

    Raises:
        UserError: A class has fewer than two images.
    """
    counts = torch.bincount(labels, minlength=len(classes))
    for name, size in zip(classes, counts.tolist(), strict=True):
        if size < 2:
            raise UserError(f"{option} {share:g}: class {name!r} has {size} images: must have at least 2")
    order, place, size = _places(labels, len(classes), seed)
    out = place < (share * size).round().clamp(min=torch.ones_like(size), max=size - 1)
    return order[~out].sort().values, order[out].sort().values


def _places(labels: Tensor, classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A shuffled order of the rows; for each of them its place within its class, and how many the class has."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed + 1))
    labels = labels[order]
    counts = torch.bincount(labels, minlength=classes)
    by_class = labels.argsort(stable=True)
    first = counts.cumsum(0) - counts
    place = torch.empty_like(labels)
    place[by_class] = torch.arange(len(labels)) - first[labels[by_class]]
    return order, place, counts[labels]


def evenly(total: int, limit: int) -> Tensor:
    """Rows of ``limit`` images (0: all) evenly over the set: a folder's images come class by class."""
    count = min(limit, total) or total
    return torch.arange(count) * total // max(count, 1)
