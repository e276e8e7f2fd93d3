"""One training on Lightning, as quiet and as quick as it can be."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from amkd_fast.distill import checkpoint as checkpoint_files
from amkd_fast.distill.best_weights import BestWeights
from amkd_fast.distill.checkpoint import read_training
from amkd_fast.distill.data import Batches, Data, InOrder, Split
from amkd_fast.distill.distributed import World
from amkd_fast.distill.epoch_log import EpochLog
from amkd_fast.distill.errors import UserError, exhausted
from amkd_fast.distill.lightning_module import CHOOSES, Distillation
from amkd_fast.distill.loggers import CSV, EpochLoggers
from amkd_fast.distill.networks import Spec
from amkd_fast.distill.networks.normalised import Normalised
from amkd_fast.distill.progress import Tell
from amkd_fast.distill.settings import Precision, Settings, file_name
from amkd_fast.distill.teacher import Teacher
from amkd_fast.methods import Method

ALONE = World()
PRECISIONS: dict[Precision, Literal["64-true", "32-true", "bf16-mixed", "16-mixed"]] = {
    "64": "64-true",
    "32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}


class Run(NamedTuple):
    """A trained network (None where another process kept it) and its log, one row an epoch."""

    network: nn.Module | None
    rows: list[dict[str, float]]
    qualities: dict[str, float | None] | None = None  # by name, where they were measured
    diverged: dict[str, Any] | None = None  # "epoch", from 1, and "what": then the rows are of the epochs before
    classes: list[float] | None = None  # test accuracy of each after the last epoch, per cent
    best_weights: dict[str, Tensor] | None = None  # the network's after its best epoch, where they were asked for

    @property
    def last(self) -> float | None:
        """Test accuracy after the last epoch, per cent; None of a run that diverged."""
        return None if self.diverged else self.rows[-1]["accuracy"]

    @property
    def best(self) -> float | None:
        """Test accuracy of best.ckpt, per cent; optimistic where the test set has chosen it. None as ``last``."""
        return None if self.diverged else best_epoch(self.rows)["accuracy"]


def best_epoch(rows: list[dict[str, float]]) -> dict[str, float]:
    """The first row with the highest accuracy on the validation images or, without these, on the test images."""
    return max((row for row in rows if "accuracy" in row), key=lambda row: row.get(CHOOSES, row["accuracy"]))


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's reader and writer, with a write that a crash or a full disk cannot leave half done."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        checkpoint_files.save(checkpoint, path)

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True) -> Any:
        return checkpoint_files.read(path)


class OwnSignals(pl.Callback):
    """Whoever handled SIGTERM before goes on to: Lightning's handler waits for other processes, which may be dead."""

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread() and callable(self.handler):
            signal.signal(signal.SIGTERM, self.handler)


class TestEvery(pl.Callback):
    """Tests the network in every so many epochs; in the first one, whose best.ckpt a resumed run needs, and the last.

    Args:
        epochs: Between two tests.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        number = trainer.current_epoch + 1
        due = number in (1, trainer.max_epochs) or number % self.epochs == 0
        trainer.check_val_every_n_epoch = 1 if due else number + 1  # which number is no multiple of


class MaxSteps(pl.Callback):
    """Ends a training after so many steps: it is tested, logged and kept as at the end of the last epoch."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._look(trainer)  # what is resumed may have them behind it

    def on_train_batch_end(self, trainer: pl.Trainer, *batch: Any) -> None:
        self._look(trainer)

    def _look(self, trainer: pl.Trainer) -> None:
        if trainer.global_step >= self.steps:
            trainer.should_stop = True
            trainer.check_val_every_n_epoch = 1


