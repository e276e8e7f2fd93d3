"""Networks inside of ``nn.DataParallel`` and ``DistributedDataParallel``."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def unwrapped(model: nn.Module) -> nn.Module:
    """The network within, which runs on one device."""
    while isinstance(model, (DataParallel, DistributedDataParallel)):
        model = model.module
    return model


def refuse_replicas(model: nn.Module, role: str) -> None:
    """No part of ``model`` may be spread over devices: replicas know nothing of what is done to the modules.

    Raises:
        ValueError: Names the first part that is, by ``role`` and its name.
    """
    for name, part in model.named_modules():
        if isinstance(part, DataParallel) and len(part.device_ids or ()) > 1:
            where, count = f"{role}.{name}" if name else role, len(part.device_ids)
            raise ValueError(f"{where} is an nn.DataParallel over {count} devices: must be on one, such as its .module")
