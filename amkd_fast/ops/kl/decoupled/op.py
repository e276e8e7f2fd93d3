"""Decoupled knowledge distillation: the target class against the rest, and the rest among itself, weighed apart."""

from __future__ import annotations

from torch import Tensor

from amkd_fast import backends, checks
from amkd_fast.ops.kl.arguments import LEARNT, finished, logits_of, looks, temperature_of, weights_of
from amkd_fast.ops.kl.decoupled import reference
from amkd_fast.ops.kl.decoupled.reference import Scalars
from amkd_fast.ops.kl.scalars import checked_temperature, reduction_of, remembered
from amkd_fast.ops.row_loss import RowLoss, by_reference, declare, ready, row_loss
from amkd_fast.typing import Reduction

# Statistics that the forward operator leaves for the backward one, field by field ([FIELDS, B], flat): of the classes
# other than the target the student's max and log-sum and the teacher's, then the slope of the target's divergence in
# the student's log-odds, and the row's value. csrc/kl/decoupled.h has the same list.
FIELDS = 6


def _loss(student, teacher, labels, weight, *numbers):
    return reference.loss(student, teacher, labels, weight, Scalars(*numbers))


# The backward operator computes the probabilities again, from the statistics.
_LOSS = RowLoss((0,), by_reference(_loss), tensors=4, numbers=5)
_OPERATORS = declare("kl_decoupled", _LOSS, "amkd_fast.ops.kl.decoupled.triton", FIELDS)


def dkd_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float | Tensor = 4.0,
    *,
    target_weight: float = 1.0,
    other_weight: float = 8.0,
    weight: float | Tensor | None = None,
    mask: Tensor | None = None,
    scale_by_t2: bool = True,
    reduction: Reduction = "mean",
    dim: int = -1,
) -> Tensor:
    r"""Decoupled knowledge distillation, :math:`T^2 [α KL(b_t‖b_s) + β KL(\hat p_t‖\hat p_s)]` a row.

    Of the distributions softened by T, :math:`b = (p_y, 1 − p_y)` sets the target y against the rest, and
    :math:`\hat p` is the distribution among the other classes alone. Everything is computed from the logarithms of sums
    over the other classes: no large negative number stands for a mask, and nothing cancels where the target is nearly
    certain.

    A class whose logit is −inf in both networks is masked out and contributes 0; where only the student's is, the loss
    is +inf. A row with no class but its target (K = 1) has no others and is 0; with one other class (K = 2) their
    divergence is exactly 0. A NaN or +inf logit makes its own row NaN and no other; so does a network that excludes all
    others where the other one does not.

    Args:
        student: Logits [..., K] of any strides, fp32, fp64, fp16 or bf16; K ≥ 1.
        teacher: Logits [..., K]. Where the dtypes differ both are promoted to the common one.
        labels: Target classes [...], int64 or int32, from 0 to K − 1.
        temperature: T > 0 that divides both logits, a number or a tensor as in :func:`amkd_fast.kl_div`.
        target_weight: α, weight of the target's divergence.
        other_weight: β, weight of the divergence among the others.
        weight: Factor on every row, a float or a tensor [...]; it does not enter the denominator of a mean. A row of
            weight 0 is not read, nor is its label: whatever its logits are, NaN among them, its loss and all its
            gradients are 0, that of the weight too. A bool tensor is a mask.
        mask: Bool [...], False for rows that are not there (padding): they and their labels are not read, and they
            count in no mean; with ``"none"`` their value is 0.
        scale_by_t2: Multiply by T², so that the gradient's size does not depend on the temperature.
        reduction: ``"none"`` (one value a row, [...]), ``"sum"``, ``"mean"`` (over the rows) or ``"batchmean"`` (the
            sum over the size of the first dimension, or over how much of it the mask leaves a row of). With no rows
            every sum and mean is 0.
        dim: The dimension that holds the classes, with which [...] are the other ones.

    Returns:
        The loss in fp32 (fp64 for fp64 logits). Gradients flow to student, teacher, a weight tensor and a temperature
        tensor, any number of times; those other than the student's first come from the reference, as all do under
        ``torch.func``.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, device or value breaks the rules above. A label out of range is found on the CPU; on a GPU,
            where looking would stall the device, it makes its row NaN.

    Source:
        Zhao, Cui, Song, Qiu and Liang, Decoupled Knowledge Distillation, CVPR 2022.

    Example:
        >>> import torch, amkd_fast as af
        >>> student = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]], requires_grad=True)
        >>> teacher = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
        >>> loss = af.dkd_loss(student, teacher, torch.tensor([0, 1]), temperature=1.0, other_weight=2.0)
        >>> loss.backward()
        >>> f"{loss.item():.4f}", f"{student.grad[0, 0].item():.4f}"
        ('0.2354', '-0.0284')
    """
    usual = weight is None and mask is None and dim == -1 and not isinstance(temperature, Tensor)
    device = ready(student, teacher, labels=labels) if usual and labels is not None else None
    if device is not None:
        numbers = _scalars(temperature, target_weight, other_weight, None, bool(scale_by_t2), reduction, 1)
        return _run(student, teacher, labels, None, numbers, device)
    shape, student, teacher = logits_of(student, teacher, dim)
    checks.integer("labels", labels)
    checks.shape("labels", labels, shape[:-1], "one label a row of student")
    if labels.device != student.device:
        checks.same_device(student=student, labels=labels)
    if len(shape) != 2:
        labels = labels.reshape(-1)
    number, rows, reduction, divisor, size = weights_of(weight, mask, shape, student, reduction)
    if isinstance(temperature, Tensor):
        temperature = temperature_of(temperature, shape, student)
    numbers = _scalars(
        temperature,
        target_weight,
        other_weight,
        number,
        bool(scale_by_t2),
        reduction,
        divisor,
    )
    loss = _run(student, teacher, labels, rows, numbers, student.device.type)
    return loss if size is None and len(shape) == 2 else finished(loss, size, reduction, shape)


