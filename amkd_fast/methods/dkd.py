"""Distillation with the divergence taken apart: the label against the rest, and the rest among themselves."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from amkd_fast import checks, ranks
from amkd_fast.methods.base import Batch, Losses, Method, StepContext
from amkd_fast.methods.schedules import DECOUPLED_RISE, Schedule, as_schedule
from amkd_fast.ops.kl.decoupled import dkd_loss


class DKD(Method):
    """Cross-entropy and the two parts of the softened divergence, each with a weight of its own.

    Args:
        temperature: T > 0.
        ce_weight: Weight of the cross-entropy.
        target_weight: α, of the divergence of (label, rest).
        other_weight: β, of the divergence among the other classes.
        dkd_weight: Weight of both together, a number or a schedule; the default grows over 20 epochs to 1, as in the
            public code.
        fold: See :class:`Method`.
        distributed: See :class:`Method`.

    Source:
        Zhao, Cui, Song, Qiu and Liang, Decoupled Knowledge Distillation, CVPR 2022; defaults of its public trainer.

    Example:
        >>> import torch
        >>> from amkd_fast.methods import DKD, Batch, StepContext
        >>> student, teacher = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3).eval()
        >>> batch = Batch(torch.rand(8, 2), torch.zeros(8).long())
        >>> losses = DKD()(batch, teacher, student, StepContext(epoch=0, epochs=60))
        >>> losses.total.backward()
        >>> sorted(losses.parts)
        ['ce', 'kl']
    """

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        target_weight: float = 1.0,
        other_weight: float = 8.0,
        dkd_weight: float | Schedule = DECOUPLED_RISE,
        fold: bool = True,
        distributed: bool = False,
    ) -> None:
        super().__init__(fold=fold, distributed=distributed)
        self.temperature = checks.positive("temperature", temperature)
        self.ce_weight = checks.non_negative("ce_weight", ce_weight)
        self.target_weight = checks.non_negative("target_weight", target_weight)
        self.other_weight = checks.non_negative("other_weight", other_weight)
        self.dkd_weight = as_schedule("dkd_weight", dkd_weight)

    def weights(self, moment: StepContext) -> dict[str, float]:
        return {"kl": self.dkd_weight(moment.epoch, moment.epochs)}

    def forward(self, batch: Batch, teacher: nn.Module | None, student: nn.Module, moment: StepContext) -> Losses:
        weight = (moment.weights or self.weights(moment))["kl"]
        logits = student(batch.images)
        ce = F.cross_entropy(logits, batch.labels)
        divergence = dkd_loss(
            logits,
            self.taught(batch, teacher),
            batch.labels,
            self.temperature,
            target_weight=self.target_weight,
            other_weight=self.other_weight,
        )
        if self.distributed:
            ce, divergence = (ranks.mean_over_rows(part, logits) for part in (ce, divergence))
        total = self.ce_weight * ce + weight * divergence
        return Losses(total, {"ce": ce.detach(), "kl": divergence.detach()})
