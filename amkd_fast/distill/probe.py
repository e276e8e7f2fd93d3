"""A look at the attack itself, apart from training: the gap after every step, and a few samples to look at."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from amkd_fast.attacks import BoundarySamples
from amkd_fast.distill.data import Data
from amkd_fast.distill.methods import boundary_attack, predict
from amkd_fast.distill.networks import ResNet
from amkd_fast.distill.settings import Settings
from amkd_fast.ops.attack import draw_targets

PRESETS = ("official", "near_boundary")
IMAGES = 256


class Probe(NamedTuple):
    """Test images that the teacher classifies rightly, attacked with each of :data:`PRESETS`."""

    images: Tensor  # [M, C, H, W]
    logits: Tensor  # [M, K] the teacher's on the clean images
    base: Tensor  # [M]
    target: Tensor  # [M]
    samples: dict[str, BoundarySamples]

    def quartiles(self) -> dict[str, dict[str, Any]]:
        """Per preset: quartiles [3] of the gap at the start and after each step, and at the very end."""
        levels = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
        return {
            preset: {
                "steps": torch.quantile(samples.gaps.double().cpu(), levels, dim=1).T.tolist(),
                "final": torch.quantile(samples.gap.double().cpu(), levels).tolist(),
            }
            for preset, samples in self.samples.items()
        }


def probe(teacher: ResNet, data: Data, settings: Settings) -> Probe:
    """Attack up to :data:`IMAGES` test images, the same images and targets with every preset."""
    logits = predict(teacher, data.test.images)
    right = (logits.argmax(1) == data.test.labels).nonzero()[:IMAGES, 0]
    images, logits, base = data.test.images[right], logits[right], data.test.labels[right]
    target = draw_targets(logits, base, seed=settings.data_seed)
    samples = {
        preset: boundary_attack(settings, data, teacher, preset)(images, base, target, record_gaps=True)
        for preset in PRESETS
    }
    return Probe(images, logits, base, target, samples)
