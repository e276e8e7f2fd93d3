"""``amkd-distill export``: a checkpoint's network as a file for other programs, compared with the network itself."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amkd_fast.distill import student
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.export_settings import ExportSettings
from amkd_fast.distill.files import write_atomic
from amkd_fast.distill.student import Student
from amkd_fast.version import __version__

CLOSE = 1e-5  # that a file's logits may differ from the network's; of the largest one, where that is above 1
BATCHES = (1, 2, 7)  # images that they are compared on
INPUT, OUTPUT = "images", "logits"


def export(options: ExportSettings) -> None:
    """Write the file, once it has been read again and answers as the network does.

    Raises:
        UserError: The checkpoint cannot be used, a package is missing, the network cannot be exported, or the file
            answers otherwise; then there is no file.
    """
    network = student.load(options.checkpoint, options.network or "")
    program = options.format == "torch" and Path(options.output).suffix == ".pt2"
    write = _program if program else {"torch": _state_dict, "safetensors": _safetensors, "onnx": _onnx}[options.format]
    content, how = write(network, options)
    options.check_output()  # again: another process may have been there
    write_atomic(options.output, content)
    print(f"{options.output}: {how}")


def described(network: Student) -> dict[str, Any]:
    """What belongs to the weights, as plain values."""
    mean, std = network.normalisation
    return {
        "network": network.name,
        "channels": network.shape[0],
        "image_size": network.shape[1],
        "classes": list(network.classes),
        "mean": list(mean),
        "std": list(std),
        "amkd_fast": __version__,
    }


def _state_dict(network: Student, options: ExportSettings) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    torch.save({**described(network), "state_dict": _weights(network)}, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=True)["state_dict"]
    _check_same(again, network)
    return buffer.getvalue(), f"{len(again)} tensors under state_dict; mean, std, classes and network beside it"


def _safetensors(network: Student, options: ExportSettings) -> tuple[bytes, str]:
    _require("safetensors", options)
    from safetensors.torch import load, save

    about = {name: value if isinstance(value, str) else json.dumps(value) for name, value in described(network).items()}
    content = save(_weights(network), metadata={"format": "pt", **about})
    again = load(content)
    _check_same(again, network)
    return content, f"{len(again)} tensors; mean, std, classes and network in its metadata"


def _program(network: Student, options: ExportSettings) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(
            _exported(network, options), buffer, extra_files={"about.json": json.dumps(described(network))}
        )
        buffer.seek(0)
        again = torch.export.load(buffer).module()
    difference = _compared(network, lambda images: again(images), options)
    return buffer.getvalue(), f"a program of torch.export for batches of any size; {difference}"


def _onnx(network: Student, options: ExportSettings) -> tuple[bytes, str]:
    _require("onnx", options)
    _require("onnxscript", options)
    with _quiet(), _failing(options):
        program = torch.onnx.export(
            _exported(network, options),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=_shapes(),
            opset_version=options.opset,
            external_data=False,
            dynamo=True,
            verbose=False,
        )
        assert program is not None, "of dynamo=True"
        program.model.metadata_props.update({name: json.dumps(value) for name, value in described(network).items()})
        with tempfile.TemporaryDirectory() as folder:
            program.save(os.path.join(folder, "network.onnx"), external_data=False)
            content = Path(folder, "network.onnx").read_bytes()
    how = f"opset {options.opset}, {INPUT} [batch, {', '.join(map(str, network.shape))}] to {OUTPUT}; "
    if importlib.util.find_spec("onnxruntime") is None:
        return content, how + "not compared with the network: onnxruntime is not installed"
    import onnxruntime

    with _failing(options):
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    difference = _compared(
        network, lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0]), options
    )
    return content, f"{how}{difference} in onnxruntime {onnxruntime.__version__}"


def _exported(network: Student, options: ExportSettings) -> torch.export.ExportedProgram:
    example = torch.rand(2, *network.shape, generator=torch.Generator().manual_seed(0))
    with _failing(options):
        return torch.export.export(network, (example,), dynamic_shapes=_shapes())


def _shapes() -> dict[str, Any]:
    """Batches of any size; height and width are those of the training."""
    return {INPUT: {0: torch.export.Dim("batch")}}


def _weights(network: Student) -> dict[str, Tensor]:
    """The state dict of the network within, every tensor with memory of its own."""
    return {name: value.detach().contiguous().clone() for name, value in network.state_dict().items()}


def _check_same(again: dict[str, Tensor], network: Student) -> None:
    for name, value in network.state_dict().items():
        if not torch.equal(again[name], value):
            raise RuntimeError(f"{name} was not read again as it was written")


def _compared(network: Student, answer: Callable[[Tensor], Tensor], options: ExportSettings) -> str:
    """How far the file's logits are from the network's, in words.

    Raises:
        UserError: Farther than :data:`CLOSE`, or not as many.
    """
    draws, largest = torch.Generator().manual_seed(1), 0.0
    with torch.no_grad():
        for count in BATCHES:
            images = torch.rand(count, *network.shape, generator=draws)
            expected, got = network(images), answer(images)
            if got.shape != expected.shape:
                raise UserError(
                    f"export: --format {options.format} answers {count} images with {tuple(got.shape)}, the network "
                    f"with {tuple(expected.shape)}; nothing was written"
                )
            difference = float((got.double() - expected.double()).abs().max())
            allowed = CLOSE * max(1.0, float(expected.abs().max()))
            if not difference <= allowed:
                raise UserError(
                    f"export: logits of --format {options.format} differ from the network's by {difference:.2g}, more "
                    f"than {allowed:.2g}; nothing was written"
                )
            largest = max(largest, difference)
    return f"largest difference from the network's logits {largest:.2g}"


def _require(package: str, options: ExportSettings) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(f"export: --format {options.format} needs {package}: run `pip install {package}`")


@contextmanager
def _failing(options: ExportSettings) -> Iterator[None]:
    """What the exporters cannot do, in one line: a network of the user's own may hold anything."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"export: the network cannot be written as --format {options.format} ({type(error).__name__}: {reason})"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks on packages that nobody needs here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
