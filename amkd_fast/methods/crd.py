"""Contrastive distillation: a student's image is told from others by what the teacher made of them, and conversely."""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast import backends, checks, philox, ranks
from amkd_fast.methods.base import Batch, Losses, Method, StepContext, required
from amkd_fast.methods.outputs import with_features
from amkd_fast.methods.stages import shapes

_STREAM = 0x637264  # of the draws of negatives
# Rows of the memory, as multiples of the negatives, up to which a product with all of it is the faster way to scores.
_DENSE = 32


class CRD(Method):
    """Cross-entropy, and the contrast of both networks' features with memories of the other's (CRD).

    The features before the classifiers pass a linear layer each and are brought to length 1: s and t [B, D]. With
    h = exp(s·t/τ)/Z and c = m/N, s_i is to be told from m others in the memory of the teacher's,

        L_s = −1/B Σ_i [log h_ii/(h_ii + c) + Σ_k log c/(h_ik + c)],

    and t_i likewise in the memory of the student's. Negatives are drawn with replacement from the training images of
    other classes; the memories hold a row for every training image, and after the step that of an image is μ times the
    old one plus 1 − μ times the new one, of length 1. The constants Z are set in the first step, N times the mean of
    exp(s·t/τ) in it.

    The linear layers are this method's parameters, the memories and constants are in its state dict. They are made by
    :meth:`prepare`, from torch's generator, or in the first call, with a warning.

    Args:
        labels: int64 or int32 [N], of the training images, in the order of :attr:`Batch.index`.
        ce_weight: Weight of the cross-entropy.
        contrast_weight: β ≥ 0 of L_s + L_t.
        temperature: τ > 0.
        negatives: m, of each image; N if that is less.
        features: D.
        momentum: μ in [0, 1).
        fold: Without effect: features always come from the teacher as it is.
        distributed: See :class:`Method`; the linear layers' gradients are then those of this rank's rows, too. The
            memories are the same on all ranks.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number breaks a rule above, ``labels`` have a single class, or, when called, ``batch.index`` is
            missing, or a network has no linear layer.

    Source:
        Tian, Krishnan and Isola, Contrastive Representation Distillation, ICLR 2020, equations 17 to 19; sizes,
        momentum and constants of its public code, which draws without replacement where there are enough.

    Example:
        >>> import torch
        >>> from amkd_fast.methods import CRD, Batch, StepContext
        >>> student, teacher = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3).eval()
        >>> labels = torch.arange(40) % 3
        >>> batch = Batch(torch.rand(8, 2), labels[:8], index=torch.arange(8))
        >>> method = CRD(labels, negatives=16, features=4)
        >>> method.prepare(batch.images, teacher, student)
        >>> optimizer = torch.optim.SGD([*student.parameters(), *method.parameters()], lr=0.1)
        >>> losses = method(batch, teacher, student, StepContext(epoch=0, epochs=60, draw=0))
        >>> losses.total.backward()
        >>> sorted(losses.parts), method.teacher_memory.shape
        (['ce', 'contrast'], torch.Size([40, 4]))
    """

    # Buffers that `prepare` makes.
    student_memory: Tensor
    teacher_memory: Tensor
    log_constants: Tensor
    has_constants: Tensor
    # Buffers in no state dict: the class of every row, where a class begins among the rows in the order of theirs, ….
    of_row: Tensor
    order: Tensor
    first: Tensor
    count: Tensor

    def __init__(
        self,
        labels: Tensor,
        *,
        ce_weight: float = 1.0,
        contrast_weight: float = 0.8,
        temperature: float = 0.07,
        negatives: int = 16384,
        features: int = 128,
        momentum: float = 0.5,
        fold: bool = True,
        distributed: bool = False,
    ) -> None:
        super().__init__(fold=fold, distributed=distributed)
        checks.integer("labels", labels)
        if labels.dim() != 1:
            raise ValueError(f"labels.shape={tuple(labels.shape)}: must be [N], one label for each training image")
        self.ce_weight = checks.non_negative("ce_weight", ce_weight)
        self.contrast_weight = checks.non_negative("contrast_weight", contrast_weight)
        self.temperature = checks.positive("temperature", temperature)
        self.negatives = min(checks.whole("negatives", negatives, 1), labels.shape[0])
        self.features = checks.whole("features", features, 1)
        self.momentum = checks.unit("momentum", momentum)
        if self.momentum == 1.0:
            raise ValueError("momentum=1.0: must be below 1, else the memory never learns")
        _, of_row, count = labels.unique(return_inverse=True, return_counts=True)
        if len(count) < 2:
            raise ValueError(f"labels: must have at least two classes, negatives are of another; found {len(count)}")
        order, first = of_row.argsort(stable=True), count.cumsum(0) - count
        for name, value in (("of_row", of_row), ("order", order), ("first", first), ("count", count)):
            self.register_buffer(name, value, persistent=False)
        self._asked = False
        self.student_projection: nn.Linear | None = None
        self.teacher_projection: nn.Linear | None = None

    def prepare(self, images: Tensor, teacher: nn.Module | None, student: nn.Module) -> None:
        if self.student_projection is not None:
            return
        mine, theirs = (shapes(network, (), images, True)[0][1] for network in (student, required(teacher)))
        self.student_projection, self.teacher_projection = (nn.Linear(width, self.features) for width in (mine, theirs))
        largest = math.sqrt(3.0 / self.features)  # rows of length 1, in the mean of squares
        for name in ("student_memory", "teacher_memory"):
            self.register_buffer(name, torch.empty(len(self.of_row), self.features).uniform_(-largest, largest))
        self.register_buffer("log_constants", torch.zeros(2))  # of the student's rows and of the teacher's
        self.register_buffer("has_constants", torch.zeros((), dtype=torch.bool))
        self.to(images.device, images.dtype)

    def forward(self, batch: Batch, teacher: nn.Module | None, student: nn.Module, moment: StepContext) -> Losses:
        teacher = self.must_be_in_eval_mode(teacher)
        if batch.index is None:
            raise ValueError("batch.index=None: must be int64 [B], the rows of the training set that the images are")
        if self.student_projection is None:
            self.prepare(batch.images, teacher, student)
            warnings.warn(
                "CRD made its projections in its first call: an optimizer that was there before does not train them "
                "(call method.prepare first)",
                RuntimeWarning,
                stacklevel=2,
            )
        assert self.student_projection is not None, "prepare makes it"
        assert self.teacher_projection is not None, "prepare makes it"
        with torch.no_grad():
            given = with_features(teacher, batch.images, "teacher", "features")[1]
        logits, learnt = with_features(student, batch.images, asked="features")
        rows = [_unit(self.student_projection(learnt)), _unit(self.teacher_projection(given))]
        ce, contrast = F.cross_entropy(logits, batch.labels), self._contrast(rows, batch.index, moment)
        if self.distributed:
            anchor = logits if len(logits) else torch.cat([part.flatten() for part in (logits, *rows)])
            ce, contrast = (ranks.mean_over_rows(part, anchor) for part in (ce, contrast))
        self._remember(rows, batch.index)
        total = self.ce_weight * ce + self.contrast_weight * contrast
        return Losses(total, {"ce": ce.detach(), "contrast": contrast.detach()})

    def _contrast(self, rows: list[Tensor], index: Tensor, moment: StepContext) -> Tensor:
        """L_s + L_t; the gradients are made at once, before the memories change."""
        candidates = torch.cat([index[:, None], self._drawn(index, moment)], 1)  # [B, 1 + m]
        terms = []
        with torch.enable_grad(), torch.autocast(index.device.type, enabled=False):
            leaves = [part.detach().requires_grad_() for part in rows]
            scores = [
                _scores(leaf, memory, candidates) / self.temperature
                for leaf, memory in zip(leaves, (self.teacher_memory, self.student_memory), strict=True)
            ]
            self._set_constants(scores)
            log_c = math.log(self.negatives / len(self.of_row))
            for leaf, part, constant in zip(leaves, scores, self.log_constants, strict=True):
                odds = part - constant - log_c  # log h/c; log h/(h + c) and log c/(h + c) are those of its sigmoid
                value = (F.softplus(-odds[:, 0]) + F.softplus(odds[:, 1:]).sum(1)).mean()
                (grad,) = torch.autograd.grad(value, leaf)
                terms.append((value.detach(), grad))
        first, second = (_Known.apply(part, *term) for part, term in zip(rows, terms, strict=True))
        return first + second

    @torch.no_grad()
    def _drawn(self, index: Tensor, moment: StepContext) -> Tensor:
        """int64 [B, m]: rows of the training set of other classes than that of the row in ``index``."""
        numbers = ranks.row_numbers(index, self.distributed)
        seed, blocks = self.draw_of(moment, index.device), -(-self.negatives // 4)
        counter = numbers[:, None] * blocks + torch.arange(blocks, device=index.device)
        words = torch.cat(philox.words(seed, counter, stream=_STREAM), 1)[:, : self.negatives]
        own = self.of_row[index]
        first, count = self.first[own, None], self.count[own, None]
        place = (words * (len(self.of_row) - count)) >> 32  # among the others, in the order of their classes
        return self.order[place + count * (place >= first)]

    @torch.no_grad()
    def _set_constants(self, scores: list[Tensor]) -> None:
        """In the first step: log Z of the student's and the teacher's rows."""
        if self._asked:
            return
        means = [part.detach().double().exp().mean() for part in scores]
        if self.distributed:
            means = [ranks.mean_over_rows(mean, part.detach()) for mean, part in zip(means, scores, strict=True)]
        found = torch.stack(means).log() + math.log(len(self.of_row))
        self.log_constants.copy_(torch.where(self.has_constants, self.log_constants, found))  # a resumed run has them
        self.has_constants.fill_(True)
        self._asked = True

    @torch.no_grad()
    def _remember(self, rows: list[Tensor], index: Tensor) -> None:
        counts = ranks.counts_of(index) if self.distributed else None
        index = index if counts is None else ranks.gather(index, counts)
        for memory, part in zip((self.student_memory, self.teacher_memory), rows, strict=True):
            part = part.detach() if counts is None else ranks.gather(part.detach(), counts)
            memory[index] = F.normalize(torch.lerp(part.to(memory.dtype), memory[index], self.momentum))


class _Known(torch.autograd.Function):
    """A value whose gradient in ``rows`` is known already."""

    @staticmethod
    def forward(ctx, rows: Tensor, value: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return value.clone()

    @staticmethod
    def backward(ctx, grad_value: Tensor) -> tuple[Tensor, None, None]:
        if backends.differentiates():
            raise RuntimeError("CRD: has no second derivatives, its memories have changed (create_graph=True)")
        return grad_value * ctx.saved_tensors[0], None, None


def _unit(rows: Tensor) -> Tensor:
    """Rows of length 1 in fp32 at least."""
    return F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)))


def _scores(rows: Tensor, memory: Tensor, candidates: Tensor) -> Tensor:
    """⟨rows_i, memory_k⟩ for the k in row i of ``candidates``: [B, 1 + m]."""
    if len(memory) <= _DENSE * candidates.shape[1]:
        return (rows @ memory.T).gather(1, candidates)
    return torch.einsum("bd,bkd->bk", rows, memory[candidates])
