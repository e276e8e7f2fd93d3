"""Whose statistics a student's BatchNorm layers normalise by, for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from amkd_fast import ranks
from amkd_fast.attacks.parallel import refuse_replicas

BN_POLICIES = ("separate", "concatenated", "frozen_stats")


def _training_layers(network: nn.Module) -> list[BatchNorm]:
    return [layer for layer in network.modules() if isinstance(layer, BatchNorm) and layer.training]


@contextmanager
def unchanged_statistics(network: nn.Module) -> Iterator[None]:
    """Normalise by the batch, but leave the running statistics as they are."""
    layers = _training_layers(network)
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Normalise by the running statistics, and leave them as they are."""
    layers = _training_layers(network)
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()


@contextmanager
def statistics_of(network: nn.Module, rows: Tensor | None = None, *, distributed: bool = False) -> Iterator[None]:
    """Normalise by some rows of the batch, or by the batches of all ranks, and learn the running statistics from them.

    Args:
        network: Its BatchNorm layers in train mode take part; a compiled network may not notice.
        rows: bool [B], the rows that count; None: all. Where none counts nothing is learnt, and the outputs are finite.
        distributed: Count the rows of all ranks. All of them must run the network, with any number of rows each.
    """
    refuse_replicas(network, "student")
    layers = _training_layers(network)
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = partial(_normalised, layer, rows, distributed)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


def _normalised(layer: BatchNorm, rows: Tensor | None, distributed: bool, x: Tensor) -> Tensor:
    if not layer.training:  # frozen within the block
        return type(layer).forward(layer, x)
    work = x.to(torch.promote_types(x.dtype, torch.float32))
    over, like = (0, *range(2, x.dim())), (1, -1, *[1] * (x.dim() - 2))
    places = x[:1].numel() // x.shape[1] if x.shape[0] else 0  # of one row, in each channel
    if rows is None:
        counted, count = work, work.new_full((1,), float(x.shape[0] * places))
    else:
        rows = rows.view(-1, *[1] * (x.dim() - 1))
        counted, count = torch.where(rows, work, 0.0), rows.sum().to(work.dtype).view(1) * places
    total = torch.cat([counted.sum(over), count])
    if distributed:
        total = ranks.SumOverAll.apply(total)
    total, count = total[:-1], total[-1].detach().clamp(min=1.0)
    mean = total / count
    centred = work - mean.view(like)
    squares = (centred if rows is None else torch.where(rows, centred, 0.0)).square().sum(over)
    if distributed:
        squares = ranks.SumOverAll.apply(squares)
    variance = squares / count
    _learn(layer, mean.detach(), variance.detach() * (count / (count - 1.0).clamp(min=1.0)), count)
    y = centred * torch.rsqrt(variance + layer.eps).view(like)
    if layer.weight is not None:
        y = y * layer.weight.view(like) + layer.bias.view(like)
    return y.to(x.dtype)


@torch.no_grad()
def _learn(layer: BatchNorm, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    """Move the running statistics, where there are any and a variance was to be had."""
    if layer.running_mean is None:
        return
    known = (count > 1.0).to(mean.dtype)
    layer.num_batches_tracked.add_(known.to(layer.num_batches_tracked.dtype))
    share = layer.momentum if layer.momentum is not None else 1.0 / layer.num_batches_tracked.clamp(min=1)
    for running, now in ((layer.running_mean, mean), (layer.running_var, variance)):
        # As torch's own layers do: unseen by autograd, which keeps the buffer of an earlier pass for its backward pass.
        running.data.lerp_(now.to(running.dtype), (known * share).to(running.dtype))
