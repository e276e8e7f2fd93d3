"""What a comparison found: statistics, tables, plots and a page; and what every result file of distill holds."""

from amkd_fast.distill.report.provenance import environment
from amkd_fast.distill.report.text import to_json

__all__ = ["environment", "to_json"]