@remembered
def _scalars(
    temperature: float | Tensor,
    target_weight: float,
    other_weight: float,
    weight: float | None,
    scale_by_t2: bool,
    reduction: str,
    divisor: int,
) -> tuple:
    """The :class:`Scalars` of a call, checked."""
    temperature = checked_temperature(temperature)
    target_weight = checks.finite("target_weight", target_weight)
    other_weight = checks.finite("other_weight", other_weight)
    factor = (1.0 if weight is None else checks.finite("weight", weight)) / divisor
    row_scale = temperature * temperature if scale_by_t2 else 1.0
    number = reduction_of(reduction)
    return tuple(Scalars(temperature, row_scale * target_weight, row_scale * other_weight, factor, number))


def _run(
    student: Tensor, teacher: Tensor, labels: Tensor, weight: Tensor | None, numbers: tuple, device: str
) -> Tensor:
    learnt = LEARNT if isinstance(numbers[0], Tensor) else ""
    name = backends.select("kl", device, learnt, function="dkd_loss")
    if name != "cpu":  # whose operator looks itself
        _check_labels(labels, student.shape[1], weight)
    if name == "reference":
        return reference.loss(student, teacher, labels, weight, Scalars(*numbers))
    try:
        return row_loss(_OPERATORS[name], numbers, student, teacher, labels, weight)[0]
    except RuntimeError as error:
        raise checks.refused(error, "class out of range: ") from None


def _check_labels(labels: Tensor, classes: int, weight: Tensor | None) -> None:
    """Refuse a label out of range, in a row that is read, where looking costs no device synchronisation."""
    if not looks(labels):
        return
    bad = (labels < 0) | (labels >= classes)
    if weight is not None:
        bad &= weight != 0
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(f"labels[{row}]={int(labels[row])}: must be from 0 to {classes - 1}")
