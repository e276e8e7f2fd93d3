"""One row an epoch: losses, attack counts, test accuracy, time; kept in the checkpoint, written as CSV."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from amkd_fast.distill.errors import Diverged
from amkd_fast.distill.files import write_atomic
from amkd_fast.distill.progress import Epoch, Tell
from amkd_fast.methods import COUNTS

# Of our methods, beside "ce" and "kl".
PARTS = (
    "boundary", "triplet", "segments", "augmented", "particles", "distance", "angle", "hint", "attention", "similarity",
    "contrast", "review",
)  # fmt: skip
ACCURACIES = ("accuracy", "validation")  # of the test images; of those that choose best.ckpt, where there are any
COLUMNS = ("epoch", "lr", *ACCURACIES, "total", "ce", "kl", *PARTS, *COUNTS, "ms_per_step")


class EpochLog(Callback):
    """Collects what ``training_step`` returns; a resumed run goes on with the rows of its checkpoint.

    Args:
        path: CSV file rewritten (whole) after every epoch; None keeps the rows in memory only.
        name: Of the method, for ``tell``.
        seed: Likewise.
        tell: Called after every epoch.
    """

    def __init__(self, path: Path | None = None, name: str = "", seed: int = 0, tell: Tell | None = None) -> None:
        self.path, self.name, self.seed, self.tell = path, name, seed, tell
        self.rows: list[dict[str, float]] = []
        self.begun = False  # to train; what fails before is the checkpoint's fault

    @property
    def state_key(self) -> str:
        return "Journal"  # its first name, which checkpoints have

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = state["rows"]

    def on_train_epoch_start(self, trainer, module) -> None:
        self.begun = True
        self.lr = float(
            trainer.optimizers[0].param_groups[0]["lr"]
        )  # of the first step; at the end it is the next one's
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: torch.Tensor | None = None
        self.steps = self.images = 0
        self.tested = False
        self.start = self.end = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        for name, value in outputs["parts"].items():
            value = value.detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        if outputs["attack"] is not None:
            self.counts = outputs["attack"] if self.counts is None else self.counts + outputs["attack"]
        self.steps += 1
        self.images += len(batch.labels) * trainer.world_size
        if trainer.is_last_batch and module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        self.end = time.perf_counter()  # before the validation starts

    def on_validation_end(self, trainer, module) -> None:
        self.tested = True

    def on_train_epoch_end(self, trainer, module) -> None:
        row = {"epoch": trainer.current_epoch, "lr": self.lr}
        found = trainer.callback_metrics if self.tested else {}  # else they are an earlier epoch's
        row.update({name: float(found[name]) for name in ACCURACIES if name in found})
        row.update({name: float(total) / self.steps for name, total in self.sums.items()})
        self._check(row, module)
        if self.counts is not None:
            row.update(zip(COUNTS, self.counts.tolist(), strict=True))
        row["ms_per_step"] = 1000.0 * (self.end - self.start) / self.steps
        self.rows.append(row)
        if self.path is not None:
            write_atomic(self.path, table(self.rows, columns(self.rows)))
        if self.tell is not None:
            speed, seconds = self.images / (self.end - self.start), time.perf_counter() - self.start
            self.tell(Epoch(self.name, self.seed, trainer.max_epochs, row, speed, seconds))

    def _check(self, row: dict[str, float], module: Any) -> None:
        """Raise :class:`Diverged` before anything of this epoch is kept."""
        parts = [name for name in self.sums if name != "total" and not math.isfinite(row[name])]
        if math.isfinite(row["total"]) and _finite(module):
            return
        whats = [f"{name} is {row[name]}" for name in parts or ["total"] if not math.isfinite(row[name])]
        raise Diverged(int(row["epoch"]) + 1, ", ".join(whats) or "weights are not finite", self.rows)


def _finite(module: torch.nn.Module) -> bool:
    """Whether every weight and statistic is."""
    values = [value for value in module.state_dict().values() if value.is_floating_point()]
    return bool(torch.stack([value.isfinite().all() for value in values]).all())


def columns(rows: Iterable[dict[str, Any]], known: tuple[str, ...] = COLUMNS) -> tuple[str, ...]:
    """``known``, and behind the parts in it those of methods that are not ours."""
    others = tuple(dict.fromkeys(name for row in rows for name in row if name not in known))
    place = known.index(COUNTS[0])
    return (*known[:place], *others, *known[place:])


def table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    """Rows as CSV text; a value that a row does not have stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
