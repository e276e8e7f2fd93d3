"""Attacks on whole networks: the frozen view, PGD, the search for boundary samples, and what they measure."""

from amkd_fast.attacks.boundary import PRESETS, BoundaryAttack, BoundarySamples, Status
from amkd_fast.attacks.frozen import FrozenModel, frozen
from amkd_fast.attacks.pgd import PGD, PGDSamples
from amkd_fast.attacks.robustness import RobustAccuracy, robust_accuracy, wilson_interval
from amkd_fast.attacks.similarity import BoundaryPairs, BoundarySimilarity, boundary_similarity

__all__ = [
    "PGD",
    "PRESETS",
    "BoundaryAttack",
    "BoundaryPairs",
    "BoundarySamples",
    "BoundarySimilarity",
    "FrozenModel",
    "PGDSamples",
    "RobustAccuracy",
    "Status",
    "boundary_similarity",
    "frozen",
    "robust_accuracy",
    "wilson_interval",
]
