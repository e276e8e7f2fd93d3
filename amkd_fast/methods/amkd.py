"""Adversarial metric knowledge distillation: BSS with triplets of attacked and clean rows."""

from __future__ import annotations

from amkd_fast import checks
from amkd_fast.attacks import PRESETS
from amkd_fast.memory import CrossBatchMemory
from amkd_fast.methods.bss import BSS, BSSOptions
from amkd_fast.typing import Distance, Negatives, Selector, Space, Unpack, Variant


class AMKD(BSS):
    """BSS with triplets of attacked and clean rows: a **reconstruction**, see :class:`amkd_fast.AMKDLoss`.

    Args:
        triplet_weight: γ > 0.
        margin: m ≥ 0.
        variant: ``"student_space"``, ``"teacher_anchor"`` or ``"batch_hard"``.
        negatives: ``"other"``, ``"not_base"`` or ``"target"``, the last not with an attack that overshoots: it would
            repel samples from the class that they have been brought into.
        selector: ``"hardest"``, ``"semihard"`` or ``"uniform"``.
        space: ``"logits"``, ``"probabilities"`` or ``"features"`` (what the student's last linear layer gets).
        distance: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"``.
        memory: A :class:`amkd_fast.CrossBatchMemory` for past rows as further negatives.
        force: Allow ``negatives="target"`` with any attack.
        options: Those of :class:`BSS`.

    Raises:
        ValueError: A choice or number breaks a rule above.

    Example:
        >>> import torch
        >>> from amkd_fast.methods import AMKD
        >>> method = AMKD(variant="student_space", space="features", limit=32)
        >>> method.criterion.variant
        'student_space'
    """

    def __init__(
        self,
        *,
        triplet_weight: float = 0.1,
        margin: float = 1.0,
        variant: Variant = "teacher_anchor",
        negatives: Negatives = "other",
        selector: Selector = "hardest",
        space: Space = "logits",
        distance: Distance = "euclidean",
        memory: CrossBatchMemory | None = None,
        force: bool = False,
        **options: Unpack[BSSOptions],
    ) -> None:
        super().__init__(
            triplet_weight=checks.positive("triplet_weight", triplet_weight),
            margin=margin,
            variant=variant,
            negatives=negatives,
            selector=selector,
            space=space,
            distance=distance,
            memory=memory,
            **options,
        )
        if negatives == "target" and PRESETS[self.preset].norm_power == 1 and not force:
            raise ValueError(
                f"negatives={negatives!r}: must not be used with the overshooting step of preset={self.preset!r} "
                "(force=True insists)"
            )
