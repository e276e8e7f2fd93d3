"""What a student learns from: one small interface, and the four methods behind the five names of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast.attacks import PRESETS, BoundaryAttack, BoundarySamples, Status
from amkd_fast.distill.data import Batch, Data, Split
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.networks import ResNet
from amkd_fast.distill.settings import METHODS, Settings
from amkd_fast.losses import Adversarial, AMKDLoss
from amkd_fast.ops.attack import select_boundary_bases
from amkd_fast.ops.kl import distillation_loss


class Moment(NamedTuple):
    """Where the training stands: epoch of epochs, and a number that no other step of any seed has."""

    epoch: int
    epochs: int
    draw: int


class Outcome(NamedTuple):
    """``total`` is what is minimised, ``parts`` are its pieces by name, ``attack`` counts [4]: see :data:`COUNTS`."""

    total: Tensor
    parts: dict[str, Tensor]
    attack: Tensor | None = None


COUNTS = ("attacked", "accepted", "crossed", "third")


class Method(Protocol):
    """Turns a batch and the two networks into losses."""

    def losses(self, batch: Batch, teacher: Teacher | None, student: ResNet, moment: Moment) -> Outcome: ...


class Teacher:
    """A frozen teacher in eval mode; where images never change its logits are computed once."""

    def __init__(self, network: ResNet, images: Tensor | None) -> None:
        """Keep ``network``; ``images`` is the student's whole set when no augmentation changes it, else None."""
        self.network = network.eval().requires_grad_(False)
        self.cached = None if images is None else predict(network, images)

    def logits(self, batch: Batch) -> Tensor:
        if self.cached is not None:
            return self.cached[batch.index]
        with torch.no_grad():
            return self.network(batch.images)


@torch.no_grad()
def predict(network: nn.Module, images: Tensor, batch: int = 1024) -> Tensor:
    """Logits of many images in eval mode."""
    was_training = network.training
    network.eval()
    logits = torch.cat([network(part) for part in images.split(batch)])
    network.train(was_training)
    return logits


def accuracy(network: nn.Module, split: Split) -> float:
    """Share of the images that are classified rightly, per cent."""
    return 100.0 * float((predict(network, split.images).argmax(1) == split.labels).float().mean())


class StudentAlone:
    """Cross-entropy with the labels; the teacher is not asked."""

    def losses(self, batch: Batch, teacher: Teacher | None, student: ResNet, moment: Moment) -> Outcome:
        ce = F.cross_entropy(student(batch.images), batch.labels)
        return Outcome(ce, {"ce": ce})


