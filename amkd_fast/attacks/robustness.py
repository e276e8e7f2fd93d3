"""Accuracy that survives attacks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from amkd_fast import philox
from amkd_fast.attacks import arguments
from amkd_fast.attacks import batches as sets
from amkd_fast.attacks.frozen import FrozenModel, as_frozen
from amkd_fast.attacks.loop import LogitsOf
from amkd_fast.attacks.pgd import PGD

_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


class RobustAccuracy(NamedTuple):
    """What :func:`robust_accuracy` returns, for N images; tensors are on the CPU.

    Attributes:
        clean: Share in [0, 1] of the images that are classified rightly; NaN where there is no image.
        robust: Share of the images that are classified rightly before and after every attack; NaN likewise.
        count: N.
        correct: bool [N], rightly classified before any attack.
        survived: bool [N], rightly classified after every attack, too.
        broken_by: int64 [N], position in ``attacks`` of the attack that changed a right prediction; −1 where none did.
        attacks: Names of the attacks in their order.
    """

    clean: float
    robust: float
    count: int
    correct: Tensor
    survived: Tensor
    broken_by: Tensor
    attacks: tuple[str, ...]

    @property
    def clean_interval(self) -> tuple[float, float]:
        """95 % interval of ``clean`` by :func:`wilson_interval`."""
        return wilson_interval(int(self.correct.sum()), self.count)

    @property
    def robust_interval(self) -> tuple[float, float]:
        """95 % interval of ``robust`` by :func:`wilson_interval`."""
        return wilson_interval(int(self.survived.sum()), self.count)

    @property
    def after(self) -> dict[str, float]:
        """By name the share that survives this attack and all before it."""
        broken = [int((self.broken_by == position).sum()) for position in range(len(self.attacks))]
        right = int(self.correct.sum())
        shares = [(right - sum(broken[: n + 1])) / self.count if self.count else math.nan for n in range(len(broken))]
        return dict(zip(self.attacks, shares, strict=True))


def robust_accuracy(
    model: nn.Module | FrozenModel,
    batches: Iterable,
    attack: PGD | Mapping[str, PGD] | Sequence[PGD],
    *,
    seed: int = 0,
    logits_of: LogitsOf | None = None,
    progress: sets.Progress | None = None,
) -> RobustAccuracy:
    """Measure the share of images that a network classifies rightly whatever the attacks do to them.

    Only rightly classified images are attacked, and of several attacks each takes the survivors of those before it, so
    that ``robust`` is the accuracy in the worst case over all of them (Madry et al. 2018; over an ensemble as by Croce
    and Hein 2020). It is an upper bound of the true robust accuracy, as every such number is.

    The count rests on the attack's own logits. An attack on another network, or on a view in another dtype, is a
    transfer attack: what it makes is shown to ``model``. A model stays as it is. On a GPU, where attacks keep their
    whole batch by default, ``compact=True`` spares the work on images that need none.

    Args:
        model: The network, or a view of it by :func:`amkd_fast.attacks.frozen`.
        batches: ``(images, labels)``, images [N, ...] floating, labels int64 or int32 [N]; or an iterable (a
            ``DataLoader``) of such batches, in which further parts are passed over. They are brought to the model's
            device. A label outside [0, K) is never right. Predictions that come with a NaN are wrong.
        attack: An untargeted :class:`amkd_fast.attacks.PGD`; or several by name, or in a sequence, named by position.
        seed: Of the random starts, which also depend on the division into batches; a measurement repeats itself.
        logits_of: Picks the logits [B, K] from the outputs of a model that has several; give the attacks the same.
        progress: Called after every batch with the number of batches done and that of all (None: not known).

    Returns:
        :class:`RobustAccuracy`.

    Raises:
        TypeError: An argument has another type than the above.
        ValueError: An argument's value breaks a rule above, there is no attack, or a batch has no labels.

    Example:
        >>> import torch, amkd_fast as af
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.eye(2)
        >>> images, labels = torch.tensor([[0.9, 0.1], [0.6, 0.5], [0.3, 0.7]]), torch.tensor([0, 0, 0])
        >>> result = af.attacks.robust_accuracy(model, (images, labels), af.attacks.PGD(model, eps=0.1))
        >>> result.correct.tolist(), result.survived.tolist(), f"{result.robust:.3f}"
        ([True, True, False], [True, False, False], '0.333')
    """
    attacks = _named(attack)
    seed = philox.check_seed(seed, torch.device("cpu"))
    arguments.check_logits_of(logits_of)
    view = as_frozen(model)
    own = [each for each in attacks.values() if _shows(each, view, logits_of)]
    view = own[0].model if own else view  # a view that is built already
    found = []
    for number, (images, labels) in enumerate(sets.walk(batches, sets.device_of(view), progress=progress)):
        if labels is None:
            raise ValueError("batches holds images without labels: must be (images, labels)")
        correct = _right(sets.predict(view, logits_of, images), labels)
        survived, broken_by = correct, torch.full_like(labels, -1, dtype=torch.int64)
        for position, each in enumerate(attacks.values()):
            if not bool(survived.any()):
                break
            # The rows keep their places, so that an image's random start does not hang on its neighbours' fate.
            draw = seed * 100_003 + number + (position << 40)
            samples = each(images, torch.where(correct, labels, 0), valid=survived, seed=draw)
            logits = samples.logits if each in own else sets.predict(view, logits_of, samples.images)
            held = survived & _right(logits, labels)
            broken_by = torch.where(survived & ~held, position, broken_by)
            survived = held
        found.append((correct, survived, broken_by))
    return _summary(found, tuple(attacks))


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """95 % confidence interval of a share, (p + z²/2n ± z √(p(1−p)/n + z²/4n²))/(1 + z²/n) with p = successes/n.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.

    Args:
        successes: From 0 to ``count``.
        count: n ≥ 0.

    Returns:
        Lower and upper end, in [0, 1]; (0, 1) where ``count`` is 0.

    Raises:
        TypeError: An argument is not an int.
        ValueError: An argument's value breaks a rule above.

    Example:
        >>> from amkd_fast.attacks import wilson_interval
        >>> [round(end, 3) for end in wilson_interval(9, 10)]
        [0.596, 0.982]
    """
    arguments.check_count("successes", successes, 0)
    arguments.check_count("count", count, 0)
    if successes > count:
        raise ValueError(f"successes={successes}: must be at most count={count}")
    if count == 0:
        return 0.0, 1.0
    share, weight = successes / count, _Z * _Z / count
    middle = share + weight / 2.0
    half = math.sqrt(weight * share * (1.0 - share) + weight * weight / 4.0)
    low, high = ((middle + side) / (1.0 + weight) for side in (-half, half))
    return low if successes else 0.0, high if successes < count else 1.0  # without the last bit's rounding


def _named(attack: object) -> dict[str, PGD]:
    if isinstance(attack, PGD):
        attacks = {"0": attack}
    elif isinstance(attack, Mapping):
        attacks = dict(attack)
    elif isinstance(attack, Sequence):
        attacks = {str(position): each for position, each in enumerate(attack)}
    else:
        raise TypeError(f"attack is a {type(attack).__name__}: must be a PGD, or a mapping or a sequence of them")
    if not attacks:
        raise ValueError(f"attack={attack!r}: must name at least one attack")
    for name, each in attacks.items():
        if not isinstance(each, PGD):
            raise TypeError(f"attack[{name!r}] is a {type(each).__name__}: must be a PGD")
        if each.objective["targeted"]:
            raise ValueError(f"attack[{name!r}] is targeted: must be untargeted, away from the labels")
    return attacks


def _shows(attack: PGD, view: FrozenModel, logits_of: LogitsOf | None) -> bool:
    """Whether the attack's logits are those of ``view``."""
    same = attack.model.model is view.model and attack.model._dtype == view._dtype
    return same and attack.logits_of is logits_of


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels) & ~torch.isnan(logits).any(1)


def _summary(found: list[tuple[Tensor, Tensor, Tensor]], names: tuple[str, ...]) -> RobustAccuracy:
    empty = (torch.empty(0, dtype=torch.bool), torch.empty(0, dtype=torch.bool), torch.empty(0, dtype=torch.int64))
    columns = zip(*found, strict=True) if found else ((column,) for column in empty)
    correct, survived, broken_by = (torch.cat(column).cpu() for column in columns)
    clean, robust = (float(flags.double().mean()) for flags in (correct, survived))
    return RobustAccuracy(clean, robust, correct.numel(), correct, survived, broken_by, names)
