"""What an experiment was made with, as plain values: data, images, networks and what these cost."""

from __future__ import annotations

from typing import Any

from amkd_fast.distill import cost
from amkd_fast.distill.data import Data
from amkd_fast.distill.networks.normalised import Normalised
from amkd_fast.distill.settings import RunSettings


def experiment(networks: dict[str, Normalised], data: Data, settings: RunSettings) -> dict[str, Any]:
    """``data``, ``images``, ``chosen_on`` and ``networks`` of a result.

    Args:
        networks: By role, ``"student"`` and where there is one ``"teacher"``, on the data's device.
        data: What they learn from.
        settings: Of the run.
    """
    images = data.test.take(slice(0, cost.BATCH)).images
    described = {
        role: {"name": settings.network(role), **cost.measure(network, images)} for role, network in networks.items()
    }
    source = "trained here" if settings.teacher is None else f"from {settings.teacher}"
    return {
        "data": {
            "classes": list(data.classes),
            "dropped": [data.classes[label] for label in data.dropped],
            "shape": list(data.test.pixels.shape[1:]),
        },
        "normalisation": networks["student"].normalisation.as_dict(),
        "images": {
            **{part: len(getattr(data, part)) for part in ("teacher", "student", "test")},
            "validation": 0 if data.validation is None else len(data.validation),
        },
        "chosen_on": data.chosen_on,
        "networks": {**described, "teacher_source": source if "teacher" in networks else None},
    }
