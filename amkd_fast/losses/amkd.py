"""Adversarial Metric Knowledge Distillation as one loss: KD, attacked images, and triplets among them."""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast import checks, philox, ranks
from amkd_fast.memory import EMPTY, CrossBatchMemory
from amkd_fast.ops.kl import distillation_loss, kl_div
from amkd_fast.ops.triplet import triplet_margin_loss
from amkd_fast.typing import Distance, Negatives, Selector, Space, Variant

VARIANTS: tuple[Variant, ...] = get_args(Variant)
NEGATIVES: tuple[Negatives, ...] = get_args(Negatives)
SELECTORS: tuple[Selector, ...] = get_args(Selector)
SPACES: tuple[Space, ...] = get_args(Space)
_STREAM = 0x7269  # of the draws of selector="uniform", apart from those of the attack


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
    memory of past student rows widens the pool of negatives.

    With ``distributed=True`` every rank gives its own images and gets the loss of one process with the whole batch, and
    that loss's gradient for its own rows; DistributedDataParallel averages gradients, so multiply by the world size.

    The scale decides whether this trains at all: with T² in the boundary term and β = 2, or with γ ≥ 1, a pilot on
    handwritten digits lost up to 40 points of accuracy. ``variant`` and γ are those that harmed least on validation
    images of CIFAR-10 (``docs/benchmarks/cifar10.md``).

    Args:
        temperature: T > 0 of both S_T. The defaults here are T = 3, CE 1, divergence 1, without T²; those of
            :func:`amkd_fast.distillation_loss` (4, 0.1, 0.9, with T²) and :class:`amkd_fast.methods.KD` (3, 1,
            4 falling to 1, without T²) are others.
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
        memory: A :class:`amkd_fast.CrossBatchMemory` as wide as the rows of ``space``. Its rows are negatives beside
            those of the batch, never positives; a call with ``adversarial`` and β above 0 puts the clean rows into it.
        distributed: Compute over the ranks of the default process group.

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
        >>> loss = AMKDLoss()(clean, 4 * torch.eye(4), torch.arange(4), rows)
        >>> loss.total.backward()
        >>> f"{loss.boundary.item():.4f} {loss.triplet.item():.4f}"
        '0.0503 0.4968'
    """

    def __init__(
        self,
        *,
        temperature: float = 3.0,
        ce_weight: float = 1.0,
        kl_weight: float = 1.0,
        boundary_weight: float = 1.0,
        triplet_weight: float = 0.1,
        margin: float = 1.0,
        variant: Variant = "teacher_anchor",
        negatives: Negatives = "other",
        selector: Selector = "hardest",
        space: Space = "logits",
        distance: Distance = "euclidean",
        scale_by_t2: bool = False,
        boundary_scale_by_t2: bool = False,
        memory: CrossBatchMemory | None = None,
        distributed: bool = False,
    ) -> None:
        super().__init__()
        checks.choice("variant", variant, VARIANTS)
        checks.choice("negatives", negatives, NEGATIVES)
        checks.choice("selector", selector, SELECTORS)
        checks.choice("space", space, SPACES)
        checks.choice("distance", distance, get_args(Distance))
        if space == "features" and variant == "teacher_anchor":
            raise ValueError(
                f"space={space!r}: must not be used with variant='teacher_anchor', whose anchor has the teacher's "
                "width; variant='student_space' compares features"
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
        if memory is not None and not isinstance(memory, CrossBatchMemory):
            raise TypeError(f"memory is a {type(memory).__name__}: must be a CrossBatchMemory or None")
        self.memory, self.distributed = memory, distributed

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        adversarial: Adversarial | None = None,
        *,
        student_features: Tensor | None = None,
        kl_weight: float | Tensor | None = None,
        boundary_weight: float | Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> AMKDTerms:
        """Compute the loss of one batch.

        Args:
            student: The student's logits on the clean images [B, K].
            teacher: The teacher's [B, K].
            labels: Classes [B]; with ``distributed`` every label counts.
            adversarial: The attacked images; None, or M = 0 on all ranks, leaves the distillation terms alone.
            student_features: The student's features on the clean images [B, D], for ``space="features"``.
            kl_weight: α of this call instead of the module's; a float, or a tensor of no dimensions.
            boundary_weight: β of this call instead of the module's, likewise.
            seed: Of the draws of ``selector="uniform"``, an int or an int64 tensor of no dimensions; change it from
                step to step. None draws one from torch's generator of the device.

        Returns:
            ``AMKDTerms(total, ce, kl, boundary, triplet)``, scalars.
        """
        alpha = self.kl_weight if kl_weight is None else kl_weight
        beta = self.boundary_weight if boundary_weight is None else boundary_weight
        if not isinstance(beta, Tensor):
            beta = checks.non_negative("boundary_weight", beta)
        spread = self.distributed and ranks.require_group() > 1
        clean = self._clean(student, teacher, labels, alpha, spread)
        zero = torch.zeros_like(clean.ce)
        if adversarial is None or (not isinstance(beta, Tensor) and beta == 0):
            return AMKDTerms(clean.total, clean.ce, clean.kl, zero, zero)
        if _none(adversarial.base, spread):
            if self.memory is not None:
                _remember(self.memory, self._space(student, student_features), labels, spread)
            return AMKDTerms(clean.total, clean.ce, clean.kl, zero, zero)
        adversarial = _without_hidden_rows(adversarial)
        boundary = self._boundary(adversarial, spread)
        total = boundary
        triplet = torch.zeros_like(boundary)
        if self.triplet_weight > 0.0:
            triplet = self._triplet(student, labels, adversarial, student_features, seed, spread)
            total = total + self.triplet_weight * triplet
        return AMKDTerms(clean.total + beta * total, clean.ce, clean.kl, boundary.detach(), triplet.detach())

    def _clean(self, student: Tensor, teacher: Tensor, labels: Tensor, alpha: float | Tensor, spread: bool):
        if isinstance(alpha, Tensor):
            alpha = alpha.to(torch.promote_types(student.dtype, torch.float32)).expand(labels.shape)
        terms = distillation_loss(
            student,
            teacher,
            labels,
            temperature=self.temperature,
            ce_weight=self.ce_weight,
            kl_weight=alpha,
            scale_by_t2=self.scale_by_t2,
        )
        if not spread:
            return terms
        return type(terms)(*(ranks.mean_over_rows(term, student) for term in terms))

    def _boundary(self, rows: Adversarial, spread: bool) -> Tensor:
        """S_T on the attacked images, mean over the weights."""
        weight = torch.ones_like(rows.student[:, 0]) if rows.weight is None else rows.weight
        total = kl_div(
            rows.student,
            rows.teacher,
            self.temperature,
            weight=weight,
            scale_by_t2=self.boundary_scale_by_t2,
            reduction="sum",
        )
        return _mean(total, weight.sum(), spread)

    def _triplet(
        self,
        student: Tensor,
        labels: Tensor,
        rows: Adversarial,
        features: Tensor | None,
        seed: int | Tensor | None,
        spread: bool,
    ) -> Tensor:
        clean, attacked = self._space(student, features), self._space(rows.student, rows.student_features)
        anchor, positive = attacked, None
        if self.variant == "teacher_anchor":
            anchor, positive = self._embed(rows.teacher.detach()).to(attacked.dtype), attacked
        elif self.variant == "student_space":
            positive = clean[rows.source]
        # Past rows are no positives, which a selection by label alone would let them be.
        choose = self.negatives == "target" or self.selector == "uniform"
        choose = choose or (self.memory is not None and positive is None)
        weight = None if rows.weight is None else rows.weight.to(anchor.dtype)
        rule = self._chosen if choose else self._mined
        loss = rule(anchor, positive, clean, labels, rows._replace(weight=weight), seed, spread)
        if self.memory is not None:
            _remember(self.memory, clean, labels, spread)
        return loss

    def _mined(self, anchor, positive, clean, labels, rows: Adversarial, seed, spread: bool) -> Tensor:
        """By the fused selection."""
        exclude = rows.target[:, None] if self.negatives == "other" else None
        if self.memory is not None:
            empty = rows.target.new_full((len(rows.target), 1), EMPTY)
            exclude = empty if exclude is None else torch.cat([empty, exclude], 1)
            # The ring is the same on all ranks, and one copy of it is enough.
            if not spread or dist.get_rank() == 0:
                clean, labels = _with_past(self.memory, clean, labels)
        return triplet_margin_loss(
            anchor,
            rows.base,
            positive=positive,
            reference=clean,
            reference_labels=labels,
            exclude_labels=exclude,
            margin=self.margin,
            mining="semihard" if self.selector == "semihard" else "hard",
            distance=self.distance,
            weight=rows.weight,
            distributed=spread,
        )

    def _chosen(self, anchor, positive, clean, labels, rows: Adversarial, seed, spread: bool) -> Tensor:
        """What the fused selection has no argument for: negatives of one class, a uniform draw, positives that are not
        looked for among past rows."""
        first = 0
        if spread:
            counts, anchors = ranks.counts_of(clean), ranks.counts_of(anchor)
            first = sum(anchors[: dist.get_rank()])
            clean, labels = ranks.Gather.apply(clean, counts), ranks.gather(labels.long(), counts)
        same_base = labels == rows.base[:, None]  # [M, P]
        found = torch.ones_like(rows.base, dtype=torch.bool)
        if positive is None:
            with torch.no_grad():
                farthest = self._distance(anchor[:, None], clean).masked_fill(~same_base, -torch.inf).argmax(1)
            positive, found = clean[farthest], same_base.any(1)
        if self.memory is not None:
            clean, labels = _with_past(self.memory, clean, labels)
            same_base = labels == rows.base[:, None]
        same_target = labels == rows.target[:, None]
        mask = same_target if self.negatives == "target" else ~same_base & (labels != EMPTY)
        if self.negatives == "other":
            mask = mask & ~same_target
        with torch.no_grad():
            table = self._distance(anchor[:, None], clean)  # [M, P]
        d_ap = self._distance(anchor, positive)
        if self.selector == "semihard":
            mask = mask & (table > d_ap.detach()[:, None]) & (table < d_ap.detach()[:, None] + self.margin)
        if self.selector == "uniform":
            counter = first + torch.arange(len(mask), device=mask.device)
            draw = philox.uniform(philox.chosen_seed(seed, counter.device), counter, stream=_STREAM)
            rank = 1 + (draw * mask.sum(1)).long().clamp(max=(mask.sum(1) - 1).clamp(min=0))
            chosen = (mask.cumsum(1) >= rank[:, None]).int().argmax(1)
        else:
            chosen = table.masked_fill(~mask, torch.inf).argmin(1)
        weight = (found & mask.any(1)).to(anchor.dtype)
        if rows.weight is not None:
            weight = weight * rows.weight
        cost = F.relu(d_ap - self._distance(anchor, clean[chosen]) + self.margin)
        return _mean((weight * cost).sum(), weight.sum(), spread)

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Between the rows of two tensors, over the last dimension; the gradient at distance 0 is 0."""
        if self.distance == "cosine":
            return 1.0 - F.cosine_similarity(a, b, dim=-1)
        squared = (a - b).square().sum(-1)
        if self.distance == "sqeuclidean":
            return squared
        apart = squared > 0.0
        return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)

    def _space(self, logits: Tensor, features: Tensor | None) -> Tensor:
        """Rows of the space that distances are taken in, fp32 at least."""
        if self.space != "features":
            rows = self._embed(logits)
        elif features is None:
            raise ValueError(
                "space='features': needs student_features here and in adversarial, but one of them is None"
            )
        else:
            rows = features
        return rows.to(torch.promote_types(rows.dtype, torch.float32))

    def _embed(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits / self.temperature, -1) if self.space == "probabilities" else logits

    def extra_repr(self) -> str:
        return (
            f"variant={self.variant!r}, negatives={self.negatives!r}, selector={self.selector!r}, "
            f"space={self.space!r}, triplet_weight={self.triplet_weight}, margin={self.margin}"
        )


