"""Divergences of a student's logits from a teacher's; in the folders the losses that have operators of their own."""

from amkd_fast.ops.kl.op import DistillationLoss, DistillationTerms, distillation_loss, kl_div, soft_cross_entropy

__all__ = ["DistillationLoss", "DistillationTerms", "distillation_loss", "kl_div", "soft_cross_entropy"]
