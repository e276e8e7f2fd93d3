"""The caller's surroundings, left as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Leave inference mode for the length of the block, and put the random state back whatever happens in it."""
    with torch.inference_mode(False), torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
