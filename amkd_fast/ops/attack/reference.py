"""The attack family in plain PyTorch: the specification that every other backend is tested against.

Where a step takes a sample and when it stays, what it increases, and from which samples boundaries are searched.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeGuard, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from amkd_fast import philox
from amkd_fast.typing import AttackLoss, NormPower, Score, StepNorm

GAP_MARGIN = 1e-4  # the public BSS code adds it to the gap, so that a step from the boundary itself is not zero
DLR_FLOOR = 1e-12


def attack_step(
    x: Tensor,
    grad: Tensor,
    x0: Tensor | None,
    step_size: float | Tensor,
    eps: float | Tensor | None,
    norm: StepNorm,
    norm_power: NormPower,
    gap: Tensor | None,
    velocity: Tensor | None,
    decay: float,
    lower: float | Tensor | None,
    upper: float | Tensor | None,
    active: Tensor | None,
    project: bool,
    top: float,
) -> tuple[Tensor, Tensor | None]:
    """One step for every sample of ``x`` [B, ...]; returns the new samples and the new velocity."""
    work = torch.promote_types(x.dtype, torch.float32)
    wide, g = x.to(work), grad.to(work)
    eta, radius = per_sample(step_size, wide), per_sample(eps, wide)
    low, high = per_channel(lower, wide), per_channel(upper, wide)

    reach = eta if gap is None else eta * (per_sample(gap, wide) + GAP_MARGIN)  # [B, 1 or C, 1, ...]
    moves = _all(torch.isfinite(reach)) & _all(torch.isfinite(g)) & _any(g != 0)
    if active is not None:
        moves = moves & per_sample(active, wide, torch.bool)
    if radius is not None:
        moves = moves & _all(radius >= 0)

    # A sample that stays is computed on ones: neither its result nor its derivative can meet a NaN.
    g = torch.where(moves, g, 1.0)
    if has_channels(step_size) and (norm != "linf" or velocity is not None):
        g = g * shares(eta)
    if velocity is not None:
        relative = g / _peak(g)
        fresh = decay * velocity + relative / relative.abs().mean(_sample_dims(g), keepdim=True)
        moves = moves & _all(torch.isfinite(fresh))
        velocity = torch.where(moves, fresh, velocity)
        g = torch.where(moves, fresh, 1.0)
    if project:
        g = without_blocked(wide, g, g * reach.sign(), low, high)

    peak = _peak(g)
    moves = moves & (peak > 0)
    if norm_power == 2:
        reach = reach / peak
        moves = moves & torch.isfinite(reach)
    g, peak = torch.where(moves, g, 1.0), torch.where(moves, peak, 1.0)

    change = torch.where(moves, reach, 0.0) * _heading(g, peak, norm, norm_power, top)
    return landed(x, change, moves, x0, eps, norm, lower, upper), velocity


def landed(
    x: Tensor,
    change: Tensor,
    moves: Tensor,
    x0: Tensor | None,
    eps: float | Tensor | None,
    norm: StepNorm,
    lower: float | Tensor | None,
    upper: float | Tensor | None,
) -> Tensor:
    """``x`` + ``change`` inside the ball and the bounds, in ``x``'s dtype; samples that do not move stay."""
    wide = x.to(change.dtype)
    radius, low, high = per_sample(eps, wide), per_channel(lower, wide), per_channel(upper, wide)
    largest = torch.finfo(wide.dtype).max
    moved = (wide + change).clamp(-largest, largest)  # the ball can pull back what is finite
    if radius is not None and x0 is not None:  # which come together
        clean = x0.to(wide.dtype)
        moved = (_into_ellipsoid if has_channels(eps) and norm != "linf" else _into_ball)(moved, clean, radius, norm)
    moved = _within(moved, low, high)
    limit = torch.finfo(x.dtype).max
    moved = moved.clamp(-limit, limit).to(x.dtype)
    if radius is not None and x0 is not None:
        moved = torch.where(radius == 0, x0, moved)
    return torch.where(moves, moved, x)


def rounded_inside(
    moved: Tensor, before: Tensor, x0: Tensor, eps: float | Tensor, norm: StepNorm, lower=None, upper=None
) -> Tensor:
    """Pull back the samples of a two-byte dtype that rounding has taken out of their ball; ``before`` may stay.

    Where ``x0`` itself breaks a bound, the bound prevails.
    """
    wide, clean = moved.detach().float(), x0.detach().float()
    radius, low, high = per_sample(eps, wide), per_channel(lower, wide), per_channel(upper, wide)
    change = wide - clean
    if norm == "linf":
        inner = torch.minimum(torch.maximum(change, -radius), radius)
    else:
        unit = change / torch.where(radius > 0, radius, 1.0)
        length = torch.linalg.vector_norm(unit, int(norm[1]), dim=_sample_dims(unit), keepdim=True)
        inner = torch.where(length > 1.0, change / torch.where(length > 1.0, length, 1.0), change)
    back = (clean + inner).to(moved.dtype)
    back = torch.where((back.float() - clean).abs() > inner.abs(), _nearer(back, x0.detach()), back)
    stays = ((moved == before) | moved.isnan()).flatten(1).all(1).view(-1, *[1] * (moved.dim() - 1))
    free = (inner != change) & ~stays & (_within(clean, low, high) == clean)
    return moved + (torch.where(free, back, moved) - moved).detach() if moved.requires_grad else back.where(free, moved)


