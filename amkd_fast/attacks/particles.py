"""Several particles an image that climb a network's loss and keep apart: local distributions of adversarial images."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from amkd_fast import checks, philox
from amkd_fast.attacks import arguments, loop
from amkd_fast.attacks.frozen import FrozenModel, as_frozen, forked_rng
from amkd_fast.ops.attack.arguments import check_objective
from amkd_fast.ops.attack.objective import objective
from amkd_fast.ops.attack.operators import LOSSES
from amkd_fast.ops.attack.particles import MOST, particle_step


class ParticleSamples(NamedTuple):
    """What :class:`ParticleAttack` returns, for n particles of each of B images. Nothing carries a graph.

    Attributes:
        images: [B, n, ...], dtype of the input; ``images.flatten(0, 1)`` has its memory format.
        logits: [B, n, K], the network's logits on ``images``.
    """

    images: Tensor
    logits: Tensor


class ParticleAttack:
    """Particles by sign steps of Stein variational ascent on a frozen network: :func:`amkd_fast.svgd_step`.

    Every image sends n particles from random points of its linf ball. They climb the loss of its label together and
    repel each other, so that they spread over the adversarial images around it; where the loss is nearly flat they only
    spread. A student is to match the teacher on them: teacher-guided adversarial local distribution distillation (TALD,
    WACV 2023) [a reconstruction].

    The attack runs eagerly, honours an autocast context around the call and never waits for the device. The model and
    the caller's random state stay as they were.

    Args:
        model: The network, or a view of it by :func:`amkd_fast.attacks.frozen`; a module is frozen with the defaults.
        particles: n from 1 to 64. The network sees B · n images at a time.
        eps: Radius ≥ 0 of the ball, in the units of the images: a number, one per image [B], or what broadcasts as
            [1 or B, C, 1, …], as :func:`amkd_fast.svgd_step` says. :func:`amkd_fast.attacks.pixel_bounds` makes the
            one of normalised images from a radius in pixels.
        steps: Number of steps, ≥ 1.
        step_size: η > 0, likewise; None for 2.5 ``eps``/``steps``.
        lower: Smallest pixel value, a number or one per channel [C], in the units of the images; None for none.
        upper: Largest pixel value, likewise. Images must be inside, up to rounding; on a GPU, where looking waits for
            the device, the first batch alone is looked at.
        loss: ``"ce"``, ``"boundary"`` or ``"dlr"``, what :func:`amkd_fast.attack_objective` computes.
        logits_of: Picks the logits [B, K] from the outputs of a model that has several.

    Raises:
        TypeError: An argument has another type than the above.
        ValueError: An argument's value breaks a rule above.

    Example:
        >>> import torch, amkd_fast as af
        >>> model = torch.nn.Linear(2, 2)
        >>> attack = af.attacks.ParticleAttack(model, particles=3, eps=0.25, lower=0.0, upper=1.0)
        >>> found = attack(torch.rand(5, 2), torch.zeros(5, dtype=torch.int64), seed=1)
        >>> found.images.shape, found.logits.shape
        (torch.Size([5, 3, 2]), torch.Size([5, 3, 2]))
    """

    def __init__(
        self,
        model: nn.Module | FrozenModel,
        *,
        particles: int = 4,
        eps: float | Tensor,
        steps: int = 5,
        step_size: float | Tensor | None = None,
        lower: float | Tensor | None = None,
        upper: float | Tensor | None = None,
        loss: str = "ce",
        logits_of: loop.LogitsOf | None = None,
    ) -> None:
        arguments.check_count("particles", particles, 1)
        if particles > MOST:
            raise ValueError(f"particles={particles}: must be at most {MOST}")
        arguments.check_count("steps", steps, 1)
        checks.choice("loss", loss, LOSSES)
        if not isinstance(eps, Tensor):
            checks.non_negative("eps", eps)
        if step_size is None:
            step_size = 2.5 * eps / steps
        elif not isinstance(step_size, Tensor):
            checks.positive("step_size", step_size)
        self.model = as_frozen(model)
        self.particles, self.eps, self.steps, self.step_size = particles, eps, steps, step_size
        self.lower, self.upper, self.inside, self.loss = lower, upper, arguments.BoundsCheck(), loss
        arguments.check_logits_of(logits_of)
        self.logits_of = logits_of

    def __call__(
        self, images: Tensor, labels: Tensor, *, rows: Tensor | None = None, seed: int | Tensor | None = None
    ) -> ParticleSamples:
        """Attack a batch.

        Args:
            images: [B, ...], floating; B may be 0. Never changed.
            labels: int64 or int32 [B], the classes that the particles leave.
            rows: int64 [B], what the images are called in the draws, such as their places in a batch that is spread
                over several processes; None for 0 … B − 1.
            seed: Seed of the random starts; every particle of every row has draws of its own. None draws one for every
                call from torch's generator of the device (``torch.manual_seed``).

        Returns:
            :class:`ParticleSamples`.

        Raises:
            TypeError: A dtype or a type differs from the above.
            ValueError: A shape, a device or a value breaks a rule above, or the model gives no logits.
        """
        arguments.check_images(images, self.lower, self.upper)
        checks.integer("labels", labels)
        arguments.check_rows("labels", labels, images)
        arguments.check_rows("rows", rows, images)
        seed = philox.chosen_seed(seed, images.device)
        self.inside.check(images, self.lower, self.upper)
        device, n = images.device, self.particles
        eps, step_size = (arguments.size_on(name, getattr(self, name), images) for name in ("eps", "step_size"))
        lower, upper = (arguments.to_device(value, device) for value in (self.lower, self.upper))
        with forked_rng(device), torch.no_grad():
            evaluate = partial(loop.evaluate, self.model.network(images), self.logits_of)
            if images.shape[0] == 0:
                logits = images.new_zeros((0, n, loop.count_classes(evaluate, images)), dtype=torch.float32)
                return ParticleSamples(images.detach().new_zeros((0, n, *images.shape[1:])), logits)

            layout = self.model.memory_format(images)
            clean = images.detach().clone(memory_format=layout)
            classes = labels.long().repeat_interleave(n)  # [B · n], as all that the network sees
            each, radius = torch.arange(n, device=device), eps
            rows = torch.arange(images.shape[0], device=device) if rows is None else rows.long()
            if isinstance(eps, Tensor):
                radius = eps.repeat_interleave(n, 0)
            x = loop.random_start(
                clean.repeat_interleave(n, 0), radius, "linf", (rows[:, None] * n + each).flatten(), seed, 0
            )
            x = loop.clipped(x, lower, upper).contiguous(memory_format=layout)
            for _ in range(self.steps):
                logits, leaf = evaluate(x, grad=True)
                check_objective(logits, self.loss)
                _, grad_logits, _, _ = objective(logits, classes, self.loss)
                grad = loop.input_gradient(logits, leaf, grad_logits)
                moved = particle_step(
                    x.unflatten(0, (-1, n)), grad.unflatten(0, (-1, n)), clean, step_size, eps, lower, upper
                )
                x = moved.flatten(0, 1)
            logits, _ = evaluate(x, grad=False)
            last = images.dim() == 4 and images.is_contiguous(memory_format=torch.channels_last)
            last = last and not images.is_contiguous()
            x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
            return ParticleSamples(x.unflatten(0, (-1, n)), logits.unflatten(0, (-1, n)))
