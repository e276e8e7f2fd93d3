"""One batch of projected gradient descent: steps, the iterate that is kept, and restarts of those who withstood."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from amkd_fast.attacks import engine
from amkd_fast.attacks.start import random_start
from amkd_fast.ops.attack import attack_objective, attack_step

if TYPE_CHECKING:
    from amkd_fast.attacks.pgd import PGD


class Rules(NamedTuple):
    """What a step depends on besides the samples."""

    evaluate: engine.Evaluate
    objective: dict  # of attack_objective
    step: dict  # of attack_step
    keep: str


class Working(NamedTuple):
    """The m samples that are worked on: all of a run, or with compaction those that have not finished."""

    rows: Tensor  # int64 [m], where in the batch they are
    x: Tensor
    x0: Tensor
    velocity: Tensor | None
    labels: Tensor
    target: Tensor | None
    eps: Tensor | None  # [m] or [m, C, 1, ...] where it is not one number for all
    step_size: Tensor | None
    alive: Tensor  # bool [m], still to be moved
    steps: Tensor  # of this run
    best_x: Tensor | None = None  # these four where the best iterate is kept
    best_logits: Tensor | None = None
    best_value: Tensor | None = None
    best_adversarial: Tensor | None = None

    def of(self, keep: Tensor) -> Working:
        """The samples of some positions."""
        return Working(*(part if part is None else part[keep] for part in self))


def judge(rules: Rules, s: Working, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The objective, its gradient with respect to the logits, who is adversarial, and who is open."""
    targeted = rules.objective["targeted"]
    value, grad_logits, prediction, unfinished = attack_objective(logits, s.labels, target=s.target, **rules.objective)
    reached = prediction == s.target if targeted else prediction != s.labels
    return value, grad_logits, reached & torch.isfinite(value), unfinished


def noted(rules: Rules, s: Working, logits: Tensor, value: Tensor, success: Tensor, unfinished: Tensor) -> Working:
    """What an evaluation changes: who has finished, or who holds a better iterate."""
    if rules.keep == "first":
        return s._replace(alive=s.alive & unfinished)
    if rules.keep == "last":
        return s
    new, old = (s.x, logits, value, success), s[-4:]
    if s.best_x is not None:
        better = (s.steps == 0) | surpasses(success, value, s.best_adversarial, s.best_value)
        new = (chosen(better, *pair) for pair in zip(new, old, strict=True))
    return Working(*s[:-4], *new)


def moved(rules: Rules, s: Working, grad: Tensor) -> Working:
    """Everyone that is alive one step on; the velocity changes in place."""
    sizes = {name: part for name, part in (("eps", s.eps), ("step_size", s.step_size)) if part is not None}
    x = attack_step(s.x, grad, x0=s.x0, momentum=s.velocity, active=s.alive, **{**rules.step, **sizes})
    return s._replace(x=x, steps=s.steps + s.alive)


def advance(rules: Rules, s: Working) -> Working:
    """Evaluate and move: the same shapes whoever is finished, and nothing asked of the device."""
    logits, leaf = rules.evaluate(s.x, grad=True)
    value, grad_logits, success, unfinished = judge(rules, s, logits)
    s = noted(rules, s, logits.detach(), value, success, unfinished)
    return moved(rules, s, engine.input_gradient(logits, leaf, grad_logits))


def surpasses(success: Tensor, value: Tensor, success_before: Tensor, value_before: Tensor) -> Tensor:
    """Adversarial iterates are better than others, and then a larger objective is."""
    return (success & ~success_before) | ((success == success_before) & (value > value_before))


