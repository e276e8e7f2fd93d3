"""What a trained network is worth beside its accuracy: calibration, likeness to the teacher, robustness, boundaries."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, bincount, isin, nn
from torchmetrics.functional.classification import multiclass_calibration_error

from amkd_fast.attacks import boundary_similarity
from amkd_fast.distill import robustness
from amkd_fast.distill.data import Data, InOrder
from amkd_fast.distill.data.subsets import evenly
from amkd_fast.distill.evaluate_settings import EvaluateSettings
from amkd_fast.distill.settings import Settings
from amkd_fast.distill.teacher import predict, rightly
from amkd_fast.typing import PairTargets, PresetName

BINS = 15
STEPS = 10  # of either attack
PRESET: PresetName = "near_boundary"
TARGETS: PairTargets = "runner_up"


class Metric(NamedTuple):
    """How a quality is called and read."""

    label: str
    unit: str  # "%", "nat" or "" for a pure number
    better: str  # "higher" or "lower"
    digits: int  # after the point, in tables
    meaning: str

    @property
    def heading(self) -> str:
        """Label and unit."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    @property
    def heading_of_differences(self) -> str:
        """Label and unit where one value is taken from another."""
        return self.heading.replace("%", "% points")


METRICS = {
    "accuracy": Metric("accuracy", "%", "higher", 2, "share of the test images that are classified rightly"),
    "ece": Metric(
        "ECE", "%", "lower", 2, f"expected calibration error in {BINS} bins: mean gap of confidence and accuracy"
    ),
    "nll": Metric("NLL", "nat", "lower", 3, "mean negative log-likelihood of the labels"),
    "agreement": Metric("agreement", "%", "higher", 2, "share of the test images with the teacher's prediction"),
    "fidelity_kl": Metric("KL to teacher", "nat", "lower", 3, "mean KL(teacher ‖ student) at temperature 1"),
    "pgd_accuracy": Metric("PGD accuracy", "%", "higher", 2, "share classified rightly before and after a PGD attack"),
    "magsim": Metric(
        "MagSim", "", "higher", 3, "how alike the distances of student and teacher to their boundaries are"
    ),
    "angsim": Metric("AngSim", "", "higher", 3, "how alike the directions to their boundaries are"),
}
OF_DROPPED_LABELS = {
    "unseen_accuracy": Metric(
        "unseen", "%", "higher", 2, "share of the test images of labels that the student never saw, classified rightly"
    ),
    "unseen_choice_accuracy": Metric(
        "among unseen", "%", "higher", 2, "share of the same images, were these labels alone to choose from"
    ),
}  # where there are any; the second where there are several
EVERY = {**METRICS, **OF_DROPPED_LABELS}
OF_THE_TEACHER = ("accuracy", "ece", "nll", "pgd_accuracy")


def measure(
    network: nn.Module, teacher: nn.Module | None, data: Data, settings: Settings, expected: Tensor | None = None
) -> dict[str, float | None]:
    """The :data:`METRICS` of a network on the test set, and :data:`OF_DROPPED_LABELS` where labels were dropped.

    Accuracy, agreement and ECE are in per cent and over all test images, as NLL and KL (natural logarithms). The
    attacks take :func:`protocol`'s number of images, evenly spread over the set. The same network gives the same
    numbers, and the caller's random state stays as it is.

    Args:
        network: The student, on the device of ``data``.
        teacher: What it is compared with, for the same images; None measures :data:`OF_THE_TEACHER` alone.
        data: Its test set.
        settings: ``pgd_eps`` (pixel units; None: 0.1 for digits, else 8/255), ``quality_images`` (0: all).
        expected: The teacher's logits on the test set; None asks it.

    Returns:
        By name the value, None where it is not finite or nothing could be measured.
    """
    logits, labels = predict(network, data.test).double().cpu(), data.test.labels.cpu()
    right = (logits.argmax(1) == labels) & ~logits.isnan().any(1)
    found: dict[str, float | None] = {"accuracy": 100.0 * int(right.sum()) / len(labels)}
    if bool(logits.isfinite().all()):  # of a network that training has destroyed nothing more can be said
        part = attacked(data, settings)
        found["ece"] = 100.0 * calibration_error(logits, labels)
        found["nll"] = float(F.cross_entropy(logits, labels))
        found["pgd_accuracy"] = pgd_accuracy(network, part, settings)
        if teacher is not None:
            expected = (predict(teacher, data.test) if expected is None else expected).double().cpu()
            found["agreement"] = 100.0 * int((logits.argmax(1) == expected.argmax(1)).sum()) / len(labels)
            found["fidelity_kl"] = divergence(expected, logits)
            found.update(_similarity(network, teacher, part))
    names = list(OF_THE_TEACHER if teacher is None else METRICS)
    if data.dropped:
        unseen = isin(labels, labels.new_tensor(data.dropped))
        found["unseen_accuracy"] = 100.0 * int(right[unseen].sum()) / int(unseen.sum())
        names.append("unseen_accuracy")
        if len(data.dropped) > 1:
            found["unseen_choice_accuracy"] = choice_accuracy(logits[unseen], labels[unseen], data.dropped)
            names.append("unseen_choice_accuracy")
    return {name: _finite(found.get(name)) for name in names}


