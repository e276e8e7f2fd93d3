"""Every choice of a run: a typed dataclass, which is the command line, which is a YAML file (see :mod:`.options`).

The defaults of sizes and loss scales are a pilot's on the digits (METHODS section 4 of the design names it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

USUAL = ("student", "kd", "bss-official", "bss-paper", "bss-zoo", "bss-near_boundary", "amkd")
NEIGHBOURS = ("triplet-ce", "triplet-kd", "extended-kd", "jda-ccd", "tald", "mkd", "dkd", "rkd")
METHODS = (*USUAL, *NEIGHBOURS)
ALL = "all"  # of METHODS, as a word

# Choices that the command line offers before torch is imported; the modules that implement them check them again.
AUGMENTS = ("auto", "none", "crop", "crop+flip")
BOUNDS = ("pixel", "preset")
BN_POLICIES = ("separate", "concatenated", "frozen_stats")
PRESETS = ("official", "paper", "zoo", "near_boundary")
VARIANTS = ("teacher_anchor", "student_space", "batch_hard")
NEGATIVES = ("other", "not_base", "target")
SELECTORS = ("hardest", "semihard", "uniform")
SPACES = ("logits", "probabilities", "features")
SCHEDULES = ("auto", "falling", "zoo", "constant")
PRECISIONS = ("64", "32", "bf16", "fp16")

T = TypeVar("T", bound="Settings")


def option(
    default: Any,
    help: str = "",
    *,
    choices: Sequence[str] = (),
    least: float | None = None,
    above: float | None = None,
) -> Any:
    """A field with what the command line and the YAML file must know of it."""
    return field(default=default, metadata={"help": help, "choices": choices, "least": least, "above": above})


@dataclass(frozen=True)
class Settings:
    """Data, networks, recipe and loss scales shared by all methods of a comparison."""

    data: str = option("digits", "digits, cifar10, cifar100, tiny-imagenet, or a folder with train/<class>/ and test/")
    data_root: str = option("data", "folder in which the named sets lie")
    image_size: int | None = option(None, "side to which pictures are brought; default: 32, tiny-imagenet 64", least=8)
    grayscale: bool = option(False, "read pictures in grey")
    classes: str = option("", "keep these classes alone: names with commas between, or numbers like 0-4")
    data_seed: int = option(0, "which images go where", least=0)
    teacher_images: int | None = option(None, "0: all; default: 1000 of digits, else all", least=0)
    student_images: int | None = option(None, "0: all the teacher's; default: 200 of digits, else all", least=0)
    student_fraction: float | None = option(None, "instead: share of the teacher's images", above=0.0)
    student_shots: int | None = option(None, "instead: images of each class", least=1)
    drop_labels: str = option("", "labels of which the student gets no image; written as --classes")
    augment: str = option("auto", "auto: none for digits, else crop+flip", choices=AUGMENTS)

    teacher_network: str = option(
        "auto", "resnet26, wrn-40-2, small-16-2, module:factory, timm:NAME; auto: small-16-2 for digits, else resnet26"
    )
    student_network: str = option("auto", "likewise; auto: small-4-1 for digits, else resnet8")
    teacher_epochs: int = option(40, least=1)
    epochs: int = option(60, "of the student", least=1)
    batch_size: int = option(64, "of all ranks together", least=2)
    accumulate: int = option(1, "batches whose gradients are summed up for one step", least=1)
    lr: float = option(0.1, above=0.0)
    momentum: float = option(0.9, least=0.0)
    weight_decay: float = option(1e-4, least=0.0)
    precision: str = option("32", "of networks and losses; bf16 and fp16 (needs a GPU) by autocast", choices=PRECISIONS)
    compile: bool = option(False, "torch.compile the student")
    whole_step: bool = option(False, "record a training step as one CUDA graph (GPU; not run on one yet)")

    temperature: float = option(3.0, above=0.0)
    kl_weight_start: float = option(4.0, "weight of the clean KL, changes linearly", least=0.0)
    kl_weight_end: float = option(1.0, least=0.0)
    kl_t2: bool = option(False, "multiply the clean KL by T²")
    boundary_weight: float = option(2.0, "β of the first epoch", least=0.0)
    boundary_schedule: str = option("auto", "of β; auto: zoo for bss-zoo, else falling", choices=SCHEDULES)
    boundary_until: float = option(0.75, "share of the epochs after which a falling β is 0", above=0.0)
    boundary_t2: bool = option(False, "multiply the boundary KL by T² (destroyed the pilot)")
    boundary_samples: int = option(16, "most attacked images in a batch", least=1)
    attack_steps: int = option(10, least=1)
    fold: bool = option(True, "fold BatchNorm into the teacher's convolutions")
    bounds: str = option("pixel", "of attacked pixels: the pixels' own range, or the preset's", choices=BOUNDS)
    bn: str = option("separate", "BatchNorm of attacked batches", choices=BN_POLICIES)

    amkd_preset: str = option("near_boundary", "attack of amkd", choices=PRESETS)
    triplet_weight: float = option(0.3, "γ", above=0.0)
    margin: float = option(1.0, least=0.0)
    variant: str = option("student_space", choices=VARIANTS)
    negatives: str = option("other", choices=NEGATIVES)
    selector: str = option("hardest", choices=SELECTORS)
    space: str = option("logits", choices=SPACES)
    memory: int = option(0, "past rows that are negatives, too", least=0)
    force: bool = option(False, "allow negatives=target with an overshooting step")

    triplet_kd_weight: float = option(2.0, "of the triplets of triplet-ce and triplet-kd", least=0.0)
    triplet_kd_margin: float = option(5.0, least=0.0)
    extended_logit_weight: float = option(1.0, "λ₀ of extended-kd", least=0.0)
    extended_segment_weight: float = option(1.0, "λ of each stage", least=0.0)
    extended_ce_weight: float = option(0.0, "of the labels that the student sees", least=0.0)
    jda_probability: float = option(0.5, "of each operation of jda-ccd on an image", least=0.0)
    ccd_temperature: float = option(4.0, above=0.0)
    ccd_ce_weight: float = option(0.5, "α of jda-ccd; 1 - α is of the divergences", least=0.0)
    tald_particles: int = option(4, "of tald for each image", least=1)
    tald_steps: int = option(5, least=1)
    tald_eps: float | None = option(None, "radius in pixels; default: 0.1 for digits, else 8/255", least=0.0)
    tald_weight: float = option(1.0, "of the particles' divergence", least=0.0)
    mkd_ce_weight: float = option(0.0, "of the labels, mixed as the images of mkd are", least=0.0)
    dkd_temperature: float = option(4.0, above=0.0)
    dkd_target_weight: float = option(1.0, "α of dkd: the label against the rest", least=0.0)
    dkd_other_weight: float = option(8.0, "β of dkd: the rest among themselves", least=0.0)
    dkd_warmup: int = option(20, "epochs over which the weight of dkd grows", least=1)
    rkd_distance_weight: float = option(25.0, "of the distances of rkd", least=0.0)
    rkd_angle_weight: float = option(50.0, "of the angles", least=0.0)

    pgd_eps: float | None = option(
        None, "radius of the reports' PGD, in pixels; default: 0.1 for digits, else 8/255", least=0.0
    )
    quality_images: int = option(500, "test images that the reports attack; 0: all", least=0)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls: type[T], values: dict[str, Any]) -> T:
        """Settings of stored values; those that this version does not know are left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def radius(self, eps: float | None) -> float:
        """A radius in pixels: the one given, or what is usual for the data."""
        return eps if eps is not None else 0.1 if self.data == "digits" else 8 / 255

    def network(self, role: str) -> str:
        """The name of the ``"teacher"``'s or the ``"student"``'s network."""
        name = getattr(self, f"{role}_network")
        if name != "auto":
            return name
        return {"teacher": ("small-16-2", "resnet26"), "student": ("small-4-1", "resnet8")}[role][self.data != "digits"]


@dataclass(frozen=True)
class TrainSettings(Settings):
    """One student."""

    method: str = option("amkd", choices=METHODS)
    seed: int = option(0, "of initial weights, batches and draws", least=0)
    teacher: str | None = option(None, "checkpoint of a teacher; default: train one")


@dataclass(frozen=True)
class CompareSettings(Settings):
    """Every method over several seeds."""

    methods: str = option(",".join(USUAL), f"with commas between, of {', '.join(METHODS)}; {ALL}: all of them")
    seeds: int = option(3, "number of seeds", least=1)
    teacher: str | None = option(None, "checkpoint of a teacher; default: train one")

    def names(self) -> tuple[str, ...]:
        """The methods, one by one."""
        return METHODS if self.methods == ALL else tuple(self.methods.split(","))
