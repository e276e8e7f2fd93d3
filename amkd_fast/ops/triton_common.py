"""What Triton kernels and launchers of several families share."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def philox_words(seeds, seed, counter, STREAM: tl.constexpr):
    """Four uint32 words for every int64 counter, as amkd_fast.philox makes them; `seeds` replaces the seed if given."""
    if seeds is not None:
        seed = tl.load(seeds)
    low, high = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    none = tl.zeros_like(low)
    return tl.philox(seed, low, high, none + (STREAM & 0xFFFFFFFF), none + (STREAM >> 32))


def on(tensor: Tensor):
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
