"""Distillation of relations: the distances and angles among the samples of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast import checks, ranks
from amkd_fast.methods.base import Batch, Losses, Method, StepContext
from amkd_fast.methods.outputs import with_features
from amkd_fast.ops.relations import rkd_angle_loss, rkd_distance_loss

SPACES = ("features", "logits")


class RKD(Method):
    """Cross-entropy, and the teacher's distances and angles among the rows of a batch.

    Args:
        ce_weight: Weight of the cross-entropy.
        distance_weight: Weight of the distances' term.
        angle_weight: Weight of the angles' term.
        space: ``"features"`` (what the last linear layer of either network gets) or ``"logits"``.
        fold: See :class:`Method`; features always come from the teacher as it is.
        distributed: See :class:`Method`. The relations are those of the whole batch.

    Raises:
        ValueError: A choice or number breaks a rule above, or, when called, a network has no linear layer.

    Source:
        Park, Kim, Lu and Cho, Relational Knowledge Distillation, CVPR 2019; default weights of its public code, for
        classifiers also those of Tian, Krishnan and Isola, Contrastive Representation Distillation, ICLR 2020.

    Example:
        >>> import torch
        >>> from amkd_fast.methods import RKD, Batch, StepContext
        >>> student, teacher = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3).eval()
        >>> batch = Batch(torch.rand(8, 2), torch.zeros(8).long())
        >>> losses = RKD(space="logits")(batch, teacher, student, StepContext(epoch=0, epochs=60))
        >>> losses.total.backward()
        >>> sorted(losses.parts)
        ['angle', 'ce', 'distance']
    """

    def __init__(
        self,
        *,
        ce_weight: float = 1.0,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        space: str = "features",
        fold: bool = True,
        distributed: bool = False,
    ) -> None:
        super().__init__(fold=fold, distributed=distributed)
        checks.choice("space", space, SPACES)
        self.ce_weight = checks.non_negative("ce_weight", ce_weight)
        self.distance_weight = checks.non_negative("distance_weight", distance_weight)
        self.angle_weight = checks.non_negative("angle_weight", angle_weight)
        self.space = space

    def forward(self, batch: Batch, teacher: nn.Module | None, student: nn.Module, moment: StepContext) -> Losses:
        if self.space == "features":
            logits, learnt = with_features(student, batch.images)
            given = self._features(teacher, batch.images)
        else:
            logits = learnt = student(batch.images)
            given = self.taught(batch, teacher)
        ce = F.cross_entropy(logits, batch.labels)
        if self.distributed:
            ce = ranks.mean_over_rows(ce, logits)
            counts = ranks.counts_of(logits)
            learnt, given = ranks.GatherForCopies.apply(learnt, counts), ranks.gather(given, counts)
        distance, angle = rkd_distance_loss(learnt, given), rkd_angle_loss(learnt, given)
        total = self.ce_weight * ce + self.distance_weight * distance + self.angle_weight * angle
        return Losses(total, {"ce": ce.detach(), "distance": distance.detach(), "angle": angle.detach()})

    @torch.no_grad()
    def _features(self, teacher: nn.Module, images: Tensor) -> Tensor:
        """Of the teacher itself: a folded view has no layers that could be listened to."""
        self.must_be_in_eval_mode(teacher)
        return with_features(teacher, images, "teacher")[1]
