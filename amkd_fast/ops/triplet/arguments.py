"""The argument checks of the triplet family."""

from __future__ import annotations

import torch
from torch import Tensor

from amkd_fast import checks
from amkd_fast.ops.triplet.types import Rows

MAX_EXCLUDED = 2


def rows(
    anchor: Tensor,
    labels: Tensor | None,
    positive: Tensor | None,
    reference: Tensor | None,
    reference_labels: Tensor | None,
    exclude_labels: Tensor | None,
    self_offset: int | None,
) -> Rows:
    """Check what every function of the family takes."""
    checks.floating("anchor", anchor)
    if anchor.ndim != 2 or anchor.shape[1] == 0:
        raise ValueError(f"anchor.shape={tuple(anchor.shape)}: must be [N, D] with at least one column")
    n, d = anchor.shape
    if positive is not None:
        checks.floating("positive", positive)
        checks.shape("positive", positive, (n, d), "the shape of anchor")
    if reference is not None:
        checks.floating("reference", reference)
        if reference.ndim != 2 or reference.shape[1] != d:
            raise ValueError(f"reference.shape={tuple(reference.shape)}: must be [P, {d}], D as in anchor")
    p = n if reference is None else reference.shape[0]
    _check_labels(n, p, labels, positive, reference, reference_labels, exclude_labels)
    if reference is None:
        if self_offset not in (None, 0):
            raise ValueError(f"self_offset={self_offset!r}: must be None or 0 where reference is None")
        reference_labels, self_offset = labels, 0
    elif self_offset is not None:
        self_offset = checks.whole("self_offset", self_offset, 0)
        if self_offset + n > p:
            raise ValueError(f"self_offset={self_offset}: must be at most P - N = {p - n}, all anchors lie in it")
    checks.same_device(
        anchor=anchor,
        labels=labels,
        positive=positive,
        reference=reference,
        reference_labels=reference_labels,
        exclude_labels=exclude_labels,
    )
    if exclude_labels is not None and exclude_labels.ndim == 1:
        exclude_labels = exclude_labels[:, None]
    dtypes = {x.dtype for x in (anchor, positive, reference) if x is not None}
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    found = Rows(
        anchor,
        positive,
        anchor if reference is None else reference,
        labels,
        reference_labels,
        exclude_labels,
        self_offset,
        reference is None,
    )
    return found if len(dtypes) == 1 else cast(found, dtype)


def cast(rows: Rows, dtype: torch.dtype) -> Rows:
    """The rows in another dtype."""
    anchor = rows.anchor.to(dtype)  # once: where it is the reference too, its two gradients add up before rounding
    return rows._replace(
        anchor=anchor,
        positive=None if rows.positive is None else rows.positive.to(dtype),
        reference=anchor if rows.is_batch else rows.reference.to(dtype),
    )


def with_rows(rows: Rows, anchor: Tensor, positive: Tensor | None, reference: Tensor | None) -> Rows:
    """Other rows in the same roles; no reference where it is the anchors."""
    return rows._replace(anchor=anchor, positive=positive, reference=anchor if rows.is_batch else reference)


def widened(rows: Rows) -> Rows:
    """The rows in fp32 or fp64."""
    return rows if rows.anchor.dtype in (torch.float32, torch.float64) else cast(rows, torch.float32)


def _check_labels(n, p, labels, positive, reference, reference_labels, exclude_labels) -> None:
    if labels is None:
        if positive is None:
            raise ValueError("labels=None: must be given, or positive must be")
        for name, value in (("reference_labels", reference_labels), ("exclude_labels", exclude_labels)):
            if value is not None:
                raise ValueError(f"labels=None: must be given where {name} is")
        return
    checks.integer("labels", labels)
    checks.shape("labels", labels, (n,), "one label a row of anchor")
    if (reference is None) != (reference_labels is None):
        given, missing = ("reference", "reference_labels")[:: 1 if reference_labels is None else -1]
        raise ValueError(f"{missing}=None: must be given where {given} is")
    if reference_labels is not None:
        checks.integer("reference_labels", reference_labels)
        checks.shape("reference_labels", reference_labels, (p,), "one label a row of reference")
    if exclude_labels is not None:
        checks.integer("exclude_labels", exclude_labels)
        shape = tuple(exclude_labels.shape)
        if not (shape == (n,) or (len(shape) == 2 and shape[0] == n and shape[1] <= MAX_EXCLUDED)):
            raise ValueError(f"exclude_labels.shape={shape}: must be ({n},) or ({n}, E) with E at most {MAX_EXCLUDED}")
