"""The compiled operator of the images family."""

from amkd_fast.ops.images.operators import registered

operator = registered()
