"""Small data sets on disk, made by the tests that read them."""

from __future__ import annotations

import torch


def noise(count, size=12, channels=3, seed=0):
    """Random uint8 pictures [count, size, size, channels] as a numpy array."""
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, size, size, channels), generator=draws, dtype=torch.uint8).numpy()


def picture_folder(root, classes=("cat", "dog"), parts=("train", "test"), count=6):
    """``root/part/class/`` with ``count`` pictures each, .jpg and .png in turns."""
    from PIL import Image

    pixels = iter(noise(len(parts) * len(classes) * count))
    for part in parts:
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(next(pixels)).save(root / part / name / f"{number}.{'png' if number % 2 else 'jpg'}")
    return root