def choice_accuracy(logits: Tensor, labels: Tensor, choices: tuple[int, ...]) -> float:
    """Per cent classified rightly where some labels alone are to choose from.

    Training labels that never name a class push it below the others in every image. What a student has learnt from its
    teacher about such classes shows in their order among themselves (Hinton et al. 2015 raise their biases instead).

    Args:
        logits: [N, K].
        labels: int64 [N], of ``choices`` each.
        choices: The labels to choose from.

    Example:
        >>> import torch
        >>> from amkd_fast.distill.metrics import choice_accuracy
        >>> choice_accuracy(torch.tensor([[9.0, 1.0, 2.0], [9.0, 3.0, 2.0]]), torch.tensor([2, 2]), (1, 2))
        50.0
    """
    chosen = labels.new_tensor(choices)[logits[:, list(choices)].argmax(1)]
    right = (chosen == labels) & ~logits.isnan().any(1)
    return 100.0 * int(right.sum()) / len(labels)


def class_accuracies(network: nn.Module, data: Data) -> list[float]:
    """Per cent of the test images of each class [K] that are classified rightly."""
    labels = data.test.labels
    right = rightly(predict(network, data.test), labels).double()
    found = bincount(labels, right, len(data.classes)) / bincount(labels, minlength=len(data.classes))
    return [100.0 * share for share in found.tolist()]


def protocol(data: Data, settings: Settings) -> dict[str, Any]:
    """How :func:`measure` measures, as plain values."""
    return {
        "test_images": len(data.test.labels),
        "attacked_images": len(attacked(data, settings).test.labels),
        "ece_bins": BINS,
        "attack_steps": STEPS,
        "pgd_norm": EvaluateSettings.norm,
        "pgd_eps": radius(settings),
        "boundary_preset": PRESET,
        "boundary_targets": TARGETS,
    }


def radius(settings: Settings) -> float:
    """Of the PGD attack, in pixel units."""
    return settings.radius(settings.pgd_eps)


def attacked(data: Data, settings: Settings) -> Data:
    """The data with only those test images that are attacked."""
    rows = evenly(len(data.test), settings.quality_images).to(data.test.labels.device)
    return replace(data, test=data.test.take(rows))


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Expected calibration error, a share: equally wide bins, weighted by their images (Guo et al. 2017).

    Args:
        logits: [N, K].
        labels: int64 [N].
    """
    error = multiclass_calibration_error(logits.softmax(1), labels, logits.shape[1], n_bins=BINS, norm="l1")
    return float(error)


def divergence(teacher: Tensor, student: Tensor) -> float:
    """Mean KL(teacher ‖ student) of logits [N, K], in nats."""
    return float(F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True))


def pgd_accuracy(network: nn.Module, data: Data, settings: Settings) -> float:
    """Per cent, as ``amkd-distill evaluate --attack pgd`` finds it."""
    options = EvaluateSettings("", attack="pgd", steps=STEPS, eps=(radius(settings),))
    return 100.0 * robustness.measure(network, data, options, False)[0]["accuracy"]


def _similarity(network: nn.Module, teacher: nn.Module, data: Data) -> dict[str, float]:
    result = boundary_similarity(
        network,
        teacher,
        InOrder(data.test),
        preset=PRESET,
        targets=TARGETS,
        steps=STEPS,
        lower=0.0,
        upper=1.0,
    )
    return {"magsim": result.magnitude, "angsim": result.angle}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
