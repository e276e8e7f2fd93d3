"""Projected gradient descent on images: FGSM, PGD and MI-FGSM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from amkd_fast import checks, philox
from amkd_fast.attacks import arguments, loop
from amkd_fast.attacks.capture import Graphs, check_capture
from amkd_fast.attacks.frozen import FrozenModel, as_frozen, forked_rng
from amkd_fast.ops.attack.arguments import check_objective, check_top
from amkd_fast.ops.attack.objective import objective
from amkd_fast.ops.attack.operators import LOSSES
from amkd_fast.ops.attack.step import step
from amkd_fast.typing import AttackLoss, AttackNorm, Keep, Switch

NORMS: tuple[AttackNorm, ...] = get_args(AttackNorm)
KEEPS: tuple[Keep, ...] = get_args(Keep)


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

    Only ``keep="first"`` and restarts synchronise with the host, with ``capture`` only restarts. The attack honours an
    autocast context around the call (eagerly). The caller's random state is put back afterwards, but for a fresh seed.

    Args:
        model: The network, or a view of it by :func:`amkd_fast.attacks.frozen`; a module is frozen with the defaults.
        eps: Radius ≥ 0 of the ball, in the units of the images: a number, one per image [M], or what broadcasts as
            [1 or M, C, 1, …], as :func:`amkd_fast.attack_step` says. :func:`amkd_fast.attacks.pixel_bounds` makes the
            one of normalised images from a radius in pixels.
        step_size: η > 0, likewise; None for ``eps`` in one step and 2.5 ``eps``/``steps`` in several.
        steps: Number of steps, ≥ 1.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        random_start: Start at a random point of the ball instead of at the image.
        targeted: Go toward given classes instead of away from the labels.
        momentum: μ ≥ 0 of MI-FGSM; None for plain gradients.
        restarts: Number of runs, ≥ 1; every one after the first takes only the samples that are not adversarial yet.
            More than one asks for ``random_start``.
        lower: Smallest pixel value, a number or one per channel [C], in the units of the images; None for none.
        upper: Largest pixel value, likewise. Images must be inside, up to rounding; on a GPU, where looking waits for
            the device, the first batch alone is looked at.
        loss: ``"ce"``, ``"boundary"`` or ``"dlr"``.
        keep: Which iterate to return: ``"last"``; ``"best"``, the one of the largest objective, adversarial ones
            first; or ``"first"``, the first adversarial one, at which the sample is finished (else the last).
        project: As in :func:`amkd_fast.attack_step`.
        top: As in :func:`amkd_fast.attack_step`.
        capture: Replay steps from a CUDA graph, recorded once for each size of batch (rounded up, so that similar
            batches share it). True; False; or ``"auto"``, which is False until a GPU has confirmed the recordings. What
            cannot be recorded runs eagerly, with one warning; ``attack.graphs.reason`` says why.
        compact: Take finished samples out of the batch; True, False or ``"auto"``, which is True on a CPU.
        logits_of: Picks the logits [B, K] from the outputs of a model that has several.

    Raises:
        TypeError: An argument has another type than the above.
        ValueError: An argument's value breaks a rule above.

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
        norm: AttackNorm = "linf",
        random_start: bool = False,
        targeted: bool = False,
        momentum: float | None = None,
        restarts: int = 1,
        lower: float | Tensor | None = None,
        upper: float | Tensor | None = None,
        loss: AttackLoss = "ce",
        keep: Keep = "last",
        project: bool = False,
        top: float = 0.01,
        capture: Switch = "auto",
        compact: Switch = "auto",
        logits_of: loop.LogitsOf | None = None,
    ) -> None:
        arguments.check_count("steps", steps, 1)
        arguments.check_count("restarts", restarts, 1)
        check_capture(capture)
        arguments.check_switch("compact", compact, "auto")
        for name, value in (("random_start", random_start), ("targeted", targeted), ("project", project)):
            arguments.check_switch(name, value)
        checks.choice("norm", norm, NORMS)
        checks.choice("loss", loss, LOSSES)
        checks.choice("keep", keep, KEEPS)
        check_top(top)
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
        self.model = as_frozen(model)
        self.eps, self.step_size, self.steps, self.restarts = eps, step_size, steps, restarts
        self.random_start, self.momentum, self.keep = random_start, momentum, keep
        self.lower, self.upper, self.inside = lower, upper, arguments.BoundsCheck()
        # Keywords, each of its own type.
        self.objective: dict[str, Any] = {"loss": loss, "targeted": targeted}
        self.step: dict[str, Any] = {"norm": norm, "project": project, "top": top}
        self.compact, self.capture, self.graphs = compact, capture, Graphs()
        arguments.check_logits_of(logits_of)
        self.logits_of = logits_of

    def __call__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> PGDSamples:
        """Attack a batch.

        Args:
            images: [M, ...], floating; M may be 0. Never changed.
            labels: int64 or int32 [M], true classes; None for the network's own predictions.
            target: int64 or int32 [M], classes to reach; needed when the attack is targeted.
            valid: bool [M]; rows that are False stay as they are and, with compaction, cost nothing.
            seed: Seed of the random starts, with which they repeat themselves; row i of the batch has draws of its own.
                None draws one for every call from torch's generator of the device (``torch.manual_seed``).

        Returns:
            :class:`PGDSamples`.

        Raises:
            TypeError: A dtype or a type differs from the above.
            ValueError: A shape, a device or a value breaks a rule above, or the model gives no logits [M, K].
        """
        return self._attack(images, labels, target, valid, seed, judged=True)

    def perturb(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> Tensor:
        """The images of a call alone, as adversarial training wants them.

        With ``keep="last"`` and one run nobody has to look at the last images: that saves the call's last forward pass.

        Args:
            images: As in a call, also the following.
            labels: int64 or int32 [M].
            target: int64 or int32 [M].
            valid: bool [M].
            seed: Of the random starts.

        Returns:
            [M, ...], dtype and memory format of the input.

        Raises:
            TypeError: As a call.
            ValueError: As a call; but of a network's logits only what a step meets.

        Example:
            >>> import torch, amkd_fast as af
            >>> model = torch.nn.Linear(2, 2, bias=False)
            >>> model.weight.data = torch.eye(2)
            >>> attack = af.attacks.PGD(model, eps=0.25, steps=1, lower=0.0, upper=1.0)
            >>> attack.perturb(torch.tensor([[0.75, 0.5]]), torch.tensor([0]))
            tensor([[0.5000, 0.7500]])
        """
        judged = self.keep != "last" or self.restarts > 1
        return self._attack(images, labels, target, valid, seed, judged=judged).images

    def _attack(
        self, images: Tensor, labels: Tensor | None, target: Tensor | None, valid: Tensor | None,
        seed: int | Tensor | None, judged: bool,
    ) -> PGDSamples:  # fmt: skip
        """A call; without ``judged`` of one run to the last iterate, whose images alone are then right."""
        arguments.check_images(images, self.lower, self.upper)
        arguments.check_rows("labels", labels, images)
        arguments.check_rows("target", target, images)
        arguments.check_rows("valid", valid, images, flags=True)
        if seed is not None or self.random_start:
            seed = philox.chosen_seed(seed, images.device)
        self.inside.check(images, self.lower, self.upper, valid)
        sizes = {name: arguments.size_on(name, getattr(self, name), images) for name in ("eps", "step_size")}
        if self.objective["targeted"] and target is None:
            raise ValueError("target=None: must be given for a targeted attack")
        lower, upper = (arguments.to_device(bound, images.device) for bound in (self.lower, self.upper))
        with forked_rng(images.device), torch.no_grad():
            run = loop.Loop(self, images)
            results = _Results(run.clean.clone(), valid, self.keep, self.objective["targeted"])
            decay = 1.0 if self.momentum is None else self.momentum
            options = {**sizes, "decay": decay, "lower": lower, "upper": upper, **self.step}
            context = _Step(run.evaluate, self.objective, options, self.keep)
            labels, target = (None if classes is None else classes.long() for classes in (labels, target))
            for restart in range(self.restarts):
                left = results.valid & ~results.adversarial
                rows = run.rows(left)
                if rows.numel() == 0 or (restart > 0 and not run.compact and not bool(left.any())):
                    break
                active, x0 = left[rows], run.clean[rows]
                if labels is None:
                    logits, _ = run.evaluate(x0, grad=False)
                    labels = torch.zeros_like(results.steps).index_copy_(0, rows, logits.argmax(1))
                of_rows = {name: size[rows] if isinstance(size, Tensor) else None for name, size in sizes.items()}
                x = x0
                if self.random_start and seed is not None:
                    radius = sizes["eps"] if of_rows["eps"] is None else of_rows["eps"]
                    x = loop.random_start(x0, radius, self.step["norm"], rows, seed, restart)
                    x = loop.where_rows(active, loop.clipped(x, lower, upper), x0)
                work = torch.promote_types(x.dtype, torch.float32)
                s = _State(
                    rows, x, x0, None if self.momentum is None else torch.zeros_like(x, dtype=work), labels[rows],
                    None if target is None else target[rows], **of_rows, active=active, steps=torch.zeros_like(rows),
                )  # fmt: skip
                run.take_steps(
                    context, s, self.steps, results.store, until_done=self.keep == "first",
                    judge_first=self.keep == "best", leave=None if judged else results.leave,
                )  # fmt: skip
            return results.samples(images, run)


class _Seen(NamedTuple):
    """What was found at the samples."""

    logits: Tensor
    value: Tensor
    prediction: Tensor


class _State(NamedTuple):
    """The m samples of a run, or with compaction those that have not finished."""

    rows: Tensor  # int64 [m], where in the batch they are
    x: Tensor
    x0: Tensor
    velocity: Tensor | None
    labels: Tensor
    target: Tensor | None
    eps: Tensor | None  # [m] or [m, C, 1, ...] where it is not one number for all
    step_size: Tensor | None
    active: Tensor  # bool [m], still to be moved
    steps: Tensor  # of this run
    best_x: Tensor | None = None  # these four where the best iterate is kept
    best_logits: Tensor | None = None
    best_value: Tensor | None = None
    best_adversarial: Tensor | None = None

    @property
    def best(self) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """The best iterate, its logits and value, and whether it is adversarial, where one is kept."""
        x, logits, value, adversarial = self.best_x, self.best_logits, self.best_value, self.best_adversarial
        if x is None or logits is None or value is None or adversarial is None:
            return None
        return x, logits, value, adversarial

    def adversarial(self, seen: _Seen, targeted: bool) -> Tensor:
        """Whether what was found at the samples is what the attack is for."""
        reached = seen.prediction == self.target if targeted else seen.prediction != self.labels
        return reached & torch.isfinite(seen.value)


@dataclass(frozen=True)
class _Step(loop.AttackStep[_State, _Seen]):
    evaluate: loop.Evaluate
    objective: dict[str, Any]  # loss and targeted
    options: dict[str, Any]  # of the attack step
    keep: Keep

    def judge(self, s: _State, logits: Tensor) -> tuple[_State, Tensor, _Seen]:
        check_objective(logits, **self.objective)
        value, grad_logits, prediction, unfinished = objective(logits, s.labels, target=s.target, **self.objective)
        seen = _Seen(logits.detach(), value, prediction)
        if self.keep == "first":
            s = s._replace(active=s.active & unfinished)
        elif self.keep == "best":
            new: tuple[Tensor, ...] = (s.x, seen.logits, value, s.adversarial(seen, self.objective["targeted"]))
            if s.best is not None:
                better = (s.steps == 0) | _surpasses(new[3], value, s.best[3], s.best[2])
                new = tuple(loop.where_rows(better, now, then) for now, then in zip(new, s.best, strict=True))
            x, logits, value, adversarial = new
            s = s._replace(best_x=x, best_logits=logits, best_value=value, best_adversarial=adversarial)
        return s, grad_logits, seen

    def move(self, s: _State, seen: _Seen, grad: Tensor) -> _State:
        """Everyone that is active one step on; the velocity changes in place."""
        options = self.options
        if s.eps is not None or s.step_size is not None:
            sizes = {"eps": s.eps, "step_size": s.step_size}
            options = {**options, **{name: size for name, size in sizes.items() if size is not None}}
        x = step(s.x, grad, x0=s.x0, momentum=s.velocity, active=s.active, **options)
        return s._replace(x=x, steps=s.steps + s.active)


class _Results:
    """The results of a batch of M images, full length, over all restarts."""

    def __init__(self, images: Tensor, valid: Tensor | None, keep: Keep, targeted: bool) -> None:
        count, device = images.shape[0], images.device
        self.images, self.keep, self.targeted = images, keep, targeted
        self.valid = torch.ones(count, dtype=torch.bool, device=device) if valid is None else valid
        self.steps = torch.zeros(count, dtype=torch.int64, device=device)
        self.known = torch.zeros(count, dtype=torch.bool, device=device)  # an iterate has been recorded
        self.adversarial = self.known.clone()
        self.logits: Tensor | None = None
        self.value: Tensor | None = None

    def store(self, s: _State, seen: _Seen) -> None:
        """Write what a run found to its rows, where it is better than what an earlier run left there."""
        if self.logits is None or self.value is None:
            self.logits, self.value = self._blank(seen.logits, seen.value)
        self.steps.index_add_(0, s.rows, s.steps)
        x, logits, value, adversarial = s.best or (s.x, seen.logits, seen.value, s.adversarial(seen, self.targeted))
        before = self.adversarial[s.rows]
        better = adversarial & ~before
        if self.keep == "best":
            better = _surpasses(adversarial, value, before, self.value[s.rows])
        better = (better | ~self.known[s.rows]) & self.valid[s.rows] & ~before
        own = (self.images, self.logits, self.value, self.adversarial, self.known)
        for full, part in zip(own, (x, logits, value, adversarial, torch.ones_like(before)), strict=True):
            full.index_copy_(0, s.rows, loop.where_rows(better, part, full[s.rows]))

    def leave(self, s: _State) -> None:
        """Write the images of the only run to their rows; padded ones have not moved."""
        self.images.index_copy_(0, s.rows, s.x)
        self.logits, self.value = self._blank(s.x.new_empty((0, 1)), s.x.new_empty(0))

    def samples(self, images: Tensor, run: loop.Loop) -> PGDSamples:
        """What was found, in the memory format of ``images``."""
        if self.logits is None or self.value is None:
            blank = images.new_zeros((0, loop.count_classes(run.evaluate, images)), dtype=torch.float32)
            self.logits, self.value = self._blank(blank, blank)
        images = torch.empty_like(images).copy_(self.images)
        return PGDSamples(images, self.logits, self.adversarial, self.steps, self.value)

    def _blank(self, logits: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        count = self.valid.numel()
        return logits.new_zeros((count, logits.shape[1])), value.new_zeros(count)


def _surpasses(success: Tensor, value: Tensor, success_before: Tensor, value_before: Tensor) -> Tensor:
    """Adversarial iterates are better than others, and then a larger objective is."""
    return (success & ~success_before) | ((success == success_before) & (value > value_before))
