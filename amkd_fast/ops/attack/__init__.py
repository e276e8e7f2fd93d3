"""Adversarial steps: the step itself, the objective that it climbs, and the choice of boundary bases."""

from __future__ import annotations

import torch
from torch import Tensor

from amkd_fast import backends, checks, philox
from amkd_fast.ops.attack import arguments, operators, plain, reference
from amkd_fast.ops.attack.function import FusedStep
from amkd_fast.ops.attack.operators import Operators, Step
from amkd_fast.ops.attack.particles import svgd_step
from amkd_fast.ops.attack.reference import BoundaryBases
from amkd_fast.ops.attack.steps import rounded_inside

__all__ = ["BoundaryBases", "attack_objective", "attack_step", "draw_targets", "select_boundary_bases", "svgd_step"]

_TRACED = "under torch.compile the derivative of a step is traced from the reference"
_OPERATORS: dict[str, Operators | None] = {"reference": None}
if backends.build_info() is not None:
    from amkd_fast.ops.attack import native

    _OPERATORS["cpu"] = _OPERATORS["cuda"] = native.operators
_NATIVE = _OPERATORS.get("cpu")


def attack_step(
    x: Tensor,
    grad: Tensor,
    *,
    x0: Tensor | None = None,
    step_size: float | Tensor,
    eps: float | Tensor | None = None,
    norm: str = "linf",
    norm_power: int = 1,
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
    if _NATIVE is not None and type(top) is float and 0.0 < top <= 1.0:
        moved = plain.step(
            _NATIVE, x, grad, x0, step_size, eps, norm, norm_power, gap, momentum, decay, lower, upper, active, project,
            out,
        )  # fmt: skip
        if moved is not None:
            return moved
    arguments.check_step(x, grad, x0, step_size, eps, norm, norm_power, gap, momentum, lower, upper, active, out)
    checks.finite("decay", decay)
    if not 0.0 < checks.finite("top", top) <= 1.0:
        raise ValueError(f"top={top!r}: must lie above 0 and at most at 1")
    step_size, eps = arguments.size_of(step_size, x), arguments.size_of(eps, x)
    call = Step(x0, step_size, eps, norm, norm_power, gap, momentum, decay, lower, upper, active, project, top)
    follows = torch.is_grad_enabled() and (x.requires_grad or grad.requires_grad)
    _, fast = _serving(x, _TRACED if follows and torch.compiler.is_compiling() else "")
    if x.numel() == 0:
        return x.clone() if out is None else out
    narrow = eps is not None and x.dtype.itemsize == 2
    into = None if narrow else out
    if fast is not None:
        moved = FusedStep.apply(x, grad, fast, call) if follows else operators.step(fast, x, grad, into, call)
    else:
        moved, velocity = reference.attack_step(x, grad, **call._asdict())
        if momentum is not None:
            momentum.copy_(velocity.detach())
    if narrow:
        moved = rounded_inside(moved, x, x0, eps, norm, lower, upper)
    return moved if out is None or moved is out else out.copy_(moved)


def attack_objective(
    logits: Tensor,
    labels: Tensor,
    *,
    loss: str = "ce",
    target: Tensor | None = None,
    score: str = "logits",
    targeted: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Evaluate what an attack increases, with its gradient, the prediction and who still has to move, in one pass.

    - ``"ce"``: cross-entropy of ``labels``; targeted: minus the cross-entropy of ``target``.
    - ``"boundary"``: f_k − f_b with b = ``labels`` and k = ``target``, or the highest other class where no target is
      given; f the logits or their softmax (Heo et al. 2019). The gap L of a boundary step is minus this value.
    - ``"dlr"``: −(z_y − max_{c≠y} z_c)/(z_(1) − z_(3)), or targeted −(z_y − z_k)/(z_(1) − (z_(3) + z_(4))/2), with
      z_(i) the i-th largest logit (Croce and Hein 2020).

    Args:
        logits: [B, K], floating, any strides. Statistics are float32 (float64 for float64).
        labels: int64 or int32 [B]: true or base classes, in [0, K).
        loss: ``"ce"``, ``"boundary"`` or ``"dlr"``.
        target: int64 or int32 [B]: classes to reach, in [0, K); needed when ``targeted``.
        score: f of the boundary loss, ``"logits"`` or ``"softmax"``.
        targeted: The attack is over when the prediction is the target, not when it leaves the label.

    Returns:
        ``(value, grad_logits, prediction, active)``: value [B] in float32 (float64 for float64 logits); its gradient
        [B, K] in the dtype of the logits, ready for ``torch.autograd.grad(logits, x, grad_logits)``; prediction int64
        [B], the lowest index among equal logits; active bool [B], True while the attack has not reached its aim. The
        value of a row whose logits hold a NaN is NaN; a row whose value is not finite has gradient 0 and is not
        active. Nothing carries a graph.

    Raises:
        TypeError: A dtype or a type differs from the above.
        ValueError: A shape, a device or a value breaks a rule above. Classes out of range are found on a CPU only,
            as looking at them on a GPU would wait for it; there the fast backends give such a row the value NaN.

    Example:
        >>> import torch, amkd_fast as af
        >>> logits, labels, target = torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([0]), torch.tensor([1])
        >>> af.attack_objective(logits, labels, loss="boundary", target=target)
        (tensor([-2.]), tensor([[-1.,  1.,  0.]]), tensor([0]), tensor([True]))
    """
    if _NATIVE is not None:
        found = plain.objective(_NATIVE, logits, labels, loss, target, score, targeted)
        if found is not None:
            return found
    arguments.check_logits("logits", logits)
    checks.choice("loss", loss, arguments.LOSSES)
    checks.choice("score", score, arguments.SCORES)
    if targeted and target is None:
        raise ValueError("target=None: must be given when targeted is True")
    least = {"ce": 1, "boundary": 2, "dlr": 4 if targeted else 3}[loss]
    if logits.shape[1] < least:
        raise ValueError(f"logits.shape={tuple(logits.shape)}: must have at least {least} classes for loss={loss!r}")
    arguments.check_classes("labels", labels, logits)
    if target is not None:
        arguments.check_classes("target", target, logits)
    checks.same_device(logits=logits, labels=labels, target=target)
    backend, fast = _serving(logits)
    if backend != "cpu":  # whose operator looks itself
        arguments.check_range("labels", labels, logits)
        arguments.check_range("target", target, logits)
    if fast is None:
        return reference.attack_objective(logits, labels, loss, target, score, targeted)
    return operators.objective(fast, logits, labels, loss, target, score, targeted)


def select_boundary_bases(
    student: Tensor, teacher: Tensor, labels: Tensor, limit: int, *, seed: int | Tensor | None = None
) -> BoundaryBases:
    """Choose the rows of a batch that boundary samples are searched from, and the class each should reach.

    A row is eligible when both networks predict its label. Of more than ``limit`` the ones with the largest
    Σ_{c≠y}(σ(z_t)_c − σ(z_s)_c)² stay (Heo et al. 2019, rules 1 and 2 of the method), the lowest row among equals. The
    target is drawn by :func:`draw_targets` with the row's position in the batch as its counter. The result has a
    fixed shape, and nothing waits for the device.

    Args:
        student: Logits [B, K], floating.
        teacher: Logits [B, K], floating.
        labels: int64 or int32 [B]. A label outside [0, K) makes its row ineligible. A row with a NaN is so, too.
        limit: M ≥ 0, the number of rows returned, also when B is smaller.
        seed: Seed of the draw, an int or an int64 tensor of no dimensions; None draws one from torch's generator of the
            device.

    Returns:
        :class:`BoundaryBases` ``(index, base, target, valid)``, each [M]. Valid rows come first, the largest
        disagreement at the head; the padding holds zeros, so that it can index a batch that is not empty.

    Raises:
        TypeError: A dtype or a type differs from the above.
        ValueError: A shape, a device or a value breaks a rule above.

    Example:
        >>> import torch, amkd_fast as af
        >>> teacher = torch.tensor([[4.0, 1.0, 0.0], [0.0, 5.0, 1.0], [2.0, 0.0, 1.0]])
        >>> student = torch.tensor([[3.0, 2.0, 0.0], [0.0, 5.0, 1.0], [0.0, 2.0, 1.0]])
        >>> chosen = af.select_boundary_bases(student, teacher, torch.tensor([0, 1, 0]), 3, seed=1)
        >>> chosen.index.tolist(), chosen.base.tolist(), chosen.valid.tolist()
        ([0, 1, 0], [0, 1, 0], [True, True, False])
    """
    arguments.check_logits("student", student)
    arguments.check_logits("teacher", teacher)
    checks.shape("student", student, tuple(teacher.shape), "the shape of teacher")
    checks.integer("labels", labels)
    checks.shape("labels", labels, (teacher.shape[0],), "one class per row")
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit is a {type(limit).__name__}: must be an int")
    if limit < 0:
        raise ValueError(f"limit={limit}: must be at least 0")
    if teacher.shape[1] < 2:
        raise ValueError(f"teacher.shape={tuple(teacher.shape)}: must have at least 2 classes")
    checks.same_device(student=student, teacher=teacher, labels=labels)
    seed = philox.chosen_seed(seed, teacher.device)
    _, fast = _serving(teacher)
    if fast is None:
        return reference.select_boundary_bases(student, teacher, labels, limit, seed)
    return BoundaryBases(*operators.bases(fast, student, teacher, labels, limit, seed))


def draw_targets(
    logits: Tensor, base: Tensor, *, seed: int | Tensor | None = None, rows: Tensor | None = None
) -> Tensor:
    """Draw a class k ≠ b for every row from σ(z)_k/(1 − σ(z)_b), without leaving the device.

    Inversion in float64 with number ``rows[i]`` of the seed's Philox stream, so that a CPU and a GPU agree. The public
    BSS code takes the second class where 1 − σ(z)_b rounds to 0; here the distribution is formed without that
    difference, and the second class is left for rows where no other class has a weight (−inf or NaN logits).

    Args:
        logits: [B, K] with K ≥ 2, floating.
        base: int64 or int32 [B], the class that is left out, in [0, K).
        seed: An int or an int64 tensor of no dimensions; None draws one from torch's generator of the device.
        rows: int64 [B], counters of the draws; by default 0 … B − 1.

    Returns:
        int64 [B].

    Raises:
        TypeError: A dtype or a type differs from the above.
        ValueError: A shape, a device or a value breaks a rule above.

    Example:
        >>> import torch
        >>> from amkd_fast.ops.attack import draw_targets
        >>> draw_targets(torch.tensor([[0.0, 9.0, -torch.inf]]), torch.tensor([1]), seed=3)
        tensor([0])
    """
    arguments.check_logits("logits", logits)
    if logits.shape[1] < 2:
        raise ValueError(f"logits.shape={tuple(logits.shape)}: must have at least 2 classes")
    arguments.check_classes("base", base, logits)
    checks.same_device(logits=logits, base=base, rows=rows)
    seed = philox.chosen_seed(seed, logits.device)
    if rows is not None:
        checks.integer("rows", rows)
        checks.shape("rows", rows, (logits.shape[0],), "one counter per row")
        rows = rows.long()
    backend, fast = _serving(logits)
    if backend != "cpu":
        arguments.check_range("base", base, logits)
    if fast is None:
        return reference.draw_targets(logits, base, seed, rows)
    return operators.draw(fast, logits, base, seed, rows)


def _serving(tensor: Tensor, only_reference: str = "") -> tuple[str, Operators | None]:
    """The backend that serves a call on ``tensor``'s device, and its operators: None for the reference."""
    name = backends.select("attack", tensor.device.type, only_reference)
    if name == "triton" and name not in _OPERATORS:
        from amkd_fast.ops.attack import triton  # not at the top: importing amkd_fast does not import triton

        _OPERATORS["triton"] = triton.operators
    return name, _OPERATORS[name]
