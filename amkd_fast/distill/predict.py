"""``amkd-distill predict``: the classes of pictures, with their probabilities."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amkd_fast.distill import exit_codes, report, student
from amkd_fast.distill.data import folder, pictures
from amkd_fast.distill.epoch_log import table
from amkd_fast.distill.errors import Diverged, UserError
from amkd_fast.distill.files import write_atomic
from amkd_fast.distill.predict_settings import STDOUT, PredictSettings
from amkd_fast.distill.progress import progress_bar
from amkd_fast.distill.student import Student

COLUMNS = ("file", "rank", "class", "probability")


class Prediction(NamedTuple):
    """What a network says of a picture."""

    path: Path
    classes: list[tuple[str, float]]  # the most probable first, each with its probability


def predict(options: PredictSettings, *, device: Any, progress: bool) -> int:
    """Print what a checkpoint's network says of pictures, and write it where the options say.

    Args:
        options: What to read and to write.
        device: Where to compute.
        progress: Show a progress bar.

    Returns:
        The exit code: 4 where some pictures could not be read.

    Raises:
        Diverged: The network's logits are not finite.
        UserError: The checkpoint cannot be used, a folder holds no pictures, or no picture at all could be read.
    """
    network = student.load(options.checkpoint, options.network or "").to(device)
    paths = [path for given in options.paths for path in _pictures(Path(given))]
    silent = STDOUT in (options.json, options.csv)
    found: list[Prediction] = []
    broken: dict[Path, str] = {}
    with progress_bar("predict", progress) as told:
        for start in range(0, len(paths), options.batch_size):
            part = paths[start : start + options.batch_size]
            pixels, refused = read(part, network)
            for path, reason in refused.items():
                exit_codes.say(reason)
                broken[path] = reason
            readable = [path for path in part if path not in refused]
            for prediction in _predictions(network, readable, pixels, options):
                found.append(prediction)
                if not silent:
                    print(f"{prediction.path}: {_line(prediction)}")
            if told is not None:
                told(start + len(part), len(paths))
    if not found:
        raise UserError(f"predict: none of {len(paths)} pictures could be read")
    _write(options, network, found, broken, device)
    if not broken:
        return exit_codes.OK
    exit_codes.say(f"predict: {len(broken)} of {len(paths)} pictures could not be read; the others are predicted")
    return exit_codes.PARTLY


def read(paths: Sequence[Path], network: Student) -> tuple[Tensor, dict[Path, str]]:
    """Pixels of the pictures as the network's training read its own, and why some could not be read.

    Args:
        paths: Of the pictures.
        network: For whose channels and size.

    Returns:
        uint8 [N, C, H, W] of those that could be read, in their order; for each of the others the reason.
    """
    try:
        return _pixels(paths, network), {}
    except UserError:
        pass  # one at a time, to find out which
    pixels, refused = [], {}
    for path in paths:
        try:
            pixels.append(_pixels([path], network))
        except UserError as error:
            refused[path] = _own(error)
    return torch.cat(pixels) if pixels else torch.empty(0, *network.shape, dtype=torch.uint8), refused


def _pixels(paths: Sequence[Path], network: Student) -> Tensor:
    channels, size, _ = network.shape
    return pictures.read(paths, size, channels == 1, network.settings.resize)


def _pictures(path: Path) -> list[Path]:
    try:
        return folder.found(path) if path.is_dir() else [path]
    except UserError as error:
        raise UserError(_own(error)) from error


def _own(error: UserError) -> str:
    """The message of the data's reader, which begins with an option that is not ours."""
    return "predict: " + str(error).removeprefix("--data: ")


@torch.no_grad()
def _predictions(
    network: Student, paths: Sequence[Path], pixels: Tensor, options: PredictSettings
) -> Iterator[Prediction]:
    if not paths:
        return
    logits = network(pixels.to(network.scale.device, network.scale.dtype).div_(255.0)).double()
    if not bool(logits.isfinite().all()):
        what = f"checkpoint {options.checkpoint}: its network's logits are not finite: the training has diverged"
        raise Diverged(0, "logits are", [], what)
    best = logits.softmax(1).topk(min(options.top, len(network.classes)), 1)
    for path, values, numbers in zip(paths, best.values.tolist(), best.indices.tolist(), strict=True):
        names = [network.classes[number] for number in numbers]
        yield Prediction(path, list(zip(names, values, strict=True)))


def _line(prediction: Prediction) -> str:
    return ", ".join(f"{name} {100.0 * probability:.1f} %" for name, probability in prediction.classes)


def _write(
    options: PredictSettings, network: Student, found: list[Prediction], broken: dict[Path, str], device: Any
) -> None:
    contents = {}
    if options.json is not None:
        contents[options.json] = report.to_json(
            {
                "kind": "predict",
                "environment": {**report.environment(), "device": str(device)},
                "checkpoint": options.checkpoint,
                "classes": list(network.classes),
                "predictions": [
                    {
                        "file": str(path),
                        "classes": [{"class": name, "probability": probability} for name, probability in classes],
                    }
                    for path, classes in found
                ],
                "unreadable": [{"file": str(path), "reason": reason} for path, reason in broken.items()],
            }
        )
    if options.csv is not None:
        rows = [
            {"file": str(path), "rank": rank, "class": name, "probability": probability}
            for path, classes in found
            for rank, (name, probability) in enumerate(classes, 1)
        ]
        contents[options.csv] = table(rows, COLUMNS)
    options.check_outputs()  # again: another process may have been there
    for file, content in contents.items():
        if file == STDOUT:
            sys.stdout.write(content)
        else:
            write_atomic(file, content)
