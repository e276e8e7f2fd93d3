"""``torch.nn`` faces of the functions, for trainers that keep their losses as modules."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast import checks, philox
from amkd_fast.ops.kl import DistillationLoss as DistillationTerms
from amkd_fast.ops.kl import distillation_loss, kl_div
from amkd_fast.ops.triplet import triplet_margin_loss

VARIANTS = ("teacher_anchor", "student_space", "batch_hard")
NEGATIVES = ("other", "not_base", "target")
SELECTORS = ("hardest", "semihard", "uniform")
SPACES = ("logits", "probabilities", "features")
_STREAM = 0x7269  # of the draws of selector="uniform", apart from those of the attack


class KLDivLoss(nn.Module):
    """Module of :func:`amkd_fast.kl_div`.

    Args:
        temperature: T > 0 that divides both logits.
        divergence: ``"forward"``, ``"reverse"`` or ``"js"``.
        beta: Weight of the teacher in ``js``, strictly between 0 and 1.
        scale_by_t2: Multiply by T².
        reduction: ``"none"``, ``"sum"``, ``"mean"`` or ``"batchmean"``.

    Shape:
        ``forward(student, teacher, weight=None)``: logits [..., K] twice, weight a float or [...]; scalar, or [...] for
        ``"none"``.

    Example:
        >>> import torch
        >>> from amkd_fast.losses import KLDivLoss
        >>> loss = KLDivLoss(temperature=4.0)(torch.zeros(2, 3, requires_grad=True), torch.eye(2, 3))
        >>> f"{loss.item():.4f}"
        '0.1166'
    """

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        divergence: str = "forward",
        beta: float = 0.5,
        scale_by_t2: bool = True,
        reduction: str = "batchmean",
    ) -> None:
        super().__init__()
        checks.positive("temperature", temperature)
        checks.choice("divergence", divergence, ("forward", "reverse", "js"))
        checks.open_unit("beta", beta)
        checks.choice("reduction", reduction, ("none", "sum", "mean", "batchmean"))
        self.temperature, self.divergence, self.beta = temperature, divergence, beta
        self.scale_by_t2, self.reduction = scale_by_t2, reduction

    def forward(self, student: Tensor, teacher: Tensor, weight: float | Tensor | None = None) -> Tensor:
        return kl_div(
            student,
            teacher,
            self.temperature,
            divergence=self.divergence,
            beta=self.beta,
            weight=weight,
            scale_by_t2=self.scale_by_t2,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, divergence={self.divergence!r}, reduction={self.reduction!r}"


class DistillationLoss(nn.Module):
    """Module of :func:`amkd_fast.distillation_loss`: hard-label cross-entropy and divergence in one pass.

    Args:
        temperature: T > 0 of the divergence.
        ce_weight: Weight of the cross-entropy.
        kl_weight: Weight of the divergence.
        divergence: ``"forward"``, ``"reverse"`` or ``"js"``.
        scale_by_t2: Multiply the divergence by T².
        ignore_index: The label that means «no label».

    Shape:
        ``forward(student, teacher, labels=None)``: logits [..., K] twice and labels [...]; returns
        ``(total, ce, kl)``, scalars, of which ``total`` has the graph.

    Example:
        >>> import torch
        >>> from amkd_fast.losses import DistillationLoss
        >>> criterion = DistillationLoss(temperature=4.0, ce_weight=0.5, kl_weight=0.5)
        >>> loss = criterion(torch.zeros(2, 10, requires_grad=True), torch.zeros(2, 10), torch.tensor([1, 2]))
        >>> loss.total.backward()
        >>> f"{loss.total.item():.4f}"
        '1.1513'
    """

    def __init__(
        self,
        temperature: float = 4.0,
        *,
        ce_weight: float = 0.1,
        kl_weight: float = 0.9,
        divergence: str = "forward",
        scale_by_t2: bool = True,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        checks.positive("temperature", temperature)
        checks.choice("divergence", divergence, ("forward", "reverse", "js"))
        self.temperature, self.divergence = temperature, divergence
        self.ce_weight, self.kl_weight = checks.finite("ce_weight", ce_weight), checks.finite("kl_weight", kl_weight)
        self.scale_by_t2, self.ignore_index = scale_by_t2, ignore_index

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> DistillationTerms:
        return distillation_loss(
            student,
            teacher,
            labels,
            temperature=self.temperature,
            ce_weight=self.ce_weight,
            kl_weight=self.kl_weight,
            divergence=self.divergence,
            scale_by_t2=self.scale_by_t2,
            ignore_index=self.ignore_index,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, ce_weight={self.ce_weight}, kl_weight={self.kl_weight}"


class TripletMarginLoss(nn.Module):
    """Module of :func:`amkd_fast.triplet_margin_loss`.

    Args:
        margin: m ≥ 0 in ``relu(D_ap − D_an + m)``.
        mining: ``"hard"``, ``"semihard"``, ``"all"`` or ``"topk"``.
        distance: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"``.
        reduction: ``"mean"``, ``"mean_nonzero"``, ``"sum"`` or ``"none"``.
        options: Further keywords of the function that do not change from batch to batch (``soft_margin``, ``swap``, …).

    Shape:
        ``forward(anchor, labels=None, **tensors)``: embeddings [N, D], labels [N] and the function's tensor keywords
        (``positive``, ``reference``, ``reference_labels``, ``exclude_labels``, ``weight``).

    Example:
        >>> import torch
        >>> from amkd_fast.losses import TripletMarginLoss
        >>> points = torch.tensor([[0.0], [1.0], [3.0]])
        >>> loss = TripletMarginLoss(margin=4.0)(points, torch.tensor([0, 0, 1]))
        >>> f"{loss.item():.4f}"  # (1 - 3 + 4 + 1 - 2 + 4) / 2
        '2.5000'
    """

    def __init__(
        self,
        margin: float = 1.0,
        *,
        mining: str = "hard",
        distance: str = "euclidean",
        reduction: str = "mean",
        **options: object,
    ) -> None:
        super().__init__()
        checks.non_negative("margin", margin)
        self.margin, self.mining, self.distance, self.reduction = margin, mining, distance, reduction
        self.options = options

    def forward(self, anchor: Tensor, labels: Tensor | None = None, **tensors: Tensor | None) -> Tensor:
        return triplet_margin_loss(
            anchor,
            labels,
            margin=self.margin,
            mining=self.mining,
            distance=self.distance,
            reduction=self.reduction,
            **self.options,
            **tensors,
        )

    def extra_repr(self) -> str:
        return f"margin={self.margin}, mining={self.mining!r}, distance={self.distance!r}"


class Adversarial(NamedTuple):
    """M attacked images as :class:`AMKDLoss` sees them; K classes, D features."""

    student: Tensor  # [M, K] the student's logits on the attacked images
    teacher: Tensor  # [M, K] the teacher's
    base: Tensor  # [M] class the attack started from
    target: Tensor  # [M] class it went to
    source: Tensor  # [M] row of the clean batch that each came from
    weight: Tensor | None = None  # [M] floating, 0 for a rejected sample; None: all count
    student_features: Tensor | None = None  # [M, D], for space="features"


class AMKDTerms(NamedTuple):
    """What :class:`AMKDLoss` returns; ``total`` has the graph, the others (unweighted) are for logging."""

    total: Tensor
    ce: Tensor
    kl: Tensor
    boundary: Tensor
    triplet: Tensor


class AMKDLoss(nn.Module):
    r"""Adversarial Metric Knowledge Distillation: a **reconstruction**; only the paper's abstract is public.

    .. math::
        L = ce·CE(z_s, y) + α·S_T(z_t, z_s) + β·[S_T(Z_t, Z_s) + γ·L_{tri}], \qquad
        L_{tri} = Σ_i w_i [D(A_i, P_i) − D(A_i, N_i) + m]_+ / Σ_i w_i

    with clean logits z and logits Z of attacked images, S_T the softened KL divergence. Samples of weight 0 and samples
    without a valid negative leave both sums. α and β usually fall during training: both can be given at every call. A
    memory of past student rows that widens the pool of negatives is not written yet.

    The scale decides whether this trains at all: with T² in the boundary term and β = 2, or with γ ≥ 1, a pilot on
    handwritten digits lost up to 40 points of accuracy. The defaults are that pilot's and were found on that one set.

    Args:
        temperature: T > 0 of both S_T.
        ce_weight: Weight of the cross-entropy on the clean images.
        kl_weight: α, weight of the divergence on the clean images.
        boundary_weight: β, weight of everything that involves attacked images.
        triplet_weight: γ, weight of the triplet term inside β's bracket; 0 gives BSS.
        margin: m ≥ 0.
        variant: Anchor A and positive P: ``"student_space"`` (A the student's attacked row, P its clean row),
            ``"teacher_anchor"`` (A the teacher's attacked row without gradient, P the student's attacked row),
            ``"batch_hard"`` (A the student's attacked row, P the farthest clean row of the base class).
        negatives: Clean rows that may be negatives: ``"other"`` (class neither base nor target), ``"not_base"``, or
            ``"target"`` (only the target class; not sensible with an attack that jumps over the boundary).
        selector: ``"hardest"`` (nearest), ``"semihard"`` or ``"uniform"`` (drawn by the counter-based generator).
        space: ``"logits"``, ``"probabilities"`` (softened by T) or ``"features"`` (not with ``teacher_anchor``).
        distance: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"``.
        scale_by_t2: Multiply the clean divergence by T².
        boundary_scale_by_t2: Multiply the boundary divergence by T².

    Raises:
        ValueError: A choice, number or shape breaks the rules above.

    Source:
        AMKD: ICCIP 2020 (abstract). BSS: Heo et al., Knowledge Distillation with Adversarial Samples Supporting
        Decision Boundary, AAAI 2019. ``teacher_anchor``: Oki et al., Triplet Loss for Knowledge Distillation, 2020.

    Example:
        >>> import torch
        >>> from amkd_fast.losses import Adversarial, AMKDLoss
        >>> clean, attacked = torch.eye(4, requires_grad=True), torch.full((1, 4), 0.25, requires_grad=True)
        >>> rows = Adversarial(attacked, torch.tensor([[2.0, 1.9, 0.0, 0.0]]), base=torch.tensor([0]),
        ...                    target=torch.tensor([1]), source=torch.tensor([0]))
        >>> loss = AMKDLoss(triplet_weight=0.3)(clean, 4 * torch.eye(4), torch.arange(4), rows)
        >>> loss.total.backward()
        >>> f"{loss.boundary.item():.4f} {loss.triplet.item():.4f}"
        '0.0503 1.0000'
    """

    def __init__(
        self,
        *,
        temperature: float = 3.0,
        ce_weight: float = 1.0,
        kl_weight: float = 1.0,
        boundary_weight: float = 1.0,
        triplet_weight: float = 0.3,
        margin: float = 1.0,
        variant: str = "student_space",
        negatives: str = "other",
        selector: str = "hardest",
        space: str = "logits",
        distance: str = "euclidean",
        scale_by_t2: bool = False,
        boundary_scale_by_t2: bool = False,
    ) -> None:
        super().__init__()
        checks.choice("variant", variant, VARIANTS)
        checks.choice("negatives", negatives, NEGATIVES)
        checks.choice("selector", selector, SELECTORS)
        checks.choice("space", space, SPACES)
        checks.choice("distance", distance, ("euclidean", "sqeuclidean", "cosine"))
        if space == "features" and variant == "teacher_anchor":
            raise ValueError(
                f"space={space!r}: must not be used with variant='teacher_anchor', whose anchor has the teacher's width"
            )
        if selector != "hardest" and variant == "batch_hard":
            raise ValueError(f"selector={selector!r}: must be 'hardest' with variant='batch_hard'")
        self.temperature = checks.positive("temperature", temperature)
        self.ce_weight = checks.non_negative("ce_weight", ce_weight)
        self.kl_weight = checks.non_negative("kl_weight", kl_weight)
        self.boundary_weight = checks.non_negative("boundary_weight", boundary_weight)
        self.triplet_weight = checks.non_negative("triplet_weight", triplet_weight)
        self.margin = checks.non_negative("margin", margin)
        self.variant, self.negatives, self.selector, self.space = variant, negatives, selector, space
        self.distance = distance
        self.scale_by_t2, self.boundary_scale_by_t2 = scale_by_t2, boundary_scale_by_t2

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        adversarial: Adversarial | None = None,
        *,
        student_features: Tensor | None = None,
        kl_weight: float | None = None,
        boundary_weight: float | None = None,
        seed: int = 0,
    ) -> AMKDTerms:
        """Compute the loss of one batch.

        Args:
            student: The student's logits on the clean images [B, K].
            teacher: The teacher's [B, K].
            labels: Classes [B].
            adversarial: The attacked images; None, or M = 0, leaves the distillation terms alone.
            student_features: The student's features on the clean images [B, D], for ``space="features"``.
            kl_weight: α of this call instead of the module's.
            boundary_weight: β of this call instead of the module's.
            seed: Of the draws of ``selector="uniform"``; change it from step to step.

        Returns:
            ``AMKDTerms(total, ce, kl, boundary, triplet)``, scalars.
        """
        clean = distillation_loss(
            student,
            teacher,
            labels,
            temperature=self.temperature,
            ce_weight=self.ce_weight,
            kl_weight=self.kl_weight if kl_weight is None else kl_weight,
            scale_by_t2=self.scale_by_t2,
        )
        beta = (
            self.boundary_weight if boundary_weight is None else checks.non_negative("boundary_weight", boundary_weight)
        )
        if adversarial is None or adversarial.student.shape[0] == 0 or beta == 0.0:
            zero = torch.zeros_like(clean.ce)
            return AMKDTerms(clean.total, clean.ce, clean.kl, zero, zero)
        boundary = self._boundary(adversarial)
        total = boundary
        triplet = torch.zeros_like(boundary)
        if self.triplet_weight > 0.0:
            triplet = self._triplet(student, labels, adversarial, student_features, seed)
            total = total + self.triplet_weight * triplet
        return AMKDTerms(clean.total + beta * total, clean.ce, clean.kl, boundary.detach(), triplet.detach())

    def _boundary(self, rows: Adversarial) -> Tensor:
        """S_T on the attacked images, mean over the weights."""
        weight = rows.weight
        if weight is None:
            return kl_div(rows.student, rows.teacher, self.temperature, scale_by_t2=self.boundary_scale_by_t2)
        total = kl_div(
            rows.student,
            rows.teacher,
            self.temperature,
            weight=weight,
            scale_by_t2=self.boundary_scale_by_t2,
            reduction="sum",
        )
        return total / _at_least_tiny(weight.sum())

    def _triplet(
        self, student: Tensor, labels: Tensor, rows: Adversarial, features: Tensor | None, seed: int
    ) -> Tensor:
        if self.space == "features":
            if features is None or rows.student_features is None:
                raise ValueError(
                    "space='features': needs student_features here and in adversarial, but one of them is None"
                )
            clean, attacked = features, rows.student_features
        else:
            clean, attacked = self._embed(student), self._embed(rows.student)
        anchor, positive = attacked, None
        if self.variant == "teacher_anchor":
            anchor, positive = self._embed(rows.teacher.detach()), attacked
        elif self.variant == "student_space":
            positive = clean[rows.source]
        if self.negatives == "target" or self.selector == "uniform":
            return self._masked(anchor, positive, clean, labels, rows, seed)
        return triplet_margin_loss(
            anchor,
            rows.base,
            positive=positive,
            reference=clean,
            reference_labels=labels,
            exclude_labels=rows.target if self.negatives == "other" else None,
            margin=self.margin,
            mining="semihard" if self.selector == "semihard" else "hard",
            distance=self.distance,
            weight=None if rows.weight is None else rows.weight.to(anchor.dtype),
        )

    def _masked(
        self, anchor: Tensor, positive: Tensor | None, clean: Tensor, labels: Tensor, rows: Adversarial, seed: int
    ) -> Tensor:
        """The choices that ``triplet_margin_loss`` has no argument for: one class of negatives, and a uniform draw."""
        same_base, same_target = (labels == rows.base[:, None], labels == rows.target[:, None])  # [M, B]
        mask = same_target if self.negatives == "target" else ~same_base
        if self.negatives == "other":
            mask = mask & ~same_target
        with torch.no_grad():
            table = self._distance(anchor[:, None], clean)  # [M, B]
            if positive is None:
                farthest = table.masked_fill(~same_base, -torch.inf).argmax(1)
        found = torch.ones_like(mask[:, 0])
        if positive is None:
            positive, found = clean[farthest], same_base.any(1)
        d_ap = self._distance(anchor, positive)
        if self.selector == "semihard":
            mask = mask & (table > d_ap.detach()[:, None]) & (table < d_ap.detach()[:, None] + self.margin)
        if self.selector == "uniform":
            draw = philox.uniform(seed, torch.arange(len(mask), device=mask.device), stream=_STREAM)
            rank = 1 + (draw * mask.sum(1)).long().clamp(max=(mask.sum(1) - 1).clamp(min=0))
            chosen = (mask.cumsum(1) >= rank[:, None]).int().argmax(1)
        else:
            chosen = table.masked_fill(~mask, torch.inf).argmin(1)
        weight = (found & mask.any(1)).to(anchor.dtype)
        if rows.weight is not None:
            weight = weight * rows.weight.to(anchor.dtype)
        cost = F.relu(d_ap - self._distance(anchor, clean[chosen]) + self.margin)
        return (weight * cost).sum() / _at_least_tiny(weight.sum())

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Between the rows of two tensors, over the last dimension; the gradient at distance 0 is 0."""
        if self.distance == "cosine":
            return 1.0 - F.cosine_similarity(a, b, dim=-1)
        squared = (a - b).square().sum(-1)
        if self.distance == "sqeuclidean":
            return squared
        apart = squared > 0.0
        return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)

    def _embed(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits / self.temperature, -1) if self.space == "probabilities" else logits

    def extra_repr(self) -> str:
        return (
            f"variant={self.variant!r}, negatives={self.negatives!r}, selector={self.selector!r}, "
            f"space={self.space!r}, triplet_weight={self.triplet_weight}, margin={self.margin}"
        )


def _at_least_tiny(total: Tensor) -> Tensor:
    """A denominator that turns «no weight at all» into 0."""
    return total.clamp(min=torch.finfo(total.dtype).tiny)
