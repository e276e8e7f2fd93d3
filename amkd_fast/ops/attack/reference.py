"""The attack family in plain PyTorch: the specification that every other backend is tested against."""

from amkd_fast.ops.attack.bases import BoundaryBases, draw_targets, select_boundary_bases
from amkd_fast.ops.attack.objective import attack_objective
from amkd_fast.ops.attack.steps import attack_step

__all__ = ["BoundaryBases", "attack_objective", "attack_step", "draw_targets", "select_boundary_bases"]
