"""Every plan of the compiled CUDA kernels once, small, for compute-sanitizer; results are held against fp64.

The tensors sit inside larger ones filled with NaN, so that a read outside of a row shows in the result too.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys

# One allocation a tensor: inside torch's cached blocks the sanitizer could not see an access out of bounds.
os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"

import torch

from amkd_fast.ops.kl import function
from amkd_fast.ops.kl.function import Scalars
from tests.gpu import (
    sanitize_attack,
    sanitize_augment,
    sanitize_decoupled,
    sanitize_images,
    sanitize_kl_rows,
    sanitize_relations,
    sanitize_segments,
    sanitize_triplet,
)
from tests.gpu.device import DEVICE

FAMILIES = (
    sanitize_decoupled,
    sanitize_kl_rows,
    sanitize_triplet,
    sanitize_attack,
    sanitize_images,
    sanitize_augment,
    sanitize_segments,
    sanitize_relations,
)

# One block; edges alone; several blocks; a block a row, aligned and not; few long rows, split over blocks.
SHAPES = {
    "one block": (128, 100),
    "short rows": (33, 10),
    "many rows": (700, 65),
    "block a row": (300, 1000),
    "unaligned": (40, 1037),
    "large blocks": (3, 9000),
    "split rows": (2, 20001),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float64: 1e-11}


def inside_nan(values: torch.Tensor, pad: int) -> torch.Tensor:
    """The same values as a view with row stride K + pad of a tensor that is NaN elsewhere."""
    rows, classes = values.shape
    home = values.new_full((rows + 2, classes + pad), float("nan"))
    home[1:-1, :classes] = values
    return home[1:-1, :classes]


def check(shape: tuple[int, int], dtype: torch.dtype, divergence: int, *, labels: bool, pad: int) -> float:
    """The relative error of loss and gradient of one case."""
    from amkd_fast.ops.kl import native

    rows, classes = shape
    generator = torch.Generator(DEVICE).manual_seed(rows + classes)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, device=DEVICE, generator=generator)

    student, teacher = (inside_nan((3 * draw(rows, classes)).to(dtype), pad) for _ in range(2))
    stat = torch.float64 if dtype == torch.float64 else torch.float32
    weight = (draw(rows).abs() + 0.5).to(stat)
    targets = torch.randint(0, classes, (rows,), device=DEVICE, generator=generator) if labels else None
    if labels:
        targets[::3] = -100
    inputs = (student, teacher, weight, targets, weight if labels else None)
    scalars = Scalars(2.0, divergence, 0.3, 4.0, 1.0 / rows, 0.1, -100, not labels)
    loss, stats = native.forward_op(*inputs, *scalars)
    grad = native.backward_op(torch.ones_like(loss), *inputs[:5], stats, *scalars)

    exact = [x if x is None else x.double().cpu() if x.is_floating_point() else x.cpu() for x in inputs]
    exact[0].requires_grad_()
    expected = function.compute(*exact, scalars)[0]
    (expected_grad,) = torch.autograd.grad(expected.sum(), exact[0])
    pairs = ((loss, expected.detach()), (grad, expected_grad))
    return max(((got.double().cpu() - want).norm() / want.norm()).item() for got, want in pairs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fp32 and bf16, forward and js: every kernel's barriers")
    parser.add_argument("--dry-run", action="store_true", help="list the cases")
    options = parser.parse_args()
    dtypes, divergences = (DTYPES[:2], (0, 2)) if options.short else (DTYPES, (0, 1, 2, 3))
    faults = cases = 0
    for (plan, shape), dtype, divergence in itertools.product(SHAPES.items(), dtypes, divergences):
        labels, pad = divergence in (0, 1), (0 if divergence in (0, 2) else 3)
        cases += 1
        if options.dry_run:
            print(plan, shape, dtype, divergence, labels, pad)
            continue
        error = check(shape, dtype, divergence, labels=labels, pad=pad)
        if not error <= TOLERANCE[dtype]:
            faults += 1
            print(f"{plan} {shape} {dtype} divergence {divergence}: relative error {error:.2e}")
    for family in FAMILIES:
        for case in family.cases(options.short):
            cases += 1
            if options.dry_run:
                print(case)
            elif wrong := family.check(case):
                faults += 1
                print(f"{case}: {wrong}")
    print(f"{cases} cases, {faults} wrong")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
