"""A step of Stein variational gradient ascent for several particles an image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from amkd_fast import checks
from amkd_fast.ops.attack import arguments, operators, particles_reference
from amkd_fast.ops.attack.reference import has_channels, rounded_inside

MOST = 64  # particles an image
_FAR = 2.0**120  # where no particle is


def svgd_step(
    particles: Tensor,
    grad: Tensor,
    x0: Tensor,
    *,
    step_size: float | Tensor,
    eps: float | Tensor,
    lower: float | Tensor | None = None,
    upper: float | Tensor | None = None,
    bandwidth: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    r"""Move the n particles of every image one step up, and apart: Stein variational gradient ascent with a sign.

    With g_j the gradient of particle x_j, d²_ij = ‖x_i − x_j‖² and k_ij = exp(−d²_ij/h), the particles of an image go
    along

        φ_i = 1/n Σ_j [k_ij g_j + 2/h k_ij (x_i − x_j)],    x_i ← Π(x_i + η sign φ_i),

    where the second term drives them apart and Π is the projection on the linf ball of radius ``eps`` around ``x0`` and
    then on the bounds. The bandwidth is h = median(d²_ij, i < j)/log n, the lower of two medians (Liu and Wang 2016;
    leaving out the diagonal is our reading). Where it is 0 there is no repulsion, and k_ij is 1 for equal particles and
    0 for others, the limits for h → 0; one particle takes the step of :func:`amkd_fast.attack_step`. The direction is
    that of teacher-guided adversarial local distributions (WACV 2023) [a reconstruction].

    A particle stays exactly where it is when φ_i is all zero or not finite, and when the step size or the radius of its
    image is not a usable number. One that is not finite, or whose gradient is not, stays too and is not there for the
    others of its image. Images never see each other. Results saturate at the largest number of their dtype, and a NaN
    in a bound bounds nothing. ``eps`` = 0 gives ``x0`` as it is.

    Args:
        particles: [B, n, ...] with 1 ≤ n ≤ 64 and at least three dimensions, any strides; float32, float64, float16 or
            bfloat16. The arithmetic is float32 (float64 for float64).
        grad: Gradients, shape of ``particles``, in their dtype or in that of the arithmetic. Steps climb; a negative
            ``step_size`` turns the whole direction.
        x0: Clean images [B, ...], dtype of ``particles``.
        step_size: η, in the units of the images: a number, one per image [B], or what broadcasts as [1 or B, C, 1, …]
            (one per channel is written ``values.view(1, -1, 1, 1)``).
        eps: Radius, likewise. By channel, d_ij is taken in units of ε_c/max ε.
        lower: Smallest value, a number or one per channel [C] = [x0.shape[1]]; None for none.
        upper: Largest value, likewise.
        bandwidth: h > 0, in squared units of the images; None for the median.
        out: Tensor for the result, shape and dtype of ``particles``; may be ``particles`` itself.

    Returns:
        The new particles [B, n, ...]. They carry no graph.

    Raises:
        TypeError: A dtype or a type differs from the above.
        ValueError: A shape, a device or a value breaks a rule above.

    Example:
        >>> import torch, amkd_fast as af
        >>> particles = torch.tensor([[[0.4, 0.5], [0.6, 0.5]]])  # one image of two numbers, two particles
        >>> grad = torch.tensor([[[0.0, -1.0], [0.0, -1.0]]])  # the same for both
        >>> af.svgd_step(particles, grad, torch.tensor([[0.5, 0.5]]), step_size=0.25, eps=0.25)
        tensor([[[0.2500, 0.2500],
                 [0.7500, 0.2500]]])
    """
    _check(particles, grad, x0, step_size, eps, lower, upper, bandwidth, out)
    step_size, eps = arguments.size_of(step_size, x0), arguments.size_of(eps, x0)
    images = (particles.detach(), grad.detach(), x0.detach())
    return particle_step(*images, step_size, eps, lower, upper, bandwidth, out)


def particle_step(
    particles: Tensor, grad: Tensor, x0: Tensor, step_size, eps, lower, upper, bandwidth=None, out=None
) -> Tensor:
    """:func:`svgd_step` of arguments that have been checked, sizes as :func:`arguments.size_of` makes them."""
    _, served = operators.serving(particles)
    run = None if served is None else served.svgd
    if particles.numel() == 0:
        return particles.clone() if out is None else out
    narrow = particles.dtype.itemsize == 2
    moved = _moved(run, particles, grad, x0, step_size, eps, lower, upper, bandwidth, None if narrow else out)
    if narrow:
        count = particles.shape[1]
        sizes = eps.repeat_interleave(count, 0) if isinstance(eps, Tensor) and len(eps) == len(x0) else eps
        rows = (moved.flatten(0, 1), particles.flatten(0, 1), x0.repeat_interleave(count, 0))
        moved = rounded_inside(*rows, sizes, "linf", lower, upper).unflatten(0, particles.shape[:2])
    return moved if out is None or moved is out else out.copy_(moved)


def _moved(run: Callable | None, particles, grad, x0, step_size, eps, lower, upper, bandwidth, out) -> Tensor:
    """The step by the operator ``run``, or the specification's."""
    if run is None:
        return particles_reference.svgd_step(
            particles, grad, x0, step_size=step_size, eps=eps, lower=lower, upper=upper, bandwidth=bandwidth
        )
    if has_channels(step_size) or has_channels(eps):
        return _by_channel(run, particles, grad, x0, step_size, eps, lower, upper, bandwidth)
    x, grad, clean = _lying_alike(particles, grad, x0)
    # Every particle of an image is read for each of them that is written.
    own = out is not None and out.data_ptr() != particles.data_ptr() and out.stride() == x.stride()
    into = out if own else torch.empty_like(x)
    work = operators.work_dtype(x.dtype)
    step_sizes, step_size = operators.split(step_size, 0.0, work)
    radii, radius = operators.split(eps, 0.0, work)
    lowers, lower = operators.split(lower, -operators.INF, work)
    uppers, upper = operators.split(upper, operators.INF, work)
    h = 0.0 if bandwidth is None else float(bandwidth)
    run(into, x, grad, clean, step_sizes, radii, lowers, uppers, step_size, radius, lower, upper, h)
    return into


