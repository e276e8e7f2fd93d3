"""How alike the decision boundaries of two networks are: MagSim and AngSim."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from amkd_fast import checks, philox
from amkd_fast.attacks import arguments
from amkd_fast.attacks import batches as sets
from amkd_fast.attacks.boundary import BoundaryAttack, Status
from amkd_fast.attacks.frozen import FrozenModel
from amkd_fast.attacks.loop import LogitsOf
from amkd_fast.attacks.pixels import Numbers
from amkd_fast.ops.attack import draw_targets
from amkd_fast.ops.attack.reference import best_other
from amkd_fast.typing import PairTargets, PresetName, Switch

TARGETS: tuple[PairTargets, ...] = get_args(PairTargets)


class BoundaryPairs(NamedTuple):
    """Every pair of boundary samples that :func:`boundary_similarity` searched, P in all, on the CPU.

    Attributes:
        image: int64 [P], number of the base sample, counted over all images in the order in which they came.
        base: int64 [P], the class that both networks give it.
        target: int64 [P], the class that both attacks were sent to.
        student_status: int64 [P], codes of :class:`amkd_fast.attacks.Status`.
        teacher_status: int64 [P], likewise.
        student_distance: float64 [P], ‖v_s‖₂ in the units of the images.
        teacher_distance: float64 [P], ‖v_t‖₂, likewise.
        magnitude: float64 [P], min(‖v_s‖, ‖v_t‖)/max(‖v_s‖, ‖v_t‖); NaN where both are 0.
        angle: float64 [P], cos(v_s, v_t); NaN where one of them is 0.
        used: bool [P], the pairs that the means are taken over.
    """

    image: Tensor
    base: Tensor
    target: Tensor
    student_status: Tensor
    teacher_status: Tensor
    student_distance: Tensor
    teacher_distance: Tensor
    magnitude: Tensor
    angle: Tensor
    used: Tensor


class BoundarySimilarity(NamedTuple):
    """What :func:`boundary_similarity` returns.

    Attributes:
        magnitude: MagSim, in [0, 1]; NaN where ``count`` is 0.
        angle: AngSim, in [−1, 1]; NaN where ``count`` is 0.
        magnitude_error: Standard error of ``magnitude``; NaN with pairs of fewer than two base samples. The pairs of
            one base sample are not independent and count as one cluster.
        angle_error: Standard error of ``angle``, likewise.
        count: Pairs in the means.
        attempted: Pairs searched: ``count`` and ``pairs_left_out`` together.
        bases: Base samples they were searched from.
        images: Images seen: ``bases`` and ``images_left_out`` together.
        images_left_out: Numbers of images by reason: with labels ``"student_wrong"`` (the student alone),
            ``"teacher_wrong"`` (the teacher alone) and ``"both_wrong"``; without them ``"disagree"``.
        pairs_left_out: Numbers of pairs by reason: ``"student_missed"`` (the student's attack alone did not end in the
            target), ``"teacher_missed"``, ``"both_missed"``, and ``"no_angle"`` (a perturbation of length 0, or one
            that is not finite).
        pairs: The single values, for other statistics (a bootstrap should draw whole base samples).
    """

    magnitude: float
    angle: float
    magnitude_error: float
    angle_error: float
    count: int  # type: ignore[assignment]  # hides tuple.count, and is public
    attempted: int
    bases: int
    images: int
    images_left_out: dict[str, int]
    pairs_left_out: dict[str, int]
    pairs: BoundaryPairs


def boundary_similarity(
    student: nn.Module | FrozenModel,
    teacher: nn.Module | FrozenModel,
    batches: Tensor | Iterable,
    *,
    preset: PresetName = "near_boundary",
    steps: int = 10,
    step_size: float | None = None,
    project: bool | None = None,
    refine: int | None = None,
    lower: float | Tensor | None = None,
    upper: float | Tensor | None = None,
    normalisation: tuple[Numbers, Numbers] | None = None,
    targets: PairTargets = "every",
    seed: int = 0,
    pairs_at_once: int = 256,
    compact: Switch = "auto",
    logits_of: LogitsOf | None = None,
    progress: sets.Progress | None = None,
) -> BoundarySimilarity:
    """Compare the decision boundaries of two networks by the boundary samples of the same images.

    Each base sample, an image that both networks classify rightly (without labels: alike), is pushed over both
    boundaries to the same target class by the same attack. With the perturbations v = boundary sample − image, over
    all pairs in which both attacks ended in the target class:

    - MagSim = mean of min(‖v_s‖, ‖v_t‖)/max(‖v_s‖, ‖v_t‖),
    - AngSim = mean of v_s·v_t/(‖v_s‖ ‖v_t‖)

    (Heo et al., AAAI 2019, "Knowledge Distillation with Adversarial Samples Supporting Decision Boundary"). Both are 1
    for a network and itself. The presets' ``retarget`` is off here: each network would choose a class of its own.

    The networks stay as they are and may be on different devices. Perturbations are measured in float64. A search holds
    ``pairs_at_once`` images, and every pair leaves 73 bytes behind until the end.

    Args:
        student: The network, or a view of it by :func:`amkd_fast.attacks.frozen`.
        teacher: Likewise, with the same classes and for the same images.
        batches: Images [N, ...]; or ``(images, labels)``, labels int64 or int32 [N]; or an iterable (a ``DataLoader``)
            of such batches, in which parts after the second are passed over. They are brought to the networks.
        preset: As in :class:`amkd_fast.attacks.BoundaryAttack`, also the following.
        steps: Largest number of steps of an attack.
        step_size: None takes the preset's.
        project: None takes the preset's.
        refine: None takes the preset's.
        lower: Smallest pixel value, a number or one per channel [C], in the units of the images.
        upper: Largest pixel value, likewise.
        normalisation: As in :class:`amkd_fast.attacks.BoundaryAttack`, for both networks.
        targets: ``"every"`` other class in turn (the paper's way, K − 1 pairs a base sample); one ``"drawn"`` from the
            teacher's distribution by :func:`amkd_fast.ops.attack.draw_targets`; or the teacher's ``"runner_up"``.
        seed: Of the drawn targets; image number i takes number i, whatever the batches.
        pairs_at_once: Largest number of pairs attacked together, ≥ 1.
        compact: As in :class:`amkd_fast.attacks.BoundaryAttack`.
        logits_of: Picks the logits [B, K] from the outputs of either network.
        progress: Called after every batch with the number of batches done and that of all (None: not known).

    Returns:
        :class:`BoundarySimilarity`.

    Raises:
        TypeError: An argument has another type than the above.
        ValueError: An argument's value breaks a rule above, or the networks differ in their classes or have only one.

    Example:
        >>> import torch, amkd_fast as af
        >>> student, teacher = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
        >>> student.weight.data = torch.tensor([[1.0, 0.0], [0.0, 0.0]])  # its boundary: the axis x₀ = 0
        >>> teacher.weight.data = torch.eye(2)  # its boundary: the diagonal, at 45° to it
        >>> images, labels = torch.tensor([[4.0, 0.0], [2.0, -1.0]]), torch.tensor([0, 0])
        >>> result = af.attacks.boundary_similarity(student, teacher, (images, labels))
        >>> f"{result.magnitude:.3f} {result.angle:.3f}", result.count
        ('0.825 0.707', 2)
    """
    checks.choice("targets", targets, TARGETS)
    arguments.check_count("pairs_at_once", pairs_at_once, 1)
    seed = philox.check_seed(seed, torch.device("cpu"))
    options: dict[str, Any] = {
        "preset": preset,
        "steps": steps,
        "step_size": step_size,
        "project": project,
        "refine": refine,
        "retarget": False,
        "lower": lower,
        "upper": upper,
        "normalisation": normalisation,
        "compact": compact,
        "logits_of": logits_of,
    }
    comparison = _Comparison(BoundaryAttack(student, **options), BoundaryAttack(teacher, **options))
    home = sets.device_of(comparison.teacher.model)
    for images, labels in sets.walk(batches, home, size=pairs_at_once, progress=progress):
        rows, base, target = comparison.bases(images, labels, targets, seed)
        for part in zip(*(column.split(pairs_at_once) for column in (rows, base, target)), strict=True):
            comparison.measure(images, *part)
        comparison.images += images.shape[0]
    return comparison.result()


class _Comparison:
    """What has been found so far; every tensor lives with the teacher."""

    def __init__(self, student: BoundaryAttack, teacher: BoundaryAttack) -> None:
        self.student, self.teacher = student, teacher
        self.student_device = sets.device_of(student.model)
        self.images = self.eligible = 0
        self.left_out: Counter[str] = Counter()
        self.found: list[tuple[Tensor, ...]] = []

    def bases(
        self, images: Tensor, labels: Tensor | None, targets: PairTargets, seed: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, base classes and target classes of the pairs of a batch, each int64 [P]."""
        teacher = sets.predict(self.teacher.model, self.teacher.logits_of, images)
        student = sets.predict(self.student.model, self.student.logits_of, images.to(self.student_device))
        _check_classes(student, teacher)
        rows = self._eligible(student.argmax(1).to(teacher.device), teacher.argmax(1), labels)
        self.eligible += rows.numel()
        logits = teacher[rows]
        base = logits.argmax(1)
        if targets == "every":
            other = torch.arange(logits.shape[1] - 1, device=base.device)
            target = other + (other >= base[:, None])  # [E, K - 1]
        elif targets == "drawn":
            target = draw_targets(logits, base, seed=seed, rows=self.images + rows)[:, None]
        else:
            target = best_other(logits, base)[:, None]
        each = target.shape[1]
        return rows.repeat_interleave(each), base.repeat_interleave(each), target.flatten()

    def measure(self, images: Tensor, rows: Tensor, base: Tensor, target: Tensor) -> None:
        """Attack both networks from the same images and keep what the pairs have in common."""
        clean = images[rows]
        teacher = self.teacher(clean, base, target)
        student = self.student(*(x.to(self.student_device) for x in (clean, base, target)))
        status = student.status.to(clean.device)
        v_s = (student.images.to(clean.device).double() - clean.double()).flatten(1)
        v_t = (teacher.images.double() - clean.double()).flatten(1)
        length_s, length_t = (torch.linalg.vector_norm(v, dim=1) for v in (v_s, v_t))
        angle = (v_s / length_s[:, None] * (v_t / length_t[:, None])).sum(1).clamp(-1.0, 1.0)
        magnitude = torch.minimum(length_s, length_t) / torch.maximum(length_s, length_t)
        used = (status == Status.CROSSED) & (teacher.status == Status.CROSSED) & torch.isfinite(angle)
        numbers = (self.images + rows, base, target, status, teacher.status)
        self.found.append((*numbers, length_s, length_t, magnitude, angle, used))

    def result(self) -> BoundarySimilarity:
        pairs = self._pairs()
        missed_s, missed_t = pairs.student_status != Status.CROSSED, pairs.teacher_status != Status.CROSSED
        reasons = {
            "student_missed": missed_s & ~missed_t,
            "teacher_missed": missed_t & ~missed_s,
            "both_missed": missed_s & missed_t,
            "no_angle": ~(missed_s | missed_t | pairs.used),
        }
        image, magnitude, angle = (x[pairs.used] for x in (pairs.image, pairs.magnitude, pairs.angle))
        return BoundarySimilarity(
            magnitude=float(magnitude.mean()),
            angle=float(angle.mean()),
            magnitude_error=_standard_error(magnitude, image),
            angle_error=_standard_error(angle, image),
            count=image.numel(),
            attempted=pairs.used.numel(),
            bases=self.eligible,
            images=self.images,
            images_left_out=dict(self.left_out),
            pairs_left_out={reason: int(flags.sum()) for reason, flags in reasons.items()},
            pairs=pairs,
        )

    def _eligible(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            agree = student == teacher
            reasons = {"disagree": ~agree}
        else:
            right_s, right_t = student == labels, teacher == labels
            agree = right_s & right_t
            reasons = {
                "student_wrong": right_t & ~right_s,
                "teacher_wrong": right_s & ~right_t,
                "both_wrong": ~(right_s | right_t),
            }
        self.left_out.update({reason: int(flags.sum()) for reason, flags in reasons.items()})
        return agree.nonzero()[:, 0]

    def _pairs(self) -> BoundaryPairs:
        if self.found:
            return BoundaryPairs(*(torch.cat(column).cpu() for column in zip(*self.found, strict=True)))
        dtypes = [torch.int64] * 5 + [torch.float64] * 4 + [torch.bool]
        return BoundaryPairs(*(torch.empty(0, dtype=dtype) for dtype in dtypes))


def _standard_error(values: Tensor, cluster: Tensor) -> float:
    """Of the mean of values [n] whose errors are independent between clusters alone (Cochran 1977, chapter 9A)."""
    _, cluster = cluster.unique(return_inverse=True)
    clusters = int(cluster.max()) + 1 if cluster.numel() else 0
    if clusters < 2:
        return math.nan
    sums = values.new_zeros(clusters).index_add_(0, cluster, values - values.mean())
    return float((sums.square().sum() * clusters / (clusters - 1)).sqrt() / values.numel())


def _check_classes(student: Tensor, teacher: Tensor) -> None:
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(f"student has {student.shape[1]} classes and teacher {teacher.shape[1]}: must be as many")
    if teacher.shape[1] < 2:
        raise ValueError("teacher has 1 class: must have at least 2, or there is no boundary")
