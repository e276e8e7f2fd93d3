"""The baseline: a student without a teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast import ranks
from amkd_fast.methods.base import Batch, Losses, Method, StepContext


class StudentAlone(Method):
    """Cross-entropy with the labels, or with the classes' shares of mixtures; the teacher is not asked.

    Args:
        class_weights: [K], what an image of each class counts; None: all count 1. The sum over a batch is divided by
            its images, not by their weights.
        fold: See :class:`Method`.
        distributed: See :class:`Method`.

    Example:
        >>> import torch
        >>> from amkd_fast.methods import Batch, StepContext, StudentAlone
        >>> student, batch = torch.nn.Linear(2, 3), Batch(torch.rand(8, 2), torch.zeros(8).long())
        >>> losses = StudentAlone()(batch, None, student, StepContext(epoch=0, epochs=60))
        >>> losses.total.backward()
    """

    class_weights: Tensor | None

    def __init__(self, *, class_weights: Tensor | None = None, fold: bool = True, distributed: bool = False) -> None:
        super().__init__(fold=fold, distributed=distributed)
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, batch: Batch, teacher: nn.Module | None, student: nn.Module, moment: StepContext) -> Losses:
        logits, weights = student(batch.images), self.class_weights
        if weights is None:
            ce = F.cross_entropy(logits, batch.labels)
        else:
            ce = F.cross_entropy(logits, batch.labels, weights, reduction="none").mean()
        if self.distributed:
            ce = ranks.mean_over_rows(ce, logits)
        return Losses(ce, {"ce": ce.detach()})
