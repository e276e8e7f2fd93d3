"""Which mean and std the networks normalise pixels by: the data's own, published ones, or numbers."""

from __future__ import annotations

from amkd_fast.distill.data import Data
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.networks.normalised import Normalisation
from amkd_fast.distill.settings import RunSettings, Settings

# Red, green and blue: torchvision's of ImageNet, and those of the CIFAR training sets, as most trainers have them.
PUBLISHED = {
    "imagenet": Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Normalisation((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
DATA, PER_CHANNEL = "data", "data-per-channel"
RULE = f"must be {DATA}, {PER_CHANNEL}, {', '.join(PUBLISHED)}, or one number a channel with commas between"


def check(settings: Settings) -> None:
    """Refuse before the data is read what is refused whatever the data is.

    Raises:
        UserError: A word is neither a name nor numbers, or has no effect.
    """
    _given(settings.mean, settings.std, "")
    teacher = _of_a_file(settings)
    if teacher is not None and getattr(settings, "teacher", None) is None:
        raise UserError("--teacher-mean, --teacher-std: are for --teacher; a teacher trained here has --mean and --std")


def of_student(settings: Settings, data: Data) -> Normalisation:
    """Of all networks that are trained here: ``mean`` and ``std`` of the settings.

    Args:
        settings: Each a name, numbers, or None: then both are what the other one names, else the data's.
        data: Its channels, and the means and std of the teacher's images.

    Raises:
        UserError: A setting is neither a name nor numbers, or they are not as many as the data has channels.
    """
    return _resolved(_given(settings.mean, settings.std, "") or (DATA, DATA), data, "")


def of_teacher(settings: Settings, data: Data, stored: Normalisation | None) -> Normalisation:
    """Of a teacher from a file: ``teacher_mean`` and ``teacher_std``; else what is ``stored`` in it, or the student's.

    Raises:
        UserError: As :func:`of_student`.
    """
    given = _of_a_file(settings)
    if given is not None:
        return _resolved(given, data, "teacher-")
    return of_student(settings, data) if stored is None else stored


def _of_a_file(settings: Settings) -> tuple[str, str] | None:
    if not isinstance(settings, RunSettings):
        return None
    return _given(settings.teacher_mean, settings.teacher_std, "teacher-")


def _given(mean: str | None, std: str | None, role: str) -> tuple[str, str] | None:
    """The words for both; None where there are none."""
    words = {"mean": mean, "std": std}
    for name, word in words.items():
        if word is not None:
            _numbers(word, name, role)
    for name, other in (("mean", "std"), ("std", "mean")):
        word = words[other]
        if words[name] is None and word is not None:
            if _numbers(word, other, role) is not None:
                raise UserError(f"--{role}{other} {word}: needs --{role}{name}, too")
            words[name] = word
    return None if words["mean"] is None or words["std"] is None else (words["mean"], words["std"])


def _resolved(words: tuple[str, str], data: Data, role: str) -> Normalisation:
    of_data = {
        DATA: Normalisation(data.mean, (data.std,) * data.channels),
        PER_CHANNEL: Normalisation(data.mean, data.stds),
    }
    found = {}
    for name, word in zip(("mean", "std"), words, strict=True):
        numbers = _numbers(word, name, role)
        found[name] = getattr({**of_data, **PUBLISHED}[word], name) if numbers is None else numbers
        if len(found[name]) != data.channels:
            raise UserError(f"--{role}{name} {word}: has {len(found[name])} numbers, the data {data.channels} channels")
        if name == "std" and not min(found[name]) > 0.0:
            raise UserError(f"--{role}std {word}: channel {found[name].index(0.0)} of the data is of one colour")
    return Normalisation(**found)


def _numbers(word: str, name: str, role: str) -> tuple[float, ...] | None:
    """Those that the word lists; None of a name."""
    if word in (DATA, PER_CHANNEL, *PUBLISHED):
        return None
    try:
        numbers = tuple(map(float, word.split(",")))
        Normalisation.of(numbers, 1.0) if name == "mean" else Normalisation.of([0.0] * len(numbers), numbers)
    except ValueError as error:
        least = ", each above 0" if name == "std" else ""
        raise UserError(f"--{role}{name} {word}: {RULE}{least}") from error
    return numbers
