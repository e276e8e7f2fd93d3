"""The compiled operators of the attack family."""

from amkd_fast.ops.attack.operators import registered

operators = registered()
