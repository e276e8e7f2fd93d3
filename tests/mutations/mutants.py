"""The faults, a line of code each: what is there, what it becomes, and what a user would notice."""

from __future__ import annotations

from typing import NamedTuple

from .cuda import CUDA


class Mutant(NamedTuple):
    """One fault. ``old`` occurs once in ``file``; ``family`` names the tests that answer for it (selection.py)."""

    name: str
    family: str
    file: str
    old: str
    new: str
    harm: str

    @property
    def kind(self) -> str:
        """What it takes to see the fault: "cpu" a rebuild, "cuda" the emulator, "triton" the interpreter."""
        if self.file.endswith((".cu", ".cuh")):
            return "cuda"
        if self.file.startswith("csrc/"):
            return "cpu"
        return "triton" if "triton" in self.file.rsplit("/", 1)[1] else "python"


def _in(folder: str, *faults: tuple[str, str, str, str, str, str]) -> list[Mutant]:
    return [Mutant(name, family, f"{folder}/{file}", old, new, harm) for name, family, file, old, new, harm in faults]


# Cheap ones first: Python, then Triton under the interpreter, then what has to be compiled.
PYTHON = _in(
    "amkd_fast",
    (
        "kl-label-denominator", "kl", "ops/kl/reference.py",
        "labelled = (~ignored).sum().clamp(min=1)", "labelled = (labels == labels).sum().clamp(min=1)",
        "the mean cross-entropy shrinks with every ignored label",
    ),
    (
        "kl-t2-missing", "kl", "ops/kl/scalars.py",
        "number, 0.5, row_scale, kl_factor", "number, 0.5, 1.0, kl_factor",
        "distillation_loss ignores scale_by_t2: at T = 4 the divergence weighs a sixteenth",
    ),
    (
        "standardised-population", "standardised", "ops/kl/standardised/reference.py",
        "/ (count - 1).clamp(min=1)", "/ count",
        "the specification divides by n and no longer by n - 1",
    ),
    (
        "consistency-cosine-of-masked", "consistency", "ops/kl/consistency/reference.py",
        ".masked_fill(z == -torch.inf, 0.0) for z in (a, b)", " for z in (a, b)",
        "one masked class makes every confidence NaN",
    ),
    (
        "triplet-self-offset", "triplet", "ops/triplet/selection.py",
        "torch.arange(n, device=device)[:, None] + rows.self_offset ==", "torch.arange(n, device=device)[:, None] ==",
        "with an offset an anchor is its own positive, and a stranger is left out",
    ),
    (
        "triplet-empty-slot", "triplet", "ops/triplet/selection.py",
        "return torch.where(found, index, index[:, :1]), found", "return index, found",
        "a slot without a negative brings the NaN of another row into the gradient",
    ),
    (
        "ranks-gradient-twice", "triplet_ranks", "ranks.py",
        "grad = grad / size\n        return grad, -grad * value",
        "grad = dist.get_world_size() * grad / size\n        return grad, -grad * value",
        "every rank's gradient is scaled by the number of ranks once more",
    ),
    (
        "segments-gradients-kept", "segments", "ops/segments/op.py",
        'vars(ctx).pop("grads", None)', 'vars(ctx).get("grads", None)',
        "a second backward pass scales and shares the tensors of the first",
    ),
    (
        "relations-mean-detached", "relations", "ops/relations/reference.py",
        "mean = distances.sum(dtype=torch.float64) / count.clamp(min=1)",
        "mean = distances.sum(dtype=torch.float64).detach() / count.clamp(min=1)",
        "the gradient no longer goes through the mean distance",
    ),
    (
        "images-smooth-rounding", "augment", "ops/images/augment_reference.py",
        "(total + 4 * inner + 6) // 13", "(total + 4 * inner) // 13",
        "sharpness darkens images by half a level",
    ),
    (
        "attack-gap-margin", "attack", "ops/attack/reference.py",
        "eta * (per_sample(gap, wide) + GAP_MARGIN)", "eta * per_sample(gap, wide)",
        "a sample that stands on the boundary never crosses it",
    ),
    (
        "attack-finished-moves", "attacks", "attacks/pgd.py",
        "momentum=s.velocity, active=s.active,", "momentum=s.velocity, active=None,",
        'without compaction keep="first" returns samples that went on after they had succeeded',
    ),
    (
        "attack-boundary-finished-moves", "attacks", "attacks/boundary.py",
        "gap=seen.gap, active=s.active, **self", "gap=seen.gap, active=None, **self",
        "without compaction samples beyond the boundary are moved on, and padded ones at all",
    ),
    (
        "attack-stale-view", "attacks", "attacks/frozen.py",
        "run.use(self._for_recordings(values, run.shared()) if recorded else values)",
        "run.use(self._for_recordings(values, run.shared())) if recorded else None",
        "after an optimizer step the attack still runs against the weights of the step before",
    ),
    (
        "attack-stale-recording", "attacks", "attacks/capture.py",
        "key = (function.__name__, size, *parts)", "key = (function.__name__, size, len(list(parts)))",
        "a batch of another shape or dtype replays the recording of an earlier one",
    ),
    (
        "attack-start-not-uniform", "attacks", "attacks/loop.py",
        "dtype=torch.float64) ** (1.0 / size)", "dtype=torch.float64)",
        "random starts of l1 and l2 attacks crowd around the clean image",
    ),
    (
        "attack-start-same-in-every-restart", "attacks", "attacks/loop.py",
        "philox.words(seed, counter, stream=restart)", "philox.words(seed, counter, stream=0)",
        "every restart repeats the first one",
    ),
    (
        "amkd-weight-ignored", "losses", "losses/amkd.py",
        "weight = weight * rows.weight", "weight = weight * 1.0",
        "rejected samples take part in the triplet term of drawn negatives",
    ),
    (
        "amkd-boundary-denominator", "losses", "losses/amkd.py",
        "return _mean(total, weight.sum(), spread)", "return _mean(total, torch.ones_like(weight).sum(), spread)",
        "the boundary term shrinks with every rejected sample",
    ),
    (
        "memory-keeps-the-oldest", "memory", "memory.py",
        "embeddings, labels = embeddings[-size:], labels[-size:]",
        "embeddings, labels = embeddings[:size], labels[:size]",
        "of a batch larger than the ring the first rows stay, not the last",
    ),
)  # fmt: skip

