"""The Lightning module: a network, a method, an optimiser."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as pl
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from amkd_fast.distill import lr_schedule, optimizers
from amkd_fast.distill.checkpoint import FORMAT, KEY
from amkd_fast.distill.distributed import World
from amkd_fast.distill.networks import Spec
from amkd_fast.distill.settings import Settings
from amkd_fast.distill.teacher import Teacher
from amkd_fast.distill.whole_step import WholeStep
from amkd_fast.methods import Method, StepContext, statistics_of
from amkd_fast.methods.base import Batch

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig


CHOOSES = "validation"  # what the accuracy on the validation images is logged as


class Distillation(pl.LightningModule):
    """Trains ``network`` by ``method``.

    Args:
        network: The student (or a teacher that is being trained).
        spec: How the network is built, for the checkpoint.
        method: Turns batches into losses; one for shares of batches where ``world`` has several processes.
        teacher: Asked by the method; kept out of the module's parameters and checkpoints.
        settings: Optimiser settings.
        epochs: Of the whole training, for the schedules.
        batches: In an epoch, for the schedules.
        seed: Of the method's draws.
        about: Plain values that the checkpoint carries along.
        world: The processes that train together.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: Spec,
        method: Method,
        teacher: Teacher | None,
        settings: Settings,
        *,
        epochs: int,
        batches: int,
        seed: int,
        about: dict[str, Any],
        world: World,
    ) -> None:
        super().__init__()
        self.network, self.method = network, method
        self.accuracy, self.validation = (
            MulticlassAccuracy(spec.classes, average="micro", validate_args=False) for _ in range(2)
        )
        student = cast(nn.Module, torch.compile(network)) if settings.compile else network
        self._student, self._teacher = (student,), (teacher,)  # in tuples, where no module's state dict looks
        self.spec, self.settings, self.about, self.world = spec, settings, about, world
        self.epochs, self.batches, self.seed = epochs, batches, seed
        self._whole: WholeStep | None = None

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        teacher, student = self._teacher[0], self._student[0]
        if teacher is not None:
            batch = teacher.inform(batch)
        batch = batch._replace(images=self._in_format(batch.images))
        network = None if teacher is None else teacher.network
        draw = self.seed * 1_000_003 + self.current_epoch * self.batches + batch_idx
        context = StepContext(self.current_epoch, self.epochs, draw)
        if self.settings.whole_step:
            if self._whole is None:
                self._whole = WholeStep(self.method, network, student, self._optimizer())
            losses = self._whole(batch, context)
        else:
            with self._statistics():
                losses = self.method(batch, network, student, context)
        parts = {"total": losses.total.detach(), **losses.parts}
        # Gradients are averaged over the processes; each has those of the whole loss for its own rows.
        return {"loss": losses.total * self.world.size, "parts": parts, "attack": losses.attack}

    def on_train_start(self) -> None:
        if self.settings.whole_step:  # a checkpoint's rate comes on the CPU, where the recording would see a number
            for group in self._optimizer().param_groups:
                group["lr"] = group["lr"].to(self.device)

    def validation_step(self, batch: tuple, batch_idx: int, dataloader_idx: int = 0) -> None:
        images, labels = batch
        metric = self.validation if dataloader_idx else self.accuracy
        metric.update(self.network(self._in_format(images)), labels)

    def on_validation_epoch_end(self) -> None:
        for name, metric in (("accuracy", self.accuracy), (CHOOSES, self.validation)):
            if metric.update_called:
                self.log(name, 100.0 * metric.compute(), prog_bar=True, rank_zero_only=True)
                metric.reset()

    def backward(self, loss: torch.Tensor, *args: Any, **options: Any) -> None:
        if not self.settings.whole_step:  # the recording has done it
            super().backward(loss, *args, **options)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        if self.settings.whole_step:
            optimizer_closure()
        else:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        if not self.settings.whole_step:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        settings = self.settings
        parameters = [*self.network.parameters(), *self.method.parameters()]
        optimizer = optimizers.build(parameters, settings, recorded_on=self.device if settings.whole_step else None)
        factor = lr_schedule.of(settings, self.epochs, -(-self.batches // settings.accumulate))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _in_format(self, images: torch.Tensor) -> torch.Tensor:
        """The images in the memory format of the settings; networks and methods keep it, weights stay as they are."""
        if not self.settings.channels_last:
            return images
        # Not contiguous(): of one channel it changes no strides, by which convolutions tell the format.
        return torch.empty_like(images, memory_format=torch.channels_last).copy_(images)

    def _optimizer(self) -> torch.optim.Optimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer), "configure_optimizers makes one"
        return optimizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = {**self.about, "format": FORMAT, "network": self.spec._asdict()}

    def _statistics(self) -> Any:
        """BatchNorm over all processes: on a GPU Lightning has put torch's SyncBatchNorm in, which a CPU has not."""
        spread = self.world.size > 1 and self.device.type == "cpu"
        return statistics_of(self.network, distributed=True) if spread else nullcontext()
