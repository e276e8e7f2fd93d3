"""The divergence of standardised logits: of their shape, whatever their scale."""

from amkd_fast.ops.kl.standardised.op import standardised_kl_div

__all__ = ["standardised_kl_div"]
