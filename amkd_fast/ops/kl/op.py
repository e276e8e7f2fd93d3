"""Temperature-scaled divergences between the logits of a student and a teacher, and CE + KL in one pass."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, get_args

from torch import Tensor
from torch.compiler import is_compiling

from amkd_fast import backends, checks
from amkd_fast.ops.kl import reference, scalars
from amkd_fast.ops.kl.arguments import (
    LEARNT,
    finished,
    logits_of,
    looks,
    masked,
    temperature_of,
    weight_of,
    weights_of,
)
from amkd_fast.ops.kl.reference import statistics_dtype
from amkd_fast.ops.kl.scalars import DIVERGENCES, Scalars
from amkd_fast.ops.row_loss import RowLoss, by_reference, declare, overwriting, ready, row_loss, tail
from amkd_fast.typing import Divergence, IgnoredRows, Reduction

# Statistics that the forward operator leaves for the backward one, field by field ([FIELDS, B], flat), then the
# three TAIL scalars. csrc/kl/kl.h has the same list.
FIELDS = 6  # student max, student log-sum, teacher max, teacher log-sum, inner, student log-sum at temperature 1
TAIL = 3  # number of labelled rows, mean cross-entropy, mean divergence


def _loss(student, teacher, weight, labels, ce_weight, *numbers):
    return reference.loss(student, teacher, weight, labels, ce_weight, Scalars(*numbers))[0]


# The backward operator computes the probabilities again, from the statistics.
_LOSS = RowLoss((0,), by_reference(_loss), tensors=5, numbers=8)
_OPERATORS = declare("kl", _LOSS, "amkd_fast.ops.kl.triton", FIELDS, TAIL)
_OVERWRITING = overwriting("kl", _OPERATORS, "amkd_fast.ops.kl.triton")
_KL = DIVERGENCES[:3]
IGNORED_ROWS = get_args(IgnoredRows)


class DistillationTerms(NamedTuple):
    """What :func:`distillation_loss` returns; ``total`` has the graph, ``ce`` and ``kl`` are for logging."""

    total: Tensor
    ce: Tensor
    kl: Tensor


DistillationLoss = DistillationTerms  # its former name, which the module has too


def kl_div(
    student: Tensor,
    teacher: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    divergence: Divergence = "forward",
    beta: float = 0.5,
    weight: float | Tensor | None = None,
    mask: Tensor | None = None,
    scale_by_t2: bool = True,
    reduction: Reduction = "batchmean",
    dim: int = -1,
    inplace_backward: bool = False,
) -> Tensor:
    r"""Divergence between the softened distributions of student and teacher, straight from their logits.

    With :math:`q = σ(z_s/T)` and :math:`p = σ(z_t/T)`: ``forward`` is :math:`KL(p‖q)`, ``reverse`` is
    :math:`KL(q‖p)` and ``js`` is :math:`β KL(p‖m) + (1−β) KL(q‖m)` with :math:`m = βp + (1−β)q`.

    A class whose logit is −inf in both networks is masked out and contributes 0; a row without any other class has no
    distribution and is NaN. Where only the student's logit is −inf the forward divergence is +inf. A NaN or +inf logit
    makes its own row NaN and no other.

    Args:
        student: Logits [..., K] of any strides, fp32, fp64, fp16 or bf16; K ≥ 1.
        teacher: Logits [..., K]. Where the dtypes differ both are promoted to the common one.
        temperature: T > 0 that divides both logits: a number, or a tensor [] or [...] (one a row), which may learn and
            whose loss the reference computes.
        divergence: ``"forward"``, ``"reverse"`` or ``"js"``.
        beta: Weight of the teacher in ``js``, strictly between 0 and 1.
        weight: Factor on every row, a float or a tensor [...]; it does not enter the denominator of a mean. A row of
            weight 0 is not read: whatever its logits are, NaN among them, its loss and all its gradients are 0, that of
            the weight too. A bool tensor is a mask.
        mask: Bool [...], False for rows that are not there (padding): they are not read and count in no mean; with
            ``"none"`` their value is 0.
        scale_by_t2: Multiply by T², so that the gradient's size does not depend on the temperature.
        reduction: ``"none"`` (one value a row, [...]), ``"sum"``, ``"mean"`` (over the rows) or ``"batchmean"`` (the
            sum over the size of the first dimension, or over how much of it the mask leaves a row of). With no rows
            every sum and mean is 0.
        dim: The dimension that holds the classes, with which [...] are the other ones.
        inplace_backward: The backward pass may write the student's gradient over its logits: no memory is taken for it,
            and the logits are gone. For those that a layer has just made and nobody reads any more; not for a leaf. A
            later use that autograd knows of is its error. Where the reference computes, or ``torch.compile`` plans
            memory itself, the gradient has memory of its own.

    Returns:
        The loss in fp32 (fp64 for fp64 logits). Gradients flow to student, teacher, a weight tensor and a temperature
        tensor, any number of times; those other than the student's first come from the reference, as all do under
        ``torch.func``.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, device or value breaks the rules above.

    Source:
        Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network (2015); Lin, Divergence measures based on
        the Shannon entropy (1991).

    Example:
        >>> import torch, amkd_fast as af
        >>> student = torch.tensor([[1.0, 0.0], [0.0, 2.0]], requires_grad=True)
        >>> teacher = torch.tensor([[0.0, 1.0], [0.0, 2.0]])
        >>> loss = af.kl_div(student, teacher, temperature=1.0)
        >>> loss.backward()
        >>> f"{loss.item():.4f}", f"{student.grad[0, 0].item():.4f}"
        ('0.2311', '0.2311')
    """
    if divergence not in _KL:
        checks.choice("divergence", divergence, _KL)
    return _divergence(
        student, teacher, temperature, divergence, beta, weight, mask, scale_by_t2, reduction, dim, inplace_backward
    )


def soft_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    weight: float | Tensor | None = None,
    mask: Tensor | None = None,
    scale_by_t2: bool = False,
    reduction: Reduction = "batchmean",
    dim: int = -1,
    inplace_backward: bool = False,
) -> Tensor:
    r"""Cross-entropy of the student's softened distribution under the teacher's, :math:`−Σ σ(z_t/T) \log σ(z_s/T)`.

    Its gradient in the student is that of the forward KL divergence; its value keeps the teacher's entropy.

    Args:
        student: Logits [..., K], as in :func:`kl_div`.
        teacher: Logits [..., K], as in :func:`kl_div`.
        temperature: T > 0 that divides both logits, a number or a tensor as in :func:`kl_div`.
        weight: Factor on every row, a float or a tensor [...]; as in :func:`kl_div`, 0 hides a row, and a bool tensor
            is a mask.
        mask: Bool [...], False for rows that are not there, as in :func:`kl_div`.
        scale_by_t2: Multiply by T²; off, as in the public BSS code.
        reduction: As in :func:`kl_div`.
        dim: The dimension that holds the classes.
        inplace_backward: The backward pass may write the gradient over the student's logits, as in :func:`kl_div`.

    Returns:
        The loss in fp32 (fp64 for fp64 logits).

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, device or value breaks the rules.

    Source:
        Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network (2015).

    Example:
        >>> import torch, amkd_fast as af
        >>> f"{af.soft_cross_entropy(torch.zeros(4, 10), torch.zeros(4, 10)).item():.4f}"  # log 10
        '2.3026'
    """
    name = "soft_cross_entropy"
    return _divergence(
        student, teacher, temperature, name, 0.5, weight, mask, scale_by_t2, reduction, dim, inplace_backward
    )


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float | Tensor = 4.0,
    ce_weight: float | Tensor = 0.1,
    kl_weight: float | Tensor = 0.9,
    mask: Tensor | None = None,
    ignored_rows: IgnoredRows = "keep",
    divergence: Divergence = "forward",
    scale_by_t2: bool = True,
    ignore_index: int = -100,
    dim: int = -1,
    inplace_backward: bool = False,
) -> DistillationTerms:
    r"""Hard-label cross-entropy and softened divergence in one pass over the logits.

    ``total`` is the mean over the labelled rows of ``ce_weight`` · CE plus the mean over all rows of ``kl_weight`` ·
    divergence. A row whose label is ``ignore_index`` takes no part in the cross-entropy and keeps its divergence, so
    that unlabelled images can be mixed in; with ``ignored_rows="drop"`` it has no part in either, as a token that is
    not to be learnt.

    The defaults are those of much public code, T = 4, CE 0.1, divergence 0.9 with T². :class:`amkd_fast.AMKDLoss`
    (T = 3, 1, 1, without T²) and :class:`amkd_fast.methods.KD` (T = 3, CE 1, divergence 4 falling to 1, without
    T²) follow the BSS code.

    Args:
        student: Logits [..., K], as in :func:`kl_div`.
        teacher: Logits [..., K], as in :func:`kl_div`.
        labels: Classes [...], int64 or int32, from 0 to K − 1 or ``ignore_index``; without them there is no CE part.
        temperature: T > 0 of the divergence, a number or a tensor as in :func:`kl_div`; the cross-entropy is at
            temperature 1.
        ce_weight: Weight of the cross-entropy, a float or a tensor [...]. Where it is 0 the cross-entropy of a row is
            not read, as in :func:`kl_div`; a bool tensor masks the cross-entropy alone.
        kl_weight: Weight of the divergence, a float or a tensor [...], likewise.
        mask: Bool [...], False for rows that are not there (padding): neither part reads them or counts them in a mean,
            and their labels may be anything.
        ignored_rows: ``"keep"`` or ``"drop"`` the divergence of rows whose label is ``ignore_index``.
        divergence: ``"forward"``, ``"reverse"`` or ``"js"`` (β = ½).
        scale_by_t2: Multiply the divergence by T².
        ignore_index: The label that means «no label».
        dim: The dimension that holds the classes.
        inplace_backward: The backward pass may write the gradient over the student's logits, as in :func:`kl_div`.

    Returns:
        ``DistillationTerms(total, ce, kl)`` of scalars in fp32 (fp64 for fp64 logits). ``ce`` and ``kl`` (with T²) are
        the means before weighting and carry no graph, in which a row that a weight tensor hides counts as 0; with float
        weights ``total = ce_weight·ce + kl_weight·kl``. A part without rows is 0.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, device or value breaks the rules. A label out of range is found on the CPU; on a GPU, where
            looking would stall the device, it makes the loss NaN.

    Source:
        Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network (2015). Public code disagrees on what a
        bare ``alpha`` weighs, hence the two names.

    Example:
        >>> import torch, amkd_fast as af
        >>> student, teacher = torch.zeros(4, 10, requires_grad=True), torch.zeros(4, 10)
        >>> loss = af.distillation_loss(student, teacher, torch.tensor([0, 1, 2, -100]), temperature=4.0)
        >>> loss.total.backward()
        >>> f"{loss.ce.item():.4f} {loss.kl.item():.4f} {loss.total.item():.4f}"
        '2.3026 0.0000 0.2303'
    """
    tensors = isinstance(ce_weight, Tensor) or isinstance(kl_weight, Tensor) or isinstance(temperature, Tensor)
    if not tensors and mask is None and dim == -1 and ignored_rows == "keep" and not inplace_backward:
        device = ready(student, teacher, labels=labels)
        if device is not None:  # the usual call
            call = (temperature, divergence, ce_weight, kl_weight, bool(scale_by_t2), ignore_index)
            numbers = scalars.of_distillation(*call)
            return DistillationTerms(*_run(student, teacher, None, labels, None, numbers, True, device))
    shape, student, teacher = logits_of(student, teacher, dim)
    if labels is not None:
        checks.integer("labels", labels)
        checks.shape("labels", labels, shape[:-1], "one label a row of student")
        if labels.device != student.device:
            checks.same_device(student=student, labels=labels)
        if len(shape) != 2:
            labels = labels.reshape(-1)
    kl_number, kl_rows, kl_mask = weight_of("kl_weight", kl_weight, mask, shape, student)
    ce_number, ce_rows, ce_mask = weight_of("ce_weight", ce_weight, mask, shape, student)
    if isinstance(temperature, Tensor):
        temperature = temperature_of(temperature, shape, student)
    numbers = scalars.of_distillation(temperature, divergence, ce_number, kl_number, bool(scale_by_t2), ignore_index)
    if ignored_rows != "keep":
        checks.choice("ignored_rows", ignored_rows, IGNORED_ROWS)
        if labels is not None:
            labelled = labels != ignore_index
            kl_mask = labelled if kl_mask is None else kl_mask.reshape(-1) & labelled
    if labels is None:
        ce_rows = None  # whose gradient nothing asks for
    elif ce_mask is not None:
        labels = labels.masked_fill(~ce_mask.reshape(-1), ignore_index)
    if inplace := inplace_backward and not is_compiling():
        student, teacher = _expendable(student, teacher)
    run = partial(_run, student, teacher, labels=labels, ce_weight=ce_rows, numbers=numbers, with_parts=True)
    if kl_mask is None:
        return DistillationTerms(*run(weight=kl_rows, inplace=inplace))
    # The operators divide by the number of all rows.
    share = student.shape[0] / kl_mask.sum().clamp(min=1).to(statistics_dtype(student.dtype))
    kl_rows = masked(kl_rows, kl_mask, student) * share
    total, ce, kl = run(weight=kl_rows, inplace=inplace)
    return DistillationTerms(total, ce, kl * share)


def _divergence(
    student, teacher, temperature, divergence, beta, weight, mask, scale_by_t2, reduction, dim, inplace
) -> Tensor:
    if weight is None and mask is None and dim == -1 and not inplace and not isinstance(temperature, Tensor):
        device = ready(student, teacher)
        if device is not None:  # the usual call
            numbers = scalars.of_divergence(temperature, divergence, beta, None, bool(scale_by_t2), reduction, 1)
            return _run(student, teacher, None, None, None, numbers, False, device)
    shape, student, teacher = logits_of(student, teacher, dim)
    number, rows, reduction, divisor, size = weights_of(weight, mask, shape, student, reduction)
    if isinstance(temperature, Tensor):
        temperature = temperature_of(temperature, shape, student)
    numbers = scalars.of_divergence(temperature, divergence, beta, number, bool(scale_by_t2), reduction, divisor)
    if inplace := inplace and not is_compiling():
        student, teacher = _expendable(student, teacher)
    return finished(_run(student, teacher, rows, None, None, numbers, False, inplace=inplace), size, reduction, shape)


def _expendable(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, K] of which the student's may be written over; they may be those of the arguments, or copies."""
    of = student._base if student._is_view() else student
    if of is not None and of.is_leaf and of.requires_grad:
        rule = "needs logits that a layer made, whose memory becomes the gradient's"
        raise ValueError(f"inplace_backward=True: {rule}; student is a leaf of the graph")
    if teacher.untyped_storage().data_ptr() == student.untyped_storage().data_ptr():
        teacher = teacher.clone()
    return student.contiguous(), teacher


