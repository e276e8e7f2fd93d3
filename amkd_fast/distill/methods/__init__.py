"""What a student learns from. Nothing here needs the extra ``train``: the methods fit any trainer."""

from amkd_fast.distill.batch import Batch
from amkd_fast.distill.methods.base import COUNTS, Losses, Method, Moment
from amkd_fast.distill.methods.boundary import AMKD, BSS
from amkd_fast.distill.methods.decoupled import DKD
from amkd_fast.distill.methods.logits import LogitsOf
from amkd_fast.distill.methods.mixing import MKD
from amkd_fast.distill.methods.normalisation import BN_POLICIES, frozen_statistics, statistics_of, unchanged_statistics
from amkd_fast.distill.methods.particles import TALD
from amkd_fast.distill.methods.plain import KD, StudentAlone
from amkd_fast.distill.methods.relational import RKD
from amkd_fast.distill.methods.schedules import (
    OFFICIAL_BOUNDARY,
    OFFICIAL_KL,
    ZOO_BOUNDARY,
    Constant,
    Delayed,
    Falling,
    Linear,
    Rising,
    Schedule,
)
from amkd_fast.distill.methods.stages import ExtendedKD
from amkd_fast.distill.methods.triplets import TripletKD
from amkd_fast.distill.methods.views import CCD

__all__ = [
    "AMKD",
    "BN_POLICIES",
    "BSS",
    "CCD",
    "COUNTS",
    "DKD",
    "KD",
    "MKD",
    "OFFICIAL_BOUNDARY",
    "OFFICIAL_KL",
    "RKD",
    "TALD",
    "ZOO_BOUNDARY",
    "Batch",
    "Constant",
    "Delayed",
    "ExtendedKD",
    "Falling",
    "Linear",
    "LogitsOf",
    "Losses",
    "Method",
    "Moment",
    "Rising",
    "Schedule",
    "StudentAlone",
    "TripletKD",
    "frozen_statistics",
    "statistics_of",
    "unchanged_statistics",
]
