"""What ``amkd-distill evaluate`` is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from amkd_fast.distill.errors import UserError
from amkd_fast.distill.files import check_free
from amkd_fast.typing import AttackLoss, AttackNorm, Keep, PairTargets, PresetName

Attack = Literal["none", "pgd", "boundary"]
ATTACKS: tuple[Attack, ...] = get_args(Attack)
NORMS: tuple[AttackNorm, ...] = get_args(AttackNorm)
LOSSES: tuple[AttackLoss, ...] = get_args(AttackLoss)
KEEPS: tuple[Keep, ...] = get_args(Keep)
PRESETS: tuple[PresetName, ...] = get_args(PresetName)
TARGETS: tuple[PairTargets, ...] = get_args(PairTargets)

_PGD = ("eps", "step_size", "norm", "restarts", "loss", "keep")
_BOUNDARY = ("compare", "preset", "targets")


@dataclass(frozen=True)
class EvaluateSettings:
    """An evaluation. Radii and step sizes are in pixel units, the pixels being in [0, 1]."""

    checkpoint: str
    network: str | None = None  # the one of the user's own that a checkpoint may name; whose weights a state dict has
    mean: str | None = None  # of a state dict's network, as in Settings
    std: str | None = None
    data: str | None = None  # None: what the checkpoint was trained with
    attack: Attack = "none"
    steps: int = 10
    seed: int = 0
    batch_size: int = 256
    limit: int = 0  # images; 0: all

    eps: tuple[float, ...] = (0.1,)
    step_size: float | None = None  # None: 2.5 eps/steps, eps in a single step
    norm: AttackNorm = "linf"
    restarts: int = 1
    loss: AttackLoss = "ce"
    keep: Keep = "last"

    compare: str | None = None  # a checkpoint to take as the teacher of MagSim and AngSim
    preset: PresetName = "near_boundary"
    targets: PairTargets = "every"

    output: str | None = None
    overwrite: bool = False

    @classmethod
    def from_options(cls, values: dict[str, Any]) -> EvaluateSettings:
        """Those of the options that the user gave.

        Args:
            values: Options by name; those that were not given are absent.

        Raises:
            UserError: An option would have no effect, or the output cannot be written.
        """
        attack = values.get("attack", cls.attack)
        for name in values:
            if name in _PGD and attack != "pgd":
                raise UserError(f"{_option(name)}: is for --attack pgd, not for --attack {attack}")
            if name in _BOUNDARY and attack != "boundary":
                raise UserError(f"{_option(name)}: is for --attack boundary, not for --attack {attack}")
            if name in ("preset", "targets") and "compare" not in values:
                raise UserError(f"{_option(name)}: is for --compare")
            if name == "steps" and attack == "none":
                raise UserError("--steps: is for --attack pgd or boundary")
        settings = cls(**{**values, "eps": tuple(values.get("eps", cls.eps))})
        settings.check_output()
        return settings

    def check_output(self) -> None:
        """Find out before the work whether its result can be kept."""
        if self.output is None:
            if self.overwrite:
                raise UserError("--overwrite: is for --output")
            return
        check_free(self.output, "--output", self.overwrite)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
