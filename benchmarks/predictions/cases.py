"""What is predicted: the launches of a call at one size, as its plan in csrc/ or in ops/*/triton.py makes them.

A launch names the loops of its kernel that do the work, and how much of it there is. What decides itself by the data
(operations of an augmentation, candidates of a mining) or takes a few hundred instructions is left out; its launch and
its bytes count all the same.
"""

from __future__ import annotations

import math
from typing import NamedTuple

WIDE = r"LDG\S*128"


class Loop(NamedTuple):
    """One loop of a kernel, and how often threads go through it."""

    trips: float = 0  # of all threads together; 0: as often as ``reads`` asks for
    reads: float = 0  # bytes that it reads in all
    holds: str = WIDE  # a pattern of an instruction in it; "": the kernel has no loop, and all of it is meant
    place: int = 0  # among the loops that hold it, in the order of the code
    longest: bool = False  # the way with all that can be asked for
    moves: tuple[int, int] | None = None  # bytes loaded and stored on the way, where it is not the most
    around: bool = False  # past the loops inside of it


class Launch(NamedTuple):
    kernel: str  # the gate's name of it: "kl/kl_cuda.cu forward_kernel fFormE0", or a Triton kernel's
    blocks: int = 1
    threads: int = 256
    loops: tuple[Loop, ...] = ()
    bytes: float = 0  # to and from device memory, each once
    shared: int = 0  # bytes a block asks for besides those of its code
    operations: float = 0  # of the tensor cores
    times: int = 1


class Case(NamedTuple):
    """One call. The first four are those of its row in benchmarks/results."""

    operation: str
    sizes: str
    dtype: str
    direction: str
    launches: tuple[Launch, ...]
    elements: float = 0  # that the columns "an element" are of
    backend: str = "cuda"

    @property
    def family(self) -> str:
        return _FAMILY[self.operation.split()[0]]


_FAMILY = {
    "kl_div": "kl", "distillation_loss": "kl", "dkd_loss": "kl", "standardised_kl_div": "kl", "consistency_kl": "kl",
    "triplet_margin_loss": "triplet", "select": "triplet", "attack_step": "attack", "select_boundary_bases": "attack",
    "joint_augment": "images", "rkd_angle_loss": "relations", "rkd_distance_loss": "relations",
    "segment_mse": "segments",
}  # fmt: skip
TYPES = {"fp32": ("f", 4), "bf16": ("13__nv_bfloat16", 2)}


def power_of_two_from(number: float) -> int:
    return 1 << max(math.ceil(number) - 1, 0).bit_length()


