"""Projected gradient descent on images: FGSM, PGD and MI-FGSM."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from amkd_fast import checks, philox
from amkd_fast.attacks import engine
from amkd_fast.attacks.frozen import FrozenModel
from amkd_fast.attacks.start import random_start
from amkd_fast.attacks.surroundings import undisturbed
from amkd_fast.ops.attack import attack_objective, attack_step
from amkd_fast.ops.attack.arguments import LOSSES

KEEPS = ("last", "best", "first")


class PGDSamples(NamedTuple):
    """What :class:`PGD` returns, for M images and K classes. Nothing carries a graph.

    Attributes:
        images: [M, ...], dtype and memory format of the input.
        logits: [M, K], the network's logits on ``images``; zeros in padded rows.
        adversarial: bool [M], the prediction left the label, or reached the target of a targeted attack.
        steps: int64 [M], steps taken, over all restarts; also the number of gradients spent on the sample.
        value: [M], the objective on ``images`` (:func:`amkd_fast.attack_objective`); 0 in padded rows.
    """

    images: Tensor
    logits: Tensor
    adversarial: Tensor
    steps: Tensor
    value: Tensor


class PGD:
    """Projected gradient descent (Madry et al. 2018) on a frozen network.

    FGSM (Goodfellow et al. 2015) is ``steps=1`` with ``step_size=eps``, its default there; MI-FGSM (Dong et al. 2018)
    is ``momentum=1.0`` with ``step_size=eps / steps``. The steps are :func:`amkd_fast.attack_step`'s.

    The attack runs eagerly on a CPU and, in this version, on a GPU; only ``keep="first"`` and restarts synchronise with
    the host. It honours an autocast context around the call. The caller's random state is put back afterwards.

    Args:
        model: The network, or a view of it by :func:`amkd_fast.attacks.frozen`; a module is frozen with the defaults.
        eps: Radius ≥ 0 of the ball, a number or [M], in the units of the images.
        step_size: η, a number > 0 or [M]; None for ``eps`` in one step and 2.5 ``eps``/``steps`` in several.
        steps: Number of steps, ≥ 1.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        random_start: Start at a random point of the ball instead of at the image.
        targeted: Go toward given classes instead of away from the labels.
        momentum: μ ≥ 0 of MI-FGSM; None for plain gradients.
        restarts: Number of runs, ≥ 1; every one after the first takes only the samples that are not adversarial yet.
            More than one asks for ``random_start``.
        lower: Smallest pixel value, a number or one per channel [C], in the units of the images; None for none.
        upper: Largest pixel value, likewise.
        loss: ``"ce"``, ``"boundary"`` or ``"dlr"``.
        keep: Which iterate to return: ``"last"``; ``"best"``, the one of the largest objective, adversarial ones
            first; or ``"first"``, the first adversarial one, at which the sample is finished (else the last).
        project: As in :func:`amkd_fast.attack_step`.
        top: As in :func:`amkd_fast.attack_step`.
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
        >>> attack = af.attacks.PGD(model, eps=0.25, steps=1, lower=0.0, upper=1.0)
        >>> result = attack(torch.tensor([[0.75, 0.5]]), torch.tensor([0]))
        >>> result.images, result.adversarial
        (tensor([[0.5000, 0.7500]]), tensor([True]))
    """

    def __init__(
        self,
        model: nn.Module | FrozenModel,
        *,
        eps: float | Tensor,
        step_size: float | Tensor | None = None,
        steps: int = 10,
        norm: str = "linf",
        random_start: bool = False,
        targeted: bool = False,
        momentum: float | None = None,
        restarts: int = 1,
        lower: float | Tensor | None = None,
        upper: float | Tensor | None = None,
        loss: str = "ce",
        keep: str = "last",
        project: bool = False,
        top: float = 0.01,
        capture: str | bool = "auto",
        compact: str | bool = "auto",
        logits_of: engine.LogitsOf | None = None,
    ) -> None:
        engine.check_count("steps", steps, 1)
        engine.check_count("restarts", restarts, 1)
        engine.check_capture(capture)
        engine.check_switch("compact", compact, "auto")
        for name, value in (("random_start", random_start), ("targeted", targeted), ("project", project)):
            engine.check_switch(name, value)
        checks.choice("norm", norm, ("linf", "l2", "l1"))
        checks.choice("loss", loss, LOSSES)
        checks.choice("keep", keep, KEEPS)
        if not isinstance(eps, Tensor):
            checks.non_negative("eps", eps)
        if step_size is not None and not isinstance(step_size, Tensor):
            checks.positive("step_size", step_size)
        if momentum is not None:
            checks.non_negative("momentum", momentum)
        if restarts > 1 and not random_start:
            raise ValueError(f"restarts={restarts}: must be 1 without random_start, every run would be the same")
        if step_size is None:
            step_size = eps if steps == 1 else 2.5 * eps / steps
        self.model = engine.as_frozen(model)
        self.eps, self.step_size, self.steps, self.restarts = eps, step_size, steps, restarts
        self.random_start, self.momentum, self.keep = random_start, momentum, keep
        self.lower, self.upper = lower, upper
        self.objective = {"loss": loss, "targeted": targeted}
        self.step = {"norm": norm, "project": project, "top": top}
        self.compact = compact
        self.logits_of = logits_of

    def __call__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
        seed: int | Tensor = 0,
    ) -> PGDSamples:
        """Attack a batch.

        Args:
            images: [M, ...], floating; M may be 0. Never changed.
            labels: int64 or int32 [M], true classes; None for the network's own predictions.
            target: int64 or int32 [M], classes to reach; needed when the attack is targeted.
            valid: bool [M]; rows that are False stay as they are and, with compaction, cost nothing.
            seed: Seed of the random starts; row i of the batch has draws of its own.

        Returns:
            :class:`PGDSamples`.

        Raises:
            TypeError: A dtype or a type differs from the above.
            ValueError: A shape, a device or a value breaks a rule above, or the model gives no logits [M, K].
        """
        engine.check_images(images, self.lower, self.upper)
        engine.check_rows("labels", labels, images)
        engine.check_rows("target", target, images)
        engine.check_rows("valid", valid, images, flags=True)
        philox.check_seed(seed, images.device)
        for name in ("eps", "step_size"):
            if isinstance(getattr(self, name), Tensor):
                checks.shape(name, getattr(self, name), (images.shape[0],), "one number per image")
        if self.objective["targeted"] and target is None:
            raise ValueError("target=None: must be given for a targeted attack")
        with undisturbed(images.device), torch.no_grad():
            run = _Run(self, images, labels, target, valid, seed)
            for restart in range(self.restarts):
                if not run.survivors(restart):
                    break
                run.descend(restart)
            return run.result()


class _Run:
    """One batch on its way. Full-length tensors hold the results; ``rows`` are those still in the working batch."""

    def __init__(self, attack: PGD, images, labels, target, valid, seed) -> None:
        device, count = images.device, images.shape[0]
        self.attack, self.original, self.seed = attack, images, seed
        self.network: Callable = attack.model.network(images)
        self.compact = device.type == "cpu" if attack.compact == "auto" else attack.compact
        self.bounds = {name: engine.to_device(getattr(attack, name), device) for name in ("lower", "upper")}
        self.clean = engine.own(images)
        self.images = self.clean.clone()
        self.labels = None if labels is None else labels.long()
        self.target = None if target is None else target.long()
        self.valid = torch.ones(count, dtype=torch.bool, device=device) if valid is None else valid
        self.steps = torch.zeros(count, dtype=torch.int64, device=device)
        self.known = torch.zeros(count, dtype=torch.bool, device=device)  # an iterate has been recorded
        self.adversarial = self.known.clone()
        self.logits = self.value = None

    def survivors(self, restart: int) -> bool:
        """Choose the samples of this restart; False when none is left."""
        wanted = self.valid & ~self.adversarial
        count = wanted.numel()
        every = torch.arange(count, device=wanted.device)
        if self.compact:
            self.rows = wanted.nonzero()[:, 0]
        else:
            self.rows = every if restart == 0 or bool(wanted.any()) else every[:0]
        self.alive = wanted[self.rows]
        return self.rows.numel() > 0

    def descend(self, restart: int) -> None:
        attack, alive = self.attack, self.alive
        if self.labels is None:
            self._predict_labels()
        x0 = self.clean[self.rows]
        x = self._start(x0, restart, alive) if attack.random_start else x0
        work = torch.promote_types(x.dtype, torch.float32)
        velocity = None if attack.momentum is None else torch.zeros_like(x, dtype=work)
        for step in range(attack.steps + 1):
            last = step == attack.steps
            logits, leaf = self._logits(x, grad=not last)
            value, grad_logits, success, open_ = self._objective(logits)
            done = alive & ~open_ if attack.keep == "first" else torch.zeros_like(alive)
            if last or attack.keep != "last":
                offered = alive if last or attack.keep == "best" else done
                self._record(x, logits, value, success, offered)
            alive = alive & ~done
            if last:
                return
            if attack.keep == "first":
                keep = alive.nonzero()[:, 0] if self.compact else None
                if not (keep.numel() if self.compact else bool(alive.any())):
                    return
            grad = engine.input_gradient(logits, leaf, torch.where(alive[:, None], grad_logits, 0.0))
            del logits, leaf
            if attack.keep == "first" and self.compact and keep.numel() < alive.numel():
                self.rows, x, x0, grad, alive = (part[keep] for part in (self.rows, x, x0, grad, alive))
                velocity = None if velocity is None else velocity[keep]
            self.steps.index_add_(0, self.rows, alive.long())
            x = self._step(x, grad, x0, velocity, alive)

    def result(self) -> PGDSamples:
        if self.logits is None:
            classes = engine.count_classes(self.network, self.attack.logits_of, self.original)
            self._allocate(self.original.new_zeros((0, classes), dtype=torch.float32), None)
        images = torch.empty_like(self.original).copy_(self.images)
        return PGDSamples(images, self.logits, self.adversarial, self.steps, self.value)

    def _step(self, x, grad, x0, velocity, alive) -> Tensor:
        attack = self.attack
        decay = 1.0 if attack.momentum is None else attack.momentum
        sizes = {"step_size": self._rows_of(attack.step_size), "eps": self._rows_of(attack.eps)}
        return attack_step(
            x, grad, x0=x0, momentum=velocity, decay=decay, active=alive, **sizes, **self.bounds, **attack.step
        )

    def _start(self, x0: Tensor, restart: int, alive: Tensor) -> Tensor:
        eps = self._rows_of(self.attack.eps)
        start = random_start(x0, eps, self.attack.step["norm"], self.rows, self.seed, restart)
        ones = [1] * (x0.dim() - 2)
        for bound, clip in ((self.bounds["lower"], torch.fmax), (self.bounds["upper"], torch.fmin)):
            if bound is not None:
                start = clip(start, torch.as_tensor(bound).to(start).reshape(1, -1, *ones))
        return torch.where(alive.view(-1, 1, *ones), start, x0)

    def _objective(self, logits: Tensor):
        target = None if self.target is None else self.target[self.rows]
        value, grad_logits, prediction, open_ = attack_objective(
            logits, self.labels[self.rows], target=target, **self.attack.objective
        )
        reached = prediction == target if self.attack.objective["targeted"] else prediction != self.labels[self.rows]
        success = reached & torch.isfinite(value) & ~torch.isnan(logits).any(1)
        return value, grad_logits, success, open_

    def _record(self, x: Tensor, logits: Tensor, value: Tensor, success: Tensor, offered: Tensor) -> None:
        """Take the offered iterates that are better than what their rows hold."""
        if self.logits is None:
            self._allocate(logits, value)
        before = self.adversarial[self.rows]
        better = success & ~before | ~self.known[self.rows]
        if self.attack.keep == "best":
            better = better | ((success == before) & (value > self.value[self.rows]))
        better = better & offered
        parts = ((self.images, x), (self.logits, logits), (self.value, value), (self.adversarial, success))
        for full, part in (*parts, (self.known, torch.ones_like(success))):
            flags = better.view(-1, *[1] * (part.dim() - 1))
            full.index_copy_(0, self.rows, torch.where(flags, part.detach(), full[self.rows]))

    def _allocate(self, logits: Tensor, value: Tensor | None) -> None:
        count = self.valid.numel()
        self.logits = logits.new_zeros((count, logits.shape[1])).detach()
        self.value = (logits if value is None else value).new_zeros(count)

    def _predict_labels(self) -> None:
        logits, _ = engine.evaluate(self.network, self.attack.logits_of, self.clean[self.rows], grad=False)
        self.labels = torch.zeros_like(self.steps).index_copy_(0, self.rows, logits.argmax(1))

    def _logits(self, x: Tensor, *, grad: bool) -> tuple[Tensor, Tensor]:
        return engine.evaluate(self.network, self.attack.logits_of, x, grad=grad)

    def _rows_of(self, value: float | Tensor) -> float | Tensor:
        return value.to(self.rows.device)[self.rows] if isinstance(value, Tensor) else value