def fit(
    network: nn.Module,
    spec: Spec,
    method: Method,
    teacher: Teacher | None,
    train: Split,
    data: Data,
    settings: Settings,
    *,
    epochs: int,
    seed: int,
    about: dict[str, Any],
    folder: Path | None = None,
    best_weights: bool = False,
    progress: bool = False,
    resume: bool = False,
    world: World = ALONE,
    name: str = "",
    tell: Tell | None = None,
    logs: Path | None = None,
) -> Run:
    """Train ``network`` in place.

    Args:
        network: Its initial weights are the run's.
        spec: How it is built.
        method: Turns batches into losses.
        teacher: Asked by the method.
        train: What it learns from.
        data: Test and validation set, and augmentation.
        settings: Optimiser settings and batch size.
        epochs: Number of epochs.
        seed: Of batch order, augmentation and attack draws.
        about: Plain values for the checkpoint; mean and std of a :class:`.Normalised` network go with them.
        folder: Where log.csv, last.ckpt and best.ckpt go; None: nothing is written.
        best_weights: Return also the weights of the best epoch.
        progress: Show a progress bar.
        resume: Go on from ``folder/last.ckpt``, where there is one.
        world: The processes that train together, each on its share of every batch.
        name: What ``tell`` and the loggers call the training: its method, or ``teacher``.
        tell: Called after every epoch, in the first process.
        logs: The folder for the files of loggers other than log.csv; None: there are none.

    Raises:
        Diverged: The loss or the weights of an epoch are not finite; the checkpoints are of the epochs before.
        UserError: The checkpoint to go on from cannot be used.
    """
    if folder is not None:
        folder.mkdir(exist_ok=True)
    if isinstance(network, Normalised):
        about = {**about, **network.normalisation.as_dict()}
    loggers = settings.logger.split(",")
    path = folder / "log.csv" if folder is not None and world.first and CSV in loggers else None
    log = EpochLog(path, name, seed, tell if world.first else None)
    callbacks: list[pl.Callback] = [OwnSignals(), log]  # before the checkpoints, which are of good epochs alone
    callbacks.append(TestEvery(settings.test_every))
    if settings.max_steps is not None:
        callbacks.append(MaxSteps(settings.max_steps))
    monitor = "accuracy" if data.validation is None else CHOOSES
    best = BestWeights(monitor) if best_weights else None
    if best is not None:
        callbacks.append(best)
    if folder is not None:
        keep = partial(ModelCheckpoint, folder, enable_version_counter=False, save_on_train_epoch_end=True)
        callbacks.append(keep("best", monitor=monitor, mode="max"))
        # Of its own, as `save_last` skips epochs that are not the best so far. After "best", whose state it holds.
        callbacks.append(keep("last"))
    if logs is not None and world.first and loggers != [CSV]:
        callbacks.append(EpochLoggers(log, settings, logs, name if name == "teacher" else f"{file_name(name)}-{seed}"))
    if progress and world.first:
        callbacks.append(RichProgressBar(leave=False))
    gpu = train.labels.device.type == "cuda"
    if settings.batch_size < world.size:
        raise UserError(f"--batch-size {settings.batch_size}: must be at least {world.size}, an image for each process")
    batches = Batches(
        train,
        settings.batch_size,
        seed,
        data.augment,
        rank=world.rank,
        world=world.size,
        erase=data.erase,
        balance=settings.balance == "sampling",
        rand_augment=data.rand_augment,
        mixing=data.mixing,
        classes=len(data.classes),
    )
    module = Distillation(
        network,
        spec,
        method,
        teacher,
        settings,
        epochs=epochs,
        batches=len(batches),
        seed=seed,
        about=about,
        world=world,
    )
    last = None if folder is None else folder / "last.ckpt"
    resume_from = last if resume and last is not None and last.is_file() else None
    if resume_from is not None:
        read_training(resume_from, about, spec)
        if not resume_from.with_name("best.ckpt").is_file():
            raise UserError(f"--resume: {resume_from.with_name('best.ckpt')} is missing")
    with _quiet(), torch.random.fork_rng([train.labels.device] if gpu else []):
        torch.manual_seed(seed)
        trainer = pl.Trainer(
            accelerator="gpu" if gpu else "cpu",
            devices=world.local,
            num_nodes=world.size // world.local,
            # Buffers: running statistics are the same everywhere, and a memory's rows must not be overwritten.
            strategy="auto" if world.size == 1 else DDPStrategy(broadcast_buffers=False),
            sync_batchnorm=gpu and world.size > 1,
            precision=PRECISIONS[settings.precision],
            accumulate_grad_batches=settings.accumulate,
            max_epochs=epochs,
            logger=False,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=folder is not None,
            enable_progress_bar=progress and world.first,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            deterministic="warn" if gpu else False,
            default_root_dir=folder,
        )
        held_out = [InOrder(split, rank=world.rank, world=world.size) for split in data.tested_on]
        try:
            trainer.fit(module, batches, held_out, ckpt_path=resume_from, weights_only=True)
        except SystemExit as stop:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from stop
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            if resume_from is None or log.begun or world.size > 1 or exhausted(error):
                raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"--resume: {resume_from} does not fit this training ({reason})") from error
    network.eval()
    return Run(network.to(train.labels.device), log.rows, best_weights=None if best is None else best.weights)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's remarks on loggers, workers and devices to itself; errors still come through."""
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            warnings.filterwarnings("ignore", message=r".*(does not have many workers|GPU available but not used).*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
