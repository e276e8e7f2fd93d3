"""Checkpoints that are whole or absent, and that hold nothing but tensors and plain values."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amkd_fast.distill import networks
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.files import write_atomic
from amkd_fast.distill.networks import Spec

KEY = "amkd_fast"  # where a checkpoint keeps what is needed to build its network and data again
FORMAT = 2


def save(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Serialise in memory, then write at once: a failing disk shows as the OSError that it is."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_atomic(path, buffer.getbuffer())


def read(path: str | Path) -> dict[str, Any]:
    """Load one of our checkpoints without running any code from it.

    Raises:
        UserError: The file is missing, damaged, or written by something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path}: no such file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises nearly anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"checkpoint {path}: cannot be read, damaged or no checkpoint ({reason})") from error
    if not isinstance(checkpoint, dict) or KEY not in checkpoint or "state_dict" not in checkpoint:
        raise UserError(f"checkpoint {path}: was not written by amkd-distill")
    if checkpoint[KEY].get("format") != FORMAT:
        raise UserError(f"checkpoint {path}: format {checkpoint[KEY].get('format')!r}, this version reads {FORMAT}")
    return checkpoint


def save_network(path: str | Path, network: nn.Module, spec: Spec, about: dict[str, Any]) -> None:
    """Write a network alone, without a training state."""
    weights = {f"network.{name}": value.cpu() for name, value in network.state_dict().items()}
    save({KEY: {**about, "format": FORMAT, "network": spec._asdict()}, "state_dict": weights}, path)


def load_network(
    path: str | Path, allowed: str = "", option: str = "--network"
) -> tuple[nn.Module, Spec, dict[str, Any]]:
    """The network of a checkpoint, in eval mode, how it is built, and what the checkpoint says about itself.

    Args:
        path: Of the checkpoint.
        allowed: The one name of a network of the user's own that may be built: its code runs, and a file alone must
            not decide that.
        option: What gives that name on the command line.

    Raises:
        UserError: The checkpoint cannot be used.
    """
    checkpoint = read(path)
    about = checkpoint[KEY]
    try:
        spec = Spec(**about["network"])
        if networks.is_users(spec.name) and spec.name != allowed:
            raise UserError(f"checkpoint {path}: its network is code; {option} {spec.name} allows it to run")
        network = networks.build(spec, seed=0)
        prefix = "network."
        weights = {n.removeprefix(prefix): v for n, v in checkpoint["state_dict"].items() if n.startswith(prefix)}
        network.load_state_dict(weights)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"checkpoint {path}: its weights do not fit the network it names ({reason})") from error
    return network.eval(), spec, about
