"""The caller's surroundings, left as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Leave inference mode for the length of the block, and put the random state back whatever happens in it.

    Within a CUDA graph of the caller's the device's random state cannot be read, and is left alone.
    """
    gpu = device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
    with torch.inference_mode(False), torch.random.fork_rng([device] if gpu else []):
        yield
