"""Distillation on mixtures of two images."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast import checks, philox, ranks
from amkd_fast.methods.base import Batch, Losses, Method, StepContext
from amkd_fast.ops.kl.standardised import standardised_kl_div

_SHARE, _ORDER = 0x6D73, 0x6D6F  # streams of the draws


class Mixed(NamedTuple):
    """Mixtures ``share`` · image + (1 − ``share``) · partner."""

    images: Tensor  # [B, ...]
    share: Tensor  # [B] in [0, 1)
    labels: Tensor  # [B] of the partners


class MKD(Method):
    """Student and teacher agree on mixtures of two images, up to the scale of their logits.

    Each image has a partner of its own (the images in a drawn order) and a share drawn from Beta(1, 1), the even
    distribution. The divergence is :func:`amkd_fast.standardised_kl_div`. The student sees nothing but the mixtures.

    Args:
        kl_weight: Weight of the divergence on the mixtures.
        ce_weight: Weight of the cross-entropy on the mixtures, the labels mixed in the same shares; 0 leaves it out.
        temperature: T > 0 that divides the standardised logits.
        fold: See :class:`Method`.
        distributed: See :class:`Method`. Partners come from all ranks.

    Source:
        Mixup KD as the AMKD literature describes it; mixtures: Zhang, Cisse, Dauphin and Lopez-Paz, mixup, ICLR 2018.

    Example:
        >>> import torch
        >>> from amkd_fast.methods import MKD, Batch, StepContext
        >>> student, teacher = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3).eval()
        >>> batch = Batch(torch.rand(8, 2), torch.zeros(8).long())
        >>> losses = MKD()(batch, teacher, student, StepContext(epoch=0, epochs=60, draw=1))
        >>> losses.total.backward()
        >>> sorted(losses.parts)
        ['kl']
    """

    def __init__(
        self,
        *,
        kl_weight: float = 1.0,
        ce_weight: float = 0.0,
        temperature: float = 1.0,
        fold: bool = True,
        distributed: bool = False,
    ) -> None:
        super().__init__(fold=fold, distributed=distributed)
        self.kl_weight = checks.non_negative("kl_weight", kl_weight)
        self.ce_weight = checks.non_negative("ce_weight", ce_weight)
        self.temperature = checks.positive("temperature", temperature)

    def forward(self, batch: Batch, teacher: nn.Module | None, student: nn.Module, moment: StepContext) -> Losses:
        mixed = self._mixed(batch, self.draw_of(moment, batch.images.device))
        logits = student(mixed.images)
        taught = self.taught(Batch(mixed.images, batch.labels), teacher)
        divergence = standardised_kl_div(logits, taught, self.temperature)
        total, parts = self.kl_weight * divergence, {"kl": divergence}
        if self.ce_weight > 0.0:
            own, others = (F.cross_entropy(logits, labels, reduction="none") for labels in (batch.labels, mixed.labels))
            parts["ce"] = torch.lerp(others, own, mixed.share.to(own.dtype)).mean()
            total = total + self.ce_weight * parts["ce"]
        if self.distributed:
            total, *means = (ranks.mean_over_rows(part, logits) for part in (total, *parts.values()))
            parts = dict(zip(parts, means, strict=True))
        return Losses(total, {name: part.detach() for name, part in parts.items()})

    @torch.no_grad()
    def _mixed(self, batch: Batch, seed: int | Tensor) -> Mixed:
        images, labels, rows = batch.images, batch.labels, ranks.row_numbers(batch.images, self.distributed)
        share = philox.uniform(seed, rows, stream=_SHARE)
        if self.distributed:
            counts = ranks.counts_of(images)
            others, labels = ranks.gather(images.flatten(1), counts), ranks.gather(labels, counts)
            others = others.view(-1, *images.shape[1:])
        else:
            others = images
        every = torch.arange(len(others), device=images.device)
        partner = philox.uniform(seed, every, stream=_ORDER, dtype=torch.float64).argsort(stable=True)[rows]
        weight = share.to(images.dtype).view(-1, *[1] * (images.dim() - 1))
        return Mixed(torch.lerp(others[partner], images, weight), share, labels[partner])
