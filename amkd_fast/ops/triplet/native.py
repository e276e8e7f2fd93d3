"""The compiled operators of the triplet family."""

from amkd_fast.ops.triplet.operators import registered

cuda = registered()
cpu = cuda._replace(splits_close_pairs=True)
