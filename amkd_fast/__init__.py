"""Fused operations for Adversarial Metric Knowledge Distillation, usable in any PyTorch trainer."""

from amkd_fast import interrupt as _interrupt  # noqa: F401  before torch: importing that takes seconds

# isort: split
from amkd_fast import _moved, attacks, backends  # noqa: F401  _moved: imports by old names
from amkd_fast.load import load_student
from amkd_fast.losses import (
    AMKDLoss,
    ConsistencyLoss,
    DistillationLoss,
    DKDLoss,
    KLDivLoss,
    RKDLoss,
    SegmentMSELoss,
    StandardisedKLLoss,
    TripletMarginLoss,
)
from amkd_fast.memory import CrossBatchMemory
from amkd_fast.ops.attack import attack_objective, attack_step, select_boundary_bases, svgd_step
from amkd_fast.ops.images import crop_flip, joint_augment
from amkd_fast.ops.kl import distillation_loss, kl_div, soft_cross_entropy
from amkd_fast.ops.kl.consistency import consistency_kl
from amkd_fast.ops.kl.decoupled import dkd_loss
from amkd_fast.ops.kl.standardised import standardised_kl_div
from amkd_fast.ops.relations import rkd_angle_loss, rkd_distance_loss
from amkd_fast.ops.segments import segment_mse
from amkd_fast.ops.triplet import mine_triplets, nearest_negatives, triplet_margin_loss
from amkd_fast.version import __version__

__all__ = [
    "AMKDLoss",
    "ConsistencyLoss",
    "CrossBatchMemory",
    "DKDLoss",
    "DistillationLoss",
    "KLDivLoss",
    "RKDLoss",
    "SegmentMSELoss",
    "StandardisedKLLoss",
    "TripletMarginLoss",
    "__version__",
    "attack_objective",
    "attack_step",
    "attacks",
    "backends",
    "consistency_kl",
    "crop_flip",
    "distillation_loss",
    "dkd_loss",
    "joint_augment",
    "kl_div",
    "load_student",
    "mine_triplets",
    "nearest_negatives",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "segment_mse",
    "select_boundary_bases",
    "soft_cross_entropy",
    "standardised_kl_div",
    "svgd_step",
    "triplet_margin_loss",
]
