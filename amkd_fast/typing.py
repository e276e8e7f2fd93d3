"""Types of the arguments that are one of a few words; what checks them at run time is made from these."""

from __future__ import annotations

import sys
from typing import Literal, TypedDict

from torch import Tensor

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack

__all__ = [
    "AttackLoss",
    "AttackNorm",
    "AugmentOperation",
    "BNPolicy",
    "Backend",
    "BackendChoice",
    "Distance",
    "Divergence",
    "IgnoredRows",
    "Keep",
    "Mining",
    "Negatives",
    "NormPower",
    "PairTargets",
    "PresetName",
    "Reduction",
    "ReferenceSet",
    "RelationSpace",
    "Score",
    "Selector",
    "Space",
    "StepNorm",
    "Switch",
    "TripletOptions",
    "TripletReduction",
    "TripletTensors",
    "Unpack",
    "Variant",
]

# Backends, in the order of the tables that tell which one runs.
Backend = Literal["reference", "cpu", "triton", "cuda"]
BackendChoice = Literal["auto", Backend]

# The KL family. The positions of the divergences are the operators' numbers.
Divergence = Literal["forward", "reverse", "js"]
Reduction = Literal["none", "sum", "mean", "batchmean"]
IgnoredRows = Literal["keep", "drop"]

# Triplets. The positions of distances and reductions are the operators' numbers.
Mining = Literal["hard", "semihard", "all", "topk"]
Distance = Literal["euclidean", "sqeuclidean", "cosine"]
TripletReduction = Literal["mean", "mean_nonzero", "sum", "none"]

# AMKDLoss, and the methods.
Variant = Literal["teacher_anchor", "student_space", "batch_hard"]
Negatives = Literal["other", "not_base", "target"]
Selector = Literal["hardest", "semihard", "uniform"]
Space = Literal["logits", "probabilities", "features"]
RelationSpace = Literal["features", "logits"]
BNPolicy = Literal["separate", "concatenated", "frozen_stats"]

# Attacks.
PresetName = Literal["official", "paper", "zoo", "near_boundary"]
AttackNorm = Literal["linf", "l2", "l1"]
StepNorm = Literal[AttackNorm, "boundary"]
NormPower = Literal[1, 2]
AttackLoss = Literal["ce", "boundary", "dlr"]
Score = Literal["logits", "softmax"]
Keep = Literal["last", "best", "first"]
PairTargets = Literal["every", "drawn", "runner_up"]
Switch = Literal["auto", True, False]

# Images: the operations in the order in which they are applied.
AugmentOperation = Literal[
    "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "autocontrast", "invert", "equalize", "solarize",
    "posterize", "contrast", "color", "brightness", "sharpness",
]  # fmt: skip


class ReferenceSet(TypedDict):
    """What :class:`amkd_fast.CrossBatchMemory` gives to :func:`amkd_fast.triplet_margin_loss`."""

    reference: Tensor
    reference_labels: Tensor
    exclude_labels: Tensor
    self_offset: int


class TripletTensors(TypedDict, total=False):
    """Keywords of :func:`amkd_fast.triplet_margin_loss` that differ from batch to batch."""

    positive: Tensor | None
    reference: Tensor | None
    reference_labels: Tensor | None
    exclude_labels: Tensor | None
    self_offset: int | None
    weight: Tensor | None


class TripletOptions(TypedDict, total=False):
    """Its keywords that :class:`amkd_fast.TripletMarginLoss` has no parameter of its own for."""

    k: int
    semihard_fallback: bool
    soft_margin: bool
    swap: bool
    distributed: bool
