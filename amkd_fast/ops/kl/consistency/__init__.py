"""Distillation on a clean and an augmented view of each image, the latter weighted by the teacher's consistency."""

from amkd_fast.ops.kl.consistency.op import ConsistencyKL, consistency_kl

__all__ = ["ConsistencyKL", "consistency_kl"]
