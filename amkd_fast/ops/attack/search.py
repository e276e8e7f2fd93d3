"""A search for boundary samples where a CPU has operators for it: one call for each half of a step, and for its end.

Tensors of the whole batch are [M, ...]; those of the m samples that are worked on say by ``rows`` [m] where they are.
What the calls do is written in plain PyTorch in ``attacks/boundary.py``, which other devices and backends run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amkd_fast import checks
from amkd_fast.ops import schemas
from amkd_fast.ops.attack.operators import INF, RULES, lying_like, serving, split, work_dtype
from amkd_fast.typing import NormPower, Score

_judge, _advance, _halve, _outcome = (
    schemas.operator(f"attack_{name}", "cpu") for name in ("judge", "advance", "halve", "outcome")
)


def serves(images: Tensor) -> bool:
    """Whether the calls below can be made."""
    return serving(images)[0] == "cpu"


def judge(
    logits: Tensor, rows: Tensor, base: Tensor, target: Tensor, found: Tensor, gap: Tensor, steps: Tensor, *,
    score: Score, moves: bool,
) -> tuple[Tensor, Tensor, int]:  # fmt: skip
    """Gradient of the boundary objective [m, K], bool [m]: still in the base class, and how many are.

    ``found`` [M, K] and ``gap`` [M] are told what is at the samples; with ``moves`` ``steps`` [M] counts one for all
    who are active.
    """
    try:
        return _judge(logits.detach(), rows, base, target, found, gap, steps, score == "softmax", moves)
    except RuntimeError as error:
        raise checks.refused(error, "classes: ") from None


def advance(
    x: Tensor, grad: Tensor, rows: Tensor, active: Tensor, left: int, gap: Tensor, images: Tensor,
    inside: Tensor | None, *, step_size: float | Tensor, norm_power: NormPower, lower: float | Tensor | None,
    upper: float | Tensor | None, project: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The ``left`` active samples one boundary step on, and their rows.

    ``images`` is told the samples that are not active, ``inside`` where the others were.
    """
    work = work_dtype(x.dtype)
    sizes, size = split(step_size, 0.0, work)
    gaps, _ = split(gap, 0.0, work)
    lowers, low = split(lower, -INF, work)
    uppers, high = split(upper, INF, work)
    rule = RULES["boundary", norm_power]
    return _advance(
        x, lying_like(x, grad), rows, active, left, gaps, sizes, lowers, uppers, images, inside, rule, size, low, high,
        project,
    )  # fmt: skip


def halve(
    middle: Tensor, logits: Tensor | None, rows: Tensor, base: Tensor, inside: Tensor, outside: Tensor, found: Tensor,
    *, again: bool,
) -> None:  # fmt: skip
    """Let ``middle`` [m, ...], where ``logits`` are, take the place of the end [M, ...] on its side.

    With ``again`` it becomes the middle of what is left; without ``logits`` that is all that happens.
    """
    _halve(middle, logits, rows, base, inside, outside, found, again)


def outcome(
    logits: Tensor, base: Tensor, target: Tensor, steps: Tensor, valid: Tensor | None, *, score: Score,
    accept_all: bool, retarget: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Target, status, gap and acceptance [M], as :class:`amkd_fast.attacks.BoundarySamples` has them."""
    try:
        return _outcome(logits, base, target, steps, valid, score == "softmax", accept_all, retarget)
    except RuntimeError as error:
        raise checks.refused(error, "classes: ") from None


def some_of(images: Tensor, rows: Tensor) -> Tensor:
    """Room for as many images as there are rows, which lies as ``images`` do."""
    return torch.empty_like(images[: rows.numel()])
