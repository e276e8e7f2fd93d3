"""What ``amkd-distill predict`` is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amkd_fast.distill.errors import UserError
from amkd_fast.distill.files import check_free

STDOUT = "-"


@dataclass(frozen=True)
class PredictSettings:
    """Which pictures, by which network, and where the answers go."""

    checkpoint: str
    paths: tuple[str, ...]
    network: str | None = None  # the one of the user's own that a checkpoint may name
    top: int = 3
    batch_size: int = 256
    json: str | None = None
    csv: str | None = None
    overwrite: bool = False

    @classmethod
    def from_options(cls, values: dict[str, Any]) -> PredictSettings:
        """Those of the options that the user gave.

        Raises:
            UserError: An output cannot be written.
        """
        settings = cls(**{**values, "paths": tuple(values["paths"])})
        if settings.json is not None and settings.json == settings.csv:
            raise UserError(f"--json, --csv: must not both be {settings.json}")
        if settings.overwrite and not settings.files:
            raise UserError("--overwrite: is for --json FILE and --csv FILE")
        settings.check_outputs()
        return settings

    @property
    def files(self) -> dict[str, str]:
        """Outputs that are files, by the name of their option."""
        found = {"--json": self.json, "--csv": self.csv}
        return {option: file for option, file in found.items() if file not in (None, STDOUT)}

    def check_outputs(self) -> None:
        """Find out before the work whether its results can be kept."""
        for option, file in self.files.items():
            check_free(file, option, self.overwrite)
