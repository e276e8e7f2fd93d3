"""``torch.nn`` modules of the losses, for trainers that keep their losses as modules."""

from amkd_fast.losses.amkd import NEGATIVES, SELECTORS, SPACES, VARIANTS, Adversarial, AMKDLoss, AMKDTerms
from amkd_fast.losses.kl import ConsistencyLoss, DistillationLoss, DKDLoss, KLDivLoss, StandardisedKLLoss
from amkd_fast.losses.relations import RKDLoss
from amkd_fast.losses.segments import SegmentMSELoss
from amkd_fast.losses.triplet import TripletMarginLoss
from amkd_fast.ops.kl import DistillationTerms

__all__ = [
    "NEGATIVES",
    "SELECTORS",
    "SPACES",
    "VARIANTS",
    "AMKDLoss",
    "AMKDTerms",
    "Adversarial",
    "ConsistencyLoss",
    "DKDLoss",
    "DistillationLoss",
    "DistillationTerms",
    "KLDivLoss",
    "RKDLoss",
    "SegmentMSELoss",
    "StandardisedKLLoss",
    "TripletMarginLoss",
]
