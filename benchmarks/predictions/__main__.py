"""Predict what the GPU kernels take on an H200 from their machine code: ``python -m benchmarks.predictions``.

No GPU is needed: kernels that have changed are compiled ahead of time (CUDA C++ needs nvcc), their main loops are
found and counted, and docs/predictions-h200.md is written. ``--page`` writes it from the figures of the last time.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks import machine
from benchmarks.predictions import machine_code, page
from benchmarks.predictions.cases import all_cases
from tests.gates import cuda_aot, triton_aot


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predictions", description=__doc__.splitlines()[0])
    parser.add_argument("--page", action="store_true", help="compile nothing")
    parser.add_argument("--fresh", action="store_true", help="compile all")
    parser.add_argument("--jobs", type=int, default=2, help="processes that compile (default: %(default)s)")
    options = parser.parse_args(arguments)
    cases = all_cases()
    versions, kernels = machine_code.read()
    if not options.page:
        if reason := cuda_aot.cannot_compile() or triton_aot.cannot_compile():
            parser.error(reason)
        now = {**cuda_aot.versions(), **triton_aot.versions()}
        kept = {} if options.fresh or versions != now else kernels
        versions = now
        kernels = machine_code.of_cuda(cases, kept, options.jobs)
        machine_code.write(versions, {**kept, **kernels})  # what has taken minutes stays, whatever comes
        kernels |= machine_code.of_triton(cases, kept)
        machine_code.write(versions, kernels)
    page.PATH.write_text(page.text(cases, versions, kernels, page.measured(machine.RESULTS)))
    print(f"{page.PATH.relative_to(machine.ROOT)}: {len(cases)} calls")
    return 0


if __name__ == "__main__":
    sys.exit(main())
