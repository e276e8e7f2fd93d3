"""Distillation by triplets of the teacher's and the student's outputs."""

from __future__ import annotations

from torch import nn

from amkd_fast import checks
from amkd_fast.losses import AMKDLoss
from amkd_fast.methods.base import Batch, Losses, Method, StepContext
from amkd_fast.ops.triplet import triplet_margin_loss


class TripletKD(Method):
    """Cross-entropy, and every student row nearer to its teacher row than the rows of other classes, by a margin.

    The anchor is the teacher's logits, the positive the student's of the same image, the negative the student's of
    another class: the nearest to the anchor in the batch. (The public description leaves open which one is taken.)
    The two public forms are ``kl_weight=0`` and ``kl_weight=1``.

    Args:
        triplet_weight: Weight of the triplet term.
        margin: m ≥ 0.
        distance: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"``.
        ce_weight: Weight of the cross-entropy.
        kl_weight: Weight of the softened divergence; 0 leaves it out.
        temperature: T > 0 of the divergence.
        fold: See :class:`Method`.
        distributed: See :class:`Method`. Negatives come from all ranks.

    Raises:
        ValueError: A choice or number breaks a rule above.

    Source:
        Oki, Abe, Miyao and Kurita, Triplet Loss for Knowledge Distillation, IJCNN 2020.

    Example:
        >>> import torch
        >>> from amkd_fast.methods import Batch, StepContext, TripletKD
        >>> student, teacher = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3).eval()
        >>> batch = Batch(torch.rand(8, 2), torch.arange(8) % 3)
        >>> losses = TripletKD(kl_weight=1.0)(batch, teacher, student, StepContext(epoch=0, epochs=60))
        >>> losses.total.backward()
        >>> sorted(losses.parts)
        ['ce', 'kl', 'triplet']
    """

    def __init__(
        self,
        *,
        triplet_weight: float = 2.0,
        margin: float = 5.0,
        distance: str = "euclidean",
        ce_weight: float = 1.0,
        kl_weight: float = 0.0,
        temperature: float = 1.0,
        fold: bool = True,
        distributed: bool = False,
    ) -> None:
        super().__init__(fold=fold, distributed=distributed)
        checks.choice("distance", distance, ("euclidean", "sqeuclidean", "cosine"))
        self.triplet_weight = checks.non_negative("triplet_weight", triplet_weight)
        self.margin, self.distance = checks.non_negative("margin", margin), distance
        self.criterion = AMKDLoss(
            temperature=temperature, ce_weight=ce_weight, kl_weight=kl_weight, distributed=distributed
        )

    def forward(self, batch: Batch, teacher: nn.Module | None, student: nn.Module, moment: StepContext) -> Losses:
        logits, taught = student(batch.images), self.taught(batch, teacher)
        clean = self.criterion(logits, taught, batch.labels)
        triplet = triplet_margin_loss(
            taught.to(logits.dtype),
            batch.labels,
            positive=logits,
            reference=logits,
            reference_labels=batch.labels,
            margin=self.margin,
            distance=self.distance,
            distributed=self.distributed,
        )
        parts = {"ce": clean.ce, "triplet": triplet.detach()}
        if self.criterion.kl_weight > 0.0:
            parts["kl"] = clean.kl
        return Losses(clean.total + self.triplet_weight * triplet, parts)