def _remember(memory: CrossBatchMemory, clean: Tensor, labels: Tensor, spread: bool) -> None:
    """Put the clean rows of all ranks into the memory."""
    clean, labels = clean.detach(), labels.long()
    if spread:
        counts = ranks.counts_of(clean)
        clean, labels = ranks.gather(clean, counts), ranks.gather(labels, counts)
    memory.update(clean, labels)


def _with_past(memory: CrossBatchMemory, clean: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The clean rows followed by the memory's, whose empty places have the label EMPTY."""
    found = memory.reference(clean, labels)
    return found["reference"], found["reference_labels"]


def _without_hidden_rows(rows: Adversarial) -> Adversarial:
    """Zeros in the rows of weight 0, which are not read: 0 times NaN is NaN."""
    if rows.weight is None:
        return rows
    hidden = (rows.weight == 0)[:, None]
    given = {"student": rows.student, "teacher": rows.teacher, "student_features": rows.student_features}
    return rows._replace(**{name: x.masked_fill(hidden, 0.0) for name, x in given.items() if x is not None})


def _mean(total: Tensor, size: Tensor, spread: bool) -> Tensor:
    """total / size, over the ranks where it is spread over them; 0 where there is nothing."""
    if spread:
        return ranks.MeanOverAll.apply(total, size)[0]
    return total / size.clamp(min=torch.finfo(size.dtype).tiny)


def _none(rows: Tensor, spread: bool) -> bool:
    """Whether no rank has a row."""
    return sum(ranks.counts_of(rows)) == 0 if spread else rows.shape[0] == 0