def kl(name: str, rows: int, classes: int, dtype: str) -> list[Case]:
    """Forward and backward of a loss of logits; plan_forward and plan_backward of csrc/kl/kl_plan.h."""
    mangled, size = TYPES[dtype]
    batch, elements = 2 * 16 // size, rows * classes
    lanes = power_of_two_from(classes / batch)
    sizes = f"B = {rows}, K = {classes}"
    if name == "consistency_kl":
        elements *= 2
    wide_rows = min(max(lanes, 64), 1024 if rows <= 264 else 256) if lanes > 32 else 256
    if 32 < lanes <= 128 and rows >= 2048:
        raise ValueError(f"{rows} rows of {classes} classes: their plan is not written down here")
    teams = max(wide_rows // lanes, 1)
    blocks = math.ceil(rows / teams)
    backward_lanes = 256 if lanes >= 256 else min(lanes, 32)
    splits = math.ceil(classes / (256 * batch * 4)) if backward_lanes == 256 else 1
    backward_blocks = rows * splits if backward_lanes == 256 else math.ceil(rows / (256 // backward_lanes))

    def case(direction: str, *launches: Launch) -> Case:
        return Case(name, sizes, dtype, direction, launches, elements)

    files = {"dkd_loss": "decoupled", "standardised_kl_div": "standardised", "consistency_kl": "consistency"}
    reads = 2 * elements * size
    if kind := files.get(name):
        source, prefix, suffix, total = f"kl/{kind}_cuda.cu", f"{kind}_", "", f"{kind}_total_kernel f"
    else:
        source, prefix, suffix, total = "kl/kl_cuda.cu", "", "FormE0", "reduce_kernel f"
    labelled = name == "distillation_loss"
    # Looks at a row after the first come from a cache.
    looks = {"standardised_kl_div": range(4), "consistency_kl": range(3)}.get(name, range(1))
    forward = tuple(
        # The consistency looks at either view, then at both teachers.
        Loop(reads=reads / 2 if name == "consistency_kl" else reads, place=place, longest=labelled)
        for place in looks
    )
    back = Loop(reads=reads, longest=name in ("dkd_loss", "standardised_kl_div") or labelled)
    return [
        case(
            "forward",
            Launch(f"{source} {prefix}forward_kernel {mangled}{suffix}", blocks, wide_rows, forward, reads),
            Launch(f"{source} {total}"),
        ),
        case(
            "backward",
            Launch(
                f"{source} {prefix}backward_kernel {mangled}{suffix}", backward_blocks, 256, (back,), 1.5 * reads
            ),
        ),
    ]  # fmt: skip


def kl_triton(rows: int, classes: int, dtype: str) -> list[Case]:
    """Programs of one tile, without a loop; how many, the launcher says (machine_code.py)."""
    size, elements = TYPES[dtype][1], rows * classes
    reads, sizes = 2 * elements * size, f"B = {rows}, K = {classes}"
    forward = (
        Launch("kl_chunk_kernel", loops=(Loop(reads=reads, holds=""),), bytes=reads),
        Launch("kl_merge_kernel"),
        Launch("kl_totals_kernel"),
    )
    backward = Launch("kl_grad_kernel", loops=(Loop(reads=reads, holds=""),), bytes=1.5 * reads)
    return [
        Case("kl_div", sizes, dtype, "forward", forward, elements, "triton"),
        Case("kl_div", sizes, dtype, "backward", (backward,), elements, "triton"),
    ]


def attack_step(rule: str, samples: int, side: int) -> Case:
    """plan_step of csrc/attack/attack_plan.h, in fp32, with the ball that the benchmark gives each rule.

    Looks at a sample after the first come from the L2 cache.
    """
    size, values, most = 3 * side * side, 8, 768
    elements, ball = samples * size, rule != "boundary"
    share, ranks = size, 1
    if size > most * values:
        ranks = min(power_of_two_from(size / (most * values)), 8)
        share = math.ceil(math.ceil(size / ranks) / 4) * 4
    threads = min(math.ceil(math.ceil(share / values) / 32) * 32, most)
    held = share <= most * values
    trips, loops = elements / values, []
    if not held:
        loops = [Loop(trips, place=4, moves=(32, 0))]
        if rule == "l2":
            loops.append(Loop(trips, place=6, moves=(96, 0)))
        loops.append(Loop(trips, place=8, moves=(96 if ball else 64, 32)))
    kernel = f"attack/attack_step_cuda.cu step_kernel fLb{int(held)}ELb0"
    launch = Launch(kernel, samples * ranks, threads, tuple(loops), (4 if ball else 3) * 4 * elements)
    sizes = f"B = {samples}, C = 3, H = {side}, W = {side}"
    return Case(f"attack_step {rule}", sizes, "fp32", "forward", (launch,), elements)


def triplet_hard(count: int, width: int = 128) -> Case:
    """plan_select and plan_terms of csrc/triplet/triplet_plan.h, in fp32."""
    small, tiles = count <= 1024, math.ceil(count / 128)
    rows = 1 if small else 8
    blocks = math.ceil(count / (8 * rows))
    splits = 1
    if not small:
        columns = math.ceil(tiles / min(max(math.ceil(264 / blocks), 1), tiles)) * 128
        splits = math.ceil(count / columns)
    trips = blocks * 256 * tiles * math.ceil(width / 16)
    select = Launch(
        f"triplet/triplet_select_cuda.cu select_kernel fLb0ELi{rows}ELb0", blocks * splits, 256,
        (Loop(trips, holds=r"LDS\S*128"),), 4 * count * width,
    )  # fmt: skip
    merge = (Launch("triplet/triplet_select_cuda.cu merge_kernel f", math.ceil(count / 8)),) if splits > 1 else ()
    lanes = 8
    terms = Launch(
        "triplet/triplet_terms_cuda.cu terms_kernel f", min(math.ceil(count / (256 // lanes)), 132), 256, (),
        3 * 4 * count * width,
    )  # fmt: skip
    sizes, launches = f"N = {count}, D = {width}, classes = 16", (select, *merge, terms)
    return Case("triplet_margin_loss hard", sizes, "fp32", "forward", launches, count * count)


def triplet_select(count: int, width: int) -> Case:
    """plan_products: bf16 on the tensor cores."""
    parts = 2 if width * 256 <= 131072 else 1
    blocks, tiles, steps = math.ceil(count / (64 * parts)), math.ceil(count / 128), math.ceil(width / 64)
    source = "triplet/triplet_select_cuda.cu"
    splits = max(math.ceil(blocks / 132) * 132 // blocks, 1)
    turns = blocks * 256 * tiles / 2  # a half of the block takes every other tile
    products = Launch(
        f"{source} products_kernel 13__nv_bfloat16Li{parts}", blocks * splits, 256,
        (
            Loop(turns * (steps - 1), holds="HGMMA"),
            Loop(turns, holds="HGMMA", longest=True, around=True),
        ),
        2 * 2 * count * width, steps * parts * 64 * 128 + 2 * 2 * 128 * 128 + 1024, 2 * count * count * width,
    )  # fmt: skip
    rest = [
        Launch(f"{source} columns_kernel 13__nv_bfloat16", math.ceil(count / 8), 256, (), 2 * count * width),
        products,
        Launch(f"{source} rerank_kernel 13__nv_bfloat16", math.ceil(count / 8), 256, (), 2 * 2 * count * width),
        Launch(f"{source} select_kernel 13__nv_bfloat16Lb0ELi8ELb0", math.ceil(count / 64) * 32),
        Launch(f"{source} merge_kernel f", math.ceil(count / 8)),
    ]
    return Case("select", f"N = {count}, D = {width}, classes = 64", "bf16", "forward", tuple(rest), count * count)


def every(count: int, classes: int) -> Case:
    """Without torch.mm, which gives the products before and the gradient after."""
    source = "triplet/triplet_rows_cuda.cu"
    launches = (
        Launch(f"{source} rows_forward_kernel f", count, 256, (), 2 * 4 * count * count),
        Launch(f"{source} rows_backward_kernel f", count, 256, (), 2 * 4 * count * count),
    )
    return Case("triplet_margin_loss all", f"N = {count}, D = 128, classes = {classes}", "fp32", "both", launches)


def bases(rows: int, classes: int) -> Case:
    if rows * classes > 1 << 15:
        raise ValueError(f"{rows} rows of {classes} classes are not one block's")
    launch = Launch("attack/attack_rows_cuda.cu bases_kernel f", 1, 512, (), 2 * 4 * rows * classes)
    return Case("select_boundary_bases", f"B = {rows}, K = {classes}", "fp32", "forward", (launch,))


def joint_augment(count: int) -> Case:
    size = 3 * 32 * 32
    launch = Launch("images/augment_cuda.cu joint_augment_kernel", count, 256, (), 2 * count * size, size)
    return Case("joint_augment", f"B = {count}, C = 3, H = 32, W = 32", "u8", "forward", (launch,))


def relations(kind: str, count: int, width: int) -> Case:
    """Tiles of 16 rows on either side, with a gradient; csrc/relations/relations_cuda.cu."""
    tiles = math.ceil(count / 16)
    source = "relations/relations_cuda.cu"
    pairs = Launch(
        f"{source} pairs_kernel f", tiles * tiles, 256,
        (Loop(tiles * tiles * 256 * math.ceil(width / 16), holds="DFMA|DADD"),), 4 * count * width + 16 * count**2,
        times=2,
    )  # fmt: skip
    if kind == "angle":  # blocks below the diagonal end at once; two columns a trip
        upper = tiles * (tiles + 1) // 2
        loop = Loop(upper * 256 * 16 * tiles / 2, holds="DFMA")
        middle = Launch(f"{source} angles_kernel Lb1", upper, 256, (loop,), 40 * count**2)
    else:
        middle = Launch(f"{source} distances_kernel", tiles * tiles, 256, (), 32 * count**2)
    across = math.ceil(width / 16) * tiles
    gradient = Launch(
        f"{source} gradient_kernel f", across, 256, (Loop(across * 256 * tiles, holds="DFMA"),),
        8 * count**2 + 8 * count * width,
    )  # fmt: skip
    finish = Launch(f"{source} finish_kernel f")
    elements, launches = count**3 if kind == "angle" else count**2, (pairs, middle, finish, gradient)
    return Case(f"rkd_{kind}_loss", f"B = {count}, D = {width}", "fp32", "both", launches, elements)


def segments(samples: int, dtype: str) -> Case:
    """One segment [samples, 16, 32, 32]; its gradient is made on the way forward."""
    elements, size = samples * 16 * 32 * 32, TYPES[dtype][1]
    blocks = min(math.ceil(elements / 4096), 1024)
    # The loops of the types stand in the order in which the kernel asks for them: fp64, fp32, fp16, bf16.
    place = {"fp32": 1, "bf16": 3}[dtype]
    source = "segments/segments_cuda.cu"
    launches = (
        Launch(
            f"{source} sweep_kernel", blocks, 256, (Loop(reads=2 * elements * size, place=place),), 3 * elements * size
        ),
        Launch(f"{source} sum_kernel f"),
        Launch(f"{source} scale_kernel", blocks),  # by the gradient of the loss, 1, at which it ends
    )
    return Case("segment_mse", f"B = {samples}, C = 16, H = 32, W = 32", dtype, "both", launches, elements)


def all_cases() -> list[Case]:
    return [
        *(case for dtype in ("bf16", "fp32") for case in kl("kl_div", 8192, 32768, dtype)),
        *(case for dtype in ("bf16", "fp32") for case in kl_triton(8192, 32768, dtype)),
        *(case for dtype in ("bf16", "fp32") for case in kl("kl_div", 512, 32000, dtype)),
        *kl("kl_div", 256, 1000, "fp32"),
        *(
            case
            for name in ("distillation_loss", "dkd_loss", "standardised_kl_div", "consistency_kl")
            for case in kl(name, 8192, 32768, "bf16")
        ),
        *(triplet_hard(count) for count in (128, 1024, 4096)),
        triplet_select(16384, 512),
        every(1024, 10),
        *(attack_step(rule, 256, side) for side in (32, 224) for rule in ("linf", "l2", "boundary")),
        bases(256, 10),
        *(joint_augment(count) for count in (128, 8192)),
        relations("angle", 64, 64),
        relations("angle", 512, 512),
        relations("distance", 1024, 128),
        *(segments(4096, dtype) for dtype in ("fp32", "bf16")),
    ]
