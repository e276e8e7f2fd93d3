"""How far students keep boundary samples from classes that have nothing to do with them.

The triplets of AMKD are to keep "a proper distance from other negative classes". Measured on test images: the teacher's
are attacked, and a student's embedding of each sample is compared with the mean embeddings of the clean test images of
each class. Its margin is the distance to the nearest mean of a class that is neither where the sample comes from nor
where it went to, less that to the nearer of these two; in units of the mean distance between two classes' means, so
that students of another scale compare.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amkd_fast.distill import data as datasets
from amkd_fast.distill import teacher_file
from amkd_fast.distill.build import boundary_attack
from amkd_fast.distill.checkpoint import load_network
from amkd_fast.distill.data import InOrder
from amkd_fast.distill.kept_students import FOLDER, folder_of
from amkd_fast.distill.settings import CompareSettings
from amkd_fast.distill.teacher import predict
from amkd_fast.ops.attack import draw_targets

IMAGES = 2000  # of the test set that are attacked, where the teacher is right
BATCH = 250


class Samples(NamedTuple):
    """M boundary samples of test images."""

    images: Tensor  # [M, C, H, W]
    base: Tensor  # [M]
    target: Tensor  # [M]


def measure(output: Path, settings: CompareSettings, known: set[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """A line for every student that the comparison in ``output`` has kept and that is not ``known``."""
    asked = [(method, seed) for method in settings.names() for seed in range(settings.seeds)]
    paths = {run: folder_of(output / FOLDER, *run) / "last.ckpt" for run in asked if run not in known}
    paths = {run: path for run, path in paths.items() if path.exists()}
    if not paths:
        return
    data = datasets.load(settings, torch.device("cpu"))
    samples = attacked(data, settings)
    for (method, seed), path in paths.items():
        student, _, _ = load_network(path, settings.network("student"))
        with torch.no_grad():
            clean = torch.cat([student.embed(images) for images, _ in InOrder(data.test, BATCH)])
            moved = torch.cat([student.embed(images) for images in samples.images.split(BATCH)])
        yield {"method": method, "seed": seed, **margins(clean, data.test.labels, moved, samples.base, samples.target)}


@torch.no_grad()
def attacked(data: datasets.Data, settings: CompareSettings) -> Samples:
    """Boundary samples of the teacher: those of the first test images of each class that crossed."""
    assert settings.teacher is not None, "the protocol names one"
    teacher = teacher_file.load(settings.teacher, data, settings).network
    logits, labels = predict(teacher, data.test), data.test.labels
    number = torch.nn.functional.one_hot(labels).cumsum(0).gather(1, labels[:, None])[:, 0]  # within its class, from 1
    chosen = ((number <= IMAGES // len(data.classes)) & (logits.argmax(1) == labels)).nonzero()[:, 0]
    target = draw_targets(logits[chosen], labels[chosen], seed=0)
    attack = boundary_attack(settings, teacher, "near_boundary")
    parts = zip(*(x.split(BATCH) for x in (data.test.take(chosen).images, labels[chosen], target)), strict=True)
    found = [attack(*part) for part in parts]
    crossed = torch.cat([samples.accepted for samples in found])
    images, targets = (torch.cat([getattr(samples, name) for samples in found]) for name in ("images", "target"))
    return Samples(images[crossed], labels[chosen][crossed], targets[crossed])


def margins(clean: Tensor, labels: Tensor, moved: Tensor, base: Tensor, target: Tensor) -> dict[str, float]:
    """The mean margin, and the share of samples whose margin is above 0.

    Args:
        clean: Embeddings of clean images [B, D].
        labels: Their classes [B].
        moved: Embeddings of boundary samples [M, D].
        base: The classes that they come from [M].
        target: The classes that they went to [M].

    Example:
        >>> import torch
        >>> from benchmarks.evidence.margins import margins
        >>> clean, moved = torch.tensor([[0.0], [2.0], [4.0]]), torch.tensor([[1.0], [3.5]])
        >>> margins(clean, torch.arange(3), moved, torch.tensor([0, 0]), torch.tensor([1, 1]))
        {'margin': 0.1875, 'nearer': 0.5}
    """
    classes = int(labels.max()) + 1
    means = torch.stack([clean[labels == one].mean(0) for one in range(classes)])
    scale = torch.pdist(means).mean()
    distance = torch.cdist(moved, means)
    own = torch.zeros_like(distance, dtype=torch.bool)
    own.scatter_(1, torch.stack([base, target], 1), True)
    margin = distance.masked_fill(own, torch.inf).amin(1) - distance.masked_fill(~own, torch.inf).amin(1)
    return {"margin": float(margin.mean() / scale), "nearer": float((margin > 0).double().mean())}
