"""What the measurements over whole data sets share: the forms in which batches come, their device, clean logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor

from amkd_fast import checks
from amkd_fast.attacks import arguments
from amkd_fast.attacks.frozen import FrozenModel, forked_rng
from amkd_fast.attacks.loop import LogitsOf, evaluate

Progress = Callable[[int, int | None], object]


def walk(
    batches: Tensor | Iterable, device: torch.device | None, *, size: int | None = None, progress: Progress | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield the images [B, ...] and labels [B] (or None) of every batch that is not empty.

    Args:
        batches: Images; or ``(images, labels)``; or an iterable of these, whose sequences may have further parts.
        device: Where they are brought; None leaves them.
        size: Largest batch cut from images that come as one; None leaves them in one. An iterable's stay as they are.
        progress: Called with the number of finished batches and that of all, None where ``batches`` has no length.
    """
    if progress is not None and not callable(progress):
        raise TypeError(f"progress is a {type(progress).__name__}: must be None or a function of two numbers")
    parts = _parts(batches, size)
    total = _length(parts)
    for done, batch in enumerate(parts, 1):
        images, labels = _unpack(batch, device)
        if images.shape[0]:
            yield images, labels
        if progress is not None:
            progress(done, total)


def device_of(view: FrozenModel) -> torch.device | None:
    """Where the network is; None where it holds no tensor to tell."""
    first = next(chain(view.model.parameters(), view.model.buffers()), None)
    return None if first is None else first.device


def predict(view: FrozenModel, logits_of: LogitsOf | None, images: Tensor) -> Tensor:
    """Logits [B, K] without a graph, and without a trace in the model or in the random state."""
    with forked_rng(images.device), torch.no_grad():
        return evaluate(view, logits_of, images, grad=False)[0]


def _parts(batches: object, size: int | None) -> Iterable:
    if isinstance(batches, Tensor):
        return [batches] if size is None else batches.split(size)
    # One labelled batch is told from two batches of images by its second part, which no image has the form of.
    if isinstance(batches, (tuple, list)) and len(batches) == 2 and all(isinstance(x, Tensor) for x in batches):
        images, labels = batches
        if labels.dim() == 1 and labels.dtype in (torch.int64, torch.int32):
            if size is None or images.dim() == 0 or images.shape[0] != labels.shape[0]:
                return [(images, labels)]
            return list(zip(images.split(size), labels.split(size), strict=True))
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches is a {type(batches).__name__}: must be images, (images, labels) or an iterable")
    return batches


def _length(parts: Iterable) -> int | None:
    try:
        return len(parts)
    except TypeError:  # a generator, or a loader of an endless set
        return None


def _unpack(batch: object, device: torch.device | None) -> tuple[Tensor, Tensor | None]:
    if isinstance(batch, Tensor):
        batch = (batch, None)
    if not isinstance(batch, (tuple, list)) or not batch:
        raise TypeError(f"batches holds a {type(batch).__name__}: must be images or (images, labels)")
    images, labels = batch[0], batch[1] if len(batch) > 1 else None
    arguments.check_images(images, None, None)
    images = images.detach().to(device)
    if labels is not None:
        checks.integer("labels", labels)
        labels = labels.to(images.device)
        arguments.check_rows("labels", labels, images)
    return images, labels
