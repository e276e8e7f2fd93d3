"""Decoupled knowledge distillation: the target class against the rest, and the rest among itself, weighed apart."""

from amkd_fast.ops.kl.decoupled.op import dkd_loss

__all__ = ["dkd_loss"]
