"""Mean squared errors of many pairs of tensors as one operation: the stages of a student and of its teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from amkd_fast import backends, checks
from amkd_fast.ops import schemas
from amkd_fast.ops.autograd import reference_grads, save, saved
from amkd_fast.ops.segments import reference

AHEAD = 3  # arguments before the tensors


def segment_mse(
    student: Sequence[Tensor], teacher: Sequence[Tensor], weights: Sequence[float] | Tensor | None = None
) -> Tensor:
    r"""Weighted sum over segments of the mean squared error between student and teacher.

    With segments :math:`h_i`, outputs of the stages of two networks, and their logits among them if they are to take
    part: :math:`\sum_i λ_i \operatorname{mean}((h^s_i − h^t_i)^2)`, the mean over all elements. Where a student's stage
    has another shape than its teacher's, a layer of the caller's brings it into the teacher's first.

    A segment without elements contributes 0. A NaN or an infinity makes the loss NaN or infinite, and no gradient but
    its own element's.

    Args:
        student: Segments of any shapes and strides, fp32, fp64, fp16 or bf16, which may differ between segments; any
            number of them. Pairs that lie alike and dense (both contiguous, both channels_last) are not copied.
        teacher: As many segments of the same shapes, on the same device. Where the dtypes of a pair differ both are
            promoted to the common one.
        weights: λ, one for each segment: floats, or a floating tensor [S] on the segments' device; None for all 1. A
            segment of weight 0 is not read: whatever is in it, its part of the loss and all its gradients are 0, that
            of the weight too; a bool tensor says which segments are. A factor on the whole loss costs nothing here, and
            a pass over the gradients where it is put on the result.

    Returns:
        The loss [] in fp32, in fp64 where any segment is fp64; 0 where there is no segment. Gradients flow to
        student, teacher and a weight tensor, any number of times; those of the teacher and the second ones are not
        fused.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A length, a shape, a device or a value breaks the rules above.

    Source:
        Yuan and Pan, Extended knowledge distillation (2019). A reconstruction: only its abstract is public.

    Example:
        >>> import torch, amkd_fast as af
        >>> student = [torch.ones(2, 3, requires_grad=True), torch.zeros(2, 4, 4, requires_grad=True)]
        >>> teacher = [torch.zeros(2, 3), torch.full((2, 4, 4), 2.0)]
        >>> loss = af.segment_mse(student, teacher, weights=[1.0, 0.5])
        >>> loss.backward()
        >>> loss.item(), student[1].grad[0, 0, 0].item()
        (3.0, -0.0625)
    """
    student, teacher = _segments("student", student), _segments("teacher", teacher)
    if len(teacher) != len(student):
        raise ValueError(f"teacher has {len(teacher)} segments: must have {len(student)}, one for each of student")
    device, wide = (student[0].device if student else None), False
    for i, (s, t) in enumerate(zip(student, teacher, strict=True)):
        if t.shape != s.shape:
            checks.shape(f"teacher[{i}]", t, tuple(s.shape), f"the shape of student[{i}]")
        if s.device != device or t.device != device:
            checks.same_device(**{"student[0]": student[0], f"student[{i}]": s, f"teacher[{i}]": t})
        if s.dtype != t.dtype:
            dtype = torch.promote_types(s.dtype, t.dtype)
            student[i], teacher[i] = s.to(dtype), t.to(dtype)
            wide |= dtype == torch.float64
        else:
            wide |= s.dtype == torch.float64
    dtype = torch.float64 if wide else torch.float32
    if wide:  # the loss has the accuracy that its dtype says
        student, teacher = [s.to(dtype) for s in student], [t.to(dtype) for t in teacher]
    factors, weights = _weights(weights, len(student), device, dtype)
    name = backends.select("segments", "cpu" if device is None else device.type)
    if name == "reference" or not student:
        return reference.segment_mse(
            student, teacher, torch.tensor(factors, dtype=dtype, device=device) if weights is None else weights
        )
    return FusedSegments.apply(_OPERATORS[name], factors, _ahead(student), weights, *student, *teacher)


class FusedSegments(torch.autograd.Function):
    """The loss of ``tensors``, which are the weights [S] or None, S students and S teachers.

    With ``ahead`` the gradients are made in the forward pass already, while student and teacher are in registers: that
    saves reading both again. They are given away whole to the first backward pass, so that nobody shares them with the
    graph and autograd may keep them or change them without a copy; later passes make new ones. Gradients of teachers
    and weights follow from those and from the means; a double backward comes from the reference.
    """

    @staticmethod
    def forward(ctx, operators, factors, ahead, *tensors):
        count = len(factors)
        loss, means, grads = operators.forward(tensors[1 : count + 1], tensors[count + 1 :], tensors[0], factors, ahead)
        ctx.unsaved = save(ctx, (means,), *tensors)
        ctx.operators, ctx.factors = operators, factors
        if ahead:
            ctx.grads = grads
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        needed, count = ctx.needs_input_grad[AHEAD:], len(ctx.factors)
        if backends.differentiates():
            return (None,) * AHEAD + _reference_grads(grad_loss, saved(ctx, ctx.unsaved)[1:], needed, ctx.factors)
        grads = None if torch.compiler.is_compiling() else vars(ctx).pop("grads", None)  # at once: threads may race
        if grads is not None:
            ctx.operators.scale(grads, grad_loss)
        elif True in needed[1:]:
            _, weights, *segments = saved(ctx, ctx.unsaved)
            grads = ctx.operators.backward(grad_loss, segments[:count], segments[count:], weights, ctx.factors)
        of_weights = grad_loss * saved(ctx, ctx.unsaved)[0] if needed[0] else None
        if grads is None:
            return (None,) * AHEAD + (of_weights,) + (None,) * (2 * count)
        students, teachers = needed[1 : count + 1], needed[count + 1 :]
        of_teachers = [-grad if need else None for need, grad in zip(teachers, grads, strict=True)]
        of_students = [grad if need else None for need, grad in zip(students, grads, strict=True)]
        return (*(None,) * AHEAD, of_weights, *of_students, *of_teachers)


def _reference_grads(grad_loss, tensors, needed, factors):
    """Differentiable ones."""
    count = len(factors)

    def loss_of(weights, *segments):
        weights = grad_loss.new_tensor(factors) if weights is None else weights
        return reference.segment_mse(segments[:count], segments[count:], weights)

    return tuple(reference_grads(loss_of, grad_loss, tensors, needed))


def _ahead(student: list[Tensor]) -> bool:
    """Whether the gradients are made before they are asked for.

    In fp16 the loss is scaled so that they do not vanish, and by how much is not known before. torch.compile has its
    own plan of what is kept.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    wanted = False
    for segment in student:
        if segment.dtype == torch.float16:
            return False
        wanted |= segment.requires_grad
    return wanted