def _nearer(x: Tensor, to: Tensor) -> Tensor:
    """The next number of a two-byte dtype on the way from ``x`` to ``to``, which differs from it."""
    bits, grows = x.view(torch.int16), (to > x) == (x > 0)
    smallest = torch.where(to > x, 1, -32767).to(torch.int16)
    return torch.where(x == 0, smallest, torch.where(grows, bits + 1, bits - 1)).view(x.dtype)


def has_channels(size: float | Tensor | None) -> TypeGuard[Tensor]:
    """Whether a radius or step size is given by channel."""
    return type(size) is not float and isinstance(size, Tensor) and size.dim() > 1


def shares(eta: Tensor) -> Tensor:
    """The channels' sizes as shares of the largest: the units in which a gradient's length is taken."""
    share = eta.abs() / eta.abs().amax(1, keepdim=True)
    return torch.where(torch.isfinite(share), share, 1.0)  # all 0, or a sample that stays


def project_l1(difference: Tensor, radius: Tensor) -> Tensor:
    """Exact Euclidean projection of the rows of [B, n] on the l1 ball of ``radius`` [B, 1]."""
    size = difference.abs()
    ordered = size.sort(dim=1, descending=True).values
    count = torch.arange(1, size.shape[1] + 1, device=size.device, dtype=size.dtype)
    threshold = (ordered.cumsum(1) - radius) / count
    support = (ordered > threshold).sum(1, keepdim=True).clamp_min(1)
    shrunk = (size - threshold.gather(1, support - 1).clamp_min(0)).clamp_min(0)
    return torch.where(size.sum(1, keepdim=True) > radius, difference.sign() * shrunk, difference)


def top_count(top: float, size: int) -> int:
    """How many of ``size`` coordinates an l1 step moves at least."""
    return max(1, math.ceil(top * size))


def _heading(g: Tensor, peak: Tensor, norm: StepNorm, norm_power: NormPower, top: float) -> Tensor:
    """Direction of ascent; for a Newton step g/‖g‖² times ``peak``, the largest entry of g."""
    if norm == "linf":
        return g.sign()
    if norm == "l1":
        size = g.abs().flatten(1)  # [B, n]
        largest = size.topk(top_count(top, size.shape[1]), dim=1).values[:, -1]
        chosen = (g.abs() >= per_sample(largest, g)) & (g != 0)
        return torch.where(chosen, g.sign(), 0.0) / chosen.sum(_sample_dims(g), keepdim=True)
    unit = g / peak  # so that no norm overflows
    length = torch.linalg.vector_norm(unit, dim=_sample_dims(unit), keepdim=True)
    return unit / length**norm_power


def _into_ball(moved: Tensor, x0: Tensor, radius: Tensor, norm: StepNorm) -> Tensor:
    if norm == "linf":
        return _within(moved, x0 - radius, x0 + radius)
    difference = moved - x0
    if norm == "l1":
        inside = project_l1(difference.flatten(1), radius.flatten(1)).view_as(difference)
        outside = difference.abs().sum(_sample_dims(moved), keepdim=True) > radius
        return torch.where(outside, x0 + inside, moved)
    peak = _peak(difference)
    peak = torch.where(peak > 0, peak, 1.0)
    length = peak * torch.linalg.vector_norm(difference / peak, dim=_sample_dims(moved), keepdim=True)
    return torch.where(length > radius, x0 + difference * (radius / length), moved)


def _into_ellipsoid(moved: Tensor, x0: Tensor, radius: Tensor, norm: StepNorm) -> Tensor:
    """The ball of radius 1 in units of the channels' radii."""
    unit = torch.where(radius > 0, radius, 1.0)
    difference = torch.where(radius > 0, moved - x0, 0.0) / unit
    one = difference.new_ones([1] * difference.dim())
    inside = _into_ball(difference, torch.zeros_like(difference), one, norm)
    return torch.where(inside == difference, torch.where(radius > 0, moved, x0), x0 + inside * unit)


