"""The baseline: a student without a teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from amkd_fast import ranks
from amkd_fast.methods.base import Batch, Losses, Method, StepContext


class StudentAlone(Method):
    """Cross-entropy with the labels; the teacher is not asked."""

    def forward(self, batch: Batch, teacher: nn.Module | None, student: nn.Module, moment: StepContext) -> Losses:
        logits = student(batch.images)
        ce = F.cross_entropy(logits, batch.labels)
        if self.distributed:
            ce = ranks.mean_over_rows(ce, logits)
        return Losses(ce, {"ce": ce.detach()})
