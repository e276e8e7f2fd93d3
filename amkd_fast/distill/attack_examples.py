"""Attacked test images, apart from training: the gap after every step, and samples to look at."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from amkd_fast.attacks import BoundarySamples
from amkd_fast.distill.build import boundary_attack
from amkd_fast.distill.data import Data
from amkd_fast.distill.data.subsets import evenly
from amkd_fast.distill.settings import Settings
from amkd_fast.distill.teacher import predict, rightly
from amkd_fast.ops.attack import draw_targets
from amkd_fast.typing import PresetName

PRESETS: tuple[PresetName, ...] = ("official", "near_boundary")
IMAGES = 256


class AttackExamples(NamedTuple):
    """Test images that the teacher classifies rightly, attacked with each of :data:`PRESETS`."""

    images: Tensor  # [M, C, H, W] in [0, 1]
    logits: Tensor  # [M, K] the teacher's on the clean images
    base: Tensor  # [M]
    target: Tensor  # [M]
    samples: dict[str, BoundarySamples]

    def quartiles(self) -> dict[str, dict[str, Any]]:
        """Per preset: quartiles [3] of the gap at the start and after each step, and at the very end.

        Empty where no image was attacked.
        """
        if len(self.base) == 0:
            return {}
        levels = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
        found = {}
        for preset, samples in self.samples.items():
            assert samples.gaps is not None, "attack_examples has them recorded"
            found[preset] = {
                "steps": torch.quantile(samples.gaps.double().cpu(), levels, dim=1).T.tolist(),
                "final": torch.quantile(samples.gap.double().cpu(), levels).tolist(),
            }
        return found


def attack_examples(teacher: nn.Module, data: Data, settings: Settings) -> AttackExamples:
    """Attack up to :data:`IMAGES` test images of all over the set, the same images and targets with every preset."""
    logits = predict(teacher, data.test)
    right = rightly(logits, data.test.labels).nonzero()[:, 0]
    right = right[evenly(len(right), IMAGES).to(right.device)]
    images, logits, base = data.test.take(right).images, logits[right], data.test.labels[right]
    target = draw_targets(logits, base, seed=settings.data_seed)
    samples: dict[str, BoundarySamples] = {
        preset: boundary_attack(settings, teacher, preset)(images, base, target, record_gaps=True) for preset in PRESETS
    }
    return AttackExamples(images, logits, base, target, samples)
