"""The methods as other distillation frameworks call them. Nothing here needs these frameworks to be installed."""

from amkd_fast.distill.adapters.mdistiller import MDistillerMethod
from amkd_fast.distill.adapters.torchdistill import TorchdistillLoss, register

__all__ = ["MDistillerMethod", "TorchdistillLoss", "register"]
