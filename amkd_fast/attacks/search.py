"""One batch on its way to the boundary: steps until every sample has left its base class, then bisections."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from amkd_fast.attacks import engine
from amkd_fast.ops.attack import attack_objective, attack_step, draw_targets
from amkd_fast.ops.attack.objective import best_other

if TYPE_CHECKING:
    from amkd_fast.attacks.boundary import BoundaryAttack


class Rules(NamedTuple):
    """What a step depends on besides the samples."""

    evaluate: engine.Evaluate
    score: str
    step_size: float | Tensor
    step: dict  # of attack_step
    all_alive: bool  # finished samples are taken out


class Working(NamedTuple):
    """The m samples that are worked on: all of the batch, or with compaction those that have not finished."""

    rows: Tensor  # int64 [m], where in the batch they are
    x: Tensor
    inside: Tensor | None  # the last point inside the base class; None where no bisection follows
    base: Tensor
    target: Tensor
    step_size: Tensor | None  # [m] or [m, C, 1, ...] where it is not one number for all
    alive: Tensor  # bool [m], still to be moved
    steps: Tensor

    def of(self, keep: Tensor) -> Working:
        """The samples of some positions."""
        return Working(*(part if part is None else part[keep] for part in self))


class Halving(NamedTuple):
    """Samples between a point inside their base class and one outside."""

    inside: Tensor
    outside: Tensor
    logits: Tensor  # of the points outside
    base: Tensor
    crossed: Tensor  # bool, the others stay


def judge(rules: Rules, s: Working, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gap, what its negative's gradient is with respect to the logits, and who is alive."""
    value, grad_logits, _, active = attack_objective(
        logits, s.base, loss="boundary", target=s.target, score=rules.score
    )
    return -value, grad_logits, s.alive & active


def moved(rules: Rules, s: Working, grad: Tensor, gap: Tensor) -> Working:
    """Everyone that is alive one step on."""
    size = rules.step_size if s.step_size is None else s.step_size
    x = attack_step(s.x, grad, step_size=size, gap=gap, active=s.alive, **rules.step)
    inside = s.inside
    if inside is not None:
        inside = s.x if rules.all_alive else torch.where(_over(s.alive, s.x), s.x, inside)
    return s._replace(x=x, inside=inside, steps=s.steps + s.alive)


def advance(rules: Rules, s: Working) -> Working:
    """Evaluate and move: the same shapes whoever is finished, and nothing asked of the device."""
    logits, leaf = rules.evaluate(s.x, grad=True)
    gap, grad_logits, alive = judge(rules, s, logits)
    return moved(rules, s._replace(alive=alive), engine.input_gradient(logits, leaf, grad_logits), gap)


def halve(rules: Rules, s: Halving) -> Halving:
    """Evaluate the point in the middle and let it take the place of the end on its side."""
    work = torch.promote_types(s.inside.dtype, torch.float32)
    middle = torch.lerp(s.inside.to(work), s.outside.to(work), 0.5).to(s.inside.dtype)
    logits, _ = rules.evaluate(middle, grad=False)
    beyond = s.crossed & left_base(logits, s.base)
    short = s.crossed & (logits.argmax(1) == s.base)
    return s._replace(
        inside=torch.where(_over(short, middle), middle, s.inside),
        outside=torch.where(_over(beyond, middle), middle, s.outside),
        logits=torch.where(beyond[:, None], logits, s.logits),
    )


def left_base(logits: Tensor, base: Tensor) -> Tensor:
    """Whether the prediction is another class."""
    return (logits.argmax(1) != base) & usable(logits)


def usable(logits: Tensor) -> Tensor:
    """Whether a row holds no NaN."""
    return ~torch.isnan(logits).any(1)


