"""From which samples boundaries are searched, and toward which classes."""

from __future__ import annotations

import torch
from torch import Tensor

from amkd_fast import checks, philox
from amkd_fast.ops.attack import reference
from amkd_fast.ops.attack.arguments import check_classes, check_logits, check_range
from amkd_fast.ops.attack.operators import serving
from amkd_fast.ops.attack.reference import BoundaryBases


def select_boundary_bases(
    student: Tensor, teacher: Tensor, labels: Tensor, limit: int, *, seed: int | Tensor | None = None
) -> BoundaryBases:
    """Choose the rows of a batch that boundary samples are searched from, and the class each should reach.

    A row is eligible when both networks predict its label. Of more than ``limit`` the ones with the largest
    Σ_{c≠y}(σ(z_t)_c − σ(z_s)_c)² stay (Heo et al. 2019, rules 1 and 2 of the method), the lowest row among equals. The
    target is drawn by :func:`draw_targets` with the row's position in the batch as its counter. The result has a
    fixed shape, and nothing waits for the device.

    Args:
        student: Logits [B, K], floating.
        teacher: Logits [B, K], floating.
        labels: int64 or int32 [B]. A label outside [0, K) makes its row ineligible. A row with a NaN is so, too.
        limit: M ≥ 0, the number of rows returned, also when B is smaller.
        seed: Seed of the draw, an int or an int64 tensor of no dimensions; None draws one from torch's generator of the
            device.

    Returns:
        :class:`BoundaryBases` ``(index, base, target, valid)``, each [M]. Valid rows come first, the largest
        disagreement at the head; the padding holds zeros, so that it can index a batch that is not empty.

    Raises:
        TypeError: A dtype or a type differs from the above.
        ValueError: A shape, a device or a value breaks a rule above.

    Example:
        >>> import torch, amkd_fast as af
        >>> teacher = torch.tensor([[4.0, 1.0, 0.0], [0.0, 5.0, 1.0], [2.0, 0.0, 1.0]])
        >>> student = torch.tensor([[3.0, 2.0, 0.0], [0.0, 5.0, 1.0], [0.0, 2.0, 1.0]])
        >>> chosen = af.select_boundary_bases(student, teacher, torch.tensor([0, 1, 0]), 3, seed=1)
        >>> chosen.index.tolist(), chosen.base.tolist(), chosen.valid.tolist()
        ([0, 1, 0], [0, 1, 0], [True, True, False])
    """
    check_logits("student", student)
    check_logits("teacher", teacher)
    checks.shape("student", student, tuple(teacher.shape), "the shape of teacher")
    checks.integer("labels", labels)
    checks.shape("labels", labels, (teacher.shape[0],), "one class per row")
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit is a {type(limit).__name__}: must be an int")
    if limit < 0:
        raise ValueError(f"limit={limit}: must be at least 0")
    if teacher.shape[1] < 2:
        raise ValueError(f"teacher.shape={tuple(teacher.shape)}: must have at least 2 classes")
    checks.same_device(student=student, teacher=teacher, labels=labels)
    seed = philox.chosen_seed(seed, teacher.device)
    _, fast = serving(teacher)
    if fast is None:
        return reference.select_boundary_bases(student, teacher, labels, limit, seed)
    if student.dtype != teacher.dtype:
        dtype = torch.promote_types(student.dtype, teacher.dtype)
        student, teacher = student.to(dtype), teacher.to(dtype)
    logits = (student.detach(), teacher.detach())
    return BoundaryBases(*fast.bases(*logits, labels.long(), limit, *philox.operator_seed(seed)))


def draw_targets(
    logits: Tensor, base: Tensor, *, seed: int | Tensor | None = None, rows: Tensor | None = None
) -> Tensor:
    """Draw a class k ≠ b for every row from σ(z)_k/(1 − σ(z)_b), without leaving the device.

    Inversion in float64 with number ``rows[i]`` of the seed's Philox stream, so that a CPU and a GPU agree. The public
    BSS code takes the second class where 1 − σ(z)_b rounds to 0; here the distribution is formed without that
    difference, and the second class is left for rows where no other class has a weight (−inf or NaN logits).

    Args:
        logits: [B, K] with K ≥ 2, floating.
        base: int64 or int32 [B], the class that is left out, in [0, K).
        seed: An int or an int64 tensor of no dimensions; None draws one from torch's generator of the device.
        rows: int64 [B], counters of the draws; by default 0 … B − 1.

    Returns:
        int64 [B].

    Raises:
        TypeError: A dtype or a type differs from the above.
        ValueError: A shape, a device or a value breaks a rule above.

    Example:
        >>> import torch
        >>> from amkd_fast.ops.attack import draw_targets
        >>> draw_targets(torch.tensor([[0.0, 9.0, -torch.inf]]), torch.tensor([1]), seed=3)
        tensor([0])
    """
    check_logits("logits", logits)
    if logits.shape[1] < 2:
        raise ValueError(f"logits.shape={tuple(logits.shape)}: must have at least 2 classes")
    check_classes("base", base, logits)
    checks.same_device(logits=logits, base=base, rows=rows)
    seed = philox.chosen_seed(seed, logits.device)
    if rows is not None:
        checks.integer("rows", rows)
        checks.shape("rows", rows, (logits.shape[0],), "one counter per row")
        rows = rows.long()
    backend, fast = serving(logits)
    if backend != "cpu":
        check_range("base", base, logits)
    if fast is None:
        return reference.draw_targets(logits, base, seed, rows)
    try:
        return fast.draw(logits.detach(), base.long(), rows, *philox.operator_seed(seed))
    except RuntimeError as error:
        raise checks.refused(error, "classes: ") from None
