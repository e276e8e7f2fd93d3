"""Relational knowledge distillation: a student learns the distances and angles among a teacher's embeddings."""

from amkd_fast.ops.relations.op import rkd_angle_loss, rkd_distance_loss, rkd_loss

__all__ = ["rkd_angle_loss", "rkd_distance_loss", "rkd_loss"]
