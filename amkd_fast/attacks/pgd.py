"""Projected gradient descent on images: FGSM, PGD and MI-FGSM."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from amkd_fast import checks, philox
from amkd_fast.attacks import engine
from amkd_fast.attacks.capture import Graphs, check_capture
from amkd_fast.attacks.descent import Descent
from amkd_fast.attacks.frozen import FrozenModel
from amkd_fast.attacks.surroundings import undisturbed
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
        check_capture(capture)
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
        self.lower, self.upper, self.inside = lower, upper, engine.Inside()
        self.objective = {"loss": loss, "targeted": targeted}
        self.step = {"norm": norm, "project": project, "top": top}
        self.compact, self.capture, self.graphs = compact, capture, Graphs()
        engine.check_logits_of(logits_of)
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
        engine.check_images(images, self.lower, self.upper)
        engine.check_rows("labels", labels, images)
        engine.check_rows("target", target, images)
        engine.check_rows("valid", valid, images, flags=True)
        if seed is not None or self.random_start:
            seed = philox.chosen_seed(seed, images.device)
        self.inside.check(images, self.lower, self.upper, valid)
        sizes = {name: engine.size_on(name, getattr(self, name), images) for name in ("eps", "step_size")}
        if self.objective["targeted"] and target is None:
            raise ValueError("target=None: must be given for a targeted attack")
        with undisturbed(images.device), torch.no_grad():
            descent = Descent(self, images, labels, target, valid, seed, sizes)
            for restart in range(self.restarts):
                if not descent.run(restart):
                    break
            return PGDSamples(*descent.result())
