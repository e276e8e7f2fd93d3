"""Pretrained weights of timm's models, where this machine has them: nothing is downloaded."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from amkd_fast.distill.errors import UserError

_FILES = ("model.safetensors", "pytorch_model.bin")  # of a model in Hugging Face's cache


def find(timm: ModuleType, model: str, what: str) -> Path:
    """The file of a model's pretrained weights in Hugging Face's or torch's cache.

    Args:
        timm: The package.
        model: A name that it knows.
        what: Begins the message.

    Raises:
        UserError: The model has no pretrained weights, or they are not on this machine.
    """
    about = timm.get_pretrained_cfg(model)
    if about is None or not about.has_weights:
        raise UserError(f"{what}: timm has no pretrained weights of {model}; timm.list_pretrained() lists those it has")
    for path in _places(about):
        if path.is_file():
            return path
    raise UserError(
        f"{what}: its pretrained weights are not on this machine ({about.hf_hub_id or about.url}), and nothing is "
        f'downloaded; once, with a network, run python -c "import timm; timm.create_model({model!r}, pretrained=True)"'
    )


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Keep huggingface_hub from the network: by the variable, which it reads when it is imported, and after that."""
    name = "HF_HUB_OFFLINE"
    before = os.environ.get(name)
    constants: Any = sys.modules.get("huggingface_hub.constants")
    imported = getattr(constants, name, None)
    os.environ[name] = "1"
    if constants is not None:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
        if constants is not None:
            constants.HF_HUB_OFFLINE = imported


def _places(about: Any) -> Iterator[Path]:
    """Where timm's loaders keep what they have fetched."""
    if about.hf_hub_id:
        with offline():
            from huggingface_hub import try_to_load_from_cache

            names = (about.hf_hub_filename,) if about.hf_hub_filename else _FILES
            for found in (try_to_load_from_cache(about.hf_hub_id, name) for name in names):
                if isinstance(found, str):  # else it is not there, or known not to exist
                    yield Path(found)
    if about.url:
        yield Path(torch.hub.get_dir()) / "checkpoints" / about.url.rpartition("/")[2]
