"""The compiled operators of the segments family."""

from amkd_fast.ops.segments.operators import registered

operators = registered()