class Search:
    """The results of a batch of M images, full length, while its working batch shrinks.

    Attributes:
        images, logits, base, target, valid, steps: As in :class:`amkd_fast.attacks.BoundarySamples`.
        gaps: One [M] for every evaluation, or None.
    """

    def __init__(self, attack: BoundaryAttack, images, base, target, valid, seed, record_gaps: bool, step_size) -> None:
        settings, device, count = attack.settings, images.device, images.shape[0]
        step = {"norm": "boundary", "norm_power": settings.norm_power, "project": settings.project}
        step |= attack.bounds_on(device)
        network = attack.model.network(images, recorded=attack.graphs.wanted(attack.capture))
        evaluate = partial(engine.evaluate, network, attack.logits_of)
        self.attack, self.settings, self.limit = attack, settings, attack.steps
        self.seed, self.original = seed, images
        self.images = engine.own(images, attack.model.memory_format(images))
        self.inside = torch.empty_like(self.images) if settings.refine else None
        self.base = None if base is None else base.long()
        self.target = None if target is None else target.long()
        self.valid = torch.ones(count, dtype=torch.bool, device=device) if valid is None else valid
        self.some_padded = valid is not None
        self.steps = torch.zeros(count, dtype=torch.int64, device=device)
        self.logits = None
        self.gaps = [] if record_gaps else None
        obstacle = "record_gaps=True asks for the gap of every step" if record_gaps else ""
        self.graphs = attack.graphs.recording(attack.capture, images, attack.model.generation, obstacle)
        self.compact = attack.compact and self.graphs is None
        if attack.compact == "auto":
            self.compact = self.compact and device.type == "cpu"
        self.rules = Rules(evaluate, settings.score, step_size, step, self.compact)

    def step_until_done(self) -> None:
        """Move every sample until it leaves its base class or the steps run out."""
        rows = torch.arange(self.valid.numel(), device=self.valid.device)
        if self.compact and self.some_padded:
            rows = self.valid.nonzero()[:, 0]
        if rows.numel() == 0:
            classes = engine.count_classes(self.rules.evaluate, self.original)
            self._begin(rows, self.original.new_zeros((0, classes)))
        elif self.graphs is not None:
            self._replay(rows)
        else:
            self._loop(rows)

    def _loop(self, rows: Tensor) -> None:
        x = self.images if rows.numel() == self.valid.numel() else self.images[rows]
        logits, leaf = self.rules.evaluate(x, grad=True)
        self._begin(rows, logits)
        s = self._working(rows, x)
        for step in range(self.limit + 1):
            gap, grad_logits, alive = judge(self.rules, s, logits)
            self._record(s, logits, gap)
            s = s._replace(alive=alive)
            keep = alive.nonzero()[:, 0] if self.compact else None
            if step == self.limit or (self.attack.early_exit and self._finished(alive, keep)):
                self._store(s, logits)
                return
            grad = engine.input_gradient(logits, leaf, grad_logits)
            if self.compact and keep.numel() < alive.numel():
                gone = (~alive).nonzero()[:, 0]
                self._store(s.of(gone), logits[gone])
                s, grad, gap = s.of(keep), grad[keep], gap[keep]
            s = moved(self.rules, s, grad, gap)
            logits, leaf = self.rules.evaluate(s.x, grad=step + 1 < self.limit)

    def _finished(self, alive: Tensor, keep: Tensor | None) -> bool:
        return not (keep.numel() if self.compact else bool(alive.any()))

    def _replay(self, rows: Tensor) -> None:
        """The same by a recorded step, which is told when to end one step late."""
        if self.base is None or self.target is None:
            self._begin(rows, self.rules.evaluate(self.images, grad=False)[0])
        s = self.graphs.repeat(partial(advance, self.rules), self._working(rows, self.images), self.limit, "alive")
        logits, _ = self.rules.evaluate(s.x, grad=False)
        if self.logits is None:
            self._begin(rows, logits)
        self._store(s, logits)

    def bisect(self) -> None:
        """Halve the last step of every sample that left its base class."""
        if not self.settings.refine:
            return
        crossed = left_base(self.logits, self.base) & self.valid & (self.steps > 0)
        rows = crossed.nonzero()[:, 0] if self.compact else torch.arange(crossed.numel(), device=crossed.device)
        if rows.numel() == 0:
            return
        parts = (self.inside, self.images, self.logits, self.base, crossed)
        s = Halving(*(part[rows] for part in parts)) if self.compact else Halving(*parts)
        if self.graphs is not None:
            s = self.graphs.repeat(partial(halve, self.rules), s, self.settings.refine)
        else:
            for _ in range(self.settings.refine):
                s = halve(self.rules, s)
        self.images.index_copy_(0, rows, s.outside)
        self.logits.index_copy_(0, rows, s.logits)

    def trajectory(self) -> Tensor | None:
        """[steps + 1, M]: the rows after the early exit repeat the last one."""
        if self.gaps is None:
            return None
        if not self.gaps:
            return self.logits.new_full((self.limit + 1, self.valid.numel()), torch.nan)
        return torch.stack(self.gaps + self.gaps[-1:] * (self.limit + 1 - len(self.gaps)))

    def _begin(self, rows: Tensor, logits: Tensor) -> None:
        """Size the results and settle bases and targets by the logits on the clean images."""
        count = self.valid.numel()
        self.logits = logits.new_zeros((count, logits.shape[1])).detach()

        def spread(part: Tensor) -> Tensor:
            return part.new_zeros(count).index_copy_(0, rows, part)

        if self.base is None:
            self.base = spread(logits.argmax(1))
        if self.target is None:
            base = self.base[rows]
            seeded = self.seed is not None
            self.target = spread(
                draw_targets(logits, base, seed=self.seed, rows=rows) if seeded else best_other(logits, base)
            )

    def _working(self, rows: Tensor, x: Tensor) -> Working:
        size = self.rules.step_size
        parts = (self.base, self.target, size if isinstance(size, Tensor) else None, self.valid, self.steps)
        if rows.numel() < self.valid.numel():
            parts = (None if part is None else part[rows] for part in parts)
        return Working(rows, x, None if self.inside is None else x, *parts)

    def _record(self, s: Working, logits: Tensor, gap: Tensor) -> None:
        if self.gaps is None:
            return
        if self.settings.retarget:
            prediction = logits.argmax(1)
            landed = s._replace(target=torch.where(prediction == s.base, s.target, prediction))
            gap = judge(self.rules, landed, logits)[0]
        current = self.gaps[-1].clone() if self.gaps else gap.new_full(self.valid.shape, torch.nan)
        current[s.rows[s.alive]] = gap[s.alive]
        self.gaps.append(current)

    def _store(self, s: Working, logits: Tensor) -> None:
        """Write the samples of a working batch to their rows."""
        # What is inside goes first: after one step it is the tensor of the clean images, which the others end in.
        parts = ((self.inside, s.inside), (self.images, s.x), (self.logits, logits.detach()), (self.steps, s.steps))
        for full, part in parts:
            if full is not None and part is not full:
                full.index_copy_(0, s.rows, part)


def _over(flags: Tensor, like: Tensor) -> Tensor:
    return flags.view(-1, *[1] * (like.dim() - 1))
