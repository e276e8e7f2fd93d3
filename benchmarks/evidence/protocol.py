"""What is run: protocol.yaml, read and checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import yaml

from amkd_fast.distill import schemas
from amkd_fast.distill.settings import CompareSettings, TrainSettings

FILE = Path(__file__).with_name("protocol.yaml")


@dataclass(frozen=True)
class Part:
    """A comparison of all methods over several seeds.

    Attributes:
        name: Of its files.
        settings: Of ``amkd-distill compare``.
        minutes: That a run has taken, by method, on the machine that the protocol names.
        tables: What is told of it: ``methods``, ``unseen``, ``gains``, ``margins``.
    """

    name: str
    settings: CompareSettings
    minutes: dict[str, float]
    tables: list[str]

    def runs(self) -> list[tuple[str, int]]:
        """Method and seed of each."""
        return [(method, seed) for seed in range(self.settings.seeds) for method in self.settings.names()]

    def of_seeds(self, seeds: int) -> Part:
        """The same part with the first so many of its seeds."""
        return replace(self, settings=replace(self.settings, seeds=min(seeds, self.settings.seeds)))


@dataclass(frozen=True)
class Point:
    """A training that is judged on validation images alone.

    Attributes:
        group: Which question it belongs to.
        tried: In what it differs from the group's settings; not in the data.
        settings: Of ``amkd-distill train``.
        group_settings: Those of the group.
        minutes: That it has taken on that machine.
    """

    group: str
    tried: dict[str, Any]
    settings: TrainSettings
    group_settings: TrainSettings
    minutes: float
    KEY: ClassVar[tuple[str, ...]] = ("group", "tried", "seed")

    @property
    def key(self) -> dict[str, Any]:
        """What tells it from the others."""
        return {"group": self.group, "tried": self.tried, "seed": self.settings.seed}


@dataclass(frozen=True)
class Protocol:
    """All of it; the teacher is trained first, then every part's students learn from it."""

    teacher: TrainSettings
    teacher_minutes: float
    parts: tuple[Part, ...]
    search: tuple[Point, ...]


def read(data: str, teacher: str, path: Path = FILE, cache: str | None = None) -> Protocol:
    """The protocol of a file.

    Args:
        data: Folder of the images.
        teacher: Checkpoint of the teacher, which may not be there yet.
        path: Of the file.
        cache: Folder for decoded pictures.

    Raises:
        UserError: A setting does not exist, or a value breaks its rule.
    """
    found = yaml.safe_load(path.read_text())
    shared = {**found["shared"], "data": data, "cache": cache}

    def settings(kind: Any, own: dict[str, Any], where: str) -> Any:
        return schemas.settings(kind, {**shared, **own}, f"{path.name}: {where}")

    taught = {**found["students"], "teacher": teacher}
    parts = tuple(
        Part(name, settings(CompareSettings, {**taught, **about["settings"]}, name), about["minutes"], about["tables"])
        for name, about in found["parts"].items()
    )
    search = []
    for group, about in found["search"].items():
        common = {**taught, **about["settings"]}
        for seed in range(about["seeds"]):
            for tried in about["tries"] if seed == 0 else about.get("repeated", about["tries"]):
                own = settings(TrainSettings, {**common, **tried, "seed": seed}, group)
                search.append(Point(group, tried, own, settings(TrainSettings, common, group), about["minutes"]))
    teaching = found["teacher"]
    own = settings(TrainSettings, teaching["settings"], "teacher")
    return Protocol(own, teaching["minutes"], parts, tuple(search))
