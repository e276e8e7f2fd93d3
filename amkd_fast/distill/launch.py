"""Whether torchrun has started several processes, before torch is imported."""

from __future__ import annotations

import os

from amkd_fast.distill import models
from amkd_fast.distill.errors import UserError


def launched() -> models.Torchrun:
    """What torchrun's variables say.

    Raises:
        UserError: They are nonsense, or some are missing.
    """
    names = models.Torchrun.model_fields
    found = models.check(
        models.Torchrun, {name: os.environ[name] for name in names if name in os.environ}, "environment"
    )
    if found.WORLD_SIZE > 1:
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if getattr(found, name) is None]
        if missing:
            raise UserError(
                f"environment: WORLD_SIZE={found.WORLD_SIZE}, but {', '.join(missing)} not set: start with torchrun, "
                "or unset WORLD_SIZE"
            )
        if found.RANK >= found.WORLD_SIZE:
            raise UserError(f"environment: RANK={found.RANK}: must be below WORLD_SIZE={found.WORLD_SIZE}")
    return found
