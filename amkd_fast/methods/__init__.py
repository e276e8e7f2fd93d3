"""What a student learns from, one file a method. Needs torch alone: the methods fit any trainer."""

from amkd_fast.methods.amkd import AMKD
from amkd_fast.methods.at import AT
from amkd_fast.methods.base import COUNTS, Batch, Losses, Method, StepContext
from amkd_fast.methods.batchnorm import BN_POLICIES, frozen_statistics, statistics_of, unchanged_statistics
from amkd_fast.methods.bss import BSS
from amkd_fast.methods.ccd import CCD
from amkd_fast.methods.crd import CRD
from amkd_fast.methods.dkd import DKD
from amkd_fast.methods.extended_kd import ExtendedKD
from amkd_fast.methods.fitnet import FitNet
from amkd_fast.methods.kd import KD
from amkd_fast.methods.mkd import MKD
from amkd_fast.methods.outputs import LogitsOf
from amkd_fast.methods.reviewkd import ReviewKD
from amkd_fast.methods.rkd import RKD
from amkd_fast.methods.schedules import (
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
from amkd_fast.methods.sp import SP
from amkd_fast.methods.student_alone import StudentAlone
from amkd_fast.methods.tald import TALD
from amkd_fast.methods.triplet_kd import TripletKD

__all__ = [
    "AMKD",
    "AT",
    "BN_POLICIES",
    "BSS",
    "CCD",
    "COUNTS",
    "CRD",
    "DKD",
    "KD",
    "MKD",
    "OFFICIAL_BOUNDARY",
    "OFFICIAL_KL",
    "RKD",
    "SP",
    "TALD",
    "ZOO_BOUNDARY",
    "Batch",
    "Constant",
    "Delayed",
    "ExtendedKD",
    "Falling",
    "FitNet",
    "Linear",
    "LogitsOf",
    "Losses",
    "Method",
    "ReviewKD",
    "Rising",
    "Schedule",
    "StepContext",
    "StudentAlone",
    "TripletKD",
    "frozen_statistics",
    "statistics_of",
    "unchanged_statistics",
]
