"""Attacks on whole networks: the frozen view, PGD, and the search for boundary samples."""

from amkd_fast.attacks.boundary import PRESETS, BoundaryAttack, BoundarySamples, Status
from amkd_fast.attacks.frozen import FrozenModel, frozen
from amkd_fast.attacks.pgd import PGD, PGDSamples

__all__ = ["PGD", "PRESETS", "BoundaryAttack", "BoundarySamples", "FrozenModel", "PGDSamples", "Status", "frozen"]
