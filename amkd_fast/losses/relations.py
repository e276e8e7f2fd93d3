"""Relational knowledge distillation as a module."""

from __future__ import annotations

from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.ops.relations import rkd_loss


class RKDLoss(nn.Module):
    """Relational knowledge distillation: distances and angles, weighted, in one pass over the pairs.

    ``distance_weight`` · :func:`amkd_fast.rkd_distance_loss` + ``angle_weight`` · :func:`amkd_fast.rkd_angle_loss`. The
    defaults are the weights of the paper's experiments on metric learning.

    Args:
        distance_weight: Weight ≥ 0 of the distances; 0 leaves them out.
        angle_weight: Weight ≥ 0 of the angles; 0 leaves them out.

    Shape:
        ``forward(student, teacher)``: embeddings [B, D_s] and [B, D_t]; scalar.

    Source:
        Park, Kim, Lu and Cho, Relational Knowledge Distillation, CVPR 2019.

    Example:
        >>> import torch
        >>> from amkd_fast.losses import RKDLoss
        >>> student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]], requires_grad=True)
        >>> loss = RKDLoss()(student, torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        >>> loss.backward()
        >>> f"{loss.item():.4f}"
        '0.6522'
    """

    def __init__(self, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        super().__init__()
        self.distance_weight = checks.non_negative("distance_weight", distance_weight)
        self.angle_weight = checks.non_negative("angle_weight", angle_weight)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return rkd_loss(student, teacher, self.distance_weight, self.angle_weight)

    def extra_repr(self) -> str:
        return f"distance_weight={self.distance_weight}, angle_weight={self.angle_weight}"
