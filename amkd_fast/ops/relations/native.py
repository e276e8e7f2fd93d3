"""The compiled operator of the relations family."""

from amkd_fast.ops.relations.operators import registered

operator = registered()
