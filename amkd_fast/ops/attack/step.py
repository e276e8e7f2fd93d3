"""The adversarial step: its public function, the operator's call, and autograd around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from amkd_fast.ops.attack import reference
from amkd_fast.ops.attack.arguments import check_step, size_of
from amkd_fast.ops.attack.operators import INF, RULES, Operators, alike, dense, lying_like, serving, split, work_dtype
from amkd_fast.ops.attack.reference import has_channels, top_count
from amkd_fast.typing import NormPower, StepNorm

_TRACED = "under torch.compile the derivative of a step is traced from the reference"


def attack_step(
    x: Tensor,
    grad: Tensor,
    *,
    x0: Tensor | None = None,
    step_size: float | Tensor,
    eps: float | Tensor | None = None,
    norm: StepNorm = "linf",
    norm_power: NormPower = 1,
    gap: Tensor | None = None,
    momentum: Tensor | None = None,
    decay: float = 1.0,
    lower: float | Tensor | None = None,
    upper: float | Tensor | None = None,
    active: Tensor | None = None,
    project: bool = False,
    top: float = 0.01,
    out: Tensor | None = None,
) -> Tensor:
    r"""Move every sample one adversarial step along its own gradient.

    With g the gradient of a sample, η the step size, Π the projection on the ball of radius ``eps`` around ``x0`` and
    then on the bounds:

    - ``"linf"``: x ← Π(x + η sign g); FGSM and PGD (Goodfellow et al. 2015, Madry et al. 2018).
    - ``"l2"``: x ← Π(x + η g/‖g‖₂).
    - ``"l1"``: x ← Π(x + η e), e = sign g on the ``top`` share of the largest \|g\| (all that tie with the last of
      them), divided by their number; exact projection on the l1 ball (Tramèr and Boneh 2019; Duchi et al. 2008).
    - ``"boundary"``: x ← Π(x + η (L + 1e-4) g/‖g‖₂^p) with the gap L = f_b − f_k and g = ∇(f_k − f_b); p = 1 is the
      step of the public BSS code (Heo et al. 2019), p = 2 a Newton step in the manner of DeepFool.

    With ``momentum`` the step uses v ← ``decay`` v + g/mean\|g\| in place of g (MI-FGSM, Dong et al. 2018).

    A sample stays exactly where it is when it is not active, when its gradient is all zero (or all blocked, see
    ``project``) or not finite, when its step size, gap or radius is not a usable number, and when a Newton step would
    overflow. No NaN ever enters a sample that was finite: results saturate at the largest number of their dtype, and
    a NaN in a bound bounds nothing. ``eps`` = 0 returns ``x0`` as it is, also where it breaks a bound. Rounding to two
    bytes takes no sample out of its ball.

    Where ``step_size`` η_c or ``eps`` ε_c differ from channel to channel, lengths are taken in their units: the ball of
    ``"l2"`` and ``"l1"`` is ‖(x − ``x0``)/ε‖ ≤ 1, and g becomes η_c/max η · g, whose heading each channel then goes
    η_c far. That is the attack on images in other units, such as pixels of which the channels of ``x`` are multiples.

    Args:
        x: Samples [B, ...] with at least two dimensions, any strides; float32, float64, float16 or bfloat16. The
            arithmetic is float32 (float64 for float64).
        grad: Gradients, shape of ``x``, in its dtype or in that of the arithmetic. Steps climb; a negative
            ``step_size`` descends.
        x0: Clean samples, shape and dtype of ``x``; needed with ``eps``.
        step_size: η, in the units of ``x`` (without unit for ``norm_power=2``): a number, one per sample [B], or what
            broadcasts as [1 or B, C, 1, …]. One per channel is written ``values.view(1, -1, 1, 1)``: [C] alone is taken
            for [B] where B = C, and refused elsewhere. Not by channel for ``norm_power=2``.
        eps: Radius, in the units of ``x``, likewise; None for no ball. Not for ``"boundary"``.
        norm: ``"linf"``, ``"l2"``, ``"l1"`` or ``"boundary"``.
        norm_power: p of the boundary step, 1 or 2.
        gap: L [B] of the boundary step, floating; needed there and refused elsewhere.
        momentum: Velocity v, shape of ``x``, float32 (float64 for float64), changed in place; zeros at the start.
            Samples that stay keep their velocity. Not for ``"boundary"``.
        decay: μ of the momentum.
        lower: Smallest value, a number or one per channel [C] = [x.shape[1]]; None for none.
        upper: Largest value, likewise, not below ``lower`` (of tensors on a GPU nobody looks: there it prevails).
        active: bool [B]; samples that are False do not move.
        project: Coordinates that stand at a bound and would leave through it drop out of the step and of its norm
            (projected gradient; ours).
        top: Share of the coordinates that an l1 step moves, in (0, 1]; at least one.
        out: Tensor for the result, shape and dtype of ``x``; may be ``x`` itself. Not under autograd.

    Returns:
        The new samples [B, ...] in ``x``'s dtype. Differentiable in ``x`` and ``grad`` wherever the mathematics is.

    Raises:
        TypeError: A dtype or a type differs from the above.
        ValueError: A shape, a device or a value breaks a rule above.

    Example:
        >>> import torch, amkd_fast as af
        >>> x, grad = torch.tensor([[0.5, 0.9]]), torch.tensor([[-2.0, 1.0]])
        >>> af.attack_step(x, grad, x0=x, step_size=0.2, eps=0.15, lower=0.0, upper=1.0)
        tensor([[0.3500, 1.0000]])
    """
    check_step(x, grad, x0, step_size, eps, norm, norm_power, gap, momentum, decay, lower, upper, active, top, out)
    numbers = size_of(step_size, x), size_of(eps, x)
    return _step(
        x, grad, out, (x0, *numbers, norm, norm_power, gap, momentum, decay, lower, upper, active, project, top)
    )


def step(
    x: Tensor,
    grad: Tensor,
    *,
    step_size: float | Tensor,
    norm: StepNorm,
    norm_power: NormPower = 1,
    x0: Tensor | None = None,
    eps: float | Tensor | None = None,
    gap: Tensor | None = None,
    momentum: Tensor | None = None,
    decay: float = 1.0,
    lower: float | Tensor | None = None,
    upper: float | Tensor | None = None,
    active: Tensor | None = None,
    project: bool = False,
    top: float = 0.01,
    out: Tensor | None = None,
) -> Tensor:
    """:func:`attack_step` of arguments that have been checked, sizes as :func:`arguments.size_of` makes them."""
    return _step(
        x, grad, out, (x0, step_size, eps, norm, norm_power, gap, momentum, decay, lower, upper, active, project, top)
    )


def _step(x: Tensor, grad: Tensor, out: Tensor | None, call: tuple[Any, ...]) -> Tensor:
    """``call``: what the reference takes behind ``grad``; as keywords they would cost half a microsecond."""
    x0, step_size, eps = call[:3]
    follows = torch.is_grad_enabled() and (x.requires_grad or grad.requires_grad)
    name, fast = serving(x, _TRACED if follows and torch.compiler.is_compiling() else "")
    if x.numel() == 0:
        return x.clone() if out is None else out
    narrow = eps is not None and x.dtype.itemsize == 2
    if fast is None:
        moved, velocity = reference.attack_step(x, grad, *call)
        momentum = call[6]
        if momentum is not None and velocity is not None:
            momentum.copy_(velocity.detach())
    elif follows:
        moved = FusedStep.apply(x, grad, fast, call)
    elif has_channels(step_size) or has_channels(eps):
        moved = _by_channel(fast, x, grad, *call)
    elif narrow and name == "cpu":  # whose operator sees to it, where it can tell the sample from the result
        moved, narrow = _by_operator(fast, x, grad, None if out is x else out, *call), False
    else:
        moved = _by_operator(fast, x, grad, None if narrow else out, *call)
    if narrow and x0 is not None and eps is not None:
        norm, lower, upper = call[3], call[8], call[9]
        moved = reference.rounded_inside(moved, x, x0, eps, norm, lower, upper)
    return moved if out is None or moved is out else out.copy_(moved)


class FusedStep(torch.autograd.Function):
    """A step by the operator of one backend. Its derivative is the specification's, which is computed once more.

    Attacks never ask for it, and one definition of what is differentiable where is enough.
    """

    @staticmethod
    def forward(ctx, x: Tensor, grad: Tensor, operators: Operators, call: tuple) -> Tensor:
        ctx.save_for_backward(x, grad)
        ctx.call = call
        _, step_size, eps, *_, velocity = call[:7]
        if velocity is not None:
            ctx.call = (*call[:6], velocity.clone(), *call[7:])  # as it was
        if has_channels(step_size) or has_channels(eps):
            return _by_channel(operators, x, grad, *call)
        return _by_operator(operators, x, grad, None, *call)

    @staticmethod
    def backward(ctx, grad_moved: Tensor):
        inputs, needed = ctx.saved_tensors, ctx.needs_input_grad[:2]
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            if not differentiable:
                inputs = [t.detach().requires_grad_(need) for t, need in zip(inputs, needed, strict=True)]
            moved, _ = reference.attack_step(*inputs, *ctx.call)
            wanted = [i for i, need in enumerate(needed) if need]
            found = torch.autograd.grad(moved, [inputs[i] for i in wanted], grad_moved, create_graph=differentiable)
        grads: list[Tensor | None] = [None, None]
        for i, value in zip(wanted, found, strict=True):
            grads[i] = value
        return (*grads, None, None)


def _by_operator(
    operators, x, grad, out, x0, step_size, eps, norm, norm_power, gap, velocity, decay, lower, upper, active, project,
    top,
) -> Tensor:  # fmt: skip
    """The step by one launch, into ``out`` where that lies as ``x`` does; the velocity changes in place."""
    work = work_dtype(x.dtype)
    x = dense(x)
    step_sizes, step_size = split(step_size, 0.0, work)
    clean = moving = radii = lowers = uppers = None
    radius, low, high = 0.0, -INF, INF
    if eps is not None:
        clean = lying_like(x, x0)
        radii, radius = split(eps, 0.0, work)
    if velocity is not None:
        moving = lying_like(x, velocity)
    if gap is not None:
        gap, _ = split(gap, 0.0, work)
    if lower is not None:
        lowers, low = split(lower, -INF, work)
    if upper is not None:
        uppers, high = split(upper, INF, work)
    into = torch.empty_like(x) if out is None or not alike(x, out) else out
    least = top_count(top, x[0].numel()) if norm == "l1" else 1
    operators.step(
        into, x, lying_like(x, grad), clean, step_sizes, radii, gap, moving, lowers, uppers, active,
        RULES[norm, norm_power], step_size, radius, low, high, decay, project, least,
    )  # fmt: skip
    if moving is not velocity:
        velocity.copy_(moving)
    return into


def _by_channel(
    operators, x, grad, x0, step_size, eps, norm, norm_power, gap, velocity, decay, lower, upper, active, project, top
) -> Tensor:
    """The operator finds where each sample heads; how far, and the ball, differ from channel to channel."""
    work = work_dtype(x.dtype)
    wide, g = x.to(work), grad.to(work)
    eta, radius = reference.per_sample(step_size, wide), reference.per_sample(eps, wide)
    reach = eta if gap is None else eta * (reference.per_sample(gap, wide) + reference.GAP_MARGIN)
    usable = torch.isfinite(reach).flatten(1).all(1)
    for flags in (None if radius is None else (radius >= 0).flatten(1).all(1), active):
        usable = usable if flags is None else usable & flags
    usable = usable.expand(x.shape[0]).contiguous()

    def heading(g: Tensor, norm: StepNorm, velocity: Tensor | None) -> tuple[Tensor, Tensor]:
        rest = (decay, None, None, usable, False, top)
        heading = _by_operator(operators, torch.zeros_like(g), g, None, None, 1.0, None, norm, 1, None, velocity, *rest)
        return heading, (heading != 0).flatten(1).any(1).view(-1, *[1] * (x.dim() - 1))

    if has_channels(step_size) and (norm != "linf" or velocity is not None):
        g = g * reference.shares(eta)
    if velocity is not None:
        _, moves = heading(g, "linf", velocity)
        g = torch.where(moves, velocity, 0.0)
    if project:
        low, high = reference.per_channel(lower, wide), reference.per_channel(upper, wide)
        g = reference.without_blocked(wide, g, g * reach.sign(), low, high)
    way, moves = heading(g, "l2" if norm == "boundary" else norm, None)
    change = torch.where(moves, reach, 0.0) * way
    return reference.landed(x, change, moves, x0, eps, norm, lower, upper)
