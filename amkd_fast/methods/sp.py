"""Distillation of similarities: which images of a batch activate a network alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast import checks, ranks
from amkd_fast.methods.base import Batch, Losses, StepContext
from amkd_fast.methods.stages import StageMethod
from amkd_fast.ops.segments import segment_mse


class SP(StageMethod):
    """Cross-entropy, and the mean squared error between the similarities of a batch's images in both networks.

    The similarities of a stage's output Q [B, C·H·W] are Q Qᵀ [B, B] with rows of length 1. Channels and sizes of the
    two networks may differ.

    Args:
        ce_weight: Weight of the cross-entropy.
        similarity_weight: γ ≥ 0 of the error, which is summed over the stages.
        student_stages: Names of the student's modules whose outputs are compared; None: its last stage.
        teacher_stages: Likewise of the teacher, as many.
        fold: Without effect: stages can be listened to in the teacher itself only.
        distributed: See :class:`Method`. The similarities are those of the whole batch.

    Raises:
        ValueError: A number breaks a rule above, or, when called, the stages cannot be found or paired.

    Source:
        Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019; γ = 3000.

    Example:
        >>> import torch
        >>> from amkd_fast.methods import SP, Batch, StepContext
        >>> from amkd_fast.distill.networks import Spec, build
        >>> student, teacher = build(Spec("small-2-1", 1, 3), 0), build(Spec("small-4-1", 1, 3), 1).eval()
        >>> batch = Batch(torch.rand(8, 1, 8, 8), torch.zeros(8).long())
        >>> losses = SP()(batch, teacher, student, StepContext(epoch=0, epochs=60))
        >>> losses.total.backward()
        >>> sorted(losses.parts)
        ['ce', 'similarity']
    """

    def __init__(
        self,
        *,
        ce_weight: float = 1.0,
        similarity_weight: float = 3000.0,
        student_stages: Sequence[str] | None = None,
        teacher_stages: Sequence[str] | None = None,
        fold: bool = True,
        distributed: bool = False,
    ) -> None:
        super().__init__(
            student_stages=student_stages, teacher_stages=teacher_stages, fold=fold, distributed=distributed
        )
        self.ce_weight = checks.non_negative("ce_weight", ce_weight)
        self.similarity_weight = checks.non_negative("similarity_weight", similarity_weight)

    def chosen(self, names: list[str], role: str) -> list[str]:
        return names[-1:]

    def forward(self, batch: Batch, teacher: nn.Module | None, student: nn.Module, moment: StepContext) -> Losses:
        mine, theirs = self.look(batch, teacher, student)
        ce = F.cross_entropy(mine.logits, batch.labels)
        learnt, given = ([output.flatten(1) for output in found.stages] for found in (mine, theirs))
        if self.distributed:
            ce = ranks.mean_over_rows(ce, mine.logits)
            counts = ranks.counts_of(mine.logits)
            learnt = [ranks.GatherForCopies.apply(rows, counts) for rows in learnt]
            given = [ranks.gather(rows, counts) for rows in given]
        similarity = segment_mse([_similarities(rows) for rows in learnt], [_similarities(rows) for rows in given])
        total = self.ce_weight * ce + self.similarity_weight * similarity
        return Losses(total, {"ce": ce.detach(), "similarity": similarity.detach()})


def _similarities(rows: Tensor) -> Tensor:
    """[B, D] → [B, B] with rows of length 1, in fp32 at least: the error is small beside the numbers."""
    with torch.autocast(rows.device.type, enabled=False):
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        return F.normalize(rows @ rows.T)
