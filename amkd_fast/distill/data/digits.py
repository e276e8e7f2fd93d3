"""The 1797 handwritten digits of scikit-learn, 8 x 8, levels 0 to 16: 1000 to learn from, the others for the test."""

from __future__ import annotations

import torch

from amkd_fast.distill.data import subsets
from amkd_fast.distill.data.split import Source, Split
from amkd_fast.distill.settings import Settings

TRAIN = 1000
LEVEL = 1.0 / 16.0


def read(settings: Settings) -> Source:
    """The digits, split by ``settings.data_seed``; ``image_size`` and ``grayscale`` say nothing about them.

    Raises:
        UserError: ``settings.classes`` does not fit.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    split = Split(
        torch.tensor(bunch.images, dtype=torch.uint8).unsqueeze_(1),  # [1797, 1, 8, 8]
        torch.tensor(bunch.target, dtype=torch.int64),
    )
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(settings.data_seed))
    source = Source(split.take(order[:TRAIN]), split.take(order[TRAIN:]), tuple("0123456789"), LEVEL)
    return subsets.of_classes(source, settings.classes)
