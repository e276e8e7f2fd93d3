"""Module of the triplet margin loss."""

from __future__ import annotations

from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.ops.triplet import triplet_margin_loss


class TripletMarginLoss(nn.Module):
    """Module of :func:`amkd_fast.triplet_margin_loss`.

    Args:
        margin: m ≥ 0 in ``relu(D_ap − D_an + m)``.
        mining: ``"hard"``, ``"semihard"``, ``"all"`` or ``"topk"``.
        distance: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"``.
        reduction: ``"mean"``, ``"mean_nonzero"``, ``"sum"`` or ``"none"``.
        options: Further keywords of the function that do not change from batch to batch (``soft_margin``, ``swap``, …).

    Shape:
        ``forward(anchor, labels=None, **tensors)``: embeddings [N, D], labels [N] and the function's tensor keywords
        (``positive``, ``reference``, ``reference_labels``, ``exclude_labels``, ``weight``).

    Example:
        >>> import torch
        >>> from amkd_fast.losses import TripletMarginLoss
        >>> points = torch.tensor([[0.0], [1.0], [3.0]])
        >>> loss = TripletMarginLoss(margin=4.0)(points, torch.tensor([0, 0, 1]))
        >>> f"{loss.item():.4f}"  # (1 - 3 + 4 + 1 - 2 + 4) / 2
        '2.5000'
    """

    def __init__(
        self,
        margin: float = 1.0,
        *,
        mining: str = "hard",
        distance: str = "euclidean",
        reduction: str = "mean",
        **options: object,
    ) -> None:
        super().__init__()
        checks.non_negative("margin", margin)
        self.margin, self.mining, self.distance, self.reduction = margin, mining, distance, reduction
        self.options = options

    def forward(self, anchor: Tensor, labels: Tensor | None = None, **tensors: Tensor | None) -> Tensor:
        return triplet_margin_loss(
            anchor,
            labels,
            margin=self.margin,
            mining=self.mining,
            distance=self.distance,
            reduction=self.reduction,
            **self.options,
            **tensors,
        )

    def extra_repr(self) -> str:
        return f"margin={self.margin}, mining={self.mining!r}, distance={self.distance!r}"
