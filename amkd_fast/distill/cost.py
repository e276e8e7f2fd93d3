"""What a network costs: parameters, multiply-adds, images a second on this machine."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

BATCH = 64  # images that the throughput is measured with, or as many as there are
ROUNDS = 3  # of which it is the median, at least
BRIEF, LONG = 0.1, 1.0  # seconds: rounds go on for the one, and are fewer where they took the other


@torch.no_grad()
def measure(network: nn.Module, images: Tensor) -> dict[str, Any]:
    """Size and speed of a network in eval mode.

    Args:
        network: On the device of ``images``.
        images: [N, C, H, W], as the network takes them; up to :data:`BATCH` of them are used.

    Returns:
        ``parameters``, their number; ``bytes`` of parameters and buffers; ``multiply_adds`` for one image, those of
        convolutions and matrix products (a multiplication with its addition is one); ``images_per_second``, the median
        of rounds with a batch, on this machine with the threads that torch has.
    """
    was_training = network.training
    network.eval()
    parameters, buffers = list(network.parameters()), list(network.buffers())
    dtype = parameters[0].dtype if parameters else torch.float32
    images = images[:BATCH].to(dtype)
    with FlopCounterMode(display=False) as counter:
        network(images[:1])
    found = {
        "parameters": sum(part.numel() for part in parameters),
        "bytes": sum(part.numel() * part.element_size() for part in (*parameters, *buffers)),
        "multiply_adds": counter.get_total_flops() // 2,
        "images_per_second": _images_per_second(network, images),
    }
    network.train(was_training)
    return found


def _images_per_second(network: nn.Module, images: Tensor) -> float:
    _seconds(network, images)  # what happens once
    rounds: list[float] = []
    while sum(rounds) < BRIEF or (len(rounds) < ROUNDS and sum(rounds) < LONG):
        rounds.append(_seconds(network, images))
    return len(images) / statistics.median(rounds)


def _seconds(network: nn.Module, images: Tensor) -> float:
    start = time.perf_counter()
    network(images)
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - start
