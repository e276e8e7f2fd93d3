"""Distillation by a hint: what a stage of the teacher makes of an image, learnt through a regressor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from amkd_fast import checks
from amkd_fast.methods.base import Batch, Losses, StepContext
from amkd_fast.methods.stages import StageMethod, places
from amkd_fast.ops.segments import segment_mse


class FitNet(StageMethod):
    """Cross-entropy, and the mean squared error between a stage of the teacher and a regressor on the student's.

    The regressor is a convolution to the teacher's channels and size, BatchNorm and ReLU. The convolution is 1 × 1
    between equal sizes, 3 × 3 of stride 2 where the student's image is twice as large, transposed (4 × 4, stride 2)
    where it is half as large, and of as many places as it takes, without padding, where it is larger otherwise. Its
    weights are this method's parameters, made by :meth:`prepare`, or in the first call, with a warning.

    The paper trains up to the hint first and with labels and logits afterwards; here both losses are minimised together
    from the start, as in the public comparisons of methods.

    Args:
        ce_weight: Weight of the cross-entropy.
        hint_weight: β ≥ 0 of the mean squared error.
        stage: Which of the stages found gives the hint, from 1; 2 is the middle one of a CIFAR network.
        relu: Whether the regressor ends with a ReLU, as a hint does that is one's output.
        student_stages: Name of the student's module in place of ``stage``, in a sequence of one.
        teacher_stages: Likewise of the teacher's.
        fold: Without effect: stages can be listened to in the teacher itself only.
        distributed: See :class:`Method`; the regressor's gradients are then those of this rank's rows, too, and its
            BatchNorm counts the rows of all ranks.

    Raises:
        ValueError: A number breaks a rule above, or, when called, a network has no such stage, or the student's is
            smaller than the hint by another factor than two.

    Source:
        Romero, Ballas, Kahou, Chassang, Gatta and Bengio, FitNets: Hints for Thin Deep Nets, ICLR 2015; regressor and
        β = 100 of the public comparison megvii-research/mdistiller.

    Example:
        >>> import torch
        >>> from amkd_fast.methods import Batch, FitNet, StepContext
        >>> from amkd_fast.distill.networks import Spec, build
        >>> student, teacher = build(Spec("small-2-1", 1, 3), 0), build(Spec("small-4-1", 1, 3), 1).eval()
        >>> batch = Batch(torch.rand(8, 1, 8, 8), torch.zeros(8).long())
        >>> method = FitNet()
        >>> method.prepare(batch.images, teacher, student)
        >>> optimizer = torch.optim.SGD([*student.parameters(), *method.parameters()], lr=0.1)
        >>> losses = method(batch, teacher, student, StepContext(epoch=0, epochs=60))
        >>> losses.total.backward()
        >>> sorted(losses.parts), method.regressor[0].weight.shape
        (['ce', 'hint'], torch.Size([8, 4, 1, 1]))
    """

    layers = "regressor"

    def __init__(
        self,
        *,
        ce_weight: float = 1.0,
        hint_weight: float = 100.0,
        stage: int = 2,
        relu: bool = True,
        student_stages: Sequence[str] | None = None,
        teacher_stages: Sequence[str] | None = None,
        fold: bool = True,
        distributed: bool = False,
    ) -> None:
        super().__init__(
            student_stages=student_stages, teacher_stages=teacher_stages, fold=fold, distributed=distributed
        )
        self.ce_weight = checks.non_negative("ce_weight", ce_weight)
        self.hint_weight = checks.non_negative("hint_weight", hint_weight)
        self.stage, self.relu = checks.whole("stage", stage, 1), relu
        for role, names in (("student", student_stages), ("teacher", teacher_stages)):
            if names and len(names) != 1:
                raise ValueError(f"{role}_stages={list(names)}: must be one name, of the stage that gives the hint")
        self.regressor = nn.Sequential()

    def chosen(self, names: list[str], role: str) -> list[str]:
        if self.stage > len(names):
            raise ValueError(f"stage={self.stage}: must be at most {len(names)}, the {role} has stages {names}")
        return [names[self.stage - 1]]

    def connect(self, mine: list[torch.Size], theirs: list[torch.Size]) -> None:
        layers = [_convolution(mine[0], theirs[0]), nn.BatchNorm2d(theirs[0][1])]
        self.regressor.extend([*layers, nn.ReLU()] if self.relu else layers)

    def forward(self, batch: Batch, teacher: nn.Module | None, student: nn.Module, moment: StepContext) -> Losses:
        mine, theirs = self.look(batch, teacher, student)
        with self.own_statistics(mine.logits.shape[0]):
            regressed = self.regressor(mine.stages[0])
        hint = segment_mse([regressed], theirs.stages)
        ce, hint = self.over_ranks([F.cross_entropy(mine.logits, batch.labels), hint], mine.logits, [regressed])
        total = self.ce_weight * ce + self.hint_weight * hint
        return Losses(total, {"ce": ce.detach(), "hint": hint.detach()})


def _convolution(mine: torch.Size, theirs: torch.Size) -> nn.Module:
    """Without a bias, which BatchNorm would take away."""
    size, wanted = places(mine, "the student's stage"), places(theirs, "the teacher's stage")
    channels, out = mine[1], theirs[1]
    if size == (2 * wanted[0], 2 * wanted[1]):
        return nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False)
    if wanted == (2 * size[0], 2 * size[1]):
        return nn.ConvTranspose2d(channels, out, 4, stride=2, padding=1, bias=False)
    if size[0] < wanted[0] or size[1] < wanted[1]:
        raise ValueError(
            f"stages: the student's of {size[0]} × {size[1]} places must not be smaller than the teacher's of "
            f"{wanted[0]} × {wanted[1]}, or half as large"
        )
    return nn.Conv2d(channels, out, (1 + size[0] - wanted[0], 1 + size[1] - wanted[1]), bias=False)
