"""Distillation on two views of every image: the clean one, and an augmented one as far as the teacher trusts it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast import checks, ranks
from amkd_fast.methods.base import Batch, Losses, Method, StepContext
from amkd_fast.ops.images.augment import joint_augment
from amkd_fast.ops.kl.consistency import consistency_kl


class CCD(Method):
    """Joint data augmentation (JDA) with cosine-confidence distillation (CCD): a **reconstruction**.

    Every image has a second view through :func:`amkd_fast.joint_augment`. The divergence on that view weighs as much as
    the teacher's logits of the two views are alike. The views pass the student one after the other, each a batch of
    its own to BatchNorm.

    Args:
        mean: Of the images' normalisation, one a channel, in [0, 1] pixel units: pixels are images · ``std`` +
            ``mean``.
        std: One number for all channels, or one a channel.
        probability: Of each of the 14 operations on each image.
        temperature: T > 0.
        ce_weight: α in [0, 1] of the cross-entropy on the clean images; 1 − α is that of the divergences, with T².
        fold: See :class:`Method`.
        distributed: See :class:`Method`.

    Raises:
        ValueError: A number breaks a rule above.

    Source:
        Li et al., joint data augmentation and cosine confidence distillation, 2022; α = 0.5 and T = 4 are published.

    Example:
        >>> import torch
        >>> from amkd_fast.methods import CCD, Batch, StepContext
        >>> student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
        >>> teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3)).eval()
        >>> batch = Batch(torch.rand(8, 3, 4, 4), torch.zeros(8).long())
        >>> losses = CCD(mean=[0.0] * 3, std=1.0)(batch, teacher, student, StepContext(epoch=0, epochs=60, draw=1))
        >>> losses.total.backward()
        >>> sorted(losses.parts)
        ['augmented', 'ce', 'kl']
    """

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: float | Sequence[float],
        probability: float = 0.5,
        temperature: float = 4.0,
        ce_weight: float = 0.5,
        fold: bool = True,
        distributed: bool = False,
    ) -> None:
        super().__init__(fold=fold, distributed=distributed)
        self.mean = tuple(checks.finite("mean", number) for number in mean)
        spreads = std if isinstance(std, Sequence) else [std] * len(self.mean)
        self.std = tuple(checks.positive("std", number) for number in spreads)
        if len(self.std) != len(self.mean):
            raise ValueError(f"std={std!r}: must have {len(self.mean)} numbers, as mean has, or be one number")
        self.probability = checks.unit("probability", probability)
        self.temperature = checks.positive("temperature", temperature)
        self.ce_weight = checks.unit("ce_weight", ce_weight)

    def forward(self, batch: Batch, teacher: nn.Module | None, student: nn.Module, moment: StepContext) -> Losses:
        rows = ranks.row_numbers(batch.images, self.distributed)
        other = self._augmented(batch.images, rows, self.draw_of(moment, rows.device))
        with self.teaching(teacher):
            taught, taught_other = self.taught(batch, teacher), self.taught(Batch(other, batch.labels), teacher)
        logits, augmented_logits = student(batch.images), student(other)
        soft = consistency_kl(logits, taught, augmented_logits, taught_other, self.temperature)
        ce, total = F.cross_entropy(logits, batch.labels), soft.total
        clean, augmented = soft.clean, soft.augmented
        if self.distributed:
            views = torch.cat([logits, augmented_logits])  # a rank without images takes part in both backward passes
            ce, total, clean, augmented = (ranks.mean_over_rows(part, views) for part in (ce, total, clean, augmented))
        total = self.ce_weight * ce + (1.0 - self.ce_weight) * total
        return Losses(total, {"ce": ce.detach(), "kl": clean.detach(), "augmented": augmented.detach()})

    @torch.no_grad()
    def _augmented(self, images: Tensor, rows: Tensor, seed: int | Tensor) -> Tensor:
        """The other view of normalised images."""
        mean, std = (images.new_tensor(numbers).view(-1, 1, 1) for numbers in (self.mean, self.std))
        levels = ((images * std + mean) * 255.0).round_().clamp_(0.0, 255.0).to(torch.uint8).contiguous()
        levels = joint_augment(levels, probability=self.probability, seed=seed, rows=rows)
        return (torch.empty_like(images).copy_(levels) / 255.0 - mean) / std  # lies as the images do
