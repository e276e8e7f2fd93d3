"""Relational knowledge distillation: a student learns the distances and angles among a teacher's embeddings."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from amkd_fast import backends, checks
from amkd_fast.ops import schemas
from amkd_fast.ops.autograd import reference_grads, save, saved
from amkd_fast.ops.relations import reference
from amkd_fast.ops.relations.reference import statistics_dtype


def rkd_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Distance-wise loss of relational knowledge distillation (RKD-D).

    With the euclidean distances :math:`d_{ij}` of all pairs of rows, each side's divided by its own mean :math:`μ` over
    the distances that are not 0, :math:`L = \frac{1}{B²} Σ_{ij} ℓ(d^s_{ij}/μ_s − d^t_{ij}/μ_t)`, where ℓ is the smooth
    l1 loss (Huber, β = 1). The gradient goes through the mean. Rows that coincide have distance 0, whose gradient is 0;
    where all of a side coincide its distances are 0.

    Distances come from differences of the rows, so neither a common offset nor close pairs cost accuracy.

    Args:
        student: Embeddings [B, D_s] of any strides, fp32, fp64, fp16 or bf16; D_s ≥ 1.
        teacher: Embeddings [B, D_t] of the same images; the width may be another one, D_t ≥ 1. Where the dtypes differ
            both are promoted to the common one.

    Returns:
        The loss, a scalar in fp32 (fp64 for fp64 embeddings); 0 for an empty batch. Gradients flow to the student, and
        to a teacher that wants one. A NaN or infinity among the rows makes it NaN.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape or a device breaks the rules above.

    Source:
        Park, Kim, Lu and Cho, Relational Knowledge Distillation, CVPR 2019, equations 4 to 6, as their public code has
        them.

    Example:
        >>> import torch, amkd_fast as af
        >>> student = torch.tensor([[0.0], [1.0], [2.0]], requires_grad=True)
        >>> teacher = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
        >>> loss = af.rkd_distance_loss(student, teacher)
        >>> loss.backward()
        >>> f"{loss.item():.4f} {student.grad[0, 0].item():.4f}"
        '0.0717 -0.0303'
    """
    return rkd_loss(student, teacher, 1.0, 0.0)


def rkd_angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Angle-wise loss of relational knowledge distillation (RKD-A), without a tensor of all triples.

    With the unit vectors :math:`e_{ij} = (x_j − x_i)/‖x_j − x_i‖`, the cosine of the angle at row i is
    :math:`a_{ijk} = ⟨e_{ij}, e_{ik}⟩`, and :math:`L = \frac{1}{B³} Σ_{ijk} ℓ(a^s_{ijk} − a^t_{ijk})`, where ℓ is the
    smooth l1 loss (Huber, β = 1). Where rows coincide the unit vector and its gradient are 0.

    The cosines follow from the squared distances of the pairs, in fp64, so the work for a triple does not depend on the
    width, and the memory beside the rows is O(B²).

    Args:
        student: Embeddings [B, D_s], as in :func:`rkd_distance_loss`.
        teacher: Embeddings [B, D_t], as in :func:`rkd_distance_loss`.

    Returns:
        The loss, a scalar in fp32 (fp64 for fp64 embeddings); 0 for an empty batch. Gradients flow to the student, and
        to a teacher that wants one. A NaN or infinity among the rows makes it NaN.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape or a device breaks the rules above.

    Source:
        Park, Kim, Lu and Cho, Relational Knowledge Distillation, CVPR 2019, equations 7 to 9, as their public code has
        them.

    Example:
        >>> import torch, amkd_fast as af
        >>> student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]], requires_grad=True)
        >>> teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> loss = af.rkd_angle_loss(student, teacher)
        >>> loss.backward()
        >>> f"{loss.item():.5f} {student.grad[0, 0].item():.5f}"
        '0.00380 0.00310'
    """
    return rkd_loss(student, teacher, 0.0, 1.0)


def rkd_loss(student: Tensor, teacher: Tensor, distance_weight: float, angle_weight: float) -> Tensor:
    """``distance_weight`` times the loss of distances plus ``angle_weight`` times that of angles, in one call."""
    checks.floating("student", student)
    checks.floating("teacher", teacher)
    if student.dim() != 2 or student.shape[1] == 0:
        raise ValueError(f"student.shape={tuple(student.shape)}: must be [B, D] with at least one column")
    if teacher.dim() != 2 or teacher.shape[1] == 0 or teacher.shape[0] != student.shape[0]:
        rows = student.shape[0]
        rule = f"must be [{rows}, D] with at least one column, one row a row of student"
        raise ValueError(f"teacher.shape={tuple(teacher.shape)}: {rule}")
    if teacher.device != student.device:
        checks.same_device(student=student, teacher=teacher)
    if student.dtype != teacher.dtype:
        dtype = torch.promote_types(student.dtype, teacher.dtype)
        student, teacher = student.to(dtype), teacher.to(dtype)
    name = backends.select("relations", student.device.type)
    if name == "reference":
        return reference.loss(student, teacher, distance_weight, angle_weight)
    with_gradient = student.requires_grad and torch.is_grad_enabled()
    call = (_OPERATORS[name], distance_weight, angle_weight, with_gradient)
    return FusedRelations.apply(call, student, teacher)


class FusedRelations(torch.autograd.Function):
    """The weighted loss of two sets of rows from the operator of one backend."""

    @staticmethod
    def forward(ctx, call, student, teacher):
        operator, distance_weight, angle_weight, with_gradient = call
        loss, grad = operator(student, teacher, distance_weight, angle_weight, with_gradient)
        ctx.call = (*call, save(ctx, (grad,), student, teacher))
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        operator, distance_weight, angle_weight, _, unsaved = ctx.call
        grad, student, teacher = saved(ctx, unsaved)
        if backends.differentiates():
            loss_of = partial(reference.loss, distance_weight=distance_weight, angle_weight=angle_weight)
            return (None, *reference_grads(loss_of, grad_loss, (student, teacher), ctx.needs_input_grad[1:]))
        grads: list[Tensor | None] = [None, None]
        if ctx.needs_input_grad[1]:
            grads[0] = (grad_loss * grad).to(student.dtype)
        if ctx.needs_input_grad[2]:  # the loss is the same with its sides exchanged
            _, grad = operator(teacher, student, distance_weight, angle_weight, True)
            grads[1] = (grad_loss * grad).to(teacher.dtype)
        return None, *grads


def _fake_loss(student, teacher, distance_weight, angle_weight, with_gradient):
    dtype, (rows, width) = statistics_dtype(student.dtype), student.shape
    return student.new_empty((), dtype=dtype), student.new_empty((rows if with_gradient else 0, width), dtype=dtype)


schemas.register("relations_loss", _fake_loss, "amkd_fast.ops.relations.triton:launch_loss")
_OPERATORS = {backend: schemas.operator("relations_loss", backend) for backend in ("cpu", "cuda", "triton")}
