"""Distillation with boundary samples: KD, and the same on images at the teacher's decision boundary."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from amkd_fast import checks, ranks
from amkd_fast.attacks import PRESETS, BoundaryAttack, BoundarySamples, Status
from amkd_fast.losses import Adversarial, AMKDLoss
from amkd_fast.methods.base import Batch, Losses, Method, StepContext
from amkd_fast.methods.batchnorm import (
    BN_POLICIES,
    frozen_statistics,
    statistics_of,
    unchanged_statistics,
)
from amkd_fast.methods.outputs import with_features
from amkd_fast.methods.schedules import OFFICIAL_BOUNDARY, OFFICIAL_KL, Schedule, as_schedule
from amkd_fast.ops.attack import select_boundary_bases


class Chosen(NamedTuple):
    """The rows of a batch that are attacked."""

    source: Tensor  # int64 [M]
    base: Tensor
    target: Tensor
    valid: Tensor | None  # bool [M], False in padding; None: no padding


class BSS(Method):
    """KD, and the same divergence on images that an attack has moved to the teacher's decision boundary.

    Each image passes the student once, but for the policy ``"concatenated"``, which needs the logits that say whom to
    attack before the joint pass. The teacher's logits on the attacked images come from the attack.

    Args:
        preset: Of the attack: ``"official"``, ``"paper"``, ``"zoo"`` or ``"near_boundary"``.
        attack: Further keywords of :class:`amkd_fast.attacks.BoundaryAttack`: ``steps``, ``lower``, ``upper``, …
        fold: See :class:`Method`.
        limit: Most images attacked in a batch.
        temperature: T > 0.
        ce_weight: Weight of the cross-entropy.
        kl_weight: α, weight of the clean divergence, a number or a schedule.
        boundary_weight: β, weight of the boundary term, likewise; in epochs where it is 0 nothing is attacked.
        scale_by_t2: Multiply the clean divergence by T².
        boundary_scale_by_t2: Multiply the boundary divergence by T².
        bn: What BatchNorm does with the attacked images: ``"separate"`` (a batch of their own, as in the public code; a
            single image has no statistics and is left out), ``"concatenated"`` (one batch with the clean ones) or
            ``"frozen_stats"`` (normalised by the running statistics, which stay).
        fixed_shape: Run ``limit`` attacked rows in every step, padded ones counting nowhere, and ask nothing of the
            host: what a CUDA graph of the whole step needs. The attack then takes all its steps.
        distributed: See :class:`Method`. Who is attacked is settled over all ranks; each attacks its own images.

    Raises:
        ValueError: A choice or number breaks a rule above.

    Source:
        Heo, Lee, Yun and Choi, Knowledge Distillation with Adversarial Samples Supporting Decision Boundary, AAAI 2019.
        The default weights are those of its public trainer, the scale of the boundary term (no T²) too.

    Example:
        >>> import torch
        >>> from amkd_fast.methods import BSS, Batch, StepContext
        >>> student, teacher = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).eval()
        >>> _ = student.load_state_dict(teacher.state_dict())
        >>> images = torch.rand(8, 2)
        >>> batch = Batch(images, teacher(images).argmax(1))
        >>> method = BSS(limit=4, attack={"lower": 0.0, "upper": 1.0})
        >>> losses = method(batch, teacher, student, StepContext(epoch=0, epochs=60, draw=1))
        >>> sorted(losses.parts), losses.attack[0].item()
        (['boundary', 'ce', 'kl'], 4)
    """

    def __init__(
        self,
        *,
        preset: str = "near_boundary",
        attack: dict[str, object] | None = None,
        fold: bool = True,
        limit: int = 64,
        temperature: float = 3.0,
        ce_weight: float = 1.0,
        kl_weight: float | Schedule = OFFICIAL_KL,
        boundary_weight: float | Schedule = OFFICIAL_BOUNDARY,
        scale_by_t2: bool = False,
        boundary_scale_by_t2: bool = False,
        bn: str = "separate",
        fixed_shape: bool = False,
        distributed: bool = False,
        **metric: object,
    ) -> None:
        super().__init__(fold=fold, distributed=distributed)
        checks.choice("preset", preset, PRESETS)
        checks.choice("bn", bn, BN_POLICIES)
        limit = checks.whole("limit", limit, 1)
        if fixed_shape and distributed:
            raise ValueError("fixed_shape=True: must not be used with distributed=True, whose shares differ in size")
        self.preset, self.limit, self.bn, self.fixed_shape = preset, limit, bn, fixed_shape
        self.attack_options = dict(attack or {})
        self.kl_weight = as_schedule("kl_weight", kl_weight)
        self.boundary_weight = as_schedule("boundary_weight", boundary_weight)
        self.criterion = AMKDLoss(
            temperature=temperature,
            ce_weight=ce_weight,
            scale_by_t2=scale_by_t2,
            boundary_scale_by_t2=boundary_scale_by_t2,
            distributed=distributed,
            **{"triplet_weight": 0.0, **metric},
        )
        self._attack: tuple[nn.Module, BoundaryAttack] | None = None

    def weights(self, moment: StepContext) -> dict[str, float]:
        return {
            "kl": self.kl_weight(moment.epoch, moment.epochs),
            "boundary": self.boundary_weight(moment.epoch, moment.epochs),
        }

    def forward(self, batch: Batch, teacher: nn.Module | None, student: nn.Module, moment: StepContext) -> Losses:
        with self.teaching(teacher):
            return self._forward(batch, teacher, student, moment)

    def _forward(self, batch: Batch, teacher: nn.Module | None, student: nn.Module, moment: StepContext) -> Losses:
        weights = moment.weights or self.weights(moment)
        alpha, beta = weights["kl"], weights["boundary"]
        taught = self.taught(batch, teacher)
        if not isinstance(beta, Tensor) and beta == 0:
            loss = self.criterion(student(batch.images), taught, batch.labels, kl_weight=alpha)
            return Losses(loss.total, {"ce": loss.ce, "kl": loss.kl})
        if self.bn == "concatenated":
            with torch.no_grad(), unchanged_statistics(student):
                logits, features = student(batch.images), None
        else:
            logits, features = self._run(student, batch.images)
        draw = self.draw_of(moment, batch.images.device)
        chosen = self._choose(logits.detach(), taught, batch.labels, draw)
        samples = self._attack_of(teacher)(
            batch.images[chosen.source], chosen.base, chosen.target, valid=chosen.valid, seed=draw
        )
        if self.bn == "concatenated":
            with self._counting(student, chosen.valid, before=len(batch.images)):
                both, wide = self._run(student, torch.cat([batch.images, samples.images]))
            sizes = (len(batch.images), len(chosen.source))
            logits, attacked = both.split(sizes)
            features, wide = (None, None) if wide is None else wide.split(sizes)
        else:
            attacked, wide = self._run_attacked(student, samples, chosen.valid, logits, features)
        weight = samples.accepted if chosen.valid is None else samples.accepted & chosen.valid
        rows = Adversarial(
            student=attacked,
            teacher=samples.logits,
            base=chosen.base,
            target=samples.target,
            source=chosen.source,
            weight=weight.to(torch.promote_types(logits.dtype, torch.float32)),
            student_features=wide,
        )
        loss = self.criterion(
            logits,
            taught,
            batch.labels,
            rows,
            student_features=features,
            kl_weight=alpha,
            boundary_weight=beta,
            seed=draw,
        )
        parts = {"ce": loss.ce, "kl": loss.kl, "boundary": loss.boundary}
        if self.criterion.triplet_weight > 0.0:
            parts["triplet"] = loss.triplet
        return Losses(loss.total, parts, self._counts(samples, chosen.valid))

    def _choose(self, logits: Tensor, taught: Tensor, labels: Tensor, draw: int | Tensor) -> Chosen:
        first, count = 0, len(labels)
        if self.distributed:
            counts = ranks.counts_of(labels)
            first = sum(counts[: dist.get_rank()])
            logits, taught, labels = (ranks.gather(part, counts) for part in (logits, taught, labels))
        bases = select_boundary_bases(logits, taught.to(logits.dtype), labels, self.limit, seed=draw)
        valid = bases.valid
        if self.bn == "separate":  # a batch of one has no statistics; happens in the first steps only
            valid = valid & (valid.sum() >= 2)
        if self.fixed_shape:
            return Chosen(bases.index, bases.base, bases.target, valid)
        keep = valid & (bases.index >= first) & (bases.index < first + count)
        return Chosen(bases.index[keep] - first, bases.base[keep], bases.target[keep], None)

    def _attack_of(self, teacher: nn.Module) -> BoundaryAttack:
        """The attack on this teacher, kept from call to call with what it has prepared."""
        if self._attack is None or self._attack[0] is not teacher:
            options = {"early_exit": not self.fixed_shape, **self.attack_options}
            self._attack = (teacher, BoundaryAttack(self.view_of(teacher), preset=self.preset, **options))
        return self._attack[1]

    def _run(self, student: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits, and features where the triplets are among these."""
        if self.criterion.triplet_weight > 0.0 and self.criterion.space == "features":
            return with_features(student, images)
        return student(images), None

    def _run_attacked(self, student, samples: BoundarySamples, valid, logits, features) -> tuple[Tensor, Tensor | None]:
        none_here = len(samples.images) == 0
        if none_here and not self.distributed:
            return logits[:0], None if features is None else features[:0]
        frozen = self.bn == "frozen_stats"
        with frozen_statistics(student) if frozen else self._counting(student, valid):
            return self._run(student, samples.images)

    def _counting(self, student: nn.Module, valid: Tensor | None, before: int = 0) -> AbstractContextManager:
        """Keep padded rows, which follow ``before`` others, out of the batch statistics."""
        if valid is None:
            return nullcontext()
        return statistics_of(student, torch.cat([valid.new_ones(before), valid]))

    def _counts(self, samples: BoundarySamples, valid: Tensor | None) -> Tensor:
        """The numbers of :data:`COUNTS`, on the device."""
        status = samples.status
        attacked = torch.ones_like(status, dtype=torch.bool) if valid is None else valid
        flags = (attacked, samples.accepted, status == Status.CROSSED, status == Status.THIRD)
        counts = torch.stack([(flag & attacked).sum() for flag in flags])
        if self.distributed:
            dist.all_reduce(counts)
        return counts
