"""Accuracies that papers have published, beside those of results on this machine."""

from amkd_fast.distill.published.tables import table

__all__ = ["table"]
