"""Mean squared errors of many pairs of tensors as one operation: the stages of a student and of its teacher."""

from amkd_fast.ops.segments.op import segment_mse

__all__ = ["segment_mse"]
