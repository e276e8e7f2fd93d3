"""Holds the emulated kernels against those of a GPU: every plan of the table of cases on both, with the same inputs.

    python -m tests.emulator.compare [--backend cpu] [--only NAME]

Both may round a sum, an ``expf`` or a product with a sum differently, and hence a result once; no more.
``--backend cpu`` takes the CPU's own kernels in the place of a GPU's.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import torch

from amkd_fast import backends
from tests.emulator.__main__ import environment

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where pytest finds the table
from cases import OPERATIONS
from cases.operation import Operation, moved, relative_error

# Norm of the difference over the norm, by the dtype of a result: what differs in fp64 is the order of sums.
BOUNDS = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def cases(only: str | None):
    """Operations, plans by their number, and dtypes."""
    for operation in OPERATIONS:
        if only in (None, operation.name):
            for number, plan in enumerate(operation.plans):
                for dtype in plan.dtypes or operation.dtypes:
                    yield operation, number, dtype


def record(path: str, backend: str, only: str | None) -> None:
    """Write what this process computes of every case, by the name of each result."""
    device = torch.device("cpu" if backends.EMULATED or backend == "cpu" else "cuda")
    if backends.EMULATED:
        from tests.emulator.load import load

        load()
    kept = {}
    with backends.backend(backend):
        for operation, number, dtype in cases(only):
            plan = operation.plans[number]
            found = operation.run(moved(operation.make(plan, dtype), device), plan.options)
            named = {f"output {i}": x for i, x in enumerate(found.outputs)}
            named |= {f"gradient of {n}": g for n, g in found.gradients.items()}
            kept[operation.name, number, dtype] = {n: x.cpu() for n, x in named.items()}
    torch.save(kept, path)


def difference(operation: Operation, dtype: torch.dtype, name: str, a: torch.Tensor, b: torch.Tensor) -> tuple:
    """How far two results are apart, and how far they may be."""
    if not a.is_floating_point():
        return relative_error(a, b), operation.ties
    if name.startswith("gradient") and operation.rounding_selects and dtype != torch.float64:
        return 0.0, 0.0  # other pairs are selected
    off = ~(a.isfinite() & b.isfinite())
    if not torch.equal(a[off].nan_to_num(0.5), b[off].nan_to_num(0.5)):
        return math.inf, 0.0
    return relative_error(a[~off], b[~off]), BOUNDS[a.dtype]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.emulator.compare", description=__doc__.split("\n\n")[0])
    parser.add_argument("--backend", default="cuda", choices=("cuda", "cpu"), help="what emulation is held against")
    parser.add_argument("--only", metavar="NAME", help="one operation")
    parser.add_argument("--record", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.record:
        record(options.record, "cuda" if backends.EMULATED else options.backend, options.only)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        both = []
        for name, more in (("emulated", environment("1")), ("real", {"AMKD_FAST_EMULATE": ""})):
            path = Path(folder, name)
            command = [sys.executable, "-m", "tests.emulator.compare", "--record", str(path)]
            command += ["--backend", options.backend, *(["--only", options.only] if options.only else [])]
            subprocess.run(command, env=os.environ | more, check=True)
            both.append(torch.load(path))
    return report(*both)


def report(emulated: dict, real: dict) -> int:
    """A line for each operation: results, how many have the same bits, the largest difference; then what is too far."""
    counts, far = defaultdict(lambda: [0, 0, 0.0]), []
    for operation, number, dtype in cases(None):
        found = emulated.get((operation.name, number, dtype), {})
        for name, a in found.items():
            b = real[operation.name, number, dtype][name]
            error, bound = difference(operation, dtype, name, a, b)
            count = counts[operation.name]
            count[0] += 1
            count[1] += torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
            count[2] = max(count[2], error)
            if not error <= bound:
                plan = operation.plans[number]
                case = f"{operation.name} {plan.name or plan.shape} {dtype} {name}"
                far.append(f"{case}: {error:.1e}, may be {bound:.0e}")
    print(f"{'operation':28} {'results':>8} {'same bits':>10} {'largest difference':>19}")
    for name, (results, same, worst) in counts.items():
        print(f"{name:28} {results:8} {same:10} {worst:19.1e}")
    print(*far, f"{len(far)} of {sum(c[0] for c in counts.values())} results too far apart", sep="\n")
    return 1 if far or not counts else 0


if __name__ == "__main__":
    sys.exit(main())
