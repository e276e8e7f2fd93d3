"""Boundary supporting samples: push images over the decision boundary between two classes of a network."""

from __future__ import annotations

import functools
import warnings
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.attacks import engine
from amkd_fast.attacks.capture import Graphs, check_capture
from amkd_fast.attacks.frozen import FrozenModel
from amkd_fast.attacks.search import Search
from amkd_fast.attacks.surroundings import undisturbed
from amkd_fast.ops.attack import attack_objective
from amkd_fast.ops.attack.steps import has_channels


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

    The attack stops when the last sample has arrived. Eagerly that costs one host synchronisation a step; with
    ``capture`` a step is a CUDA graph, and its outcome is read while the next step runs. It honours an autocast context
    around the call (eagerly). The caller's random state is put back afterwards.

    Args:
        model: The network, or a view of it by :func:`amkd_fast.attacks.frozen`; a module is frozen with the defaults.
        preset: ``"official"``, ``"paper"``, ``"zoo"`` or ``"near_boundary"``.
        steps: Largest number of steps, ≥ 1.
        step_size: η > 0: a number, one per image [M], or what broadcasts as [1 or M, C, 1, …], as
            :func:`amkd_fast.attack_step` says (not for ``near_boundary``, whose step has no unit); None takes the
            preset's.
        project: Leave out coordinates that a bound blocks; None takes the preset's.
        refine: Number of bisections, each a forward pass, between the last point inside and the first outside; None
            takes the preset's. With them a sample may end in another class than the one it first landed in.
        retarget: Keep a sample that landed in a third class as one of that class; None takes the preset's.
        lower: Smallest pixel value, a number or one per channel [C], in the units of the images; −inf for none. Without
            bounds, a preset that means the pixels' warns once.
        upper: Largest pixel value, likewise. Images must be inside what is given here, up to rounding; on a GPU, where
            looking waits for the device, the first batch alone is looked at. Those of ``official`` clip.
        capture: Replay steps from a CUDA graph, recorded once for each size of batch (rounded up, so that similar
            batches share it). True; False; or ``"auto"``, which is False until a GPU has confirmed the recordings. What
            cannot be recorded runs eagerly, with one warning; ``attack.graphs.reason`` says why.
        compact: Take finished samples out of the batch; True, False or ``"auto"``, which is True on a CPU.
        early_exit: End when the last sample has arrived. False takes all the steps, without compaction and without a
            host synchronisation, so that the call can be part of the caller's CUDA graph; the samples are the same.
        logits_of: Picks the logits [B, K] from the outputs of a model that has several.

    Raises:
        TypeError: An argument has another type than the above.
        ValueError: An argument's value breaks a rule above.

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
        step_size: float | Tensor | None = None,
        project: bool | None = None,
        refine: int | None = None,
        retarget: bool | None = None,
        lower: float | Tensor | None = None,
        upper: float | Tensor | None = None,
        capture: str | bool = "auto",
        compact: str | bool = "auto",
        early_exit: bool = True,
        logits_of: engine.LogitsOf | None = None,
    ) -> None:
        checks.choice("preset", preset, PRESETS)
        engine.check_count("steps", steps, 1)
        check_capture(capture)
        engine.check_switch("compact", compact, "auto")
        engine.check_switch("early_exit", early_exit)
        if not early_exit and (compact is True or capture is True):
            raise ValueError("early_exit=False: must not be used with compact=True or capture=True, which end early")
        if step_size is not None and not isinstance(step_size, Tensor):
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
        self.compact, self.capture, self.graphs = (
            (compact, capture, Graphs()) if early_exit else (False, False, Graphs())
        )
        self.early_exit = early_exit
        self.given_bounds, self.inside = (lower, upper), engine.Inside()
        if self.settings.lower is None or self.settings.upper is None:
            _warn_of_bounds(preset)
        self._bounds: tuple[torch.device, dict[str, float | Tensor | None]] | None = None
        engine.check_logits_of(logits_of)
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
            seed: Seed of the targets' draw; row i of the batch takes number i. None draws nothing.
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
        self.inside.check(images, *self.given_bounds, valid)
        step_size = engine.size_on("step_size", self.settings.step_size, images)
        if self.settings.norm_power == 2 and has_channels(step_size):
            raise ValueError(f"step_size.shape={tuple(step_size.shape)}: must not be by channel for near_boundary")
        with undisturbed(images.device), torch.no_grad():
            search = Search(self, images, base, target, valid, seed, record_gaps, step_size)
            search.step_until_done()
            search.bisect()
            return self._samples(search)

    def bounds_on(self, device: torch.device) -> dict[str, float | Tensor | None]:
        """The bounds beside the images, moved once: a copy from the host waits, and no CUDA graph admits it."""
        if self._bounds is None or self._bounds[0] != device:
            named = {name: getattr(self.settings, name) for name in ("lower", "upper")}
            self._bounds = device, {name: engine.to_device(bound, device) for name, bound in named.items()}
        return self._bounds[1]

    def _samples(self, search: Search) -> BoundarySamples:
        settings, logits, base, target = self.settings, search.logits, search.base, search.target
        value, _, prediction, _ = attack_objective(logits, base, loss="boundary", target=target, score=settings.score)
        landed = torch.where(prediction == target, Status.CROSSED, Status.THIRD)
        left = torch.where(search.steps > 0, landed, Status.OUTSIDE)
        status = torch.where(prediction != base, left, Status.UNCROSSED)
        status = torch.where(torch.isfinite(value), status, Status.FAILED)
        status = torch.where(search.valid, status, Status.PADDED)
        accepted = status <= Status.OUTSIDE if settings.accept == "all" else status == Status.CROSSED
        if settings.retarget:
            third = status == Status.THIRD
            accepted = accepted | third
            target = torch.where(third, prediction, target)
            value = attack_objective(logits, base, loss="boundary", target=target, score=settings.score)[0]
        images = torch.empty_like(search.original).copy_(search.images)
        gap = torch.where(search.valid, -value, 0.0)
        gaps = search.trajectory()
        logits = torch.where(search.valid[:, None], logits, 0.0) if search.some_padded else logits
        return BoundarySamples(images, logits, target, status, search.steps, gap, accepted, base, gaps)


@functools.cache
def _warn_of_bounds(preset: str) -> None:
    """Once: the samples are outside of the images' space, and nothing else would tell."""
    warnings.warn(
        f"preset={preset!r} means the pixels' bounds, and lower or upper is not given: its samples may be no images. "
        "attacks.pixel_bounds makes the bounds of normalised images; -inf and inf say that there are none",
        UserWarning,
        stacklevel=3,
    )
