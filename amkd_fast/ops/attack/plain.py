"""Calls on a CPU that need no conversion and no copy, as attacks make them: looking closely would cost more than they.

The operators look at dtypes, shapes and devices themselves. What they refuse, and what they cannot see, gets None here,
and is left to the public functions, which say what is wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amkd_fast import backends
from amkd_fast.ops.attack.arguments import LOSSES, SCORES
from amkd_fast.ops.attack.operators import INF, RULES, Operators


def step(
    operators: Operators, x: Tensor, grad: Tensor, x0: Tensor | None, step_size: float | Tensor,
    eps: float | Tensor | None, norm: str, norm_power: int, gap: Tensor | None, momentum: Tensor | None, decay: float,
    lower: float | Tensor | None, upper: float | Tensor | None, active: Tensor | None, project: bool,
    out: Tensor | None,
) -> Tensor | None:  # fmt: skip
    """The new samples, or None; l1 steps are none of these calls."""
    if torch.compiler.is_compiling() or not isinstance(x, Tensor) or not isinstance(grad, Tensor):
        return None
    if not x.is_cpu or x.requires_grad or grad.requires_grad or type(norm) is not str or type(norm_power) is not int:
        return None
    if x0 is not None and x.dtype.itemsize == 2:  # whose rounding is looked at
        return None
    rule = RULES.get((norm, norm_power), 2)
    if rule == 2 or (x0 is None) != (eps is None) or (rule > 2 and (x0 is not None or momentum is not None)):
        return None
    layout = x.stride()
    if grad.stride() != layout or (momentum is not None and momentum.requires_grad):
        return None
    for image in (x0, out, momentum):
        if image is not None and (not isinstance(image, Tensor) or image.stride() != layout):
            return None

    step_sizes = radii = lowers = uppers = None
    if isinstance(step_size, Tensor):
        step_sizes, step_size = step_size, 0.0
    if eps is None:
        eps = 0.0
    elif isinstance(eps, Tensor):
        radii, eps = eps, 0.0
    if lower is None:
        lower = -INF
    elif isinstance(lower, Tensor):
        lowers, lower = lower, -INF
    if upper is None:
        upper = INF
    elif isinstance(upper, Tensor):
        uppers, upper = upper, INF
    if not (type(step_size) is type(eps) is type(lower) is type(upper) is type(decay) is float):
        return None
    if not (-INF < step_size < INF and eps >= 0.0 and lower <= upper and -INF < decay < INF):
        return None
    if backends.select("attack", "cpu") != "cpu":
        return None
    if out is None:
        out = torch.empty_like(x)
    try:
        operators.step(
            out, x, grad, x0, step_sizes, radii, gap, momentum, lowers, uppers, active, rule, step_size, eps, lower,
            upper, decay, project, 1,
        )  # fmt: skip
    except RuntimeError as error:
        if "arguments: " not in str(error):  # it had begun, and would move samples twice
            raise
        return None
    return out


def objective(
    operators: Operators, logits: Tensor, labels: Tensor, loss: str, target: Tensor | None, score: str, targeted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """(value, grad_logits, prediction, active), or None."""
    if torch.compiler.is_compiling() or not isinstance(logits, Tensor) or not logits.is_cpu:
        return None
    if loss not in LOSSES or score not in SCORES:
        return None
    if logits.requires_grad:
        logits = logits.detach()
    try:
        if backends.select("attack", "cpu") != "cpu":
            return None
        return operators.objective(logits, labels, target, LOSSES.index(loss), score == SCORES[1], targeted)
    except RuntimeError:
        return None
