"""The students that a comparison keeps, two checkpoints a run, each a network alone."""

from __future__ import annotations

from pathlib import Path

from amkd_fast.distill import training_runs
from amkd_fast.distill.checkpoint import save_network
from amkd_fast.distill.data import Data
from amkd_fast.distill.fit import Run
from amkd_fast.distill.networks import Spec
from amkd_fast.distill.networks.normalised import Normalised
from amkd_fast.distill.settings import Settings, file_name

FOLDER = "students"  # of a result


def folder_of(students: Path, method: str, seed: int) -> Path:
    """Where best.ckpt and last.ckpt of a run lie."""
    return students / f"{file_name(method)}-{seed}"


def keep(students: Path, method: str, seed: int, run: Run, data: Data, settings: Settings) -> None:
    """Write the network of the last epoch and that of the best one.

    Args:
        students: Folder of all of them.
        method: What the student learnt by.
        seed: Of the run.
        run: Its network, which has the best weights afterwards, and those.
        data: What it learnt from.
        settings: Of the comparison.
    """
    network = run.network
    assert isinstance(network, Normalised), "training_runs builds it"
    assert run.best_weights is not None, "fit was asked for them"
    folder = folder_of(students, method, seed)
    folder.mkdir(parents=True, exist_ok=True)
    spec = Spec(settings.network("student"), data.channels, len(data.classes))
    about = training_runs.describe(method, seed, data, settings)
    save_network(folder / "last.ckpt", network, spec, about)
    network.load_state_dict(run.best_weights)
    save_network(folder / "best.ckpt", network, spec, about)
