"""Triplet losses with hard-negative selection, the triplets they select, and the nearest negatives."""

from amkd_fast.ops.triplet.op import mine_triplets, nearest_negatives, triplet_margin_loss

__all__ = ["mine_triplets", "nearest_negatives", "triplet_margin_loss"]
