"""The compiled operators of the triplet family."""

from amkd_fast.ops.triplet.operators import registered

operators = registered()
