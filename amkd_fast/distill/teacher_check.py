"""Whether a teacher is as good on the test images as it is said to be, before anything learns from it."""

from __future__ import annotations

import torch
from torch import Tensor

from amkd_fast.distill.errors import UserError
from amkd_fast.distill.state_dict_file import Claim

BELOW = 2.0  # points that an accuracy may be below what was expected


def check(correct: float, logits: Tensor, labels: Tensor, claim: Claim, what: str, normalisation: object) -> None:
    """Stop where a teacher is more than :data:`BELOW` points below what somebody says of it.

    Args:
        correct: Its accuracy, per cent.
        logits: Its answers to the test images [N, K].
        labels: Theirs [N].
        claim: What was expected.
        what: Begins the message.
        normalisation: By which the images were normalised.

    Raises:
        UserError: It is; the message has both accuracies and what it may be.
    """
    if correct >= claim.percent - BELOW:
        return
    renamed, chance = best_renaming(logits, labels), 100.0 / logits.shape[1]
    if not bool(logits.isfinite().all()):
        causes = "its logits are not finite"
    elif renamed >= max(claim.percent - BELOW, min(3.0 * chance, 50.0 + chance / 2.0)):  # not by luck
        causes = f"its classes are in another order than the data's (renamed, {renamed:.1f} % are right)"
    else:
        causes = (
            f"likely causes: it learnt with another normalisation than {normalisation} (--teacher-mean, "
            "--teacher-std), with classes in another order, with images of another size, or it is another network"
        )
    raise UserError(
        f"{what}: {correct:.1f} % on {len(labels)} test images, and {claim.percent:.1f} % by {claim.source}; {causes}; "
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
