"""Every choice of a run, with its default and its reason (METHODS section 4 names the pilot behind the numbers)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

METHODS = ("student", "kd", "bss-official", "bss-near_boundary", "amkd")

# Choices that the command line offers before torch is imported; the modules that implement them check them again.
AUGMENTS = ("auto", "none", "crop", "crop+flip")
BOUNDS = ("pixel", "preset")
BN_POLICIES = ("separate", "concatenated", "frozen_stats")
PRESETS = ("official", "paper", "zoo", "near_boundary")
VARIANTS = ("teacher_anchor", "student_space", "batch_hard")
NEGATIVES = ("other", "not_base", "target")
SELECTORS = ("hardest", "semihard", "uniform")
SPACES = ("logits", "probabilities", "features")


@dataclass(frozen=True)
class Settings:
    """Data, sizes, recipe and loss scales shared by all methods of a comparison."""

    data: str = "digits"  # or a folder with train/<class>/ and test/<class>/
    image_size: int = 32  # folders only; digits are 8 x 8
    grayscale: bool = False
    data_seed: int = 0  # which images go where
    teacher_images: int | None = None  # None: 1000 for digits, all for a folder; 0: all
    student_images: int | None = None  # None: 200 for digits, all for a folder; 0: all
    augment: str = "auto"  # auto: none for digits, crop+flip for a folder

    teacher_width: int = 16
    teacher_blocks: int = 2
    teacher_epochs: int = 40
    student_width: int = 4
    student_blocks: int = 1
    epochs: int = 60
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4

    temperature: float = 3.0
    kl_weight_start: float = 4.0  # the public BSS schedule 3(1 - e/E) + 1, for KD, BSS and AMKD alike
    kl_weight_end: float = 1.0
    kl_t2: bool = False
    boundary_weight: float = 2.0
    boundary_until: float = 0.75
    boundary_t2: bool = False
    boundary_samples: int = 16
    attack_steps: int = 10
    bounds: str = "pixel"  # pixel: the normalised pixel range; preset: the preset's own (official: +-2.5)
    bn: str = "separate"

    amkd_preset: str = "near_boundary"
    triplet_weight: float = 0.3
    margin: float = 1.0
    variant: str = "student_space"
    negatives: str = "other"
    selector: str = "hardest"
    space: str = "logits"
    force: bool = False  # allow negatives="target" with an overshooting step

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> Settings:
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})
