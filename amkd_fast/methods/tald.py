"""Distillation on particles that spread over the neighbourhood of every image, where the teacher errs."""

from __future__ import annotations

from torch import Tensor, nn

from amkd_fast import checks, ranks
from amkd_fast.attacks import ParticleAttack
from amkd_fast.losses import AMKDLoss
from amkd_fast.methods.base import Batch, Losses, Method, StepContext
from amkd_fast.methods.schedules import OFFICIAL_KL, Schedule, as_schedule
from amkd_fast.ops.kl import kl_div


class TALD(Method):
    """KD, and the teacher's answers on adversarial particles around every image: a **reconstruction**.

    The particles of an image climb the teacher's cross-entropy inside a small ball and keep apart from each other
    (:class:`amkd_fast.attacks.ParticleAttack`); all of them pass the student in one batch of their own.

    Args:
        eps: Radius ≥ 0 of the ball, in the units of the images, as :class:`amkd_fast.attacks.ParticleAttack` takes it.
        particles: Number a image.
        steps: Number of steps.
        step_size: η; None for 2.5 ``eps``/``steps``.
        lower: Smallest pixel value, a number or one a channel [C]; None for none.
        upper: Largest pixel value, likewise.
        particle_weight: Weight of the divergence on the particles.
        temperature: T > 0 of both divergences.
        ce_weight: Weight of the cross-entropy on the clean images.
        kl_weight: Weight of the divergence on the clean images, a number or a schedule.
        scale_by_t2: Multiply both divergences by T².
        fold: See :class:`Method`.
        distributed: See :class:`Method`.

    Raises:
        ValueError: A number breaks a rule above.

    Source:
        Teacher-guided adversarial local distribution distillation, WACV 2023. The weights are ours.

    Example:
        >>> import torch
        >>> from amkd_fast.methods import TALD, Batch, StepContext
        >>> student, teacher = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3).eval()
        >>> batch = Batch(torch.rand(8, 2), torch.zeros(8).long())
        >>> losses = TALD(eps=0.1)(batch, teacher, student, StepContext(epoch=0, epochs=60, draw=1))
        >>> losses.total.backward()
        >>> sorted(losses.parts)
        ['ce', 'kl', 'particles']
    """

    def __init__(
        self,
        *,
        eps: float | Tensor,
        particles: int = 4,
        steps: int = 5,
        step_size: float | Tensor | None = None,
        lower: float | Tensor | None = None,
        upper: float | Tensor | None = None,
        particle_weight: float = 1.0,
        temperature: float = 3.0,
        ce_weight: float = 1.0,
        kl_weight: float | Schedule = OFFICIAL_KL,
        scale_by_t2: bool = False,
        fold: bool = True,
        distributed: bool = False,
    ) -> None:
        super().__init__(fold=fold, distributed=distributed)
        self.kl_weight = as_schedule("kl_weight", kl_weight)
        self.particle_weight = checks.non_negative("particle_weight", particle_weight)
        self.criterion = AMKDLoss(
            temperature=temperature, ce_weight=ce_weight, scale_by_t2=scale_by_t2, distributed=distributed
        )
        self.attack_options = {
            "eps": eps if isinstance(eps, Tensor) else checks.non_negative("eps", eps),
            "particles": particles,
            "steps": steps,
            "step_size": step_size,
            "lower": lower,
            "upper": upper,
        }
        ParticleAttack(nn.Identity(), **self.attack_options)  # what it refuses is refused here
        self._attack: tuple[nn.Module, ParticleAttack] | None = None

    def weights(self, moment: StepContext) -> dict[str, float]:
        return {"kl": self.kl_weight(moment.epoch, moment.epochs)}

    def forward(self, batch: Batch, teacher: nn.Module | None, student: nn.Module, moment: StepContext) -> Losses:
        weights = moment.weights or self.weights(moment)
        rows = ranks.row_numbers(batch.images, self.distributed)
        draw = self.draw_of(moment, rows.device)
        with self.teaching(teacher):
            samples = self._attack_of(teacher)(batch.images, batch.labels, rows=rows, seed=draw)
            taught = self.taught(batch, teacher)
        logits = student(batch.images)
        clean = self.criterion(logits, taught, batch.labels, kl_weight=weights["kl"])
        around = student(samples.images.flatten(0, 1))
        divergence = kl_div(
            around, samples.logits.flatten(0, 1), self.criterion.temperature, scale_by_t2=self.criterion.scale_by_t2
        )
        if self.distributed:
            divergence = ranks.mean_over_rows(divergence, around)
        parts = {"ce": clean.ce, "kl": clean.kl, "particles": divergence.detach()}
        return Losses(clean.total + self.particle_weight * divergence, parts)

    def _attack_of(self, teacher: nn.Module) -> ParticleAttack:
        """The attack on this teacher, kept from call to call with what it has prepared."""
        if self._attack is None or self._attack[0] is not teacher:
            self.must_be_in_eval_mode(teacher)
            self._attack = (teacher, ParticleAttack(self.view_of(teacher), **self.attack_options))
        return self._attack[1]
