"""What result folders say of the pairs of a published table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from amkd_fast.distill import checkpoint, recipes, schemas
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.files import read_json
from amkd_fast.distill.result_folder import MARKER
from amkd_fast.distill.settings import CompareSettings, Settings, TrainSettings

Pair = tuple[str, str]  # networks of teacher and student
KINDS: dict[str, type[Settings]] = {"train": TrainSettings, "compare": CompareSettings}
# What may be otherwise in a run by a recipe: where things lie, what is trained, how fast, what is looked at afterwards.
FREE = {
    *("recipe", "data_root", "teacher", "teacher_network", "student_network", "method", "methods", "seed", "seeds"),
    *("compile", "channels_last", "fold", "whole_step", "pgd_eps", "quality_images"),
}


class Measured(NamedTuple):
    """One run.

    Attributes:
        folder: Its result.
        pair: Its networks.
        method: What the student learned by; ``teacher`` of a teacher.
        accuracy: On the test images after the last epoch, per cent; None where the training diverged.
        otherwise: Settings that are not the recipe's, with their values.
    """

    folder: str
    pair: Pair
    method: str
    accuracy: float | None
    otherwise: dict[str, Any]

    def is_of(self, pair: Pair) -> bool:
        """Whether it is of these networks; a teacher or a student alone is of every pair that has it."""
        places = {"teacher": (0,), "student": (1,)}.get(self.method, (0, 1))
        return all(self.pair[place] == pair[place] for place in places)


def results(folders: Iterable[str]) -> list[Path]:
    """The result folders among these, and those that lie in one of them.

    Raises:
        UserError: There is no result in one of them.
    """
    found: list[Path] = []
    for folder in map(Path, folders):
        inside = [folder / MARKER] if (folder / MARKER).is_file() else sorted(folder.glob(f"*/{MARKER}"))
        if not inside:
            raise UserError(f"{folder}: is no result of train or compare, and has none in it")
        found += [path.parent for path in inside]
    return found


def runs(folder: Path, recipe: str) -> list[Measured]:
    """The runs of a result; none where it is by another recipe.

    Raises:
        UserError: Its file is damaged.
    """
    path = folder / MARKER
    result = schemas.check(schemas.Result, read_json(path, "table"), str(path))
    if result.kind not in KINDS or result.settings.get("recipe") != recipe:
        return []
    settings = schemas.settings(KINDS[result.kind], result.settings, str(path))
    pair = _teacher(folder, settings), settings.network("student")
    otherwise = _otherwise(settings, pair)
    taught = [run for run in result.trained() if run.method != "student"]
    found = [Measured(str(folder), pair, run.method, run.last, otherwise) for run in result.trained()]
    if taught and result.teacher_accuracy is not None:
        found.append(Measured(str(folder), pair, "teacher", result.teacher_accuracy, otherwise))
    return found


def _teacher(folder: Path, settings: Settings) -> str:
    """The network of teacher.ckpt: one that was given need not be what the settings say."""
    path = folder / "teacher.ckpt"
    if not path.is_file():  # a student alone
        return settings.network("teacher")
    return checkpoint.read(path)[checkpoint.KEY]["network"]["name"]


def _otherwise(settings: Settings, pair: Pair) -> dict[str, Any]:
    """What is not as the recipe has it for these networks."""
    stated = {"recipe": settings.recipe, "teacher_network": pair[0], "student_network": pair[1]}
    kind = type(settings)
    expected = kind(**recipes.below(kind, stated)).as_dict()
    return {name: value for name, value in settings.as_dict().items() if name not in FREE and value != expected[name]}
