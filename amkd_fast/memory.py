"""A ring of past embeddings, which widens the pool that triplets are selected from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.typing import ReferenceSet

EMPTY = torch.iinfo(torch.int32).min  # the label of a slot that holds no row; no class may have it


class CrossBatchMemory(nn.Module):
    """Past embeddings and labels as reference rows for :func:`amkd_fast.triplet_margin_loss`.

    A call returns the reference set of a batch, which is the batch itself followed by the ring, and then puts the batch
    into the ring in place of its oldest rows. The batch keeps its graph, so that the loss is the ordinary one of the
    batch with more candidates; pass ``embeddings.detach()`` for gradients to the anchors alone. Rows of the ring have
    no gradient. An anchor is not its own positive or negative, and slots that are still empty are neither to anyone:
    both are settled before the mining, by position and by a label that is excluded.

    Shapes do not depend on what the ring holds, nothing waits for the device, and the ring, its cursor and its fill are
    buffers: the module compiles, is captured in a CUDA graph and resumes from a state dict. Keep it out of a module
    that DistributedDataParallel wraps, which would overwrite the ring of every rank by that of rank 0; with
    ``distributed=True`` the loss selects from the rings of all ranks.

    Args:
        size: Number of past rows S ≥ 1, besides those of the batch.
        dim: Width D ≥ 1 of the embeddings.
        device: Device of the ring.
        dtype: Dtype of the ring, fp32 where it is None.

    Attributes:
        embeddings: The ring [S, D].
        labels: Its labels [S], int64; the smallest int32 in an empty slot, which no class may have.
        cursor: The slot of the next row, int64 scalar.
        filled: Number of rows in the ring, int64 scalar.

    Shape:
        ``forward(embeddings, labels, exclude_labels=None)``: rows [N, D], labels [N] and classes [N] that are no
        negatives; returns the keywords of the loss.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, device or value breaks the rules above.

    Source:
        Wang, Zhang, Huang and Scott, Cross-Batch Memory for Embedding Learning (CVPR 2020).

    Example:
        >>> import torch, amkd_fast as af
        >>> memory = af.CrossBatchMemory(size=4, dim=1)
        >>> for batch in (torch.tensor([[0.0], [9.0]]), torch.tensor([[1.0], [5.0]])):
        ...     labels = torch.tensor([0, 1])
        ...     print(af.triplet_margin_loss(batch, labels, margin=4.0, **memory(batch, labels)).item())
        0.0
        2.5
    """

    embeddings: Tensor
    labels: Tensor
    cursor: Tensor
    filled: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        size, dim = checks.whole("size", size, 1), checks.whole("dim", dim, 1)
        dtype = torch.float32 if dtype is None else dtype
        if dtype not in checks.FLOATING:
            raise TypeError(f"dtype={dtype}: must be float32, float64, float16 or bfloat16")
        self.register_buffer("embeddings", torch.zeros(size, dim, device=device, dtype=dtype))
        self.register_buffer("labels", torch.full((size,), EMPTY, device=device, dtype=torch.int64))
        self.register_buffer("cursor", torch.zeros((), device=device, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), device=device, dtype=torch.int64))

    def forward(self, embeddings: Tensor, labels: Tensor, exclude_labels: Tensor | None = None) -> ReferenceSet:
        found = self.reference(embeddings, labels, exclude_labels)
        self.update(embeddings, labels)
        return found

    def reference(self, embeddings: Tensor, labels: Tensor, exclude_labels: Tensor | None = None) -> ReferenceSet:
        """The reference set of a batch that is not in the ring yet.

        Args:
            embeddings: The anchors [N, D].
            labels: Their labels [N], int64 or int32.
            exclude_labels: Classes [N] that are no negatives of the anchor, besides its own.

        Returns:
            The keywords ``reference`` [N + S, D], ``reference_labels``, ``exclude_labels`` and ``self_offset`` of
            :func:`amkd_fast.triplet_margin_loss`. They are copies: a later update does not reach them.
        """
        self._check(embeddings, labels)
        n = embeddings.shape[0]
        exclude = labels.new_full((n, 1), EMPTY, dtype=torch.int64)
        if exclude_labels is not None:
            checks.integer("exclude_labels", exclude_labels)
            checks.shape("exclude_labels", exclude_labels, (n,), "one class a row of embeddings")
            checks.same_device(embeddings=embeddings, exclude_labels=exclude_labels)
            exclude = torch.cat([exclude, exclude_labels[:, None]], 1)
        past = self.embeddings
        if n > 0:
            # Distances are taken about a vector that the rows share, and zeros in the empty slots would pull it away.
            past = torch.where((self.labels == EMPTY)[:, None], embeddings.detach()[:1], past)
        return {
            "reference": torch.cat([embeddings, past]),
            "reference_labels": torch.cat([labels.long(), self.labels]),
            "exclude_labels": exclude,
            "self_offset": 0,
        }

    @torch.no_grad()
    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Put rows [N, D] and their labels [N] in place of the oldest ones; of more than S rows the last S."""
        self._check(embeddings, labels)
        size = self.labels.shape[0]
        embeddings, labels = embeddings[-size:], labels[-size:]
        n = embeddings.shape[0]
        slots = (self.cursor + torch.arange(n, device=self.cursor.device)) % size
        self.embeddings.index_copy_(0, slots, embeddings.to(self.embeddings.dtype))
        self.labels.index_copy_(0, slots, labels.long())
        self.cursor.add_(n).remainder_(size)
        self.filled.add_(n).clamp_(max=size)

    @torch.no_grad()
    def reset(self) -> None:
        """Empty the ring."""
        self.embeddings.zero_()
        self.labels.fill_(EMPTY)
        self.cursor.zero_()
        self.filled.zero_()

    def _check(self, embeddings: Tensor, labels: Tensor) -> None:
        checks.floating("embeddings", embeddings)
        dim = self.embeddings.shape[1]
        if embeddings.ndim != 2 or embeddings.shape[1] != dim:
            raise ValueError(f"embeddings.shape={tuple(embeddings.shape)}: must be [N, {dim}], dim of the memory")
        checks.integer("labels", labels)
        checks.shape("labels", labels, (embeddings.shape[0],), "one label a row of embeddings")
        checks.same_device(memory=self.embeddings, embeddings=embeddings, labels=labels)

    def extra_repr(self) -> str:
        size, dim = self.embeddings.shape
        return f"size={size}, dim={dim}"
