"""``amkd-distill evaluate``: accuracy of a checkpoint, on clean and on attacked images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from amkd_fast.distill import data as datasets
from amkd_fast.distill.checkpoint import load_network
from amkd_fast.distill.data import Split
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.methods import accuracy, predict
from amkd_fast.distill.settings import Settings


def evaluate(
    path: str, *, data_path: str | None, attack: str, eps: float, step_size: float, steps: int, seed: int, device: Any
) -> None:
    """Print the accuracy of a checkpoint's network.

    Args:
        path: Checkpoint.
        data_path: Other data than the checkpoint was trained with.
        attack: ``"none"`` or ``"pgd"``.
        eps: Linf radius in pixel units, the pixels being in [0, 1].
        step_size: Likewise.
        steps: Of PGD.
        seed: Of PGD's random start.
        device: Where to compute.
    """
    network, about = load_network(path)
    settings = Settings.from_dict(about["settings"])
    if data_path is not None:
        settings = replace(settings, data=data_path, teacher_images=0, student_images=0)
    data = datasets.load(settings)
    if len(data.classes) != network.config["classes"] or data.channels != network.config["channels"]:
        raise UserError(
            f"checkpoint {path}: is for {network.config['classes']} classes and {network.config['channels']} channels; "
            f"the data has {len(data.classes)} and {data.channels}"
        )
    test = data.pixels(data.test.images)
    data = replace(data, mean=tuple(about["mean"]), std=about["std"])  # normalise as in training
    test = Split((test - torch.tensor(data.mean).view(-1, 1, 1)) / data.std, data.test.labels)
    data = replace(data, test=test).to(device)
    network = network.to(device)
    print(f"{about['method']}: {accuracy(network, data.test):.2f} % on {len(test.labels)} clean test images")
    if attack == "pgd":
        attacked = _attacked(network, data, eps, step_size, steps, seed)
        print(f"under PGD (linf, eps {eps:g}, {steps} steps): {attacked:.2f} %")


def _attacked(network, data: datasets.Data, eps: float, step_size: float, steps: int, seed: int) -> float:
    from amkd_fast.attacks import PGD

    lower, upper = data.bounds()
    radius = {"eps": eps / data.std, "step_size": step_size / data.std, "random_start": True}
    pgd = PGD(network, steps=steps, lower=lower, upper=upper, **radius)
    right = 0
    for number, (images, labels) in enumerate(datasets.InOrder(data.test, 256)):
        attacked = pgd(images, labels, seed=seed * 100_003 + number).images
        right += int((predict(network, attacked).argmax(1) == labels).sum())
    return 100.0 * right / len(data.test.labels)
