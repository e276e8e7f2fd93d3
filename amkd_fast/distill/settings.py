"""Every choice of a run: a typed dataclass, which is the command line, which is a YAML file (see :mod:`.options`).

The defaults of sizes and loss scales are a pilot's on the digits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import MISSING, Field, asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar, get_args, get_origin

from amkd_fast.typing import BNPolicy, Negatives, PresetName, Selector, Space, Variant

Usual = Literal["student", "kd", "bss-official", "bss-paper", "bss-zoo", "bss-near_boundary", "amkd"]
Neighbour = Literal[
    "triplet-ce", "triplet-kd", "extended-kd", "jda-ccd", "tald", "mkd", "dkd", "rkd", "fitnet", "at", "sp", "crd",
    "reviewkd",
]  # fmt: skip
USUAL: tuple[str, ...] = get_args(Usual)
NEIGHBOURS: tuple[str, ...] = get_args(Neighbour)
METHODS = (*USUAL, *NEIGHBOURS)
ALL = "all"  # of METHODS, as a word

Augment = Literal["auto", "none", "crop", "crop+flip"]
Balance = Literal["none", "sampling", "loss"]
Resize = Literal["squash", "crop"]
Bounds = Literal["pixel", "preset"]
BoundarySchedule = Literal["auto", "falling", "zoo", "constant"]
Precision = Literal["64", "32", "bf16", "fp16"]
Optimizer = Literal["sgd", "adamw"]
LRSchedule = Literal["cosine", "step", "one-cycle", "constant"]

S = TypeVar("S", bound="Settings")

MOST = 2**31 - 1  # of a whole number
LARGEST = 1e18  # of a number; its square still is one in single precision
TEACHERS_OWN = ("epochs", "batch_size", "optimizer", "lr", "weight_decay", "schedule", "lr_milestones", "warmup_epochs")
BETA = 0.05  # alphas below it are drawn wrongly by torch: both of its gammas may underflow, and shares become a half
SEED = 2**32 - 1  # the largest; what draws are numbered by stays an int64


def option(
    default: Any,
    help: str,
    *,
    group: str | None = None,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    rule: Callable[[Any], Any] | None = None,
) -> Any:
    """A field with what the command line and the YAML file must know of it.

    Args:
        default: Where nothing else is said.
        help: What it is; beside it ``--help`` shows the default.
        group: Heading of ``--help`` from this field on.
        least: The smallest number.
        above: What a number must be larger than.
        most: The largest number; None: :data:`MOST` or :data:`LARGEST`.
        rule: Returns the value, or raises a ValueError that says what it must be.
    """
    rules = {"help": help, "group": group, "least": least, "above": above, "most": most, "rule": rule}
    if isinstance(default, dict):
        return field(default_factory=dict, hash=False, metadata=rules)
    return field(default=default, metadata=rules)


def default_of(field: Field[Any]) -> Any:
    """What a setting is where nothing is said."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def choices(hint: Any) -> tuple[str, ...]:
    """The only values of a setting whose type is ``hint``; none where it may have any."""
    return get_args(hint) if get_origin(hint) is Literal else ()


def is_external(method: str) -> bool:
    """Whether a method's name is ``module:Class``, code that is not ours."""
    return ":" in method


def file_name(method: str) -> str:
    """The method's name as part of a file's or folder's name, different for different methods.

    Example:
        >>> from amkd_fast.distill.settings import file_name
        >>> file_name("bss-zoo"), file_name("mine.losses:Hints")
        ('bss-zoo', 'mine.losses.Hints')
    """
    return method.replace(":", ".")


def known_method(name: str) -> str:
    """``name``, one of :data:`METHODS` or ``module:Class``.

    Raises:
        ValueError: It is neither.
    """
    module, _, attribute = name.partition(":")
    written = attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))
    if name not in METHODS and not written:
        raise ValueError(f"must be one of {', '.join(METHODS)}, or module:Class")
    return name