TRITON = _in(
    "amkd_fast/ops",
    (
        "kl-triton-upstream-of-labels", "kl", "kl/triton.py",
        "upstream[:, None] * slope)", "slope)",
        "a loss scale, or a weight of the whole loss, misses the cross-entropy's gradient",
    ),
    (
        "kl-triton-merge-sign", "kl", "kl/triton.py",
        "cross - sum_t * u, 0.0)", "cross + sum_t * u, 0.0)",
        "soft_cross_entropy of rows longer than a tile is wrong",
    ),
    (
        "decoupled-triton-merge-sign", "decoupled", "kl/decoupled/triton.py",
        "other_cross + other_sum_t * (other_v - other_u)", "other_cross + other_sum_t * (other_u - other_v)",
        "dkd_loss of rows longer than a tile is wrong",
    ),
    (
        "consistency-triton-confidence", "consistency", "kl/consistency/triton.py",
        "factor * confidence, student2", "factor + 0.0 * confidence, student2",
        "the gradient of the augmented view is not weighted by its confidence",
    ),
    (
        "consistency-triton-total", "consistency", "kl/triton_rows.py",
        "tl.load(parts + programs + program,", "tl.load(parts + program,",
        "in large batches the clean view counts twice and the augmented one not at all",
    ),
    (
        "standardised-triton-weight", "standardised", "kl/standardised/triton.py",
        "factor *= tl.load(weight + real)", "factor *= 1.0",
        "the rows' weights miss the gradient",
    ),
    (
        "triplet-triton-tie-order", "triplet", "triplet/triton_select.py",
        "highest = tl.max(tl.where(best == worst[:, None], where, -FAR), 1)",
        "highest = tl.min(tl.where(best == worst[:, None], where, FAR), 1)",
        "of equally near negatives the wrong ones are kept",
    ),
    (
        "triplet-triton-second-exclusion", "triplet", "triplet/triton_common.py",
        "row * EXCLUDED + e", "row * EXCLUDED",
        "the second excluded class of an anchor is among its negatives",
    ),
    (
        "triplet-triton-swap-gradient", "triplet", "triplet/triton_terms.py",
        "from_p = tl.where(swapped, -coefficient, 0.0)", "from_p = tl.where(swapped, coefficient, 0.0)",
        "with swap=True the positive is pushed the wrong way",
    ),
    (
        "triplet-triton-soft-slope", "triplet", "triplet/triton_common.py",
        "found = tl.where(x <= 0.0, e, 1.0) / (1.0 + e)", "found = tl.where(x >= 0.0, e, 1.0) / (1.0 + e)",
        "the soft margin trains on easy triplets instead of hard ones",
    ),
    (
        "triplet-triton-product-key", "triplet", "triplet/triton_select.py",
        "key = r_square[None, :] - 2.0 * product", "key = r_square[None, :] - product",
        "in large sets the candidates are not the nearest rows",
    ),
    (
        "attack-triton-one-sided-bound", "attack", "attack/triton_step.py",
        "return tl.where(value > high, high, value)", "return value",
        "samples leave the valid range upwards",
    ),
    (
        "attack-triton-decay", "attack", "attack/triton_step.py",
        "g = decay * v + (g * scale) * inverse_mean", "g = v + (g * scale) * inverse_mean",
        "momentum never fades, whatever decay says",
    ),
    (
        "attack-triton-tame-radius", "attack", "attack/triton_step.py",
        "leaves &= (distance > radius * tame)", "leaves &= (distance > radius)",
        "after a huge step a sample stays outside its l2 ball",
    ),
    (
        "attack-triton-rank-of-equals", "attack", "attack/triton_rows.py",
        "above = other[None, :] < row[:, None]", "above = other[None, :] > row[:, None]",
        "equal candidates are chosen in another order than on a CPU",
    ),
    (
        "particles-triton-median", "particles", "attack/particles_triton.py",
        "rank == (number - 1) // 2", "rank == number // 2",
        "an even number of pairs gives another bandwidth",
    ),
    (
        "images-triton-counter", "images", "images/triton.py",
        "philox_words(seeds, seed, row, STREAM)", "philox_words(seeds, seed, sample.to(tl.int64), STREAM)",
        "what an image draws depends on its place in the batch",
    ),
    (
        "augment-triton-border", "augment", "images/augment_triton.py",
        "(y > 0) & (y < H - 1)", "(y > 0) & (y < H)",
        "sharpness mixes the last row with what lies behind the image",
    ),
    (
        "augment-triton-barrier", "augment", "images/augment_triton.py",
        "mask=e < SIZE)\n    tl.debug_barrier()\n\n    # A table", "mask=e < SIZE)\n\n    # A table",
        "threads read levels that others have not moved yet: images differ from run to run",
    ),
    (
        "segments-triton-groups", "segments", "segments/triton.py",
        "FIRST=part.start == 0", "FIRST=True",
        "of more than 16 segments only the last group is in the loss",
    ),
    (
        "relations-triton-mirror", "relations", "relations/triton.py",
        "mask=there & (left < right))", "mask=there & (left > right))",
        "in batches of more than a tile half of the pairs' weights are never written",
    ),
)  # fmt: skip