def _run(
    student, teacher, weight, labels, ce_weight, numbers: tuple, with_parts: bool, device: str | None = None,
    inplace: bool = False,
):  # fmt: skip
    """The loss, or with ``with_parts`` (loss, mean cross-entropy, mean divergence)."""
    learnt = LEARNT if isinstance(numbers[0], Tensor) else ""
    name = backends.select("kl", device or student.device.type, learnt)
    if labels is not None and name != "cpu":  # whose operator looks itself
        _check_labels(labels, student.shape[1], Scalars(*numbers).ignore_index)
    if name == "reference":
        outputs = reference.loss(student, teacher, weight, labels, ce_weight, Scalars(*numbers))
        return outputs if with_parts else outputs[0]
    try:
        operators = (_OVERWRITING if inplace else _OPERATORS)[name]
        loss, stats = row_loss(operators, numbers, student, teacher, weight, labels, ce_weight)
    except RuntimeError as error:
        raise _named(error) from None
    return (loss, *tail(stats, 2)) if with_parts else loss


def _named(error: RuntimeError) -> Exception:
    """The ValueError in what the CPU operator says about a label; another error stays what it is."""
    _, found, rule = str(error).partition("labels[")
    return ValueError(found + rule) if found else error


def _check_labels(labels: Tensor, classes: int, ignore_index: int) -> None:
    """Refuse a label out of range where looking costs no device synchronisation."""
    if not looks(labels):
        return
    bad = ((labels < 0) | (labels >= classes)) & (labels != ignore_index)
    if bad.any():
        row = int(bad.nonzero()[0])
        rule = f"must be from 0 to {classes - 1} or ignore_index={ignore_index}"
        raise ValueError(f"labels[{row}]={int(labels[row])}: {rule}")
