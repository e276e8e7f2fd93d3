"""Whether a teacher is as good on the test images as it is said to be, before anything learns from it."""

from __future__ import annotations

import torch
from torch import Tensor

from amkd_fast.distill.data import Split
from amkd_fast.distill.data.subsets import evenly
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.networks.normalised import Normalisation, Normalised
from amkd_fast.distill.normalisation import PUBLISHED
from amkd_fast.distill.state_dict_file import Claim
from amkd_fast.distill.teacher import accuracy, rightly

BELOW = 2.0  # points that an accuracy may be below what was expected
_TRIED = 1000  # images on which other normalisations are tried


def check(network: Normalised, test: Split, logits: Tensor, claim: Claim, what: str) -> None:
    """Stop where a teacher is more than :data:`BELOW` points below what somebody says of it.

    Args:
        network: The teacher; is asked again, with other normalisations, where it is.
        test: The test images.
        logits: Its answers to them [N, K].
        claim: What was expected.
        what: Begins the message.

    Raises:
        UserError: It is; the message has both accuracies and the cause, if one is found, else what it may be.
    """
    labels = test.labels
    correct, enough = 100.0 * float(rightly(logits, labels).float().mean()), claim.percent - BELOW
    if correct >= enough:
        return
    renamed, chance = best_renaming(logits, labels), 100.0 / logits.shape[1]
    if not bool(logits.isfinite().all()):
        cause = "its logits are not finite"
    elif renamed >= max(enough, min(3.0 * chance, 50.0 + chance / 2.0)):  # not by luck
        cause = f"its classes are in another order than the data's (renamed, {renamed:.1f} % are right)"
    elif found := other_normalisation(network, test, enough):
        cause = f"it has learnt with another normalisation than {network.normalisation}: {found}"
    else:
        cause = (
            f"likely causes: it has learnt with another normalisation than {network.normalisation} (--teacher-mean, "
            "--teacher-std), with classes in another order, with images of another size, or it is another network"
        )
    raise UserError(
        f"{what}: {correct:.1f} % on {len(labels)} test images, and {claim.percent:.1f} % by {claim.source}; {cause}; "
        f"--expect-teacher {max(correct - 0.05, 0.0):.1f} accepts that"
    )


def warn_of_chance(correct: float, images: int, classes: int) -> None:
    """Say loudly that a teacher is no better than guessing, within two standard errors of that."""
    chance = 1.0 / classes
    if correct <= 100.0 * (chance + 2.0 * (chance * (1.0 - chance) / images) ** 0.5):
        print(
            f"WARNING: this teacher knows nothing of these images: {correct:.1f} % are right, guessing has "
            f"{100.0 * chance:.1f} %",
            flush=True,
        )


def other_normalisation(network: Normalised, test: Split, enough: float) -> str:
    """The options of the usual normalisation with which most of some test images are right, if ``enough`` per cent are.

    The words are empty where none is that good.
    """
    some, channels = test.take(evenly(len(test), _TRIED)), len(network.normalisation.mean)
    usual = {name: found for name, found in PUBLISHED.items() if len(found.mean) == channels}
    for mean, std in ((0.0, 1.0), (0.5, 0.5)):
        words = ",".join([f"{mean:g}"] * channels), ",".join([f"{std:g}"] * channels)
        usual[f"{words[0]} --teacher-std {words[1]}"] = Normalisation.of([mean] * channels, std)
    reached = {name: accuracy(Normalised(network.network, *found), some) for name, found in usual.items()}
    best = max(reached, key=reached.__getitem__)
    return f"--teacher-mean {best} has {reached[best]:.1f} % of {len(some)}" if reached[best] >= enough else ""


def best_renaming(logits: Tensor, labels: Tensor) -> float:
    """The accuracy of logits [N, K], per cent, had the classes the names that suit them best.

    Example:
        >>> import torch
        >>> from amkd_fast.distill.teacher_check import best_renaming
        >>> best_renaming(torch.eye(3)[[1, 2, 0, 1]], torch.tensor([0, 1, 2, 2]))
        75.0
    """
    from scipy.optimize import linear_sum_assignment

    classes = logits.shape[1]
    pairs = torch.bincount(logits.argmax(1) * classes + labels, minlength=classes * classes)
    counts = pairs.view(classes, classes).cpu().numpy()
    return 100.0 * float(counts[linear_sum_assignment(counts, maximize=True)].sum()) / len(labels)
