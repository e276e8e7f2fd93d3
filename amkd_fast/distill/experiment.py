"""One training run on Lightning, as quiet and as quick as it can be."""

from __future__ import annotations

import logging
import math
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from amkd_fast.distill import checkpoint as checkpoint_files
from amkd_fast.distill import choice, networks
from amkd_fast.distill.checkpoint import load_network, read_training, save_network
from amkd_fast.distill.data import Batches, Data, InOrder, Split
from amkd_fast.distill.errors import Diverged, UserError, allocating, exhausted
from amkd_fast.distill.journal import Journal
from amkd_fast.distill.methods import Method
from amkd_fast.distill.methods.features import with_features
from amkd_fast.distill.module import Distillation
from amkd_fast.distill.networks import Spec
from amkd_fast.distill.settings import Settings
from amkd_fast.distill.teacher import Teacher, accuracy, predict
from amkd_fast.distill.world import World

TEACHER_SEED = 0
ALONE = World()
PRECISIONS = {"64": "64-true", "32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class Run(NamedTuple):
    """A trained network (None where another process kept it) and its journal, one row an epoch."""

    network: nn.Module | None
    rows: list[dict[str, float]]
    qualities: dict[str, float | None] | None = None  # by name, where they were measured
    diverged: dict[str, Any] | None = None  # "epoch", from 1, and "what": then the rows are of the epochs before

    @property
    def last(self) -> float | None:
        """Test accuracy after the last epoch, per cent; None of a run that diverged."""
        return None if self.diverged else self.rows[-1]["accuracy"]

    @property
    def best(self) -> float | None:
        """Highest test accuracy of all epochs, per cent: chosen on the test set, so optimistic. None as ``last``."""
        return None if self.diverged else max(row["accuracy"] for row in self.rows)


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
    progress: bool = False,
    resume: bool = False,
    world: World = ALONE,
) -> Run:
    """Train ``network`` in place.

    Args:
        network: Its initial weights are the run's.
        spec: How it is built.
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
        world: The processes that train together, each on its share of every batch.

    Raises:
        Diverged: The loss or the weights of an epoch are not finite; the checkpoints are of the epochs before.
        UserError: The checkpoint to go on from cannot be used.
    """
    if folder is not None:
        folder.mkdir(exist_ok=True)
    journal = Journal(None if folder is None or not world.first else folder / "log.csv")
    callbacks: list[pl.Callback] = [OwnSignals(), journal]  # before the checkpoints, which are of good epochs alone
    if folder is not None:
        always = {"enable_version_counter": False, "save_on_train_epoch_end": True}
        callbacks.append(ModelCheckpoint(folder, "best", monitor="accuracy", mode="max", **always))
        # Of its own, as `save_last` skips epochs that are not the best so far. After "best", whose state it holds.
        callbacks.append(ModelCheckpoint(folder, "last", **always))
    if progress and world.first:
        callbacks.append(RichProgressBar(leave=False))
    gpu = train.labels.device.type == "cuda"
    if settings.batch_size < world.size:
        raise UserError(f"--batch-size {settings.batch_size}: must be at least {world.size}, an image for each process")
    batches = Batches(train, settings.batch_size, seed, data.augment, rank=world.rank, world=world.size)
    place = {"epochs": epochs, "batches": len(batches), "seed": seed, "about": about, "world": world}
    module = Distillation(network, spec, method, teacher, settings, **place)
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
        test = InOrder(data.test, rank=world.rank, world=world.size)
        try:
            trainer.fit(module, batches, test, ckpt_path=resume_from, weights_only=True)
        except SystemExit as stop:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from stop
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            if resume_from is None or journal.begun or world.size > 1 or exhausted(error):
                raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"--resume: {resume_from} does not fit this training ({reason})") from error
    network.eval()
    return Run(network.to(train.labels.device), journal.rows)


def train_teacher(data: Data, settings: Settings, **options: Any) -> tuple[Run, Spec]:
    """Train the teacher with the labels alone; the options are those of :func:`fit`."""
    network, spec = _built("teacher", TEACHER_SEED, data, settings)
    method = choice.method("student", settings, data, distributed=options.get("world", ALONE).size > 1)
    options = {"epochs": settings.teacher_epochs, "seed": TEACHER_SEED, "about": {}, **options}
    return fit(network, spec, method, None, data.teacher, data, settings, **options), spec