def chosen(flags: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Rows of ``one`` where the flag is set, of ``other`` elsewhere."""
    return torch.where(flags.view(-1, *[1] * (one.dim() - 1)), one, other)


class Descent:
    """The results of a batch of M images, full length, while its working batch shrinks.

    Attributes:
        images, logits, adversarial, steps, value: As in :class:`amkd_fast.attacks.PGDSamples`.
    """

    def __init__(self, attack: PGD, images, labels, target, valid, seed, sizes) -> None:
        device, count = images.device, images.shape[0]
        self.attack, self.original, self.seed = attack, images, seed
        bounds = {name: engine.to_device(getattr(attack, name), device) for name in ("lower", "upper")}
        network = attack.model.network(images, recorded=attack.graphs.wanted(attack.capture))
        evaluate = partial(engine.evaluate, network, attack.logits_of)
        decay = 1.0 if attack.momentum is None else attack.momentum
        self.eps, self.step_size = sizes["eps"], sizes["step_size"]
        self.rules = Rules(evaluate, attack.objective, {**sizes, "decay": decay, **bounds, **attack.step}, attack.keep)
        self.graphs = attack.graphs.recording(attack.capture, images, attack.model.generation)
        self.compact = attack.compact and self.graphs is None
        if attack.compact == "auto":
            self.compact = self.compact and device.type == "cpu"
        self.clean = engine.own(images, attack.model.memory_format(images))
        self.images = self.clean.clone()
        self.labels = None if labels is None else labels.long()
        self.target = None if target is None else target.long()
        self.valid = torch.ones(count, dtype=torch.bool, device=device) if valid is None else valid
        self.steps = torch.zeros(count, dtype=torch.int64, device=device)
        self.known = torch.zeros(count, dtype=torch.bool, device=device)  # an iterate has been recorded
        self.adversarial = self.known.clone()
        self.logits = self.value = None

    def run(self, restart: int) -> bool:
        """Attack those who are left, from the start of this restart; False when nobody is."""
        wanted = self.valid & ~self.adversarial
        rows = torch.arange(wanted.numel(), device=wanted.device)
        if self.compact:
            rows = wanted.nonzero()[:, 0]
        elif restart > 0 and not bool(wanted.any()):
            return False
        if rows.numel() == 0:
            return False
        s = self._working(rows, wanted[rows], restart)
        if self.graphs is not None:
            flags = "alive" if self.rules.keep == "first" else None
            if self.rules.keep == "best":  # a recorded step needs tensors to compare with
                s = self._seen(s)[0]
            s = self.graphs.repeat(partial(advance, self.rules), s, self.attack.steps, flags)
            self._store(*self._seen(s))
        else:
            self._loop(s)
        return True

    def result(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The fields of :class:`amkd_fast.attacks.PGDSamples`."""
        if self.logits is None:
            classes = engine.count_classes(self.rules.evaluate, self.original)
            blank = self.original.new_zeros((0, classes), dtype=torch.float32)
            self._allocate(blank, blank)
        images = torch.empty_like(self.original).copy_(self.images)
        return images, self.logits, self.adversarial, self.steps, self.value

    def _loop(self, s: Working) -> None:
        for step in range(self.attack.steps + 1):
            last = step == self.attack.steps
            logits, leaf = self.rules.evaluate(s.x, grad=not last)
            value, grad_logits, success, unfinished = judge(self.rules, s, logits)
            s = noted(self.rules, s, logits.detach(), value, success, unfinished)
            ends = self.rules.keep == "first"
            keep = s.alive.nonzero()[:, 0] if ends and self.compact else None
            if last or (ends and not (bool(s.alive.any()) if keep is None else keep.numel())):
                self._store(s, logits, value, success)
                return
            grad = engine.input_gradient(logits, leaf, grad_logits)
            if keep is not None and keep.numel() < s.rows.numel():
                gone = (~s.alive).nonzero()[:, 0]
                self._store(s.of(gone), logits[gone], value[gone], success[gone])
                s, grad = s.of(keep), grad[keep]
            s = moved(self.rules, s, grad)

    def _working(self, rows: Tensor, alive: Tensor, restart: int) -> Working:
        attack, x0 = self.attack, self.clean[rows]
        if self.labels is None:
            logits, _ = self.rules.evaluate(x0, grad=False)
            self.labels = torch.zeros_like(self.steps).index_copy_(0, rows, logits.argmax(1))
        eps, step_size = (self._rows_of(value, rows) for value in (self.eps, self.step_size))
        x = x0
        if attack.random_start:
            radius = self.eps if eps is None else eps
            start = random_start(x0, radius, attack.step["norm"], rows, self.seed, restart)
            x = chosen(alive, engine.clipped(start, self.rules.step["lower"], self.rules.step["upper"]), x0)
        work = torch.promote_types(x.dtype, torch.float32)
        velocity = None if attack.momentum is None else torch.zeros_like(x, dtype=work)
        target = None if self.target is None else self.target[rows]
        steps = torch.zeros_like(rows)
        return Working(rows, x, x0, velocity, self.labels[rows], target, eps, step_size, alive, steps)

    def _seen(self, s: Working) -> tuple[Working, Tensor, Tensor, Tensor]:
        logits, _ = self.rules.evaluate(s.x, grad=False)
        value, _, success, unfinished = judge(self.rules, s, logits)
        return noted(self.rules, s, logits, value, success, unfinished), logits, value, success

    def _store(self, s: Working, logits: Tensor, value: Tensor, success: Tensor) -> None:
        """Write what a run found to its rows, where it is better than what an earlier run left there."""
        if self.logits is None:
            self._allocate(logits, value)
        self.steps.index_add_(0, s.rows, s.steps)
        x = s.x
        if s.best_x is not None:
            x, logits, value, success = s.best_x, s.best_logits, s.best_value, s.best_adversarial
        before = self.adversarial[s.rows]
        better = success & ~before
        if self.rules.keep == "best":
            better = surpasses(success, value, before, self.value[s.rows])
        better = (better | ~self.known[s.rows]) & self.valid[s.rows] & ~before
        parts = ((self.images, x), (self.logits, logits), (self.value, value), (self.adversarial, success))
        for full, part in (*parts, (self.known, torch.ones_like(success))):
            full.index_copy_(0, s.rows, chosen(better, part.detach(), full[s.rows]))

    def _allocate(self, logits: Tensor, value: Tensor) -> None:
        count = self.valid.numel()
        self.logits = logits.new_zeros((count, logits.shape[1])).detach()
        self.value = value.new_zeros(count)

    @staticmethod
    def _rows_of(value: float | Tensor, rows: Tensor) -> Tensor | None:
        return value[rows] if isinstance(value, Tensor) else None