def _within(moved: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
    """Clip; a NaN bound bounds nothing, and a NaN that was in the sample stays."""
    if low is not None:
        moved = torch.where(moved < low, low, moved)
    if high is not None:
        moved = torch.where(moved > high, high, moved)
    return moved


def without_blocked(x: Tensor, g: Tensor, direction: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
    """Take out the coordinates that stand at a bound and would leave through it."""
    if low is not None:
        g = torch.where((x <= low) & (direction < 0), 0.0, g)
    if high is not None:
        g = torch.where((x >= high) & (direction > 0), 0.0, g)
    return g


def _sample_dims(x: Tensor) -> tuple[int, ...]:
    return tuple(range(1, x.dim()))


def _peak(g: Tensor) -> Tensor:
    # Detached: every use divides by it and multiplies it back, so the result does not depend on it.
    return g.detach().abs().amax(_sample_dims(g), keepdim=True)


def _all(flags: Tensor) -> Tensor:
    return flags.flatten(1).all(1).view(-1, *[1] * (flags.dim() - 1))


def _any(flags: Tensor) -> Tensor:
    return flags.flatten(1).any(1).view(-1, *[1] * (flags.dim() - 1))


@overload
def per_sample(value: float | Tensor, like: Tensor, dtype: torch.dtype | None = None) -> Tensor: ...


@overload
def per_sample(value: float | Tensor | None, like: Tensor, dtype: torch.dtype | None = None) -> Tensor | None: ...


def per_sample(value: float | Tensor | None, like: Tensor, dtype: torch.dtype | None = None) -> Tensor | None:
    """A number or [B] as a tensor that broadcasts along the samples, [B or 1, 1, ...]; one by channel keeps its."""
    if value is None:
        return None
    ones = [1] * (like.dim() - 1)
    if isinstance(value, Tensor) and value.dim() > 1:
        return value.to(dtype or like.dtype)
    if isinstance(value, Tensor):
        return value.to(dtype or like.dtype).reshape(-1, *ones)
    return torch.full((1, *ones), value, dtype=dtype or like.dtype, device=like.device)


def per_channel(value: float | Tensor | None, like: Tensor) -> Tensor | None:
    """A number or [C] as a tensor that broadcasts along the channels, [1, C or 1, 1, ...]."""
    if value is None:
        return None
    ones = [1] * (like.dim() - 2)
    if isinstance(value, Tensor):
        return value.to(like.dtype).reshape(1, -1, *ones)
    return torch.full((1, 1, *ones), value, dtype=like.dtype, device=like.device)


def attack_objective(
    logits: Tensor, labels: Tensor, loss: AttackLoss, target: Tensor | None, score: Score, targeted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value [B], gradient with respect to the logits [B, K], prediction [B] and active flag [B]."""
    z = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    labels = labels.long()
    target = None if target is None else target.long()
    prediction = z.argmax(1)

    if loss == "ce":
        aim = target if targeted else labels
        assert aim is not None, "a targeted call has a target"
        value, gradient = _cross_entropy(z, aim)
        if targeted:
            value, gradient = -value, -gradient
    else:
        rival = best_other(z, labels) if target is None else target
        if loss == "boundary":
            value, gradient = _boundary(z, labels, rival, score)
        else:
            value, gradient = _dlr(z, labels, rival, targeted)

    value = torch.where(torch.isnan(z).any(1), torch.nan, value)
    usable = torch.isfinite(value) & torch.isfinite(gradient).all(1)
    gradient = torch.where(usable[:, None], gradient, 0.0).to(logits.dtype)
    unfinished = prediction != target if targeted else prediction == labels
    return value, gradient, prediction, unfinished & usable


def best_other(z: Tensor, labels: Tensor) -> Tensor:
    """The highest class besides ``labels``, the lowest index among equals."""
    highest = z.masked_fill(_hot(z, labels), -torch.inf).argmax(1)
    return torch.where(highest == labels, (labels == 0).to(highest.dtype), highest)  # equal where all others are −inf


def _cross_entropy(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    p, rest, left = _probabilities(z)
    return rest.log1p() + (z.amax(1) - _at(z, labels)), torch.where(_hot(z, labels), -left, p)


def _boundary(z: Tensor, base: Tensor, target: Tensor, score: Score) -> tuple[Tensor, Tensor]:
    to_target, to_base = _hot(z, target), _hot(z, base)  # [B, K]
    if score == "logits":
        return _at(z, target) - _at(z, base), to_target.to(z.dtype) - to_base.to(z.dtype)
    p, _, left = _probabilities(z)
    up, down = _at(p, target)[:, None], _at(p, base)[:, None]  # [B, 1]
    value = up - down
    # p · (±1 − value) for the two, and what the rest of the classes have
    gradient = torch.where(to_target, p * (left + down), torch.where(to_base, -p * (left + up), -p * value))
    return value[:, 0], torch.where(to_target & to_base, 0.0, gradient)


def _probabilities(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p = σ(z) [B, K], Σ exp(z − max z) over the classes besides the highest [B], and 1 − p [B, K].

    Where p is nearly 1, its rounding would leave few digits of 1 − p.
    """
    highest, peak = _hot(z, z.argmax(1)), z.amax(1, keepdim=True)
    weight = (z - peak).exp()
    rest = weight.masked_fill(highest, 0.0).sum(1, keepdim=True) + (peak - peak)  # [B, 1], NaN for an infinite peak
    p = weight / (1 + rest)
    return p, rest[:, 0], torch.where(highest, rest / (1 + rest), 1 - p)


def _dlr(z: Tensor, labels: Tensor, rival: Tensor, targeted: bool) -> tuple[Tensor, Tensor]:
    """Difference of logits ratio (z_rival − z_y)/(z_(1) − z_(3)); targeted over z_(1) − (z_(3) + z_(4))/2."""
    order = z.argsort(dim=1, descending=True, stable=True)
    lift = _hot(z, rival).to(z.dtype) - _hot(z, labels).to(z.dtype)
    spread = _hot(z, order[:, 0]).to(z.dtype)
    for place in (2, 3) if targeted else (2,):
        spread = spread - _hot(z, order[:, place]).to(z.dtype) / (2 if targeted else 1)
    below = [_at(z, order[:, place]) for place in ((2, 3) if targeted else (2,))]
    width = (_at(z, order[:, 0]) - sum(below) / len(below) + DLR_FLOOR)[:, None]  # [B, 1]
    value = (_at(z, rival) - _at(z, labels))[:, None] / width
    return value[:, 0], (lift - value * spread) / width


def _hot(z: Tensor, classes: Tensor) -> Tensor:
    return torch.arange(z.shape[1], device=z.device) == classes[:, None]


def _at(z: Tensor, classes: Tensor) -> Tensor:
    return z.gather(1, classes[:, None])[:, 0]


class BoundaryBases(NamedTuple):
    """Rows of a batch from which boundary samples are searched, padded to a fixed length M = ``limit``.

    Attributes:
        index: int64 [M], row in the batch; 0 in the padding.
        base: int64 [M], class to leave; 0 in the padding.
        target: int64 [M], class to reach; 0 in the padding.
        valid: bool [M], False in the padding. Valid rows come first, largest disagreement of the networks first.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, and is public
    base: Tensor
    target: Tensor
    valid: Tensor


def select_boundary_bases(
    student: Tensor, teacher: Tensor, labels: Tensor, limit: int, seed: int | Tensor
) -> BoundaryBases:
    """Keep the ``limit`` eligible rows on which the networks disagree most; draw a target for each."""
    work = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    student, teacher, labels = student.detach().to(work), teacher.detach().to(work), labels.long()
    difference = teacher.softmax(1) - student.softmax(1)  # [B, K]
    other = torch.arange(teacher.shape[1], device=labels.device) != labels[:, None]
    disagreement = torch.where(other, difference.square(), 0.0).sum(1)  # [B]
    eligible = (teacher.argmax(1) == labels) & (student.argmax(1) == labels) & torch.isfinite(disagreement)

    rank = torch.where(eligible, disagreement, -1.0)
    rank, index = rank.sort(descending=True, stable=True)
    rank, index = rank[:limit], index[:limit]
    valid = rank >= 0
    target = draw_targets(teacher, labels.clamp(0, teacher.shape[1] - 1), seed)
    rows = (torch.where(valid, column, 0) for column in (index, labels[index], target[index]))
    missing = limit - index.shape[0]
    index, base, target, valid = (F.pad(column, (0, missing)) for column in (*rows, valid))
    return BoundaryBases(index, base, target, valid)


def draw_targets(logits: Tensor, base: Tensor, seed: int | Tensor, rows: Tensor | None = None) -> Tensor:
    """Draw k from σ(z)_k/(1 − σ(z)_base), k ≠ base, by inversion; row i takes number i of the seed's stream."""
    # A softmax over the other classes is the same distribution and survives a base that is nearly certain. float64
    # makes two devices that round differently disagree about once in 10¹⁵ draws.
    base = base.long()
    column = torch.arange(logits.shape[1], device=logits.device)
    others = logits.detach().double().masked_fill(column == base[:, None], -torch.inf)
    cumulative = others.softmax(1).cumsum(1)
    rows = torch.arange(logits.shape[0], device=logits.device) if rows is None else rows
    threshold = philox.uniform(seed, rows, dtype=torch.float64)[:, None] * cumulative[:, -1:]
    drawn = (cumulative <= threshold).sum(1)
    degenerate = ~(cumulative > threshold).any(1)
    return torch.where(degenerate, best_other(logits.detach(), base), drawn)
