"""The divergence of standardised logits: of their shape, whatever their scale."""

from __future__ import annotations

from torch import Tensor

from amkd_fast import backends
from amkd_fast.ops.kl import scalars
from amkd_fast.ops.kl.arguments import LEARNT, finished, logits_of, temperature_of, weights_of
from amkd_fast.ops.kl.standardised import reference
from amkd_fast.ops.row_loss import RowLoss, by_reference, declare, ready, row_loss
from amkd_fast.typing import Reduction

# Statistics that the forward operator leaves for the backward one, field by field ([FIELDS, B], flat).
# csrc/kl/standardised.h has the same list.
FIELDS = 8  # student: max, log-sum, centre, 1/s, pull; teacher: max, log-sum, 1/s


# The backward operator computes the probabilities again, from the statistics.
_LOSS = RowLoss((0,), by_reference(reference.loss), tensors=3, numbers=3)
_OPERATORS = declare("kl_standardised", _LOSS, "amkd_fast.ops.kl.standardised.triton", FIELDS)


def standardised_kl_div(
    student: Tensor,
    teacher: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    weight: float | Tensor | None = None,
    mask: Tensor | None = None,
    scale_by_t2: bool = True,
    reduction: Reduction = "batchmean",
    dim: int = -1,
) -> Tensor:
    r"""KL divergence of softened distributions whose logits are standardised row by row before.

    With :math:`u = (z − \bar z)/s(z)` of each network, :math:`KL(σ(u_t/T)‖σ(u_s/T))`. The student so learns the
    relations among the teacher's logits and not their size, which a smaller or a mixed-up network need not reach; its
    gradient goes through its mean and standard deviation. Dividing alone, :math:`σ(z/s(z))`, is the same function, as
    the softmax ignores the mean.

    s is the sample standard deviation (over K − 1), that of ``torch.std``. The population's differs by a factor of the
    temperature: it is ``temperature`` · √((K − 1)/K) here.

    A row whose logits are all equal (or the only one, K = 1) stands for the uniform distribution; as the student's it
    has gradient 0. A class whose logit is −inf in both networks is masked out, as if absent; a row without any other
    class is NaN. Where only the student's logit is −inf the divergence is +inf. A NaN or +inf logit makes its own row
    NaN and no other.

    Args:
        student: Logits [..., K] of any strides, fp32, fp64, fp16 or bf16; K ≥ 1.
        teacher: Logits [..., K]. Where the dtypes differ both are promoted to the common one.
        temperature: T > 0 that divides the standardised logits, a number or a tensor as in :func:`amkd_fast.kl_div`.
        weight: Factor on every row, a float or a tensor [...]; it does not enter the denominator of a mean. A row of
            weight 0 is not read: whatever its logits are, NaN among them, its loss and all its gradients are 0,
            that of the weight too. A bool tensor is a mask.
        mask: Bool [...], False for rows that are not there (padding): they are not read and count in no mean;
            with ``"none"`` their value is 0.
        scale_by_t2: Multiply by T².
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
        ValueError: A shape, device or value breaks the rules above.

    Source:
        The divergence of mixup-based knowledge distillation; as a method of its own: Sun et al., Logit Standardization
        in Knowledge Distillation (CVPR 2024).

    Example:
        >>> import torch, amkd_fast as af
        >>> teacher = torch.tensor([[0.0, 1.0, 5.0], [2.0, 0.0, 1.0]])
        >>> torch.allclose(af.standardised_kl_div(0.1 * teacher - 3.0, teacher), torch.zeros(()), atol=1e-6)
        True
        >>> f"{af.standardised_kl_div(torch.ones(2, 3), teacher).item():.4f}"
        '0.2988'
    """
    if weight is None and mask is None and dim == -1 and not isinstance(temperature, Tensor):
        device = ready(student, teacher)
        if device is not None:  # the usual call
            numbers = scalars.of_divergence(temperature, "forward", 0.5, None, bool(scale_by_t2), reduction, 1)
            return _run(student, teacher, None, numbers, device)
    shape, student, teacher = logits_of(student, teacher, dim)
    number, row_weight, reduction, divisor, size = weights_of(weight, mask, shape, student, reduction)
    if isinstance(temperature, Tensor):
        temperature = temperature_of(temperature, shape, student)
    numbers = scalars.of_divergence(temperature, "forward", 0.5, number, bool(scale_by_t2), reduction, divisor)
    loss = _run(student, teacher, row_weight, numbers, student.device.type)
    return loss if size is None and len(shape) == 2 else finished(loss, size, reduction, shape)


def _run(student: Tensor, teacher: Tensor, weight: Tensor | None, numbers: tuple, device: str) -> Tensor:
    temperature, _, _, row_scale, factor, _, _, number = numbers
    factor = factor * row_scale
    learnt = LEARNT if isinstance(temperature, Tensor) else ""
    name = backends.select("kl", device, learnt, function="standardised_kl_div")
    if name == "reference":
        return reference.loss(student, teacher, weight, temperature, factor, number)
    return row_loss(_OPERATORS[name], (temperature, factor, number), student, teacher, weight)[0]
