"""Adversarial steps: the step itself, the objective that it climbs, and the choice of boundary bases."""

from amkd_fast.ops.attack.bases import draw_targets, select_boundary_bases
from amkd_fast.ops.attack.objective import attack_objective
from amkd_fast.ops.attack.particles import svgd_step
from amkd_fast.ops.attack.reference import BoundaryBases
from amkd_fast.ops.attack.step import attack_step

__all__ = ["BoundaryBases", "attack_objective", "attack_step", "draw_targets", "select_boundary_bases", "svgd_step"]