class KD:
    """Cross-entropy and softened divergence on the clean images (Hinton), with the schedule of the public BSS code."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def losses(self, batch: Batch, teacher: Teacher | None, student: ResNet, moment: Moment) -> Outcome:
        loss = distillation_loss(
            student(batch.images),
            teacher.logits(batch),
            batch.labels,
            temperature=self.settings.temperature,
            ce_weight=1.0,
            kl_weight=kl_weight(self.settings, moment),
            scale_by_t2=self.settings.kl_t2,
        )
        return Outcome(loss.total, {"ce": loss.ce, "kl": loss.kl})


class BoundaryDistillation:
    """KD plus attacked images: BSS (``triplet_weight`` 0) and AMKD."""

    def __init__(self, settings: Settings, data: Data, teacher: Teacher, preset: str, triplet_weight: float) -> None:
        check_negatives(settings, preset, triplet_weight)
        self.settings = settings
        self.triplet_weight = triplet_weight
        self.attack = boundary_attack(settings, data, teacher.network, preset)
        self.criterion = amkd_loss(settings, triplet_weight)

    def losses(self, batch: Batch, teacher: Teacher | None, student: ResNet, moment: Moment) -> Outcome:
        alpha, beta = kl_weight(self.settings, moment), boundary_weight(self.settings, moment)
        if beta == 0.0:
            loss = self.criterion(student(batch.images), teacher.logits(batch), batch.labels, kl_weight=alpha)
            return Outcome(loss.total, {"ce": loss.ce, "kl": loss.kl})
        teacher_logits = teacher.logits(batch)
        policy = self.settings.bn
        if policy == "concatenated":
            with torch.no_grad(), unchanged_statistics(student):
                logits = student(batch.images)
        else:
            features = student.embed(batch.images)
            logits = student.head(features)
        bases = select_boundary_bases(
            logits.detach(), teacher_logits, batch.labels, self.settings.boundary_samples, seed=moment.draw
        )
        keep = bases.valid  # padding must not enter the student's batch statistics
        if policy == "separate" and bool(keep.sum() < 2):
            keep = torch.zeros_like(keep)  # a batch of one has no statistics; happens in the first steps only
        source, base = bases.index[keep], bases.base[keep]
        samples = self.attack(batch.images[source], base, bases.target[keep])
        if policy == "concatenated":
            both = student.embed(torch.cat([batch.images, samples.images]))
            features, attacked = both.split([len(batch.images), len(source)])
            logits = student.head(features)
        elif len(source) == 0:
            attacked = features[:0]
        elif policy == "frozen_stats":
            with frozen_statistics(student):
                attacked = student.embed(samples.images)
        else:
            attacked = student.embed(samples.images)
        rows = Adversarial(
            student=student.head(attacked),
            teacher=samples.logits,
            base=base,
            target=samples.target,
            source=source,
            weight=samples.accepted.to(logits.dtype),
            student_features=attacked,
        )
        loss = self.criterion(
            logits,
            teacher_logits,
            batch.labels,
            rows,
            student_features=features,
            kl_weight=alpha,
            boundary_weight=beta,
            seed=moment.draw,
        )
        parts = {"ce": loss.ce, "kl": loss.kl, "boundary": loss.boundary}
        if self.triplet_weight > 0.0:
            parts["triplet"] = loss.triplet
        return Outcome(loss.total, parts, counts(samples))


def make(name: str, settings: Settings, data: Data, teacher: Teacher | None) -> Method:
    """The method of that name (one of :data:`amkd_fast.distill.settings.METHODS`)."""
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}: choose from {', '.join(METHODS)}")
    if name == "student":
        return StudentAlone()
    if name == "kd":
        return KD(settings)
    if name == "amkd":
        return BoundaryDistillation(settings, data, teacher, settings.amkd_preset, settings.triplet_weight)
    return BoundaryDistillation(settings, data, teacher, name.removeprefix("bss-"), 0.0)


def check(settings: Settings) -> None:
    """Raise :class:`UserError` for loss settings that do not go together, before any work is done."""
    try:
        amkd_loss(settings, settings.triplet_weight)
        check_negatives(settings, settings.amkd_preset, settings.triplet_weight)
    except ValueError as error:
        raise UserError(str(error)) from error


def amkd_loss(settings: Settings, triplet_weight: float) -> AMKDLoss:
    return AMKDLoss(
        temperature=settings.temperature,
        triplet_weight=triplet_weight,
        margin=settings.margin,
        variant=settings.variant,
        negatives=settings.negatives,
        selector=settings.selector,
        space=settings.space,
        scale_by_t2=settings.kl_t2,
        boundary_scale_by_t2=settings.boundary_t2,
    )


def check_negatives(settings: Settings, preset: str, triplet_weight: float) -> None:
    """Negatives of the target class repel a sample from where an overshooting step has already brought it."""
    if (
        settings.negatives == "target"
        and PRESETS[preset].norm_power == 1
        and triplet_weight > 0.0
        and not settings.force
    ):
        raise UserError(
            f"--negatives target: refused with the overshooting step of --amkd-preset {preset}; give --force to insist"
        )


def boundary_attack(
    settings: Settings, data: Data, network: nn.Module, preset: str, **options: object
) -> BoundaryAttack:
    """The attack of a preset inside the bounds that the settings ask for."""
    lower, upper = data.bounds() if settings.bounds == "pixel" else (None, None)
    options = {"steps": settings.attack_steps, "lower": lower, "upper": upper, **options}
    return BoundaryAttack(network, preset=preset, **options)


def counts(samples: BoundarySamples) -> Tensor:
    """The numbers named by :data:`COUNTS`, int64 [4], on the device."""
    status = samples.status
    attacked = status.new_tensor(len(status))
    flags = (samples.accepted, status == Status.CROSSED, status == Status.THIRD)
    return torch.stack([attacked, *(flag.sum() for flag in flags)])


def kl_weight(settings: Settings, moment: Moment) -> float:
    """α: linear from start to end."""
    progress = moment.epoch / moment.epochs
    return settings.kl_weight_start + (settings.kl_weight_end - settings.kl_weight_start) * progress


def boundary_weight(settings: Settings, moment: Moment) -> float:
    """β: linear from its start to 0 at ``boundary_until`` of the epochs, then 0."""
    return settings.boundary_weight * max(0.0, 1.0 - moment.epoch / (settings.boundary_until * moment.epochs))


@contextmanager
def unchanged_statistics(network: nn.Module) -> Iterator[None]:
    """Normalise by the batch, but leave the running statistics as they are."""
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
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
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()