def _segments(name: str, segments: object) -> list[Tensor]:
    """The tensors of an argument in a list that is ours to change."""
    if isinstance(segments, (Tensor, str, bytes)) or not isinstance(segments, Sequence):
        raise TypeError(f"{name} is a {type(segments).__name__}: must be a sequence of tensors")
    for i, segment in enumerate(segments):
        if not isinstance(segment, Tensor) or segment.dtype not in checks.FLOATING:  # the error's words take time
            checks.floating(f"{name}[{i}]", segment)
    return list(segments)


def _weights(
    weights: object, count: int, device: torch.device | None, dtype: torch.dtype
) -> tuple[list[float], Tensor | None]:
    """Numbers, one for each segment, and the tensor that replaces them if there is one."""
    if weights is None:
        return [1.0] * count, None
    if isinstance(weights, Tensor):
        if weights.dtype == torch.bool:
            weights = weights.to(dtype)
        checks.floating("weights", weights)
        checks.shape("weights", weights, (count,), "one weight for each segment")
        if device is not None and weights.device != device:
            raise ValueError(f"weights.device={weights.device}: must be {device}, the device of the segments")
        return [1.0] * count, weights.to(dtype)
    if isinstance(weights, (str, bytes)) or not isinstance(weights, Sequence):
        raise TypeError(f"weights is a {type(weights).__name__}: must be a tensor [S] or a sequence of floats")
    numbers = [checks.finite("weights", weight) for weight in weights]
    if len(numbers) != count:
        raise ValueError(f"weights={weights!r}: must have {count} numbers, one for each segment")
    return numbers, None


class Operators(NamedTuple):
    """Those of one backend."""

    forward: Callable
    backward: Callable
    scale: Callable


def loss_dtype(segments: Sequence[Tensor]) -> torch.dtype:
    """That of the loss of segments, its means and its weights."""
    wide = any(segment.dtype == torch.float64 for segment in segments)
    return torch.float64 if wide else torch.float32


def dense(segment: Tensor) -> Tensor:
    """The segment, or a contiguous copy where its elements do not fill one block of memory."""
    if segment.is_contiguous() or segment.stride() == torch.empty_like(segment, device="meta").stride():
        return segment
    return segment.contiguous()


def _fake_forward(student, teacher, weights, factors, with_grads):
    dtype = loss_dtype(student)
    loss, means = student[0].new_empty((), dtype=dtype), student[0].new_empty(len(student), dtype=dtype)
    return loss, means, _fake_grads(student) if with_grads else []


def _fake_backward(grad_loss, student, *_):
    return _fake_grads(student)


def _fake_scale(*_) -> None:
    """Returns nothing: the gradients change in place."""


def _fake_grads(student):
    return [torch.empty_like(dense(segment)) for segment in student]


for _name, _fake in (("forward", _fake_forward), ("backward", _fake_backward), ("scale", _fake_scale)):
    schemas.register(f"segments_{_name}", _fake, f"amkd_fast.ops.segments.triton:launch_{_name}")
_OPERATORS = {
    backend: Operators(*(schemas.operator(f"segments_{name}", backend) for name in Operators._fields))
    for backend in ("cpu", "cuda", "triton")
}
