"""Distillation by review: every stage of the teacher is learnt from the student's stage there and all behind it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.methods.base import Batch, Losses, StepContext
from amkd_fast.methods.schedules import Rising, Schedule, as_schedule
from amkd_fast.methods.stages import StageMethod, places
from amkd_fast.ops.segments import segment_mse

_WIDEST = 512  # channels in which levels are fused, at most
_POOLED = (4, 2, 1)  # sides of the pyramid beneath a level of its own size
REVIEW_RISE = Rising(1.0, 20)


class ReviewKD(StageMethod):
    """Cross-entropy, and the hierarchical context loss (HCL) between fused levels of the student and the teacher's.

    The levels are the outputs of the stages and, last, the features before the classifier as an image of 1 × 1. From
    the last to the first, each level of the student passes a 1 × 1 convolution to M channels and is fused with what
    came out at the level behind it, enlarged to its size, by an attention of two maps (:class:`Fusion`, the paper's
    ABF); a 3 × 3 convolution then brings it to the teacher's channels. The HCL of a level is the mean squared error
    there, and after average pooling to 4 × 4, 2 × 2 and 1 × 1 (of those that are smaller) with half the weight each
    time, over the sum of these weights. M is the width of the student's features, at most 512.

    The fusions are this method's parameters, made by :meth:`prepare`, or in the first call, with a warning.

    Args:
        ce_weight: Weight of the cross-entropy.
        review_weight: Weight of the sum of the levels' HCL, a number or a schedule; the default grows over 20 epochs to
            1, as in the public code.
        student_stages: Names of the student's modules whose outputs are compared; None: its stages are found, as the
            last of the modules ``stages.*`` or ``layer*`` at each image size.
        teacher_stages: Likewise of the teacher, as many.
        fold: Without effect: stages can be listened to in the teacher itself only.
        distributed: See :class:`Method`; the fusions' gradients are then those of this rank's rows, too, and their
            BatchNorms count the rows of all ranks.

    Raises:
        ValueError: A number breaks a rule above, or, when called, the stages cannot be found or paired, or a network
            has no linear layer.

    Source:
        Chen, Liu, Zhao and Jia, Distilling Knowledge via Knowledge Review, CVPR 2021. Its public code compares the
        teacher's stages before their last ReLU; here they are what the named modules return.

    Example:
        >>> import torch
        >>> from amkd_fast.methods import Batch, ReviewKD, StepContext
        >>> from amkd_fast.distill.networks import Spec, build
        >>> student, teacher = build(Spec("small-2-1", 1, 3), 0), build(Spec("small-4-1", 1, 3), 1).eval()
        >>> batch = Batch(torch.rand(8, 1, 8, 8), torch.zeros(8).long())
        >>> method = ReviewKD()
        >>> method.prepare(batch.images, teacher, student)
        >>> optimizer = torch.optim.SGD([*student.parameters(), *method.parameters()], lr=0.1)
        >>> losses = method(batch, teacher, student, StepContext(epoch=0, epochs=60))
        >>> losses.total.backward()
        >>> sorted(losses.parts), len(method.fusions)
        (['ce', 'review'], 4)
    """

    features = True
    layers = "fusions"

    def __init__(
        self,
        *,
        ce_weight: float = 1.0,
        review_weight: float | Schedule = REVIEW_RISE,
        student_stages: Sequence[str] | None = None,
        teacher_stages: Sequence[str] | None = None,
        fold: bool = True,
        distributed: bool = False,
    ) -> None:
        super().__init__(
            student_stages=student_stages, teacher_stages=teacher_stages, fold=fold, distributed=distributed
        )
        self.ce_weight = checks.non_negative("ce_weight", ce_weight)
        self.review_weight = as_schedule("review_weight", review_weight)
        self.fusions = nn.ModuleList()

    def connect(self, mine: list[torch.Size], theirs: list[torch.Size]) -> None:
        for role, found in (("student", mine), ("teacher", theirs)):
            for stage in found[:-1]:
                places(stage, f"the {role}'s stage")
        width = min(_WIDEST, mine[-1][1])
        self.fusions.extend(
            Fusion(one[1], width, other[1], fuses=level < len(mine) - 1)
            for level, (one, other) in enumerate(zip(mine, theirs, strict=True))
        )

    def weights(self, moment: StepContext) -> dict[str, float]:
        return {"review": self.review_weight(moment.epoch, moment.epochs)}

    def forward(self, batch: Batch, teacher: nn.Module | None, student: nn.Module, moment: StepContext) -> Losses:
        weight = (moment.weights or self.weights(moment))["review"]
        mine, theirs = self.look(batch, teacher, student)
        assert mine.features is not None, "asked for"
        assert theirs.features is not None, "asked for"
        levels = [*mine.stages, mine.features[:, :, None, None]]
        wanted = [*theirs.stages, theirs.features[:, :, None, None]]
        with self.own_statistics(mine.logits.shape[0]):
            fused = self._review(levels, wanted)
        review = hierarchical_context_loss(fused, wanted)
        ce, review = self.over_ranks([F.cross_entropy(mine.logits, batch.labels), review], mine.logits, fused)
        total = self.ce_weight * ce + weight * review
        return Losses(total, {"ce": ce.detach(), "review": review.detach()})

    def _review(self, levels: list[Tensor], wanted: list[Tensor]) -> list[Tensor]:
        """The student's levels in the shapes of ``wanted``, in their order."""
        found, behind = [], None
        for fusion, level, other in reversed(list(zip(self.fusions, levels, wanted, strict=True))):
            output, behind = fusion(level, behind, (other.shape[2], other.shape[3]))
            found.append(output)
        return found[::-1]


