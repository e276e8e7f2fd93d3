"""Distillation of what the stages of a network make of an image, without labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.methods.base import Batch, Losses, StepContext
from amkd_fast.methods.stages import StageMethod, find_stages
from amkd_fast.ops.segments import segment_mse

__all__ = ["ExtendedKD", "find_stages"]


class ExtendedKD(StageMethod):
    """The student's logits and stage outputs equal the teacher's, in mean square: a **reconstruction**.

    No label is looked at unless ``ce_weight`` says so, so that classes without a single image can be learnt from how
    the teacher judges the others. Each stage output of the student passes a projection (a 1 × 1 convolution, or a
    linear layer where there are no places) to the teacher's channels; where the sizes differ the student's is brought
    to the teacher's by average pooling. The projections are this method's parameters. They are made by :meth:`prepare`,
    or in the first call, with a warning: a trainer that wants them trained prepares before it collects
    ``method.parameters()``.

    Args:
        logit_weight: λ₀ ≥ 0 of the logits.
        segment_weight: λ ≥ 0 of every stage.
        ce_weight: Weight of the cross-entropy; 0 leaves it out.
        student_stages: Names of the student's modules whose outputs are compared; None: its stages are found, as the
            last of the modules ``stages.*`` or ``layer*`` at each image size.
        teacher_stages: Likewise of the teacher, as many.
        fold: Without effect: stages can be listened to in the teacher itself only.
        distributed: See :class:`Method`; the projections' gradients are then those of this rank's rows, too.

    Raises:
        ValueError: A number breaks a rule above, or, when called, the stages cannot be found or paired.

    Source:
        Yuan and Pan, Extended Knowledge Distillation, 2019 (abstract).

    Example:
        >>> import torch
        >>> from amkd_fast.methods import Batch, ExtendedKD, StepContext
        >>> from amkd_fast.distill.networks import Spec, build
        >>> student, teacher = build(Spec("small-2-1", 1, 3), 0), build(Spec("small-4-1", 1, 3), 1).eval()
        >>> batch = Batch(torch.rand(8, 1, 8, 8), torch.zeros(8).long())
        >>> method = ExtendedKD()
        >>> method.prepare(batch.images, teacher, student)
        >>> optimizer = torch.optim.SGD([*student.parameters(), *method.parameters()], lr=0.1)
        >>> losses = method(batch, teacher, student, StepContext(epoch=0, epochs=60))
        >>> losses.total.backward()
        >>> sorted(losses.parts), len(method.projections)
        (['segments'], 3)
    """

    layers = "projections"

    def __init__(
        self,
        *,
        logit_weight: float = 1.0,
        segment_weight: float = 1.0,
        ce_weight: float = 0.0,
        student_stages: Sequence[str] | None = None,
        teacher_stages: Sequence[str] | None = None,
        fold: bool = True,
        distributed: bool = False,
    ) -> None:
        super().__init__(
            student_stages=student_stages, teacher_stages=teacher_stages, fold=fold, distributed=distributed
        )
        self.logit_weight = checks.non_negative("logit_weight", logit_weight)
        self.segment_weight = checks.non_negative("segment_weight", segment_weight)
        self.ce_weight = checks.non_negative("ce_weight", ce_weight)
        self.projections = nn.ModuleList()

    def connect(self, mine: list[torch.Size], theirs: list[torch.Size]) -> None:
        self.projections.extend(_projection(a, b) for a, b in zip(mine, theirs, strict=True))

    def forward(self, batch: Batch, teacher: nn.Module | None, student: nn.Module, moment: StepContext) -> Losses:
        mine, theirs = self.look(batch, teacher, student)
        projected = [
            _of_size(project(output), wanted)
            for project, output, wanted in zip(self.projections, mine.stages, theirs.stages, strict=True)
        ]
        weights = [self.logit_weight, *[self.segment_weight] * len(projected)]
        total = segment_mse([mine.logits, *projected], [theirs.logits, *theirs.stages], weights)
        parts = {"segments": total}
        if self.ce_weight > 0.0:
            parts["ce"] = F.cross_entropy(mine.logits, batch.labels)
            total = total + self.ce_weight * parts["ce"]
        total, *means = self.over_ranks([total, *parts.values()], mine.logits, projected)
        return Losses(total, {name: part.detach() for name, part in zip(parts, means, strict=True)})


def _projection(mine: torch.Size, theirs: torch.Size) -> nn.Module:
    if len(mine) != len(theirs):
        raise ValueError(f"stages: outputs {tuple(mine)} and {tuple(theirs)} must have the same number of dimensions")
    if len(mine) == 2:
        return nn.Linear(mine[1], theirs[1], bias=False)
    return nn.Conv2d(mine[1], theirs[1], 1, bias=False)


def _of_size(output: Tensor, wanted: Tensor) -> Tensor:
    """``output`` [B, C, H, W] at the height and width of ``wanted``."""
    if output.shape == wanted.shape:
        return output
    height, width = wanted.shape[2:]
    return F.adaptive_avg_pool2d(output, (height, width))
