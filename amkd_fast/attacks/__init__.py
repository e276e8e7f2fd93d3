"""Attacks on whole networks: a frozen view, PGD, particles, the search for boundary samples, what they measure."""

from amkd_fast.attacks.boundary import PRESETS, BoundaryAttack, BoundarySamples, Status
from amkd_fast.attacks.frozen import FrozenModel, frozen
from amkd_fast.attacks.particles import ParticleAttack, ParticleSamples
from amkd_fast.attacks.pgd import PGD, PGDSamples
from amkd_fast.attacks.pixels import PixelBounds, pixel_bounds
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
    "ParticleAttack",
    "ParticleSamples",
    "PixelBounds",
    "RobustAccuracy",
    "Status",
    "boundary_similarity",
    "frozen",
    "pixel_bounds",
    "robust_accuracy",
    "wilson_interval",
]
