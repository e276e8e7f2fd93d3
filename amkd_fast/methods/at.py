"""Distillation of attention: where in an image the stages of a network are active."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.methods.base import Batch, Losses, StepContext
from amkd_fast.methods.stages import StageMethod, places
from amkd_fast.ops.segments import segment_mse


class AT(StageMethod):
    """Cross-entropy, and the mean squared error between the attention maps of the stages.

    The map of a stage's output A [B, C, H, W] is Σ_c |A_c|^p over its channels, [B, H·W], brought to length 1 in each
    row. Where the sizes differ, the larger output is brought to the smaller size by average pooling first.

    Args:
        ce_weight: Weight of the cross-entropy.
        attention_weight: β ≥ 0 of the sum of the stages' errors.
        power: p ≥ 1 of the map.
        student_stages: Names of the student's modules whose outputs are compared; None: its stages are found, as the
            last of the modules ``stages.*`` or ``layer*`` at each image size.
        teacher_stages: Likewise of the teacher, as many.
        fold: Without effect: stages can be listened to in the teacher itself only.
        distributed: See :class:`Method`.

    Raises:
        ValueError: A number breaks a rule above, or, when called, the stages cannot be found or paired, or have a
            single place, where all maps are the same.

    Source:
        Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017 (activation-based); the mean over
        places and β = 1000 of its public code.

    Example:
        >>> import torch
        >>> from amkd_fast.methods import AT, Batch, StepContext
        >>> from amkd_fast.distill.networks import Spec, build
        >>> student, teacher = build(Spec("small-2-1", 1, 3), 0), build(Spec("small-4-1", 1, 3), 1).eval()
        >>> batch = Batch(torch.rand(8, 1, 8, 8), torch.zeros(8).long())
        >>> losses = AT()(batch, teacher, student, StepContext(epoch=0, epochs=60))
        >>> losses.total.backward()
        >>> sorted(losses.parts)
        ['attention', 'ce']
    """

    def __init__(
        self,
        *,
        ce_weight: float = 1.0,
        attention_weight: float = 1000.0,
        power: float = 2.0,
        student_stages: Sequence[str] | None = None,
        teacher_stages: Sequence[str] | None = None,
        fold: bool = True,
        distributed: bool = False,
    ) -> None:
        super().__init__(
            student_stages=student_stages, teacher_stages=teacher_stages, fold=fold, distributed=distributed
        )
        self.ce_weight = checks.non_negative("ce_weight", ce_weight)
        self.attention_weight = checks.non_negative("attention_weight", attention_weight)
        self.power = checks.finite("power", power)
        if self.power < 1.0:
            raise ValueError(f"power={power!r}: must be at least 1")

    def connect(self, mine: list[torch.Size], theirs: list[torch.Size]) -> None:
        for one, other in zip(mine, theirs, strict=True):
            sizes = places(one, "the student's stage"), places(other, "the teacher's stage")
            if tuple(map(min, *sizes)) == (1, 1):
                raise ValueError("stages: must have more than one place, whose attention is always the same")

    def forward(self, batch: Batch, teacher: nn.Module | None, student: nn.Module, moment: StepContext) -> Losses:
        mine, theirs = self.look(batch, teacher, student)
        pairs = [_of_one_size(*pair) for pair in zip(mine.stages, theirs.stages, strict=True)]
        attention = segment_mse([self._map(one) for one, _ in pairs], [self._map(other) for _, other in pairs])
        ce, attention = self.over_ranks([F.cross_entropy(mine.logits, batch.labels), attention], mine.logits, ())
        total = self.ce_weight * ce + self.attention_weight * attention
        return Losses(total, {"ce": ce.detach(), "attention": attention.detach()})

    def _map(self, output: Tensor) -> Tensor:
        """Unit rows [B, H·W] in fp32 at least, as a square may leave the range of two bytes."""
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        powers = output.square() if self.power == 2.0 else output.abs().pow(self.power)
        return F.normalize(powers.mean(1).flatten(1))


def _of_one_size(mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    height, width = (min(sizes) for sizes in zip(mine.shape[2:], theirs.shape[2:], strict=True))
    resized = [
        output if output.shape[2:] == (height, width) else F.adaptive_avg_pool2d(output, (height, width))
        for output in (mine, theirs)
    ]
    return resized[0], resized[1]
