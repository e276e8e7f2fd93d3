"""Boundary supporting samples: push images over the decision boundary between two classes of a network."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.attacks import arguments, loop
from amkd_fast.attacks.capture import Graphs, check_capture
from amkd_fast.attacks.frozen import FrozenModel, as_frozen, forked_rng
from amkd_fast.attacks.pixels import Numbers, pixel_bounds
from amkd_fast.ops.attack import search
from amkd_fast.ops.attack.arguments import check_objective
from amkd_fast.ops.attack.bases import draw_targets
from amkd_fast.ops.attack.objective import objective
from amkd_fast.ops.attack.reference import best_other, has_channels
from amkd_fast.ops.attack.step import step
from amkd_fast.typing import NormPower, PresetName, Score, Switch


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

    score: Score
    norm_power: NormPower
    step_size: float | Tensor
    accept: Literal["all", "crossed"]
    lower: float | Tensor | None = None
    upper: float | Tensor | None = None
    project: bool = False
    refine: int = 0
    retarget: bool = False


PRESETS: dict[PresetName, Preset] = {
    "official": Preset("logits", 1, 0.3, "all", -2.5, 2.5),
    "paper": Preset("logits", 1, 0.3, "crossed"),
    "zoo": Preset("softmax", 1, 0.3, "all"),
    "near_boundary": Preset("logits", 2, 1.02, "crossed", project=True, refine=4, retarget=True),
}


def in_pixels(preset: Preset, mean: Numbers, std: Numbers) -> Preset:
    """The preset for pixels, where it is meant for (pixel − ``mean``)/``std``.

    A unit step and bounds are scaled channel by channel. A Newton step has no unit and stays: the way to the boundary
    that is the shortest in pixels.

    Args:
        preset: Of normalised images.
        mean: A number or one per channel [C].
        std: Likewise, above 0. With one per channel images are [B, C, H, W].

    Raises:
        ValueError: They differ in length, or a std is not above 0.
    """
    pixel_bounds(mean, std)  # for its checks
    means, stds = (torch.as_tensor(numbers, dtype=torch.float64).reshape(-1) for numbers in (mean, std))
    found: dict[str, Any] = {}  # each of its field's type
    for name, bound in (("lower", preset.lower), ("upper", preset.upper)):
        if bound is not None:
            found[name] = _once(means + stds * bound)
    if preset.norm_power == 1:
        size = _once(stds * preset.step_size)
        found["step_size"] = size.view(1, -1, 1, 1) if isinstance(size, Tensor) else size
    return preset._replace(**found)


def _once(numbers: Tensor) -> float | Tensor:
    """One number where all are the same."""
    return float(numbers[0]) if bool((numbers == numbers[0]).all()) else numbers


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
        normalisation: Mean and std, each a number or one per channel, with which the model itself normalises the
            images. The presets' own steps and bounds are meant for normalised images: what is taken from a preset is
            brought to the images' units by it. None: the images are normalised already.
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
        preset: PresetName = "near_boundary",
        steps: int = 10,
        step_size: float | Tensor | None = None,
        project: bool | None = None,
        refine: int | None = None,
        retarget: bool | None = None,
        lower: float | Tensor | None = None,
        upper: float | Tensor | None = None,
        normalisation: tuple[Numbers, Numbers] | None = None,
        capture: Switch = "auto",
        compact: Switch = "auto",
        early_exit: bool = True,
        logits_of: loop.LogitsOf | None = None,
    ) -> None:
        checks.choice("preset", preset, PRESETS)
        arguments.check_count("steps", steps, 1)
        check_capture(capture)
        arguments.check_switch("compact", compact, "auto")
        arguments.check_switch("early_exit", early_exit)
        if not early_exit and (compact is True or capture is True):
            raise ValueError("early_exit=False: must not be used with compact=True or capture=True, which end early")
        if step_size is not None and not isinstance(step_size, Tensor):
            checks.positive("step_size", step_size)
        if refine is not None:
            arguments.check_count("refine", refine, 0)
        for name, value in (("project", project), ("retarget", retarget)):
            arguments.check_switch(name, value, None)
        given: dict[str, Any] = {
            "step_size": step_size,
            "project": project,
            "refine": refine,
            "retarget": retarget,
            "lower": lower,
            "upper": upper,
        }
        self.model = as_frozen(model)
        self.steps = steps
        if normalisation is not None and len(normalisation) != 2:
            raise ValueError(f"normalisation={normalisation!r}: must be two, mean and std")
        own = PRESETS[preset] if normalisation is None else in_pixels(PRESETS[preset], *normalisation)
        self.settings = own._replace(**{name: value for name, value in given.items() if value is not None})
        self.compact, self.capture, self.graphs = (
            (compact, capture, Graphs()) if early_exit else (False, False, Graphs())
        )
        self.early_exit = early_exit
        self.given_bounds, self.inside = (lower, upper), arguments.BoundsCheck()
        if self.settings.lower is None or self.settings.upper is None:
            _warn_of_bounds(preset)
        self._moved: tuple[torch.device, dict[str, Any]] | None = None
        arguments.check_logits_of(logits_of)
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
        arguments.check_images(images, self.settings.lower, self.settings.upper)
        arguments.check_rows("base", base, images)
        arguments.check_rows("target", target, images)
        arguments.check_rows("valid", valid, images, flags=True)
        self.inside.check(images, *self.given_bounds, valid)
        moved = self._on(images.device)
        step_size = arguments.size_on("step_size", moved["step_size"], images)
        if self.settings.norm_power == 2 and has_channels(step_size):
            raise ValueError(f"step_size.shape={tuple(step_size.shape)}: must not be by channel for near_boundary")
        settings = self.settings
        options: dict[str, Any] = {"norm": "boundary", "norm_power": settings.norm_power, "project": settings.project}
        options |= {name: moved[name] for name in ("lower", "upper")}
        with forked_rng(images.device), torch.no_grad():
            obstacle = "record_gaps=True asks for the gap of every step" if record_gaps else ""
            run = loop.Loop(self, images, obstacle)
            context = _Step(run.evaluate, settings, step_size, options, seed, run.compact, [] if record_gaps else None)
            results = _Results(run.clean, base, target, valid, settings.refine > 0)
            rows = run.rows(valid)
            if rows.numel() and run.compact and not record_gaps and results.are_served(step_size):
                results.search(run, context, rows, self.steps)
            elif rows.numel():
                run.take_steps(
                    context, results.start(rows, step_size), self.steps, results.store,
                    until_done=self.early_exit, judge_first=base is None or target is None,
                )  # fmt: skip
                if results.inside is not None and results.logits is not None:
                    results.bisect(run, context, settings.refine, results.inside, results.logits)
            if results.logits is None:
                results.logits = images.new_zeros((images.shape[0], loop.count_classes(run.evaluate, images)))
            return self._samples(images, results, results.logits, context.trajectory(self.steps, results.logits))

    def _on(self, device: torch.device) -> dict[str, Any]:
        """Step size and bounds beside the images, moved once: a copy from the host waits; no CUDA graph admits it."""
        if self._moved is None or self._moved[0] != device:
            named = {name: getattr(self.settings, name) for name in ("step_size", "lower", "upper")}
            self._moved = device, {name: arguments.to_device(value, device) for name, value in named.items()}
        return self._moved[1]

    def _samples(self, like: Tensor, results: _Results, logits: Tensor, gaps: Tensor | None) -> BoundarySamples:
        settings, base, target = self.settings, results.base, results.target
        check_objective(logits, "boundary")
        logits = torch.where(results.valid[:, None], logits, 0.0) if results.some_padded else logits
        images = (
            results.images if results.images.stride() == like.stride() else torch.empty_like(like).copy_(results.images)
        )
        if search.serves(logits):
            target, status, gap, accepted = search.outcome(
                logits, base, target, results.steps, results.valid, score=settings.score,
                accept_all=settings.accept == "all", retarget=settings.retarget,
            )  # fmt: skip
            return BoundarySamples(images, logits, target, status, results.steps, gap, accepted, base, gaps)
        value, _, prediction, _ = objective(logits, base, "boundary", target, settings.score)
        landed = torch.where(prediction == target, Status.CROSSED, Status.THIRD)
        left = torch.where(results.steps > 0, landed, Status.OUTSIDE)
        status = torch.where(prediction != base, left, Status.UNCROSSED)
        status = torch.where(torch.isfinite(value), status, Status.FAILED)
        status = torch.where(results.valid, status, Status.PADDED)
        accepted = status <= Status.OUTSIDE if settings.accept == "all" else status == Status.CROSSED
        if settings.retarget:
            third = status == Status.THIRD
            accepted = accepted | third
            target = torch.where(third, prediction, target)
            value = objective(logits, base, "boundary", target, settings.score)[0]
        gap = torch.where(results.valid, -value, 0.0)
        return BoundarySamples(images, logits, target, status, results.steps, gap, accepted, base, gaps)


class _State(NamedTuple):
    """The m samples that are worked on: all of the batch, or with compaction those that have not finished."""

    rows: Tensor  # int64 [m], where in the batch they are
    x: Tensor
    inside: Tensor | None  # the last point inside the base class; None where no bisection follows
    base: Tensor | None  # these two: None before the logits on the clean images have settled them
    target: Tensor | None
    step_size: Tensor | None  # [m] or [m, C, 1, ...] where it is not one number for all
    active: Tensor  # bool [m], still to be moved
    steps: Tensor


class _Seen(NamedTuple):
    """What was found at the samples."""

    logits: Tensor
    gap: Tensor


class _Interval(NamedTuple):
    """Samples between a point inside their base class and one outside."""

    inside: Tensor
    outside: Tensor
    logits: Tensor  # of the points outside
    base: Tensor
    crossed: Tensor  # bool, the others stay


@dataclass(frozen=True)
class _Step(loop.AttackStep[_State, _Seen]):
    evaluate: loop.Evaluate
    settings: Preset
    step_size: float | Tensor
    options: dict[str, Any]  # of the attack step
    seed: int | Tensor | None
    all_active: bool  # finished samples are taken out
    gaps: list[tuple[Tensor, Tensor]] | None  # rows and gaps at every evaluation, where they are asked for

    def judge(self, s: _State, logits: Tensor) -> tuple[_State, Tensor, _Seen]:
        check_objective(logits, "boundary")
        base, target = s.base, s.target
        if base is None:
            base = logits.argmax(1)
        if target is None:
            drawn = None if self.seed is None else draw_targets(logits, base, seed=self.seed, rows=s.rows)
            target = best_other(logits, base) if drawn is None else drawn
        s = s._replace(base=base, target=target)
        value, grad_logits, _, unfinished = objective(logits, base, "boundary", target, self.settings.score)
        seen = _Seen(logits.detach(), -value)
        if self.gaps is not None:
            gap = self._gap(seen, base, target)
            self.gaps.append((s.rows[s.active], gap[s.active]))
        return s._replace(active=s.active & unfinished), grad_logits, seen

    def move(self, s: _State, seen: _Seen, grad: Tensor) -> _State:
        size = self.step_size if s.step_size is None else s.step_size
        x = step(s.x, grad, step_size=size, gap=seen.gap, active=s.active, **self.options)
        inside = s.inside
        if inside is not None:
            inside = s.x if self.all_active else loop.where_rows(s.active, s.x, inside)
        return s._replace(x=x, inside=inside, steps=s.steps + s.active)

    def halve(self, s: _Interval) -> _Interval:
        """Evaluate the point in the middle and let it take the place of the end on its side."""
        work = torch.promote_types(s.inside.dtype, torch.float32)
        middle = torch.lerp(s.inside.to(work), s.outside.to(work), 0.5).to(s.inside.dtype)
        logits, _ = self.evaluate(middle, grad=False)
        beyond = s.crossed & _left(logits, s.base)
        short = s.crossed & (logits.argmax(1) == s.base)
        return s._replace(
            inside=loop.where_rows(short, middle, s.inside),
            outside=loop.where_rows(beyond, middle, s.outside),
            logits=torch.where(beyond[:, None], logits, s.logits),
        )

    def _gap(self, seen: _Seen, base: Tensor, target: Tensor) -> Tensor:
        """The gap to the class that a sample is in the end said to be of."""
        if not self.settings.retarget:
            return seen.gap
        prediction = seen.logits.argmax(1)
        landed = torch.where(prediction == base, target, prediction)
        return -objective(seen.logits, base, "boundary", landed, self.settings.score)[0]

    def trajectory(self, limit: int, logits: Tensor) -> Tensor | None:
        """[limit + 1, M]: a sample that has finished repeats its last gap, NaN in padded rows."""
        if self.gaps is None:
            return None
        dtype = self.gaps[0][1].dtype if self.gaps else logits.dtype
        gaps = torch.full((limit + 1, logits.shape[0]), torch.nan, dtype=dtype, device=logits.device)
        for taken, (rows, gap) in enumerate(self.gaps):
            gaps[taken:, rows] = gap
        return gaps


class _Results:
    """The results of a batch of M images, full length, while the samples that are worked on grow fewer."""

    def __init__(
        self, images: Tensor, base: Tensor | None, target: Tensor | None, valid: Tensor | None, refine: bool
    ) -> None:
        count, device = images.shape[0], images.device
        self.images = images
        self.inside = torch.empty_like(images) if refine else None
        self.some_padded = valid is not None
        self.valid = torch.ones(count, dtype=torch.bool, device=device) if valid is None else valid
        self.steps = torch.zeros(count, dtype=torch.int64, device=device)
        self.given = {"base": base, "target": target}
        self.base, self.target = (self.steps.clone() if c is None else c.long() for c in (base, target))
        self.logits: Tensor | None = None

    def start(self, rows: Tensor, step_size: float | Tensor) -> _State:
        """The samples of some rows."""
        base, target = (None if self.given[name] is None else getattr(self, name) for name in ("base", "target"))
        sizes = step_size if isinstance(step_size, Tensor) else None
        x, active, steps = self.images, self.valid, self.steps
        if rows.numel() < self.valid.numel():
            x, active, steps = x[rows], active[rows], steps[rows]
            base, target, sizes = (None if part is None else part[rows] for part in (base, target, sizes))
        return _State(rows, x, None if self.inside is None else x, base, target, sizes, active, steps)

    def store(self, s: _State, seen: _Seen) -> None:
        """Write samples to their rows."""
        if self.logits is None:
            self.logits = seen.logits.new_zeros((self.valid.numel(), seen.logits.shape[1]))
        # What is inside goes first: after one step it is the tensor of the clean images, which the others end in.
        own: list[tuple[Tensor | None, Tensor | None]] = [
            (self.inside, s.inside),
            (self.images, s.x),
            (self.logits, seen.logits),
            (self.steps, s.steps),
        ]
        own += [(getattr(self, name), getattr(s, name)) for name, given in self.given.items() if given is None]
        for full, part in own:
            if full is not None and part is not None and part is not full:
                full.index_copy_(0, s.rows, part)

    def are_served(self, step_size: float | Tensor) -> bool:
        """Whether :meth:`search` can be asked."""
        return search.serves(self.images) and not has_channels(step_size)

    def search(self, run: loop.Loop, context: _Step, rows: Tensor, limit: int) -> None:
        """What :meth:`Loop.take_steps` and :meth:`bisect` do with compaction, in few calls.

        Only the images of the samples that go on are moved together; what else is known of them stays in its place.
        """
        settings, score, images = context.settings, context.settings.score, self.images
        x = images
        if rows.numel() < images.shape[0]:
            x = torch.index_select(images, 0, rows, out=search.some_of(images, rows))
        gap: Tensor | None = None
        for taken in range(limit + 1):
            logits, leaf = run.evaluate(x, grad=taken < limit)
            if self.logits is None or gap is None:
                check_objective(logits, "boundary")
                self.logits = logits.new_zeros((images.shape[0], logits.shape[1]))
                gap = logits.new_zeros(images.shape[0], dtype=torch.promote_types(logits.dtype, torch.float32))
                self._settle(logits.detach(), rows, context.seed)
            grad_logits, active, left = search.judge(
                logits, rows, self.base, self.target, self.logits, gap, self.steps, score=score, moves=taken < limit
            )
            if left == 0 or taken == limit:
                break
            grad = loop.input_gradient(logits, leaf, grad_logits)
            x, rows = search.advance(
                x, grad, rows, active, left, gap, images, self.inside, step_size=context.step_size,
                norm_power=settings.norm_power, project=settings.project,
                lower=context.options["lower"], upper=context.options["upper"],
            )  # fmt: skip
        if x is not images:
            images.index_copy_(0, rows, x)
        if self.inside is None or self.logits is None:
            return
        rows = (_left(self.logits, self.base) & self.valid & (self.steps > 0)).nonzero()[:, 0]
        middle, found = search.some_of(images, rows), None
        for taken in range(settings.refine + 1 if rows.numel() else 0):
            again = taken < settings.refine
            search.halve(middle, found, rows, self.base, self.inside, images, self.logits, again=again)
            if again:
                found, _ = run.evaluate(middle, grad=False)

    def _settle(self, logits: Tensor, rows: Tensor, seed: int | Tensor | None) -> None:
        """Take from the logits on the clean images the classes that are not given."""
        if self.given["base"] is None:
            self.base.index_copy_(0, rows, logits.argmax(1))
        if self.given["target"] is None:
            base = self.base[rows]
            drawn = None if seed is None else draw_targets(logits, base, seed=seed, rows=rows)
            self.target.index_copy_(0, rows, best_other(logits, base) if drawn is None else drawn)

    def bisect(self, run: loop.Loop, context: _Step, times: int, inside: Tensor, logits: Tensor) -> None:
        """Halve the last step of every sample that left its base class; ``logits`` become those of its new end."""
        crossed = _left(logits, self.base) & self.valid & (self.steps > 0)
        rows = run.rows(crossed)
        if rows.numel() == 0:
            return
        s = _Interval(inside, self.images, logits, self.base, crossed)
        s = run.repeat(context.halve, loop.take(s, rows) if run.compact else s, times)
        self.images.index_copy_(0, rows, s.outside)
        logits.index_copy_(0, rows, s.logits)


def _left(logits: Tensor, base: Tensor) -> Tensor:
    """Whether the prediction is another class than the base, and no NaN is among the logits."""
    return (logits.argmax(1) != base) & ~torch.isnan(logits).any(1)


@functools.cache
def _warn_of_bounds(preset: PresetName) -> None:
    """Once: the samples are outside of the images' space, and nothing else would tell."""
    warnings.warn(
        f"preset={preset!r} means the pixels' bounds, and lower or upper is not given: its samples may be no images. "
        "attacks.pixel_bounds makes the bounds of normalised images; -inf and inf say that there are none",
        UserWarning,
        stacklevel=3,
    )
