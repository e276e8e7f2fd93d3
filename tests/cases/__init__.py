"""The table of operation cases: an entry says how an operation is called and what is right.

`test_contract.py` makes of every entry what any operation must pass, on every backend that runs here; `levels.py` runs
that on every SIMD level, and `gpu/sanitize.py` runs the plans under compute-sanitizer. A new operation is one entry.
"""

from __future__ import annotations

from importlib import import_module

from amkd_fast.backends import FAMILIES
from cases.operation import Operation

OPERATIONS: tuple[Operation, ...] = tuple(
    operation for family in FAMILIES for operation in import_module(f"cases.{family}").OPERATIONS
)
