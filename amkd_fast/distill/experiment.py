"""One training run on Lightning, as quiet and as quick as it can be."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO

from amkd_fast.distill import checkpoint as checkpoint_files
from amkd_fast.distill import methods, networks
from amkd_fast.distill.checkpoint import load_network
from amkd_fast.distill.data import Batches, Data, InOrder, Split
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.journal import Journal
from amkd_fast.distill.methods import Method, Teacher
from amkd_fast.distill.module import Distillation
from amkd_fast.distill.networks import ResNet
from amkd_fast.distill.settings import Settings

TEACHER_SEED = 0


class Run(NamedTuple):
    """A trained network (None where another process kept it) and its journal, one row an epoch."""

    network: ResNet | None
    rows: list[dict[str, float]]

    @property
    def last(self) -> float:
        """Test accuracy after the last epoch, per cent."""
        return self.rows[-1]["accuracy"]

    @property
    def best(self) -> float:
        """Highest test accuracy of all epochs, per cent: chosen on the test set, so optimistic."""
        return max(row["accuracy"] for row in self.rows)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's reader and writer, with a write that a crash or a full disk cannot leave half done."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        checkpoint_files.save(checkpoint, path)

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True) -> Any:
        return checkpoint_files.read(path)


def fit(
    network: ResNet,
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
    progress: bool = False,
    resume: bool = False,
) -> Run:
    """Train ``network`` in place.

    Args:
        network: Its initial weights are the run's.
        method: Turns batches into losses.
        teacher: Asked by the method.
        train: What it learns from.
        data: Test set and augmentation.
        settings: Optimiser settings and batch size.
        epochs: Number of epochs.
        seed: Of batch order, augmentation and attack draws.
        about: Plain values for the checkpoint.
        folder: Where log.csv, last.ckpt and best.ckpt go; None: nothing is written.
        progress: Show a progress bar.
        resume: Go on from ``folder/last.ckpt``, where there is one.
    """
    journal = Journal(None if folder is None else folder / "log.csv")
    callbacks: list[pl.Callback] = [journal]
    if folder is not None:
        always = {"enable_version_counter": False, "save_on_train_epoch_end": True}
        callbacks.append(ModelCheckpoint(folder, "best", monitor="accuracy", mode="max", **always))
        # Of its own, as `save_last` skips epochs that are not the best so far. After "best", whose state it holds.
        callbacks.append(ModelCheckpoint(folder, "last", **always))
    if progress:
        callbacks.append(RichProgressBar(leave=False))
    device = train.images.device
    batches = Batches(train, settings.batch_size, seed, data.augment, data.bounds()[0])
    module = Distillation(
        network, method, teacher, settings, epochs=epochs, batches=len(batches), seed=seed, about=about
    )
    last = None if folder is None else folder / "last.ckpt"
    with _quiet(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            max_epochs=epochs,
            logger=False,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=folder is not None,
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            deterministic="warn" if device.type == "cuda" else False,
            default_root_dir=folder,
        )
        resume_from = last if resume and last is not None and last.is_file() else None
        try:
            trainer.fit(module, batches, InOrder(data.test), ckpt_path=resume_from, weights_only=True)
        except SystemExit as stop:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from stop
    network.eval()
    return Run(network.to(device), journal.rows)


def train_teacher(data: Data, settings: Settings, *, progress: bool = False) -> Run:
    """Train the teacher with the labels alone."""
    config = {"channels": data.channels, "classes": len(data.classes)}
    network = networks.build(TEACHER_SEED, width=settings.teacher_width, blocks=settings.teacher_blocks, **config)
    return fit(
        network.to(data.test.images.device),
        methods.StudentAlone(),
        None,
        data.teacher,
        data,
        settings,
        epochs=settings.teacher_epochs,
        seed=TEACHER_SEED,
        about={},
        progress=progress,
    )


def load_teacher(path: str | Path, data: Data) -> ResNet:
    """A teacher from a checkpoint, checked against the data."""
    network, _ = load_network(path)
    expected = {"channels": data.channels, "classes": len(data.classes)}
    for name, value in expected.items():
        if network.config[name] != value:
            raise UserError(f"--teacher {path}: has {network.config[name]} {name}, the data has {value}")
    return network.to(data.test.images.device)


def train_student(name: str, seed: int, teacher: Teacher | None, data: Data, settings: Settings, **options: Any) -> Run:
    """Train the student of a seed: the same initial weights and batches for every method."""
    config = {"channels": data.channels, "classes": len(data.classes)}
    network = networks.build(1000 + seed, width=settings.student_width, blocks=settings.student_blocks, **config)
    method = methods.make(name, settings, data, teacher)
    network = network.to(data.test.images.device)
    options.setdefault("about", {})
    return fit(network, method, teacher, data.student, data, settings, epochs=settings.epochs, seed=seed, **options)


def describe(method: str, seed: int, data: Data, settings: Settings) -> dict[str, Any]:
    """What a checkpoint must know to be evaluated later: plain values only."""
    return {
        "method": method,
        "seed": seed,
        "classes": list(data.classes),
        "mean": list(data.mean),
        "std": data.std,
        "settings": settings.as_dict(),
    }


def freeze(network: ResNet, data: Data) -> Teacher:
    """The teacher of a run; its logits are cached where the student's images never change."""
    return Teacher(network, data.student.images if data.augment == "none" else None)


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