def obtain_teacher(
    settings: Settings,
    data: Data,
    folder: Path,
    *,
    progress: bool = False,
    resume: bool = False,
    world: World = ALONE,
) -> tuple[nn.Module, float]:
    """The teacher that the settings name, or one that is trained here; kept as teacher.ckpt. And its accuracy.

    Args:
        settings: ``teacher`` is the path of a checkpoint, or None.
        data: What it is trained and tested on.
        folder: Where teacher.ckpt goes, and while it is trained a folder of its checkpoints.
        progress: Show a progress bar.
        resume: Take the teacher.ckpt of ``folder``, or go on with the training that was interrupted there.
        world: The processes that train together.
    """
    kept, growing = folder / "teacher.ckpt", folder / "teacher"
    path = kept if resume and kept.is_file() else settings.teacher
    if path is not None:
        network, spec = load_teacher(path, data, settings)
        how = f"teacher from {path}"
    else:
        start = time.perf_counter()
        options = {"folder": growing, "progress": progress, "resume": resume, "world": world}
        try:
            run, spec = train_teacher(data, settings, **options)
        except Diverged as error:
            raise told("teacher", error, growing, settings.teacher_epochs) from error
        network, how = run.network, f"teacher trained in {time.perf_counter() - start:.0f} s"
    correct = accuracy(network, data.test)
    if not math.isfinite(float(predict(network, data.test.take(slice(0, 64))).sum())):
        how += " (its logits are not finite)"
    if world.first:
        print(f"{how}: {correct:.1f} % on {len(data.test)} test images", flush=True)
        if path != kept:
            save_network(kept, network, spec, describe("teacher", TEACHER_SEED, data, settings))
        shutil.rmtree(growing, ignore_errors=True)
    return network, correct


def load_teacher(path: str | Path, data: Data, settings: Settings) -> tuple[nn.Module, Spec]:
    """A teacher from a checkpoint, checked against the data."""
    network, spec, _ = load_network(path, settings.teacher_network, "--teacher-network")
    for name, value in (("channels", data.channels), ("classes", len(data.classes))):
        if getattr(spec, name) != value:
            raise UserError(f"--teacher {path}: has {getattr(spec, name)} {name}, the data has {value}")
    network = network.to(data.test.labels.device)
    rehearse(network, f"--teacher {path}", spec, data)
    return network, spec


def prepare(names: Iterable[str], data: Data, settings: Settings, distributed: bool = False) -> None:
    """Build once what the trainings will build, so that what cannot be built is known before hours of training.

    Raises:
        UserError: A network or a method cannot be had.
    """
    with torch.random.fork_rng(devices=[]):
        if settings.teacher is None and any(name != "student" for name in names):
            _built("teacher", TEACHER_SEED, data, settings)
        width = _width(_built("student", 0, data, settings)[0], data, settings)
        for name in names:
            choice.method(name, settings, data, width, distributed=distributed)


def rehearse(network: nn.Module, what: str, spec: Spec, data: Data) -> None:
    """Find out before the work whether a network of the user's own takes these images, and answers with logits.

    Raises:
        UserError: It does not; the message begins with ``what``.
    """
    if not networks.is_users(spec.name):
        return
    images = data.test.take(slice(0, 1)).images
    was_training = network.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = network.eval()(images.to(next(network.parameters()).dtype))
    except Exception as error:
        shape, reason = " × ".join(map(str, images.shape[1:])), " ".join(str(error).split())[:120]
        raise UserError(
            f"{what}: does not take images of {shape} ({type(error).__name__}: {reason}); --image-size brings those "
            "of a folder to another size"
        ) from error
    network.train(was_training)
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, len(data.classes)):
        answer = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(f"{what}: answers an image with {answer}: must be logits of shape (1, {len(data.classes)})")


def told(name: str, error: Diverged, folder: Path, epochs: int) -> Diverged:
    """The same, with the name of what was trained and the checkpoint that is left."""
    good = folder / "last.ckpt"
    kept = f"{good} is of epoch {error.epoch - 1}, the last good one" if good.is_file() else "no epoch was good"
    message = f"{name} diverged in epoch {error.epoch} of {epochs} ({error.what}); {kept}"
    return Diverged(error.epoch, error.what, error.rows, message)


def train_student(name: str, seed: int, teacher: Teacher | None, data: Data, settings: Settings, **options: Any) -> Run:
    """Train the student of a seed: the same initial weights and batches for every method."""
    network, spec = _built("student", 1000 + seed, data, settings)
    spread = options.get("world", ALONE).size > 1
    shape = {"distributed": spread, "fixed_shape": settings.whole_step}
    method = choice.method(name, settings, data, _width(network, data, settings), **shape)
    method.to(data.test.labels.device)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(2000 + seed)  # of the method's own weights
        method.prepare(data.student.take(slice(0, 1)).images, None if teacher is None else teacher.network, network)
    options = {"epochs": settings.epochs, "seed": seed, "about": {}, **options}
    return fit(network, spec, method, teacher, data.student, data, settings, **options)


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


def _built(role: str, seed: int, data: Data, settings: Settings) -> tuple[nn.Module, Spec]:
    spec = Spec(settings.network(role), data.channels, len(data.classes))
    what = f"--{role}-network {spec.name}"
    with allocating(what):
        network = networks.build(spec, seed).to(data.test.labels.device)
    rehearse(network, what, spec, data)
    return network, spec


@torch.no_grad()
def _width(network: nn.Module, data: Data, settings: Settings) -> int | None:
    """D of the features, where a memory has to be as wide."""
    if not (settings.memory and settings.space == "features"):
        return None
    network.eval()
    width = with_features(network, data.test.take(torch.arange(1, device=data.test.labels.device)).images)[1].shape[1]
    network.train()
    return width


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
