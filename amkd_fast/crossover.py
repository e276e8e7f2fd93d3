"""From how many elements on a backend beats the next one in ``auto``'s order.

Written by ``python -m benchmarks.crossover`` from its measurements in benchmarks/results:


What is not here was not measured and is taken at any size.
"""

# (operation family, backend): elements of the call's first tensor
SMALLEST: dict[tuple[str, str], int] = {}
