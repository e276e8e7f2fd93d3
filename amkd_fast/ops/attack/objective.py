"""What an adversarial step increases: the public function, and the operator's call."""

from __future__ import annotations

from torch import Tensor

from amkd_fast import checks
from amkd_fast.ops.attack import reference
from amkd_fast.ops.attack.arguments import check_classes, check_logits, check_objective, check_range
from amkd_fast.ops.attack.operators import LOSSES, SCORES, serving
from amkd_fast.ops.row_loss import ready
from amkd_fast.typing import AttackLoss, Score


def attack_objective(
    logits: Tensor,
    labels: Tensor,
    *,
    loss: AttackLoss = "ce",
    target: Tensor | None = None,
    score: Score = "logits",
    targeted: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Evaluate what an attack increases, with its gradient, the prediction and who still has to move, in one pass.

    - ``"ce"``: cross-entropy of ``labels``; targeted: minus the cross-entropy of ``target``.
    - ``"boundary"``: f_k − f_b with b = ``labels`` and k = ``target``, or the highest other class where no target is
      given; f the logits or their softmax (Heo et al. 2019). The gap L of a boundary step is minus this value.
    - ``"dlr"``: −(z_y − max_{c≠y} z_c)/(z_(1) − z_(3)), or targeted −(z_y − z_k)/(z_(1) − (z_(3) + z_(4))/2), with
      z_(i) the i-th largest logit (Croce and Hein 2020).

    Args:
        logits: [B, K], floating, any strides. Statistics are float32 (float64 for float64).
        labels: int64 or int32 [B]: true or base classes, in [0, K).
        loss: ``"ce"``, ``"boundary"`` or ``"dlr"``.
        target: int64 or int32 [B]: classes to reach, in [0, K); needed when ``targeted``.
        score: f of the boundary loss, ``"logits"`` or ``"softmax"``.
        targeted: The attack is over when the prediction is the target, not when it leaves the label.

    Returns:
        ``(value, grad_logits, prediction, active)``: value [B] in float32 (float64 for float64 logits); its gradient
        [B, K] in the dtype of the logits, ready for ``torch.autograd.grad(logits, x, grad_logits)``; prediction int64
        [B], the lowest index among equal logits; active bool [B], True while the attack has not reached its aim. The
        value of a row whose logits hold a NaN is NaN; a row whose value is not finite has gradient 0 and is not
        active. Nothing carries a graph.

    Raises:
        TypeError: A dtype or a type differs from the above.
        ValueError: A shape, a device or a value breaks a rule above. Classes out of range are found on a CPU only,
            as looking at them on a GPU would wait for it; there the fast backends give such a row the value NaN.

    Example:
        >>> import torch, amkd_fast as af
        >>> logits, labels, target = torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([0]), torch.tensor([1])
        >>> af.attack_objective(logits, labels, loss="boundary", target=target)
        (tensor([-2.]), tensor([[-1.,  1.,  0.]]), tensor([0]), tensor([True]))
    """
    usual = target is None and labels is not None and ready(logits, labels=labels) is not None
    if not usual:
        check_logits("logits", logits)
    if loss not in LOSSES or score not in SCORES:  # the error's words take time
        checks.choice("loss", loss, LOSSES)
        checks.choice("score", score, SCORES)
    if targeted and target is None:
        raise ValueError("target=None: must be given when targeted is True")
    check_objective(logits, loss, targeted)
    if usual:
        return objective(logits, labels.long(), loss, None, score, targeted)
    check_classes("labels", labels, logits)
    if target is not None:
        check_classes("target", target, logits)
        target = target.long()
    if labels.device != logits.device or (target is not None and target.device != logits.device):
        checks.same_device(logits=logits, labels=labels, target=target)
    return objective(logits, labels.long(), loss, target, score, targeted)


def objective(
    logits: Tensor,
    labels: Tensor,
    loss: AttackLoss,
    target: Tensor | None = None,
    score: Score = "logits",
    targeted: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`attack_objective` of arguments that have been checked, classes as int64."""
    backend, fast = serving(logits)
    if backend != "cpu":  # whose operator looks itself
        check_range("labels", labels, logits)
        check_range("target", target, logits)
    if fast is None:
        return reference.attack_objective(logits, labels, loss, target, score, targeted)
    try:
        logits = logits.detach() if logits.requires_grad else logits
        return fast.objective(logits, labels, target, LOSSES.index(loss), score == "softmax", targeted)
    except RuntimeError as error:
        raise checks.refused(error, "classes: ") from None
