"""The Lightning module: a network, a method, an optimiser."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from torchmetrics.classification import MulticlassAccuracy

from amkd_fast.distill.checkpoint import FORMAT, KEY
from amkd_fast.distill.data import Batch, Split
from amkd_fast.distill.methods import Method, Moment, Teacher
from amkd_fast.distill.networks import ResNet
from amkd_fast.distill.settings import Settings


class Distillation(pl.LightningModule):
    """Trains ``network`` by ``method``; SGD, cosine schedule over all steps.

    Args:
        network: The student (or a teacher that is being trained).
        method: Turns batches into losses.
        teacher: Asked by the method; kept out of the module's parameters and checkpoints.
        settings: Optimiser settings.
        epochs: Of the whole training, for the schedules.
        batches: In an epoch, for the schedules.
        seed: Of the attack's draws.
        about: Plain values that the checkpoint carries along.
    """

    def __init__(
        self,
        network: ResNet,
        method: Method,
        teacher: Teacher | None,
        settings: Settings,
        *,
        epochs: int,
        batches: int,
        seed: int,
        about: dict[str, Any],
    ) -> None:
        super().__init__()
        self.network = network
        self.accuracy = MulticlassAccuracy(network.config["classes"], average="micro", validate_args=False)
        self.method, self._teacher, self.settings = method, (teacher,), settings
        self.epochs, self.batches, self.seed, self.about = epochs, batches, seed, about

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        moment = Moment(self.current_epoch, self.epochs, self.seed * 1_000_003 + self.global_step)
        outcome = self.method.losses(batch, self._teacher[0], self.network, moment)
        parts = {"total": outcome.total, **outcome.parts}
        return {"loss": outcome.total, "parts": {k: v.detach() for k, v in parts.items()}, "attack": outcome.attack}

    def validation_step(self, batch: Split, batch_idx: int) -> None:
        self.accuracy.update(self.network(batch.images), batch.labels)

    def on_validation_epoch_end(self) -> None:
        self.log("accuracy", 100.0 * self.accuracy.compute(), prog_bar=True)
        self.accuracy.reset()

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=self.settings.lr,
            momentum=self.settings.momentum,
            weight_decay=self.settings.weight_decay,
        )
        steps = self.epochs * self.batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = {**self.about, "format": FORMAT, "network": self.network.config}


def cosine(progress: float) -> float:
    """Factor on the learning rate, 1 → 0."""
    return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