class Fusion(nn.Module):
    """Attention-based fusion (ABF) of a level with what came out at the level behind it.

    Args:
        channels: Of the student's level.
        width: M, of what is fused.
        out: Channels of the teacher's level.
        fuses: False at the last level, which has none behind it.

    Shape:
        ``forward(level [B, channels, H, W], behind [B, M, h, w] or None, size)``: [B, out, *size], and [B, M, *size]
        for the level before.
    """

    def __init__(self, channels: int, width: int, out: int, fuses: bool) -> None:
        super().__init__()
        enter, leave = nn.Conv2d(channels, width, 1, bias=False), nn.Conv2d(width, out, 3, padding=1, bias=False)
        for layer in (enter, leave):
            nn.init.kaiming_uniform_(layer.weight, a=1.0)
        self.enter = nn.Sequential(enter, nn.BatchNorm2d(width))
        self.leave = nn.Sequential(leave, nn.BatchNorm2d(out))
        self.attention = nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid()) if fuses else None

    def forward(self, level: Tensor, behind: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        x = self.enter(level)
        if self.attention is not None:
            assert behind is not None, "a level that fuses has one behind it"
            behind = F.interpolate(behind, x.shape[2:], mode="nearest")
            own, others = self.attention(torch.cat([x, behind], 1)).split(1, 1)  # [B, 1, H, W] each
            x = own * x + others * behind
        if x.shape[2:] != size:
            x = F.interpolate(x, size, mode="nearest")
        return self.leave(x), x


def hierarchical_context_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """HCL: for each pair of levels [B, C, H, W] the errors at its own size and pooled ones, summed over the pairs.

    Returns:
        The loss [] in fp32, in fp64 where any level is fp64.
    """
    mine, theirs, weights = [], [], []
    for one, other in zip(student, teacher, strict=True):
        sides = [side for side in _POOLED if side < min(one.shape[2:])]
        halves = [0.5**step for step in range(len(sides) + 1)]
        mine += [one, *(F.adaptive_avg_pool2d(one, side) for side in sides)]
        theirs += [other, *(F.adaptive_avg_pool2d(other, side) for side in sides)]
        weights += [half / sum(halves) for half in halves]
    return segment_mse(mine, theirs, weights)