def plain_options(options: dict[str, Any]) -> dict[str, Any]:
    """``options``: keywords with values that a YAML file and a checkpoint can hold.

    Raises:
        ValueError: A name or value is none.
    """
    for name, value in options.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"must have names as in Python, not {name!r:.60}")
        if not _plain(value):
            raise ValueError(f"must have numbers, text, true, false, null or lists of them as values, not {name}'s")
    return options


def _plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_plain(item) for item in value)
    return value is None or isinstance(value, (bool, str)) or (isinstance(value, (int, float)) and math.isfinite(value))


def named_value(text: str) -> dict[str, Any]:
    """``name=value`` of a command line: the value as in JSON, or text.

    Raises:
        ValueError: There is no name.

    Example:
        >>> from amkd_fast.distill.settings import named_value
        >>> named_value("weight=1e-3"), named_value("layers=[1, 2]"), named_value("kind=cosine")
        ({'weight': 0.001}, {'layers': [1, 2]}, {'kind': 'cosine'})
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError("must be name=value")
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        found = value
    return plain_options({name: found})


@dataclass(frozen=True)
class Settings:
    """Data, networks, recipe and loss scales shared by all methods of a comparison."""

    data: str = option(
        "digits",
        "digits, cifar10, cifar100, tiny-imagenet, a folder with train/<class>/ and test/, or hf:FOLDER of datasets",
        group="data",
    )
    val_fraction: float | None = option(
        None,
        "share of the training images that chooses best.ckpt; 0: the test set chooses; default: val/ beside test/",
        least=0.0,
        most=0.9,
    )
    test_fraction: float | None = option(
        None, "share of a folder's training images that is its test set, where it has none", above=0.0, most=0.9
    )
    data_root: str = option("data", "folder in which the named sets lie")
    image_size: int | None = option(
        None, "side to which pictures are brought; default: 32, tiny-imagenet 64", least=8, most=1 << 14
    )
    resize: Resize = option(
        "squash", "how a picture becomes square: its sides squashed, or the centre cropped out of it"
    )
    grayscale: bool = option(False, "read pictures in grey")
    label_column: str | None = option(None, "of --data hf:, where several are ClassLabels")
    classes: str = option("", "keep these classes alone: names with commas between, or numbers like 0-4")
    cache: str | None = option(None, "folder that keeps decoded pictures for the next time; default: none is kept")
    resident: float | None = option(
        None, "GiB of pixels that stay in memory, the rest is streamed; default: half of what is free", least=0.0
    )
    data_seed: int = option(0, "which images go where", least=0, most=SEED)
    teacher_images: int | None = option(None, "the teacher's; 0: all; default: 1000 of digits, else all", least=0)
    student_images: int | None = option(None, "0: all the teacher's; default: 200 of digits, else all", least=0)
    student_fraction: float | None = option(None, "instead: share of the teacher's images", above=0.0)
    student_shots: int | None = option(None, "instead: images of each class", least=1)
    drop_labels: str = option("", "labels of which the student gets no image; written as --classes")
    balance: Balance = option(
        "none", "classes of unequal size: sampling shows all equally often, loss weighs the labels' (method student)"
    )
    augment: Augment = option("auto", "of training images; auto: none for digits, else crop+flip")
    erase: float = option(0.0, "probability of a black rectangle in a training image", least=0.0, most=1.0)
    rand_augment: int | None = option(
        None, "operations of torchvision's RandAugment on a training image; default: no RandAugment", least=1, most=100
    )
    rand_augment_magnitude: int | None = option(None, "of these operations; default: torchvision's", least=0, most=30)
    mixup: float | None = option(
        None,
        "alpha of torchvision's MixUp, for the method student and teachers; default: no mixup",
        least=BETA,
        most=100.0,
    )
    cutmix: float | None = option(
        None, "likewise of CutMix; with --mixup, one of them for each batch", least=BETA, most=100.0
    )

    teacher_network: str = option(
        "auto",
        "resnet32x4, wrn-40-2, vgg13, …, module:factory, timm:NAME[@pretrained]; auto: small-16-2 for digits, else "
        "resnet26",
        group="networks",
    )
    student_network: str = option("auto", "likewise; auto: small-4-1 for digits, else resnet8")

    mean: str | None = option(
        None,
        "by which the networks trained here normalise pixels in 0 to 1: data (the teacher's images', one a channel), "
        "imagenet, cifar10, cifar100, or one number a channel with commas between; default: what --std is, else data",
        group="normalisation",
    )
    std: str | None = option(
        None, "likewise; data: one for all channels; data-per-channel: one of each; default: what --mean is"
    )

    teacher_epochs: int = option(40, "of the teacher, where it is trained here", group="training", least=1, most=10**6)
    epochs: int = option(60, "of the student", least=1, most=10**6)
    batch_size: int = option(64, "of all ranks together", least=2)
    accumulate: int = option(1, "batches whose gradients are summed up for one step", least=1)
    max_steps: int | None = option(None, "stop a training after so many steps, to try something out", least=1)
    test_every: int = option(
        1, "epochs between two looks at the test images, and at those that choose best.ckpt; the last has one", least=1
    )
    optimizer: Optimizer = option("sgd", "sgd, or adamw, which wants a smaller --lr, as 1e-3")
    lr: float = option(0.1, "learning rate, the highest of the schedule", above=0.0, most=1e38)
    momentum: float = option(0.9, "of SGD", least=0.0)
    nesterov: bool = option(False, "Nesterov's momentum, of SGD")
    weight_decay: float = option(1e-4, "of the optimiser; AdamW's is decoupled", least=0.0)
    schedule: LRSchedule = option("cosine", "of the learning rate, over all steps; cosine falls to 0")
    lr_milestones: str = option("", "of --schedule step: epochs after which the rate falls, as 150,180,210")
    lr_factor: float = option(0.1, "of --schedule step: what the rate is multiplied by there", above=0.0, most=1.0)
    warmup_epochs: int = option(0, "over which the rate rises to --lr as a line; not of one-cycle", least=0, most=10**6)
    precision: Precision = option("32", "of networks and losses; bf16 and fp16 (needs a GPU) by autocast")
    compile: bool = option(False, "torch.compile the student")
    channels_last: bool = option(False, "train in the channels_last memory format; on a CPU only networks of ours")
    fold: bool = option(True, "fold BatchNorm into the teacher's convolutions")
    whole_step: bool = option(False, "record a training step as one CUDA graph (GPU; not run on one yet)")

    teacher_batch_size: int | None = option(
        None, "default: --batch-size", group="training of the teacher, where it is trained here", least=2
    )
    teacher_optimizer: Literal["auto", "sgd", "adamw"] = option("auto", "auto: --optimizer")
    teacher_lr: float | None = option(None, "default: --lr", above=0.0, most=1e38)
    teacher_weight_decay: float | None = option(None, "default: --weight-decay", least=0.0)
    teacher_schedule: Literal["auto", "cosine", "step", "one-cycle", "constant"] = option("auto", "auto: --schedule")
    teacher_lr_milestones: str | None = option(None, "default: --lr-milestones")
    teacher_warmup_epochs: int | None = option(None, "default: --warmup-epochs", least=0, most=10**6)

    temperature: float = option(3.0, "of the softened distributions", group="kd, bss-*, amkd, tald", above=0.0)
    kl_weight_start: float = option(4.0, "weight of the clean KL in the first epoch, changes linearly", least=0.0)
    kl_weight_end: float = option(1.0, "in the last", least=0.0)
    kl_t2: bool = option(False, "multiply the clean KL by T²")

    kd_temperature: float | None = option(None, "default: --temperature", group="kd", above=0.0)
    kd_ce_weight: float = option(1.0, "of the labels", least=0.0)
    kd_kl_weight: float | None = option(
        None, "of T²·KL, in every epoch; default: what --kl-weight-start, --kl-weight-end and --kl-t2 say", least=0.0
    )

    boundary_weight: float = option(2.0, "β of the first epoch", group="boundary samples: bss-*, amkd", least=0.0)
    boundary_schedule: BoundarySchedule = option("auto", "of β; auto: zoo for bss-zoo, else falling")
    boundary_until: float = option(0.75, "share of the epochs after which a falling β is 0", above=0.0)
    boundary_t2: bool = option(False, "multiply the boundary KL by T² (destroyed the pilot)")
    boundary_samples: int = option(16, "most attacked images in a batch", least=1)
    attack_steps: int = option(10, "of the attack", least=1)
    bounds: Bounds = option("pixel", "of attacked pixels, tald's too: the pixels' own range, or the preset's")
    bn: BNPolicy = option("separate", "BatchNorm of attacked batches")

    amkd_preset: PresetName = option("near_boundary", "attack of amkd", group="amkd")
    triplet_weight: float = option(0.1, "γ, of the triplets", above=0.0)
    margin: float = option(1.0, "of the triplets", least=0.0)
    variant: Variant = option("teacher_anchor", "which rows are anchors, positives and negatives")
    negatives: Negatives = option("other", "classes that negatives are taken from")
    selector: Selector = option("hardest", "which of the possible negatives")
    space: Space = option("logits", "where distances are taken")
    memory: int = option(0, "past rows that are negatives, too", least=0)
    force: bool = option(False, "allow negatives=target with an overshooting step")

    triplet_kd_weight: float = option(2.0, "of the triplets", group="triplet-ce, triplet-kd", least=0.0)
    triplet_kd_margin: float = option(5.0, "of the triplets", least=0.0)

    extended_logit_weight: float = option(1.0, "λ₀, of the logits", group="extended-kd", least=0.0)
    extended_segment_weight: float = option(1.0, "λ of each stage", least=0.0)
    extended_ce_weight: float = option(0.0, "of the labels that the student sees", least=0.0)

    jda_probability: float = option(0.5, "of each operation on an image", group="jda-ccd", least=0.0, most=1.0)
    ccd_temperature: float = option(4.0, "of the softened distributions", above=0.0)
    ccd_ce_weight: float = option(0.5, "α, of the labels; 1 - α is of the divergences", least=0.0, most=1.0)

    tald_particles: int = option(4, "for each image", group="tald", least=1, most=64)
    tald_steps: int = option(5, "of each particle", least=1)
    tald_eps: float | None = option(None, "radius in pixels; default: 0.1 for digits, else 8/255", least=0.0)
    tald_weight: float = option(1.0, "of the particles' divergence", least=0.0)

    mkd_ce_weight: float = option(0.0, "of the labels, mixed as the images are", group="mkd", least=0.0)

    dkd_temperature: float = option(4.0, "of the softened distributions", group="dkd", above=0.0)
    dkd_target_weight: float = option(1.0, "α: the label against the rest", least=0.0)
    dkd_other_weight: float = option(8.0, "β: the rest among themselves", least=0.0)
    dkd_warmup: int = option(20, "epochs over which the weight of dkd grows", least=1)

    rkd_distance_weight: float = option(25.0, "of the distances", group="rkd", least=0.0)
    rkd_angle_weight: float = option(50.0, "of the angles", least=0.0)

    student_stages: str = option(
        "",
        "the student's modules whose outputs are compared, with commas between; default: its stages are found",
        group="extended-kd, fitnet, at, sp, reviewkd",
    )
    teacher_stages: str = option("", "likewise of the teacher, as many")

    fitnet_weight: float = option(100.0, "of the hint", group="fitnet", least=0.0)
    fitnet_stage: int = option(2, "which stage gives the hint, from 1", least=1)

    at_weight: float = option(1000.0, "of the attention", group="at", least=0.0)
    at_power: float = option(2.0, "p of |A|^p, of which the attention is the sum over channels", least=1.0)

    sp_weight: float = option(3000.0, "of the similarities", group="sp", least=0.0)

    crd_weight: float = option(0.8, "of the contrast", group="crd", least=0.0)
    crd_temperature: float = option(0.07, "of the contrast", above=0.0)
    crd_negatives: int = option(16384, "for each image, drawn from the memory; at most its rows", least=1)
    crd_features: int = option(128, "width of the memory, which has a row for every training image", least=1)
    crd_momentum: float = option(0.5, "of a row of the memory, when its image comes again", least=0.0, most=0.999999)

    reviewkd_weight: float = option(1.0, "of the review", group="reviewkd", least=0.0)
    reviewkd_warmup: int = option(20, "epochs over which this weight grows", least=1)

    method_option: dict[str, Any] = option(
        {}, "name=value, a keyword of each module:Class; may be given again", group="module:Class", rule=plain_options
    )

    logger: str = option("csv", "of epochs, with commas between: csv, tensorboard, wandb", group="while it runs")

    pgd_eps: float | None = option(
        None, "radius of PGD, in pixels; default: 0.1 for digits, else 8/255", group="report of compare", least=0.0
    )
    quality_images: int = option(500, "test images that are attacked; 0: all", least=0)

    recipe: str | None = option(
        None, "settings below all others: a name that `amkd-distill recipes` tells", group="run"
    )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def radius(self, eps: float | None) -> float:
        """A radius in pixels: the one given, or what is usual for the data."""
        return eps if eps is not None else 0.1 if self.data == "digits" else 8 / 255

    def network(self, role: str) -> str:
        """The name of the ``"teacher"``'s or the ``"student"``'s network."""
        name = getattr(self, f"{role}_network")
        if name != "auto":
            return name
        return {"teacher": ("small-16-2", "resnet26"), "student": ("small-4-1", "resnet8")}[role][self.data != "digits"]

    def of_teacher(self: S) -> S:
        """These settings with the teacher's own in the places of the student's, for the training of a teacher."""
        own = {name: getattr(self, f"teacher_{name}") for name in TEACHERS_OWN}
        return replace(self, **{name: value for name, value in own.items() if value not in (None, "auto")})


@dataclass(frozen=True)
class RunSettings(Settings):
    """What trains students."""

    teacher: str | None = option(
        None,
        "checkpoint of a teacher, or a state dict (.pth, .safetensors) of --teacher-network; default: train one",
        group="a teacher from a file",
    )
    expect_teacher: float | None = option(
        None,
        "the accuracy of --teacher, per cent: 2 points less stop the run; default: what its file says",
        least=0.0,
        most=100.0,
    )
    teacher_mean: str | None = option(None, "of --teacher, written as --mean; default: its file's, else the student's")
    teacher_std: str | None = option(None, "likewise, written as --std")


@dataclass(frozen=True)
class TrainSettings(RunSettings):
    """One student."""

    method: str = option(
        "amkd",
        f"what the student learns by, of {', '.join(METHODS)}; or module:Class of your own",
        group="run",
        rule=known_method,
    )
    seed: int = option(0, "of initial weights, batches and draws", least=0, most=SEED)


@dataclass(frozen=True)
class CompareSettings(RunSettings):
    """Every method over several seeds."""

    methods: str = option(
        ",".join(USUAL),
        f"with commas between, of {', '.join(METHODS)}; {ALL}: all of them; or module:Class of your own",
        group="run",
    )
    seeds: int = option(3, "number of seeds", least=1, most=10_000)
    keep_students: bool = option(True, "keep every run's best and last student")

    def names(self) -> tuple[str, ...]:
        """The methods, one by one."""
        return METHODS if self.methods == ALL else tuple(self.methods.split(","))
