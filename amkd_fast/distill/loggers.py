"""The log of the epochs for TensorBoard and Weights & Biases, by Lightning's loggers."""

from __future__ import annotations

import hashlib
import importlib
import os
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from amkd_fast.distill.epoch_log import EpochLog
from amkd_fast.distill.errors import UserError, short
from amkd_fast.distill.progress import loss_parts
from amkd_fast.distill.settings import Settings
from amkd_fast.methods import COUNTS

CSV, TENSORBOARD, WANDB = "csv", "tensorboard", "wandb"
LOGGERS = {CSV: "csv", TENSORBOARD: "torch.utils.tensorboard", WANDB: "wandb"}  # and what has to be imported
PROJECT = "amkd_fast"  # of W&B; WANDB_PROJECT names another


def check(names: str) -> None:
    """Raise :class:`UserError` unless all the loggers of ``--logger`` can be had here."""
    for name in names.split(","):
        if name not in LOGGERS:
            raise UserError(f"--logger {short(names)[1:-1]}: must be of {', '.join(LOGGERS)}, with commas between")
        try:
            importlib.import_module(LOGGERS[name])
        except ImportError as error:
            raise UserError(f"--logger {name}: {name} is not installed ({error}): run `pip install {name}`") from error
    if WANDB in names.split(",") and os.environ.get("WANDB_MODE", "online") == "online":
        _log_in()


def _log_in() -> None:
    """By a stored key, or by asking on a terminal."""
    import wandb

    reason = ""
    try:
        known = wandb.login()
    except wandb.errors.Error as error:
        known, reason = False, f" ({' '.join(str(error).split())[:120]})"
    if not known:
        raise UserError(
            f"--logger wandb: nobody is logged in{reason}: run `wandb login`, or set WANDB_MODE=offline to keep "
            "the log here"
        )


class EpochLoggers(pl.Callback):
    """Hands every row of the log to the loggers; a resumed training goes on in what it wrote before.

    The files go to ``folder/tensorboard/NAME`` and ``folder/wandb``. An epoch that was logged, but not yet kept in a
    checkpoint when the training was interrupted, is logged again in its place.

    Args:
        log: Has the rows; stands before this one among the callbacks.
        settings: ``logger`` says which.
        folder: The result folder.
        name: Of the training, in this folder.
    """

    def __init__(self, log: EpochLog, settings: Settings, folder: Path, name: str) -> None:
        self.epoch_log, self.settings, self.folder, self.name = log, settings, folder, name
        self.loggers: list[Logger] = []

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        chosen = self.settings.logger.split(",")
        if TENSORBOARD in chosen:
            place = self.folder / TENSORBOARD
            next_one = len(self.epoch_log.rows) + 1
            self.loggers.append(
                TensorBoardLogger(place, name=None, version=self.name, default_hp_metric=False, purge_step=next_one)
            )
        if WANDB in chosen:
            self.loggers.append(self._wandb())
        for logger in self.loggers:
            logger.log_hyperparams({**self.settings.as_dict(), "run": self.name})

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        row = self.epoch_log.rows[-1]
        losses = loss_parts(row)
        groups = {name: f"{'loss' if name in losses else 'attack'}/{name}" for name in (*losses, *COUNTS)}
        found = {groups.get(name, name): value for name, value in row.items() if name != "epoch"}
        for logger in self.loggers:
            logger.log_metrics(found, step=int(row["epoch"]) + 1)
            logger.save()

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._close("success")

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._close("failed")

    def _close(self, status: str) -> None:
        for logger in self.loggers:
            logger.finalize(status)
            if isinstance(logger, WandbLogger):
                logger.experiment.finish(0 if status == "success" else 1)
        self.loggers = []

    def _wandb(self) -> WandbLogger:
        # The same for a resumed training, another for every other one: run.json holds date, machine and settings.
        run = self.folder / "run.json"
        key = (run.read_bytes() if run.is_file() else os.urandom(16)) + self.name.encode(errors="replace")
        return WandbLogger(
            name=self.name,
            save_dir=self.folder,
            id=hashlib.sha256(key).hexdigest()[:16],
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=self.folder.name.removesuffix(".partial"),
            resume="allow",
        )
