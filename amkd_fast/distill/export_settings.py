"""What ``amkd-distill export`` is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amkd_fast.distill.errors import UserError
from amkd_fast.distill.files import check_free

FORMATS = {
    "torch": "torch: a program of torch.export (.pt2), or the state dict (.pt, .pth)",
    "safetensors": "safetensors: the state dict, with what belongs to it as metadata",
    "onnx": "onnx: pixels in, logits out, compared with onnxruntime where that is installed",
}
SUFFIXES = {"torch": (".pt2", ".pt", ".pth"), "safetensors": (".safetensors",), "onnx": (".onnx",)}
OPSET = 18


@dataclass(frozen=True)
class ExportSettings:
    """Which network, as what, and where to."""

    checkpoint: str
    format: str
    output: str
    network: str | None = None  # the one of the user's own that a checkpoint may name
    opset: int = OPSET
    overwrite: bool = False

    @classmethod
    def from_options(cls, values: dict[str, Any]) -> ExportSettings:
        """Those of the options that the user gave.

        Raises:
            UserError: An option would have no effect, or the output cannot be written, or not by that name.
        """
        settings = cls(**values)
        if "opset" in values and settings.format != "onnx":
            raise UserError(f"--opset: is for --format onnx, not for --format {settings.format}")
        suffixes = SUFFIXES[settings.format]
        if Path(settings.output).suffix not in suffixes:
            raise UserError(f"--output {settings.output}: --format {settings.format} ends in {' or '.join(suffixes)}")
        settings.check_output()
        return settings

    def check_output(self) -> None:
        """Find out before the work whether its result can be kept."""
        check_free(self.output, "--output", self.overwrite)
