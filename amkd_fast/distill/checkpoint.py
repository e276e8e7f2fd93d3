"""Checkpoints that are whole or absent, and that hold nothing but tensors and plain values."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import torch

from amkd_fast.distill import networks, schemas, state_dict_file
from amkd_fast.distill.errors import UserError, allocating, short
from amkd_fast.distill.files import write_atomic
from amkd_fast.distill.networks import Spec
from amkd_fast.distill.networks.normalised import Normalisation, Normalised
from amkd_fast.distill.schemas import FORMAT

KEY = "amkd_fast"  # where a checkpoint keeps what is needed to build its network and data again


def save(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Serialise in memory, then write at once: a failing disk shows as the OSError that it is."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_atomic(path, buffer.getbuffer())


def read(path: str | Path, about: type[schemas.About] = schemas.About) -> dict[str, Any]:
    """Load one of our checkpoints without running any code from it.

    Args:
        path: Of the file.
        about: What it must say about itself.

    Raises:
        UserError: The file is missing, damaged, or written by something else.
    """
    return checked(state_dict_file.read(path), path, about)


def checked(checkpoint: Any, path: str | Path, about: type[schemas.About] = schemas.About) -> dict[str, Any]:
    """What was read from ``path``, if it is one of our checkpoints.

    Raises:
        UserError: It was written by something else.
    """
    if not is_ours(checkpoint) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"checkpoint {path}: was not written by amkd-distill")
    found = checkpoint[KEY]
    if isinstance(found, dict) and "format" in found and found["format"] != FORMAT:
        raise UserError(f"checkpoint {path}: format {short(found['format'])}, this version reads {FORMAT}")
    schemas.check(about, found, f"checkpoint {path}")
    return checkpoint


def is_ours(content: object) -> bool:
    """Whether a file with this content says that it was written here."""
    return isinstance(content, dict) and KEY in content


def read_training(path: Path, about: dict[str, Any], spec: Spec) -> None:
    """Make sure that a training can go on from a checkpoint.

    Args:
        path: Of the file.
        about: What the checkpoints of this training say about themselves.
        spec: How its network is built.

    Raises:
        UserError: Some of its state is missing, or it is another run's.
    """
    checkpoint = read(path)
    where = f"--resume: {path}"
    schemas.check(schemas.Training, checkpoint, where)
    found = _with_lists(checkpoint[KEY])
    expected = {"method": None, **about, "network": spec._asdict()}  # a teacher's has no method
    if "mean" not in found:  # of an earlier version, whose teachers in training did not tell
        expected = {name: value for name, value in expected.items() if name not in ("mean", "std")}
    before = found.get("settings")
    if isinstance(before, dict) and "settings" in expected:  # of another version, which has other settings
        shared = before.keys() & expected["settings"].keys()
        found = {**found, "settings": {name: before[name] for name in shared}}
        expected["settings"] = {name: expected["settings"][name] for name in shared}
    for name, value in expected.items():
        if found.get(name) != value:
            raise UserError(f"{where}: is of another run ({name} {short(found.get(name))}, not {short(value)})")


def save_network(path: str | Path, network: Normalised, spec: Spec, about: dict[str, Any]) -> None:
    """Write a network alone, without a training state; its mean and std go beside ``about``."""
    weights = {f"network.{name}": value.cpu() for name, value in network.state_dict().items()}
    about = {**about, **network.normalisation.as_dict(), "format": FORMAT, "network": spec._asdict()}
    save({KEY: about, "state_dict": weights}, path)


def load_network(
    path: str | Path,
    allowed: str = "",
    option: str = "--network",
    about: type[schemas.About] = schemas.About,
    otherwise: Normalisation | None = None,
) -> tuple[Normalised, Spec, dict[str, Any]]:
    """The network of a checkpoint, in eval mode, how it is built, and what the checkpoint says about itself.

    It takes pixels in [0, 1], which it normalises as it has learnt it.

    Args:
        path: Of the checkpoint.
        allowed: The one name of a network of the user's own that may be built: its code runs, and a file alone must
            not decide that.
        option: What gives that name on the command line.
        about: What it must say about itself.
        otherwise: Mean and std of a network of whose the checkpoint says nothing; None: it must.

    Raises:
        UserError: The checkpoint cannot be used.
    """
    checkpoint = read(path, about)
    found = checkpoint[KEY]
    normalisation = otherwise
    if normalisation is None or "mean" in found:
        normalisation = stored_normalisation(f"checkpoint {path}", found, found["network"]["channels"])
    try:
        spec = Spec(**{name: found["network"][name] for name in Spec._fields})
        if networks.is_users(spec.name) and spec.name != networks.untrained(allowed):
            raise UserError(f"checkpoint {path}: its network is code; {option} {spec.name} allows it to run")
        with allocating(f"checkpoint {path}"):
            network = networks.build(spec, seed=0)
        prefix = "network."
        weights = {n.removeprefix(prefix): v for n, v in checkpoint["state_dict"].items() if n.startswith(prefix)}
        network.load_state_dict(weights)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"checkpoint {path}: its weights do not fit the network it names ({reason})") from error
    return Normalised(network.eval(), *normalisation), spec, found


def stored_normalisation(name: str, about: dict[str, Any], channels: int) -> Normalisation:
    """The mean and std that a checkpoint says its network was trained with.

    Raises:
        UserError: They are missing, or no numbers for so many channels; the message begins with ``name``.
    """
    found = _with_lists(about)
    for key, least, what in (("mean", -math.inf, ""), ("std", 0.0, " above 0")):
        numbers: Any = found.get(key)
        fits = isinstance(numbers, (list, tuple)) and len(numbers) == channels
        if not fits or not all(isinstance(x, (int, float)) and least < x < math.inf for x in numbers):
            rule = f"is not one number{what} for each of {channels} channels"
            raise UserError(f"{name}: {key} {short(about.get(key))} {rule}")
    return Normalisation.of(found["mean"], found["std"])


def _with_lists(about: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says; earlier ones have one std for all channels."""
    mean, std = about.get("mean"), about.get("std")
    if isinstance(std, (int, float)) and isinstance(mean, (list, tuple)):
        return {**about, "std": [std] * len(mean)}
    return about
