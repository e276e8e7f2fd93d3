"""From how many elements on a backend beats the next one in ``auto``'s order.

Written by ``python -m benchmarks.crossover`` from its measurements in benchmarks/results:

    AMD EPYC, 2 threads; torch 2.13.0+cpu, Python 3.11.7, amkd_fast 0.1.0 at d743d80, 2026-11-22, load 2.0

What is not here was not measured and is taken at any size.
"""

# (operation family, backend): elements of the call's first tensor
SMALLEST: dict[tuple[str, str], int] = {
    ("attack", "cpu"): 0,
    ("images", "cpu"): 0,
    ("kl", "cpu"): 0,
    ("relations", "cpu"): 0,
    ("segments", "cpu"): 0,
    ("triplet", "cpu"): 0,
}
