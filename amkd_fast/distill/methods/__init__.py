"""What a student learns from. Nothing here needs the extra ``train``: the methods fit any trainer."""

from amkd_fast.distill.batch import Batch
from amkd_fast.distill.methods.base import COUNTS, Losses, Method, Moment
from amkd_fast.distill.methods.boundary import AMKD, BSS
from amkd_fast.distill.methods.logits import LogitsOf
from amkd_fast.distill.methods.normalisation import BN_POLICIES, frozen_statistics, statistics_of, unchanged_statistics
from amkd_fast.distill.methods.plain import KD, StudentAlone
from amkd_fast.distill.methods.schedules import (
    OFFICIAL_BOUNDARY,
    OFFICIAL_KL,
    ZOO_BOUNDARY,
    Constant,
    Delayed,
    Falling,
    Linear,
    Schedule,
)

__all__ = [
    "AMKD",
    "BN_POLICIES",
    "BSS",
    "COUNTS",
    "KD",
    "OFFICIAL_BOUNDARY",
    "OFFICIAL_KL",
    "ZOO_BOUNDARY",
    "Batch",
    "Constant",
    "Delayed",
    "Falling",
    "Linear",
    "LogitsOf",
    "Losses",
    "Method",
    "Moment",
    "Schedule",
    "StudentAlone",
    "frozen_statistics",
    "statistics_of",
    "unchanged_statistics",
]
