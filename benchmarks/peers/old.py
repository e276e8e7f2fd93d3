"""What people write today, and torch.compile of it: the contestants that ours are measured against.

Each computes what its amkd_fast function computes with the arguments of cases.py, and no more: no masks, no weights.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.contest import Contestant

METRIC_LEARNING = "pytorch-metric-learning"


def kl(temperature: float) -> list[Contestant]:
    """``F.kl_div`` with T², from log-probabilities and from probabilities of the teacher."""

    def log_target(student: Tensor, teacher: Tensor) -> Tensor:
        log_q, log_p = F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1)
        return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2

    def softmax_target(student: Tensor, teacher: Tensor) -> Tensor:
        log_q, p = F.log_softmax(student / temperature, -1), F.softmax(teacher / temperature, -1)
        return F.kl_div(log_q, p, reduction="batchmean") * temperature**2

    return [*_both("log target", log_target), *_both("softmax target", softmax_target)]


def distillation(temperature: float, ce_weight: float, kl_weight: float) -> list[Contestant]:
    """``F.cross_entropy`` and ``F.kl_div``, weighted; the two forms of the latter."""

    def log_target(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        log_q, log_p = F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1)
        divergence = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2
        return ce_weight * F.cross_entropy(student, labels) + kl_weight * divergence

    def softmax_target(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        log_q, p = F.log_softmax(student / temperature, -1), F.softmax(teacher / temperature, -1)
        divergence = F.kl_div(log_q, p, reduction="batchmean") * temperature**2
        return ce_weight * F.cross_entropy(student, labels) + kl_weight * divergence

    return [*_both("log target", log_target), *_both("softmax target", softmax_target)]


def batch_hard(margin: float) -> list[Contestant]:
    """Batch-hard triplets out of the whole distance matrix, out of tiles of it, and by pytorch-metric-learning."""

    def cdist(rows: Tensor, labels: Tensor) -> Tensor:
        distance = torch.cdist(rows, rows)  # [N, N]
        same = labels[:, None] == labels
        itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        farthest = distance.masked_fill(~same | itself, -torch.inf).amax(1)
        nearest = distance.masked_fill(same, torch.inf).amin(1)
        return F.relu(farthest - nearest + margin).mean()

    def tiled(rows: Tensor, labels: Tensor) -> Tensor:
        positive, negative = [], []
        with torch.no_grad():
            square = rows.square().sum(1)
            for first in range(0, len(rows), 256):
                some = slice(first, first + 256)
                key = torch.addmm(square, rows[some], rows.mT, alpha=-2)  # [256, N], distance² but for a constant
                same = labels[some, None] == labels
                negative.append(key.masked_fill(same, torch.inf).argmin(1))
                own = torch.arange(len(key), device=rows.device)
                same[own, own + first] = False
                positive.append(key.masked_fill_(~same, -torch.inf).argmax(1))
        far, near = rows[torch.cat(positive)], rows[torch.cat(negative)]
        return F.relu((rows - far).norm(dim=1) - (rows - near).norm(dim=1) + margin).mean()

    found = [*_both("cdist", cdist), Contestant("eager tiled", tiled)]
    if find_spec("pytorch_metric_learning"):
        from pytorch_metric_learning import distances, losses, miners, reducers

        euclidean = distances.LpDistance(normalize_embeddings=False)
        miner = miners.BatchHardMiner(distance=euclidean)
        loss = losses.TripletMarginLoss(margin=margin, distance=euclidean, reducer=reducers.MeanReducer())
        found.append(Contestant(METRIC_LEARNING, lambda rows, labels: loss(rows, labels, miner(rows, labels))))
    return found


def batch_all(margin: float) -> list[Contestant]:
    """The mean over the non-zero terms of all triplets, as pytorch-metric-learning computes it without a miner."""
    if not find_spec("pytorch_metric_learning"):
        return []
    from pytorch_metric_learning import distances, losses

    return [
        Contestant(
            METRIC_LEARNING,
            losses.TripletMarginLoss(margin=margin, distance=distances.LpDistance(normalize_embeddings=False)),
        )
    ]


def crop_flip(scale: float, shift: Tensor) -> list[Contestant]:
    """Crops and flips out of images that were padded before, with draws that were made before.

    By one gather of every position in a plane, and by an index into the view of all windows.
    """

    def gather(pixels: Tensor, index: Tensor, padded: Tensor, draws: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        (height, width), (y, x, mirrored) = pixels.shape[2:], draws
        column = torch.arange(width, device=y.device)
        column = torch.where(mirrored[:, None], width - 1 - column, column) + x[:, None]  # [B, W]
        line = torch.arange(height, device=y.device) + y[:, None]  # [B, H]
        place = (line[:, :, None] * padded.shape[3] + column[:, None, :]).flatten(1)  # [B, H · W]
        images = padded.flatten(2)[index]
        levels = images.gather(2, place[:, None].expand(-1, images.shape[1], -1)).unflatten(2, (height, width))
        return levels.float().mul_(scale).add_(shift[:, None, None])

    def windows(pixels: Tensor, index: Tensor, padded: Tensor, draws: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        (height, width), (y, x, mirrored) = pixels.shape[2:], draws
        every = padded.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)  # [N, 2p+1, 2p+1, C, H, W]
        levels = every[index, y, x]
        levels = torch.where(mirrored[:, None, None, None], levels.flip(-1), levels)
        return levels.float().mul_(scale).add_(shift[:, None, None])

    return [*_both("gather", gather), *_both("windows", windows)]


def missing() -> dict[str, str]:
    """Libraries that belong into the comparison and are not in it, with the reason."""
    reason = "its kernels need a GPU: not part of the CPU groups"
    found = {"liger-kernel": reason if find_spec("liger_kernel") else f"not installed; {reason}"}
    if not find_spec("pytorch_metric_learning"):
        found[METRIC_LEARNING] = "not installed"
    return found


def _both(name: str, call: Callable[..., Tensor]) -> list[Contestant]:
    # One compilation a shape: dynamic shapes would only make the compiled form slower.
    compiled = torch.compile(call, fullgraph=True, dynamic=False)
    return [Contestant(f"eager {name}", call), Contestant(f"compile {name}", compiled)]
