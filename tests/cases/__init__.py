"""The table of operation cases: an entry says how an operation is called and what is right.

`test_contract.py` makes of every entry what any operation must pass, on every backend that runs here; `levels.py` runs
that on every SIMD level, and `gpu/sanitize.py` runs the plans under compute-sanitizer. A new operation is one entry.
"""

from __future__ import annotations

from cases import attack, images, kl, relations, segments, triplet
from cases.operation import Operation

OPERATIONS: tuple[Operation, ...] = (
    *kl.OPERATIONS,
    *relations.OPERATIONS,
    *segments.OPERATIONS,
    *triplet.OPERATIONS,
    *attack.OPERATIONS,
    *images.OPERATIONS,
)