CPU = _in(
    "csrc",
    (
        "segments-tail-avx2", "segments", "segments/segments_cpu_kernels.cpp",
        "last - i < kStep ? last - i : kStep", "last - i < kStep ? last - i - (kStep == 8) : kStep",
        "machines without AVX-512 lose the last element of a segment",
    ),
    (
        "segments-upstream", "segments", "segments/segments_cpu.cpp",
        "upstream * slope(weights[i], student.numel())", "slope(weights[i], student.numel())",
        "a second backward pass forgets what it is multiplied with",
    ),
    (
        "images-tail-avx2", "images", "images/crop_flip_cpu_kernels.cpp",
        "k < count - i; ++k) rest[k]", "k < count - i - (kStep == 8); ++k) rest[k]",
        "machines without AVX-512 make the last pixel black",
    ),
    (
        "images-mirrored-overlap", "images", "images/crop_flip_cpu_kernels.cpp",
        "put(to + count - kWord, __builtin_bswap64(word_at<uint64_t>(from)));",
        "put(to + count / kWord * kWord - kWord, __builtin_bswap64(word_at<uint64_t>(from)));",
        "mirrored rows whose width is no multiple of 8 are scrambled",
    ),
    (
        "augment-mean-rounding", "augment", "images/augment_cpu_kernels.cpp",
        "(2 * total + plane) / (2 * plane)", "total / plane",
        "contrast rounds the mean down",
    ),
    (
        "relations-parts", "relations", "relations/pairs_cpu_kernels.cpp",
        "for (int64_t part = 0; part < parts; ++part)", "for (int64_t part = 0; part < (parts ? 1 : 0); ++part)",
        "in larger batches the gradient of the angles lacks what most vertices do",
    ),
    (
        "relations-mean-denominator", "relations", "relations/distances_cpu_kernels.cpp",
        "apart -= distance != 0.0;", "apart += 1;",
        "the mean distance counts pairs of equal rows",
    ),
    (
        "relations-coincide", "relations", "relations/pairs_cpu_kernels.cpp",
        "differ ? 0.5 : 0.0", "differ ? 0.0 : 0.0",
        "rows that fall together in one network alone cost nothing",
    ),
    (
        "consistency-nan-cosine", "consistency", "kl/consistency_cpu_kernels.cpp",
        "if (squares[0] == 0.0 || squares[1] == 0.0) return 0.0;",
        "if (!(squares[0] > 0.0 && squares[1] > 0.0)) return 0.0;",
        "a NaN of the teacher is taken for a row without direction",
    ),
    (
        "standardised-pull", "standardised", "kl/standardised_cpu_kernels.cpp",
        "pull / of_student.degrees()", "pull / of_student.count",
        "the gradient through the deviation is too small, most with few classes",
    ),
    (
        "standardised-upstream-of-rows", "standardised", "kl/standardised_cpu_kernels.cpp",
        "[p.scalars.per_row ? row : 0]", "[0]",
        'with reduction="none" all rows take the upstream gradient of the first',
    ),
    (
        "decoupled-torn-rows", "decoupled", "kl/decoupled_cpu_kernels.cpp",
        "torn | (d == splat<V>(kInfinity))", "(d == splat<V>(kInfinity))",
        "a row whose other classes only one network has gets a number for a loss",
    ),
    (
        "decoupled-tail-baseline", "decoupled", "kl/decoupled_cpu_kernels.cpp",
        "column < static_cast<int32_t>(i),", "column < static_cast<int32_t>(i + (kStep == 4)),",
        "on machines without AVX2 a class is missing from rows that do not fill their vectors",
    ),
    (
        "decoupled-weight-gradient", "decoupled", "kl/decoupled_cpu_kernels.cpp",
        "upstream * s.factor * weight * p.per_t", "upstream * s.factor * p.per_t",
        "the rows' weights miss the gradient",
    ),
    (
        "kl-label-weights", "kl", "kl/kl_cpu.cpp",
        "weighted_ce += ce_value * ce_w;", "weighted_ce += ce_value;",
        "ce_weight as a tensor is ignored in the value",
    ),
    (
        "kl-shared-row-merge", "kl", "kl/kl_cpu.cpp",
        "for (int64_t i = 1; i < ranges; ++i)", "for (int64_t i = 1; i + 1 < ranges; ++i)",
        "long rows that threads share lose the last thread's classes",
    ),
    (
        "triplet-mean-nonzero", "triplet", "triplet/triplet_cpu.cpp",
        "Reduction::kMeanNonzero && term > 0.0", "Reduction::kMeanNonzero && term >= 0.0",
        "mean_nonzero is the mean",
    ),
    (
        "triplet-row-sums", "triplet", "triplet/products_cpu_kernels.cpp",
        "sums[1] += load_doubles(w + k + kWidth<double>);", "sums[1] += load_doubles(w + k);",
        "gradients of mining over every pair are pulled to the wrong place",
    ),
    (
        "triplet-tie-order", "triplet", "triplet/select_cpu_kernels.cpp",
        "a.exact == b.exact && a.index < b.index", "a.exact == b.exact && a.index > b.index",
        "of equally near negatives the last is taken",
    ),
    (
        "triplet-rounding-margin", "triplet", "triplet/select_cpu_kernels.cpp",
        "return static_cast<T>(2.0 * error);", "return static_cast<T>(0.0 * error);",
        "rounding decides which of nearly equal rows is the nearest",
    ),
    (
        "triplet-second-exclusion-of-columns", "triplet", "triplet/select_cpu_kernels.cpp",
        "second[lane] = excluded[exclusions - 1];", "second[lane] = excluded[0];",
        "in large batches the second excluded class is among the negatives",
    ),
    (
        "triplet-semihard-bound", "triplet", "triplet/rows_cpu_kernels.cpp",
        "best_index >= 0 && best < w.threshold[q]", "best_index >= 0 && best <= w.threshold[q]",
        "a negative exactly a margin farther than the positive makes a triplet of cost 0",
    ),
    (
        "triplet-close-pairs-twice", "triplet", "triplet/rows_cpu_kernels.cpp",
        "depth, sum);\n        u = T(0);", "depth, sum);\n        u = u + T(0);",
        "close pairs pull at their reference rows twice",
    ),
    (
        "triplet-many-positives-tie", "triplet", "triplet/rows_cpu_kernels.cpp",
        "(kAbove ? *base <= x : *base < x)", "(*base < x)",
        "with more than 192 positives a triplet that just satisfies the margin counts as active and is trained on",
    ),
    (
        "triplet-root-baseline", "triplet", "triplet/rows_cpu_kernels.cpp",
        "for (unsigned i = 0; i < sizeof(V) / sizeof(x[0]); ++i)",
        "for (unsigned i = 1; i < sizeof(V) / sizeof(x[0]); ++i)",
        "on machines without AVX2 every fourth distance is squared",
    ),
    (
        "attack-draw-counter", "attack", "attack/rows_cpu_kernels.cpp",
        "d.counter == nullptr ? i : d.counter[i]", "d.counter == nullptr ? i : i",
        "the class that an image is sent to depends on who is in its batch",
    ),
    (
        "attack-disagreement-label", "attack", "attack/rows_cpu_kernels.cpp",
        "with(difference, k, label, 0.0)", "with(difference, k, label + (label == k), 0.0)",
        "for some labels the disagreement about the label itself counts",
    ),
    (
        "particles-median", "particles", "attack/particles_cpu.cpp",
        "(found - 1) / 2", "found / 2",
        "an even number of pairs gives another bandwidth",
    ),
    (
        "particles-fault-of-last-piece", "particles", "attack/particles_cpu_kernels.cpp",
        "usable[i] = usable[i] && fault == 0.0;", "usable[i] = fault == 0.0;",
        "a NaN among the first numbers of a large image is not seen, and reaches all particles",
    ),
    (
        "attack-momentum-decay", "attack", "attack/step_cpu_kernels.cpp",
        "keep * get(velocity + k, part)", "get(velocity + k, part)",
        "momentum never fades, whatever decay says",
    ),
    (
        "attack-blocked-at-lower-bound", "attack", "attack/step_cpu_kernels.cpp",
        "(direction < none ? none : v)", "(direction > none ? none : v)",
        "projected steps are blocked where they may move and move where they are blocked",
    ),
    (
        "attack-tail-baseline", "attack", "attack/sample_cpu.h",
        "body(i, Some{end - i});", "body(i, Some{end - i - (kStep == 4)});",
        "on machines without AVX2 the last number of a sample is never written",
    ),
    (
        "kl-merge-soft-cross-entropy", "kl", "kl/kl_cpu_kernels.cpp",
        "part->teacher_sum * down_s * per_t", "part->teacher_sum * down_t * per_t",
        "soft_cross_entropy of rows of more than 2048 classes is wrong",
    ),
    (
        "share-last-piece", "threads", "common/cpu_share.h",
        "(count + piece - 1) / piece", "count / piece",
        "on several threads the last rows of a batch are left out",
    ),
    (
        "simd-bf16-truncates", "dtypes", "common/simd.h",
        "const Ints sum = i + 0x7fff + ((i >> 16) & 1);", "const Ints sum = i;",
        "bf16 results are cut off instead of rounded: gradients shrink on average",
    ),
    (
        "row-loss-double-backward", "kl", "autograd.cpp",
        "const bool plain = at::GradMode::is_enabled() || is_transforming();", "const bool plain = is_transforming();",
        "a gradient that is differentiated again has no graph",
    ),
    (
        "row-loss-unsaved", "kl", "autograd.cpp",
        "saved[i] = kept[i].defined() ? kept[i] : saved[i];", "saved[i] = kept[i].defined() ? saved[i] : kept[i];",
        "the gradient forgets a teacher that was made in inference mode",
    ),
)  # fmt: skip

MUTANTS = PYTHON + TRITON + CPU + _in("csrc", *CUDA)
