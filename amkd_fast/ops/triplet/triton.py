"""The operators `amkd_fast::triplet_*_triton`: what csrc/library.cpp declares for the triplet family, in Triton.

Launches: selection 1 or 2 (small), 5 (large); terms 1 or 2; backward 1, or 2 and a sort where it must be deterministic;
every pair 2 forward and 2 or 3 backward for each chunk of anchors.
"""

from __future__ import annotations

import torch

from amkd_fast import backends
from amkd_fast.ops.triplet.operators import NAMES, registered
from amkd_fast.ops.triplet.triton_rows import launch_rows_backward, launch_rows_forward
from amkd_fast.ops.triplet.triton_select import launch_select
from amkd_fast.ops.triplet.triton_terms import launch_backward, launch_terms

_PAIRS = (
    "Tensor anchor, Tensor reference, Tensor anchor_square, Tensor reference_square, Tensor? positive_distance, "
    "Tensor? used, Tensor? labels, Tensor? reference_labels, Tensor? exclude_labels, int self_offset, int distance, "
    "float margin, bool semihard, bool fallback, bool soft_margin"
)
_TERMS = (
    "Tensor anchor, Tensor? positive, Tensor? reference, Tensor? positive_index, Tensor negative_index, Tensor? weight"
)
_RULE = "int distance, float margin, bool soft_margin, bool swap, int reduction"
_SCHEMAS = (
    "(Tensor anchor, Tensor? reference, Tensor? labels, Tensor? reference_labels, Tensor? exclude_labels, "
    "int self_offset, int distance, int k, bool find_positive) -> (Tensor positive, Tensor negative)",
    f"({_TERMS}, {_RULE}) -> (Tensor loss, Tensor stats)",
    f"(Tensor grad_loss, {_TERMS}, Tensor stats, {_RULE}, bool deterministic) "
    "-> (Tensor grad_anchor, Tensor grad_positive, Tensor grad_reference)",
    f"(Tensor product, {_PAIRS}) -> (Tensor total, Tensor counts, Tensor sums)",
    f"(Tensor(a!) product, Tensor(b!) grad_anchor, Tensor(c!) grad_reference, Tensor grad_total, {_PAIRS}) -> Tensor",
)
_LAUNCHERS = (launch_select, launch_terms, launch_backward, launch_rows_forward, launch_rows_backward)

_library = torch.library.Library("amkd_fast", "FRAGMENT")
for _name, _schema, _launcher in zip(NAMES, _SCHEMAS, _LAUNCHERS, strict=True):
    _library.define(f"{_name}_triton{_schema}")
    for _key in ("CUDA", "CPU") if backends.INTERPRETING else ("CUDA",):
        _library.impl(f"{_name}_triton", _launcher, _key)
operators = registered("_triton")
