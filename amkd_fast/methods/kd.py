"""Knowledge distillation on the clean images."""

from __future__ import annotations

from torch import nn

from amkd_fast.losses import AMKDLoss
from amkd_fast.methods.base import Batch, Losses, Method, StepContext
from amkd_fast.methods.schedules import OFFICIAL_KL, Schedule, as_schedule


class KD(Method):
    """Cross-entropy and softened divergence on the clean images.

    The defaults are the public BSS trainer's: T = 3, CE 1, divergence 4 falling to 1, without T². Those of
    :func:`amkd_fast.distillation_loss` (4, 0.1, 0.9, with T²) and :class:`amkd_fast.AMKDLoss` (3, 1, 1, without T²) are
    others. RepDistiller's and mdistiller's KD is ``KD(temperature=4, ce_weight=0.1, kl_weight=0.9, scale_by_t2=True)``.

    Args:
        temperature: T > 0.
        ce_weight: Weight of the cross-entropy.
        kl_weight: Weight of the divergence, a number or a schedule; the default is that of the public BSS trainer.
        scale_by_t2: Multiply the divergence by T², as Hinton et al. do and the public BSS trainer does not.
        fold: See :class:`Method`.
        distributed: See :class:`Method`.

    Source:
        Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network (2015).

    Example:
        >>> import torch
        >>> from amkd_fast.methods import KD, Batch, StepContext
        >>> student, teacher = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3).eval()
        >>> batch = Batch(torch.rand(8, 2), torch.zeros(8).long())
        >>> losses = KD(temperature=4.0)(batch, teacher, student, StepContext(epoch=0, epochs=60))
        >>> losses.total.backward()
        >>> sorted(losses.parts)
        ['ce', 'kl']
    """

    def __init__(
        self,
        *,
        temperature: float = 3.0,
        ce_weight: float = 1.0,
        kl_weight: float | Schedule = OFFICIAL_KL,
        scale_by_t2: bool = False,
        fold: bool = True,
        distributed: bool = False,
    ) -> None:
        super().__init__(fold=fold, distributed=distributed)
        self.kl_weight = as_schedule("kl_weight", kl_weight)
        self.criterion = AMKDLoss(
            temperature=temperature, ce_weight=ce_weight, scale_by_t2=scale_by_t2, distributed=distributed
        )

    def weights(self, moment: StepContext) -> dict[str, float]:
        return {"kl": self.kl_weight(moment.epoch, moment.epochs)}

    def forward(self, batch: Batch, teacher: nn.Module | None, student: nn.Module, moment: StepContext) -> Losses:
        weights = moment.weights or self.weights(moment)
        logits = student(batch.images)
        loss = self.criterion(logits, self.taught(batch, teacher), batch.labels, kl_weight=weights["kl"])
        return Losses(loss.total, {"ce": loss.ce, "kl": loss.kl})
