"""What a comparison found: statistics, tables, plots and a page; and what every result file of distill holds."""

from amkd_fast.distill.files import to_json
from amkd_fast.distill.report.provenance import environment

__all__ = ["environment", "to_json"]
