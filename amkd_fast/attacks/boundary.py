"""Boundary supporting samples: push images over the decision boundary between two classes of a network."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.attacks import engine
from amkd_fast.attacks.frozen import FrozenModel
from amkd_fast.attacks.surroundings import undisturbed
from amkd_fast.ops.attack import attack_objective, attack_step, draw_targets
from amkd_fast.ops.attack.objective import best_other


class Status(IntEnum):
    """How the search for one boundary sample ended."""

    UNCROSSED = 0  # still in its base class when the steps ran out
    CROSSED = 1  # in the target class it was sent to
    THIRD = 2  # in a third class; with ``retarget`` that class is its target now
    OUTSIDE = 3  # the clean image was not in its base class, so there was no boundary to cross
    FAILED = 4  # the network's logits are not finite
    PADDED = 5  # switched off by ``valid``


class Preset(NamedTuple):
    """The settings of one published or proposed variant."""

    score: str
    norm_power: int
    step_size: float
    accept: str  # "all" or "crossed"
    lower: float | None = None
    upper: float | None = None
    project: bool = False
    refine: int = 0
    retarget: bool = False


PRESETS = {
    "official": Preset("logits", 1, 0.3, "all", -2.5, 2.5),
    "paper": Preset("logits", 1, 0.3, "crossed"),
    "zoo": Preset("softmax", 1, 0.3, "all"),
    "near_boundary": Preset("logits", 2, 1.02, "crossed", project=True, refine=4, retarget=True),
}


class BoundarySamples(NamedTuple):
    """What :class:`BoundaryAttack` returns, for M images and K classes. Nothing carries a graph.

    Attributes:
        images: [M, ...], dtype and memory format of the input.
        logits: [M, K], the network's logits on ``images``; zeros in padded rows.
        target: int64 [M], the class each sample was sent to, or landed in where it was retargeted.
        status: int64 [M], codes of :class:`Status`.
        steps: int64 [M], steps taken, which is also the number of gradients spent on the sample.
        gap: [M], f_base − f_target on ``images``, in the preset's score; negative beyond the boundary; 0 in padding.
        accepted: bool [M], the samples that the preset keeps for training.
        base: int64 [M], the class each sample was to leave.
        gaps: [steps + 1, M] when asked for, else None: the gap at the start and after every step, before the
            bisections; a finished sample repeats its last one; NaN in padded rows.
    """

    images: Tensor
    logits: Tensor
    target: Tensor
    status: Tensor
    steps: Tensor
    gap: Tensor
    accepted: Tensor
    base: Tensor
    gaps: Tensor | None = None


class BoundaryAttack:
    """Search for boundary supporting samples (Heo et al., AAAI 2019) on a frozen network.

    Each image steps from its base class b toward its target class k (:func:`amkd_fast.attack_step` with
    ``norm="boundary"``) until the network's prediction leaves b or the steps run out.

    ================  ========  =====================  ==========================  =======================
    preset            score     step                   accepts                     bounds by default
    ================  ========  =====================  ==========================  =======================
    official [V]      logits    unit, η 0.3            all                         −2.5, 2.5
    paper             logits    unit, η 0.3            crossed                     none: give the pixels'
    zoo [V]           softmax   unit, η 0.3            all                         none: give the pixels'
    near_boundary     logits    projected newton 1.02  crossed, third retargeted   none: give the pixels'
    ================  ========  =====================  ==========================  =======================

    [V]: as read in public code. ``near_boundary`` is ours. The presets ``paper``, ``zoo`` and ``near_boundary`` mean
    the valid pixel range of the images' own normalisation, which only the caller knows: give ``lower`` and ``upper``.

    The attack runs eagerly on a CPU and, in this version, on a GPU, with one host synchronisation a step for the early
    exit. It honours an autocast context around the call. The caller's random state is put back afterwards.

    Args:
        model: The network, or a view of it by :func:`amkd_fast.attacks.frozen`; a module is frozen with the defaults.
        preset: ``"official"``, ``"paper"``, ``"zoo"`` or ``"near_boundary"``.
        steps: Largest number of steps, ≥ 1.
        step_size: η > 0; None takes the preset's.
        project: Leave out coordinates that a bound blocks; None takes the preset's.
        refine: Number of bisections, each a forward pass, between the last point inside and the first outside; None
            takes the preset's. With them a sample may end in another class than the one it first landed in.
        retarget: Keep a sample that landed in a third class as one of that class; None takes the preset's.
        lower: Smallest pixel value, a number or one per channel [C], in the units of the images.
        upper: Largest pixel value, likewise.
        capture: ``"auto"`` or False. This version captures no CUDA graph.
        compact: Take finished samples out of the batch; True, False or ``"auto"``, which is True on a CPU.
        logits_of: Picks the logits [B, K] from the outputs of a model that has several.

    Raises:
        TypeError: An argument has another type than the above.
        ValueError: An argument's value breaks a rule above.
        NotImplementedError: ``capture`` is True.

    Example:
        >>> import torch, amkd_fast as af
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.eye(2)
        >>> attack = af.attacks.BoundaryAttack(model, preset="near_boundary", lower=0.0, upper=1.0)
        >>> samples = attack(torch.tensor([[0.9, 0.5]]))
        >>> samples.status.tolist(), samples.target.tolist(), abs(float(samples.gap)) < 0.01
        ([1], [1], True)
    """

    def __init__(
        self,
        model: nn.Module | FrozenModel,
        *,
        preset: str = "near_boundary",
        steps: int = 10,
        step_size: float | None = None,
        project: bool | None = None,
        refine: int | None = None,
        retarget: bool | None = None,
        lower: float | Tensor | None = None,
        upper: float | Tensor | None = None,
        capture: str | bool = "auto",
        compact: str | bool = "auto",
        logits_of: engine.LogitsOf | None = None,
    ) -> None:
        checks.choice("preset", preset, PRESETS)
        engine.check_count("steps", steps, 1)
        engine.check_capture(capture)
        engine.check_switch("compact", compact, "auto")
        if step_size is not None:
            checks.positive("step_size", step_size)
        if refine is not None:
            engine.check_count("refine", refine, 0)
        for name, value in (("project", project), ("retarget", retarget)):
            engine.check_switch(name, value, None)
        given = {
            "step_size": step_size,
            "project": project,
            "refine": refine,
            "retarget": retarget,
            "lower": lower,
            "upper": upper,
        }
        self.model = engine.as_frozen(model)
        self.steps = steps
        self.settings = PRESETS[preset]._replace(**{name: value for name, value in given.items() if value is not None})
        self.compact = compact
        self.logits_of = logits_of

    def __call__(
        self,
        images: Tensor,
        base: Tensor | None = None,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
        seed: int | Tensor | None = None,
        record_gaps: bool = False,
    ) -> BoundarySamples:
        """Attack a batch.

        Args:
            images: [M, ...], floating; M may be 0. Never changed.
            base: int64 or int32 [M], classes to leave; None for the network's own predictions.
            target: int64 or int32 [M], classes to reach, other than ``base``. None draws them by
                :func:`amkd_fast.ops.attack.draw_targets` when a ``seed`` is given, and takes the runner-up otherwise.
            valid: bool [M]; rows that are False stay as they are (status PADDED) and, with compaction, cost nothing.
            seed: Seed of the targets' draw; row i of the batch takes number i.
            record_gaps: Return the gap of every step.

        Returns:
            :class:`BoundarySamples`.

        Raises:
            TypeError: A dtype or a type differs from the above.
            ValueError: A shape, a device or a value breaks a rule above, or the model gives no logits [M, K].
        """
        engine.check_images(images, self.settings.lower, self.settings.upper)
        engine.check_rows("base", base, images)
        engine.check_rows("target", target, images)
        engine.check_rows("valid", valid, images, flags=True)
        with undisturbed(images.device), torch.no_grad():
            search = _Search(self, images, base, target, valid, seed, record_gaps)
            search.step_until_done()
            search.bisect()
            return search.result()


class _Search:
    """One batch on its way. Full-length tensors hold the results; ``rows`` are those still in the working batch."""

    def __init__(self, attack: BoundaryAttack, images, base, target, valid, seed, record_gaps) -> None:
        settings = attack.settings
        device, count = images.device, images.shape[0]
        self.settings, self.limit = settings, attack.steps
        self.network: Callable = attack.model.network(images)
        self.logits_of = attack.logits_of
        self.compact = device.type == "cpu" if attack.compact == "auto" else attack.compact
        self.bounds = {name: engine.to_device(getattr(settings, name), device) for name in ("lower", "upper")}
        self.seed = seed
        self.original = images
        self.images = engine.own(images)
        self.inside = self.images.clone() if settings.refine else None  # the last point inside the base class
        self.base = None if base is None else base.long()
        self.target = None if target is None else target.long()
        self.valid = torch.ones(count, dtype=torch.bool, device=device) if valid is None else valid
        self.steps = torch.zeros(count, dtype=torch.int64, device=device)
        self.logits = None
        self.gaps = [] if record_gaps else None
        drop = self.compact and valid is not None
        self.rows = valid.nonzero()[:, 0] if drop else torch.arange(count, device=device)

    def step_until_done(self) -> None:
        if self.rows.numel() == 0:
            self._begin(self.original.new_zeros((0, engine.count_classes(self.network, self.logits_of, self.original))))
            return
        x, alive = self.images[self.rows], self.valid[self.rows]
        for step in range(self.limit + 1):
            last = step == self.limit
            logits, leaf = engine.evaluate(self.network, self.logits_of, x, grad=not last)
            if step == 0:
                self._begin(logits)
            self._put(self.logits, logits, alive)
            gap, grad_logits, active = self._objective(logits, alive)
            alive = alive & active
            if last:
                return
            keep = alive.nonzero()[:, 0] if self.compact else None
            if not (keep.numel() if self.compact else bool(alive.any())):
                return
            grad = engine.input_gradient(logits, leaf, torch.where(alive[:, None], grad_logits, 0.0))
            del logits, leaf
            if self.compact and keep.numel() < alive.numel():
                self.rows, x, alive, gap, grad = (part[keep] for part in (self.rows, x, alive, gap, grad))
            self.steps.index_add_(0, self.rows, alive.long())
            if self.inside is not None:
                self._put(self.inside, x, alive)
            power = self.settings.norm_power
            options = {"norm": "boundary", "norm_power": power, "project": self.settings.project, **self.bounds}
            x = attack_step(x, grad, step_size=self.settings.step_size, gap=gap, active=alive, **options)
            self._put(self.images, x, alive)

    def bisect(self) -> None:
        crossed = self._left_base(self.logits, self.base) & self.valid & (self.steps > 0)
        if not self.settings.refine:
            return
        self.rows = crossed.nonzero()[:, 0] if self.compact else torch.arange(crossed.numel(), device=crossed.device)
        if self.rows.numel() == 0:
            return
        work = torch.promote_types(self.images.dtype, torch.float32)
        inside, outside = self.inside[self.rows], self.images[self.rows]
        base, crossed = self.base[self.rows], crossed[self.rows]
        for _ in range(self.settings.refine):
            middle = torch.lerp(inside.to(work), outside.to(work), 0.5).to(inside.dtype)
            logits, _ = engine.evaluate(self.network, self.logits_of, middle, grad=False)
            beyond = crossed & self._left_base(logits, base)
            self._put(self.logits, logits, beyond)
            flags = beyond.view(-1, *[1] * (middle.dim() - 1))
            short = (crossed & (logits.argmax(1) == base)).view_as(flags)
            inside, outside = torch.where(short, middle, inside), torch.where(flags, middle, outside)
        self._put(self.images, outside, crossed)

    def result(self) -> BoundarySamples:
        value, _, prediction, _ = self._evaluate_objective(self.logits, self.base, self.target)
        moved, left = self.steps > 0, prediction != self.base
        landed = torch.where(prediction == self.target, Status.CROSSED, Status.THIRD)
        status = torch.where(left, torch.where(moved, landed, Status.OUTSIDE), Status.UNCROSSED)
        status = torch.where(_usable(self.logits) & torch.isfinite(value), status, Status.FAILED)
        status = torch.where(self.valid, status, Status.PADDED)
        accepted = status == Status.CROSSED
        if self.settings.accept == "all":
            accepted = status <= Status.OUTSIDE
        target = self.target
        if self.settings.retarget:
            third = status == Status.THIRD
            accepted = accepted | third
            target = torch.where(third, prediction, target)
            value = self._evaluate_objective(self.logits, self.base, target)[0]
        images = torch.empty_like(self.original).copy_(self.images)
        gaps = None if self.gaps is None else self._trajectory()
        gap = torch.where(self.valid, -value, 0.0)
        return BoundarySamples(images, self.logits, target, status, self.steps, gap, accepted, self.base, gaps)

    def _begin(self, logits: Tensor) -> None:
        """Size the results and settle bases and targets by the logits on the clean images."""
        count = self.valid.numel()
        self.logits = logits.new_zeros((count, logits.shape[1])).detach()
        if self.base is None:
            self.base = self._spread(logits.argmax(1))
        if self.target is None:
            base = self.base[self.rows]
            seeded = self.seed is not None
            drawn = draw_targets(logits, base, seed=self.seed, rows=self.rows) if seeded else best_other(logits, base)
            self.target = self._spread(drawn)

    def _objective(self, logits: Tensor, alive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        base, target = self.base[self.rows], self.target[self.rows]
        value, grad_logits, prediction, active = self._evaluate_objective(logits, base, target)
        if self.gaps is not None:
            seen = value
            if self.settings.retarget:
                effective = torch.where(prediction == base, target, prediction)
                seen = self._evaluate_objective(logits, base, effective)[0]
            current = self.gaps[-1].clone() if self.gaps else value.new_full(self.valid.shape, torch.nan)
            self._put(current, -seen, alive)
            self.gaps.append(current)
        return -value, grad_logits, active

    def _evaluate_objective(self, logits: Tensor, base: Tensor, target: Tensor):
        return attack_objective(logits, base, loss="boundary", target=target, score=self.settings.score)

    def _trajectory(self) -> Tensor:
        """[steps + 1, M]: the rows after the early exit repeat the last one."""
        if not self.gaps:
            return self.logits.new_full((self.limit + 1, self.valid.numel()), torch.nan)
        return torch.stack(self.gaps + self.gaps[-1:] * (self.limit + 1 - len(self.gaps)))

    def _put(self, full: Tensor, part: Tensor, flags: Tensor) -> None:
        """Write the flagged samples of the working batch to their rows."""
        flags = flags.view(-1, *[1] * (part.dim() - 1))
        full.index_copy_(0, self.rows, torch.where(flags, part.detach(), full[self.rows]))

    def _spread(self, part: Tensor) -> Tensor:
        return part.new_zeros(self.valid.numel()).index_copy_(0, self.rows, part)

    @staticmethod
    def _left_base(logits: Tensor, base: Tensor) -> Tensor:
        return (logits.argmax(1) != base) & _usable(logits)


def _usable(logits: Tensor) -> Tensor:
    return ~torch.isnan(logits).any(1)