def _by_channel(run: Callable, particles, grad, x0, step_size, eps, lower, upper, bandwidth) -> Tensor:
    """The operator finds the direction's signs, by a step that takes every coordinate to its ball's rim."""
    x, g = particles, grad
    if has_channels(eps):
        x, g = particles_reference.in_units_of(eps, particles, grad)
    work = operators.work_dtype(x.dtype)
    x, g, clean = _lying_alike(x.to(work), g.to(work), torch.zeros_like(x0, dtype=work))
    rim = torch.empty_like(x)
    run(rim, x, g, clean, None, None, None, None, 32.0 * _FAR, _FAR, -operators.INF, operators.INF, bandwidth or 0.0)
    signs = (rim == _FAR).to(work) - (rim == -_FAR).to(work)
    return particles_reference.along(signs, particles, x0, step_size, eps, lower, upper)


def _lying_alike(particles: Tensor, grad: Tensor, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images that all lie in memory alike, contiguous or channels_last, one particle behind the other."""
    if particles.is_contiguous() and grad.is_contiguous():
        return particles, grad, x0.contiguous()
    shape = particles.shape[:2]
    rows = operators.dense(particles.flatten(0, 1))
    grad = operators.lying_like(rows, grad.flatten(0, 1)).unflatten(0, shape)
    last = torch.contiguous_format if rows.is_contiguous() else torch.channels_last
    return rows.unflatten(0, shape), grad, x0.contiguous(memory_format=last)


def _check(particles, grad, x0, step_size, eps, lower, upper, bandwidth, out) -> None:
    checks.floating("particles", particles)
    shape, dtype = particles.shape, particles.dtype
    if particles.dim() < 3 or not 1 <= shape[1] <= MOST:
        raise ValueError(f"particles.shape={tuple(shape)}: must be [B, n, C, ...] with n from 1 to {MOST}")
    checks.floating("grad", grad)
    checks.shape("grad", grad, tuple(shape), "the shape of particles")
    if grad.dtype not in (dtype, torch.promote_types(dtype, torch.float32)):
        raise TypeError(f"grad.dtype={grad.dtype}: must be {dtype}, the dtype of particles, or that of the arithmetic")
    checks.floating("x0", x0)
    checks.shape("x0", x0, (shape[0], *shape[2:]), "one image for the particles of each")
    for name, value in (("x0", x0), ("out", out)):
        if value is not None and value.dtype != dtype:
            raise TypeError(f"{name}.dtype={value.dtype}: must be {dtype}, the dtype of particles")
    arguments.check_size("step_size", step_size, x0)
    arguments.check_size("eps", eps, x0)
    if not isinstance(eps, Tensor) and not eps >= 0:
        raise ValueError(f"eps={eps!r}: must be at least 0")
    arguments.check_bounds(lower, upper, x0)
    if bandwidth is not None:
        checks.positive("bandwidth", bandwidth)
    if out is not None:
        checks.floating("out", out)
        checks.shape("out", out, tuple(shape), "the shape of particles")
        if out.requires_grad:
            raise ValueError("out.requires_grad=True: must be False, it is overwritten")
    checks.same_device(particles=particles, grad=grad, x0=x0, lower=lower, upper=upper, out=out)
