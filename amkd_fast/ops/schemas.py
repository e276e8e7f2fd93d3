"""Every operator of the library, on one page: what it takes and gives, for all who implement it.

``amkd_fast::NAME`` is C++ on a CPU and CUDA C++ on a GPU, both in ``csrc``; ``amkd_fast::NAME_triton`` is the same in
Triton.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch

from amkd_fast import backends

SCHEMAS = {
    # student, teacher [B, K]; weight, ce_weight [B] in the statistics' dtype; labels [B] int32 or int64. A row of
    # weight 0 has no part in loss and gradient, whatever its logits are. reduction, here and below: 0 sum, 1 mean
    # over the rows, 2 none; with labels the cross-entropy is a mean over those that are not ignored. Returns the
    # loss ([] or, unreduced, [B]) and the statistics of csrc/kl/kl.h.
    "kl_forward": (
        "(Tensor student, Tensor teacher, Tensor? weight, Tensor? labels, Tensor? ce_weight, float temperature, "
        "int divergence, float beta, float row_scale, float kl_factor, float ce_factor, int ignore_index, "
        "int reduction) -> (Tensor loss, Tensor stats)"
    ),
    # grad_loss has the shape of the loss. Returns the gradient of the student, [B, K] in its dtype.
    "kl_backward": (
        "(Tensor grad_loss, Tensor student, Tensor teacher, Tensor? weight, Tensor? labels, Tensor? ce_weight, "
        "Tensor stats, float temperature, int divergence, float beta, float row_scale, float kl_factor, "
        "float ce_factor, int ignore_index, int reduction) -> Tensor"
    ),
    # The same gradient, written over the student's logits, which are contiguous.
    "kl_overwrite": (
        "(Tensor grad_loss, Tensor(a!) student, Tensor teacher, Tensor? weight, Tensor? labels, Tensor? ce_weight, "
        "Tensor stats, float temperature, int divergence, float beta, float row_scale, float kl_factor, "
        "float ce_factor, int ignore_index, int reduction) -> ()"
    ),
    # Decoupled distillation. student, teacher [B, K]; labels [B] int32 or int64; weight [B] in the statistics'
    # dtype; target_factor and other_factor weigh a row's two divergences, factor the rows. Returns the loss ([] or,
    # unreduced, [B]) and the statistics of csrc/kl/decoupled.h. A label out of range is an error on a CPU and a NaN
    # row on a GPU.
    "kl_decoupled_forward": (
        "(Tensor student, Tensor teacher, Tensor labels, Tensor? weight, float temperature, float target_factor, "
        "float other_factor, float factor, int reduction) -> (Tensor loss, Tensor stats)"
    ),
    # grad_loss has the shape of the loss. Returns the gradient of the student, [B, K] in its dtype.
    "kl_decoupled_backward": (
        "(Tensor grad_loss, Tensor student, Tensor teacher, Tensor labels, Tensor? weight, Tensor stats, "
        "float temperature, float target_factor, float other_factor, float factor, int reduction) -> Tensor"
    ),
    # Four logits [B, K] of one dtype. Returns the loss [] and the statistics of csrc/kl/consistency.h.
    "kl_consistency_forward": (
        "(Tensor student, Tensor teacher, Tensor augmented_student, Tensor augmented_teacher, float temperature, "
        "float row_scale) -> (Tensor total, Tensor stats)"
    ),
    # The gradients of both students, [B, K] in their dtype.
    "kl_consistency_backward": (
        "(Tensor grad_total, Tensor student, Tensor teacher, Tensor augmented_student, Tensor augmented_teacher, "
        "Tensor stats, float temperature, float row_scale) -> (Tensor grad_student, Tensor grad_augmented_student)"
    ),
    # student, teacher [B, K]; weight [B] in the statistics' dtype. Returns the loss ([] or, unreduced, [B]) and the
    # statistics of csrc/kl/standardised.h.
    "kl_standardised_forward": (
        "(Tensor student, Tensor teacher, Tensor? weight, float temperature, float factor, int reduction) "
        "-> (Tensor loss, Tensor stats)"
    ),
    # grad_loss has the shape of the loss. Returns the gradient of the student, [B, K] in its dtype.
    "kl_standardised_backward": (
        "(Tensor grad_loss, Tensor student, Tensor teacher, Tensor? weight, Tensor stats, float temperature, "
        "float factor, int reduction) -> Tensor"
    ),
    # anchor [N, D], reference [P, D] (none: the anchors) of one dtype; labels [N], reference_labels [P] and
    # exclude_labels [N, E] int32 or int64; anchor i is reference row self_offset + i, none of them where it is -1.
    # distance: 0 euclidean, 1 squared, 2 cosine. Returns the farthest positive [N] ([0] unless asked for) and the k
    # nearest negatives [N, k], int64, nearest first, -1 where there is none.
    "triplet_select": (
        "(Tensor anchor, Tensor? reference, Tensor? labels, Tensor? reference_labels, Tensor? exclude_labels, "
        "int self_offset, int distance, int k, bool find_positive) -> (Tensor positive, Tensor negative)"
    ),
    # One term an anchor from the selected rows: positive [N, D], or positive_index [N] into the reference;
    # negative_index [N, k]; weight [N] in the statistics' dtype; reduction: 0 mean, 1 mean_nonzero, 2 sum, 3 none.
    # Returns the loss ([] or, unreduced, [N]) and the statistics of csrc/triplet/triplet.h.
    "triplet_terms": (
        "(Tensor anchor, Tensor? positive, Tensor? reference, Tensor? positive_index, Tensor negative_index, "
        "Tensor? weight, int distance, float margin, bool soft_margin, bool swap, int reduction) -> (Tensor loss, "
        "Tensor stats)"
    ),
    # The gradients of anchor, positive ([0, D] without one) and reference ([0, D] without one: it is in the
    # anchor's).
    "triplet_backward": (
        "(Tensor grad_loss, Tensor anchor, Tensor? positive, Tensor? reference, Tensor? positive_index, "
        "Tensor negative_index, Tensor? weight, Tensor stats, int distance, float margin, bool soft_margin, "
        "bool swap, int reduction, bool deterministic) -> (Tensor grad_anchor, Tensor grad_positive, "
        "Tensor grad_reference)"
    ),
    # All of it on a CPU. anchor [N, D]; reference [P, D] (none: the anchors); positive_distance [N] replaces the
    # positives of the same label; anchors that are not used (bool [N]) are left out. semihard: one term an anchor,
    # else one a triplet. Returns total [N], counts [N, 3] int64 (terms, terms above 0, triplets) and sums [N, 2] of
    # D_ap and D_an over the triplets; with_gradient also the gradients of upstream [N] (none: ones) times total: of
    # anchor, reference ([0, D] without one: it is in the anchor's) and positive_distance ([0] without one). Else
    # they are empty.
    "triplet_every_pair": (
        "(Tensor anchor, Tensor? reference, Tensor? positive_distance, Tensor? used, Tensor? upstream, "
        "Tensor? labels, Tensor? reference_labels, Tensor? exclude_labels, int self_offset, int distance, "
        "float margin, bool semihard, bool fallback, bool soft_margin, bool with_gradient) -> (Tensor total, "
        "Tensor counts, Tensor sums, Tensor grad_anchor, Tensor grad_reference, Tensor grad_positive_distance)"
    ),
    # On a GPU every pair of some anchors: product [n, P] holds a·r of the centred rows whose squared lengths are
    # anchor_square [n] and reference_square [P] (NaN for a row that only the exact distance serves); anchor [n, D]
    # and reference [P, D] are the rows as they came; positive_distance [n] replaces the positives of the same
    # label; anchors that are not used (bool [n]) are left out. semihard: one term an anchor, else one a triplet.
    # Returns total [n], counts [n, 3] int64 (terms, terms above 0, triplets) and sums [n, 2] of D_ap and D_an over
    # the triplets.
    "triplet_rows_forward": (
        "(Tensor product, Tensor anchor, Tensor reference, Tensor anchor_square, Tensor reference_square, "
        "Tensor? positive_distance, Tensor? used, Tensor? labels, Tensor? reference_labels, Tensor? exclude_labels, "
        "int self_offset, int distance, float margin, bool semihard, bool fallback, bool soft_margin) "
        "-> (Tensor total, Tensor counts, Tensor sums)"
    ),
    # With the gradient of total [n]: product becomes U [n, P], so that anchor i moves by rowsum(U) a - U r and
    # reference j by colsum(U) r - U^T a. Pairs so close that a difference of products would lose their digits may
    # go into grad_anchor [n, D] and grad_reference [P, D] instead, with 0 in U. Returns the gradient of
    # positive_distance ([0] without one).
    "triplet_rows_backward": (
        "(Tensor(a!) product, Tensor(b!) grad_anchor, Tensor(c!) grad_reference, Tensor grad_total, Tensor anchor, "
        "Tensor reference, Tensor anchor_square, Tensor reference_square, Tensor? positive_distance, Tensor? used, "
        "Tensor? labels, Tensor? reference_labels, Tensor? exclude_labels, int self_offset, int distance, "
        "float margin, bool semihard, bool fallback, bool soft_margin) -> Tensor"
    ),
    # One step of every sample of x [B, ...] into out, which may be x itself. The images and the velocity lie alike,
    # contiguous or channels_last. x, x0 (none: no ball) and out have one dtype, grad has it too or that of the
    # arithmetic, which velocity, the numbers a sample (step_sizes, radii, gap [B]) and a channel (lowers, uppers
    # [C]) have; these replace the numbers of the same name in the singular. active: bool [B]. rule:
    # csrc/attack/attack.h.
    "attack_step": (
        "(Tensor(a!) out, Tensor x, Tensor grad, Tensor? x0, Tensor? step_sizes, Tensor? radii, Tensor? gap, "
        "Tensor(b!)? velocity, Tensor? lowers, Tensor? uppers, Tensor? active, int rule, float step_size, "
        "float radius, float lower, float upper, float decay, bool project, int top) -> ()"
    ),
    # One step of Stein variational ascent of the particles [B, n, ...] of the clean images x0 [B, ...] into out,
    # which is not particles. All images lie alike, one particle behind the other. particles, x0 and out have one
    # dtype, grad has it too or that of the arithmetic. step_sizes, radii [B] and lowers, uppers [C] as above;
    # bandwidth 0: of the median.
    "attack_svgd": (
        "(Tensor(a!) out, Tensor particles, Tensor grad, Tensor x0, Tensor? step_sizes, Tensor? radii, "
        "Tensor? lowers, Tensor? uppers, float step_size, float radius, float lower, float upper, float bandwidth) "
        "-> ()"
    ),
    # logits [B, K]; labels and target [B] int64. loss: 0 cross-entropy, 1 boundary (of probabilities where
    # softmax), 2 difference of logits ratio. Returns value [B], grad_logits [B, K], prediction [B] int64 and active
    # [B] bool. A class out of range is an error on a CPU and makes its row inert on a GPU.
    "attack_objective": (
        "(Tensor logits, Tensor labels, Tensor? target, int loss, bool softmax, bool targeted) -> (Tensor value, "
        "Tensor grad_logits, Tensor prediction, Tensor active)"
    ),
    # student, teacher [B, K] of one dtype; labels [B] int64; seeds: int64 [], replaces seed. Returns index, base
    # and target int64 [limit] and valid bool [limit].
    "attack_bases": (
        "(Tensor student, Tensor teacher, Tensor labels, int limit, Tensor? seeds, int seed) -> (Tensor index, "
        "Tensor base, Tensor target, Tensor valid)"
    ),
    # A class other than base [B] for each row of logits [B, K]; rows [B] int64 (none: 0, 1, ...) are the draws'
    # counters.
    "attack_draw": "(Tensor logits, Tensor base, Tensor? rows, Tensor? seeds, int seed) -> Tensor",
    # The next five serve a search for boundary samples on a CPU; where no backend has them it takes the ones above.
    # Tensors of the whole batch are [M, ...]: base, target and steps int64, gap in the dtype of the statistics, found
    # for logits. m samples are worked on: x, grad and middle [m, ...] as above, rows int64 [m] are theirs in the
    # batch. Judging writes what is found at the samples to gap and found, counts a step for whoever takes one, and
    # returns the boundary objective's gradient [m, K], active bool [m] and how many are.
    "attack_judge": (
        "(Tensor logits, Tensor rows, Tensor base, Tensor target, Tensor(a!) found, Tensor(b!) gap, Tensor(c!) steps, "
        "bool softmax, bool moves) -> (Tensor grad_logits, Tensor active, SymInt left)"
    ),
    # The boundary step of the left samples that are active, close together, and their rows; where they were goes to
    # inside, and where the others are to images. step_sizes: [M].
    "attack_advance": (
        "(Tensor x, Tensor grad, Tensor rows, Tensor active, SymInt left, Tensor gap, Tensor? step_sizes, "
        "Tensor? lowers, Tensor? uppers, Tensor(a!) images, Tensor(b!)? inside, int rule, float step_size, "
        "float lower, float upper, bool project) -> (Tensor x, Tensor rows)"
    ),
    # One bisection between inside and outside: the middle, whose logits these are (none: it is not there yet), takes
    # the place of the end on its side, and (again) becomes the middle of what is left.
    "attack_halve": (
        "(Tensor(a!) middle, Tensor? logits, Tensor rows, Tensor base, Tensor(b!) inside, Tensor(c!) outside, "
        "Tensor(d!) found, bool again) -> ()"
    ),
    # How every sample ended: the class that it is of, the number of attacks.Status, the gap and whether it is kept.
    "attack_outcome": (
        "(Tensor logits, Tensor base, Tensor target, Tensor steps, Tensor? valid, bool softmax, bool accept_all, "
        "bool retarget) -> (Tensor target, Tensor status, Tensor gap, Tensor accepted)"
    ),
    # Weights [O, I, ...] and biases [O] of convolutions and the BatchNorms behind them, all of float32 or all of
    # float64. Returns weight, bias, weight, bias ... of convolutions that do the work of both.
    "attack_fold": (
        "(Tensor[] weights, Tensor[] means, Tensor[] variances, Tensor[] gains, Tensor[] shifts, Tensor[] biases, "
        "float[] eps, bool channels_last) -> Tensor[]"
    ),
    # Rows index [B] (none: all) of pixels uint8 [N, C, H, W] into out [B, C, H, W], contiguous or channels_last:
    # level · scale + shift [C], in the dtype of shift, which is out's or fp32. A window of the image with pad black
    # pixels on every side, and flip, are drawn from the seed (seeds: int64 [], replaces seed) with the row as the
    # counter. A row out of range is an error on a CPU and the nearest one on a GPU.
    "images_crop_flip": (
        "(Tensor(a!) out, Tensor pixels, Tensor? index, Tensor shift, Tensor? seeds, float scale, int pad, "
        "bool flip, int seed) -> ()"
    ),
    # Pairs of one shape and dtype each; weights [S] in the statistics' dtype (that of fp64 if any segment has it,
    # else fp32) replaces the factors. Returns the loss [], the mean of each segment's squared difference [S] and,
    # with_grads, the gradients of the student for a grad_loss of 1, which lie as the student does (else none).
    "segments_forward": (
        "(Tensor[] student, Tensor[] teacher, Tensor? weights, float[] factors, bool with_grads) -> (Tensor loss, "
        "Tensor means, Tensor[] grads)"
    ),
    # The gradients of the student for any grad_loss [].
    "segments_backward": (
        "(Tensor grad_loss, Tensor[] student, Tensor[] teacher, Tensor? weights, float[] factors) -> Tensor[]"
    ),
    # Multiplies gradients that segments_forward made; one of 1 leaves them as they are, unread.
    "segments_scale": "(Tensor(a!)[] grads, Tensor grad_loss) -> ()",
    # student [B, D_s], teacher [B, D_t] of one dtype. Returns distance_weight times the loss of the distances plus
    # angle_weight times that of the angles, [] in the statistics' dtype, and with_gradient its gradient in the
    # student [B, D_s] in that dtype, else [0, D_s]; a weight of 0 leaves its part out.
    "relations_loss": (
        "(Tensor student, Tensor teacher, float distance_weight, float angle_weight, bool with_gradient) "
        "-> (Tensor loss, Tensor grad_student)"
    ),
    # pixels uint8 [B, C, H, W] with C = 1 or 3, augmented. An image draws from the seed (seeds: int64 [], replaces
    # seed) with rows [B] int64 (none: 0, 1, ...) as the counter; bit i of operations admits operation i of
    # csrc/images/augment.h, which is applied where a word of 32 bits is below threshold. fill: level from outside.
    "images_joint_augment": (
        "(Tensor pixels, Tensor? rows, Tensor? seeds, int threshold, int operations, int fill, int seed) -> Tensor"
    ),
}

_library = torch.library.Library("amkd_fast", "DEF")


def register(name: str, fake: Callable, triton: str = "") -> None:
    """Declare an operator.

    Args:
        name: One of ``SCHEMAS``.
        fake: Makes empty tensors of the shapes and dtypes that it returns, for torch.compile.
        triton: ``"module:function"`` that launches it in Triton, imported when it is first called: importing amkd_fast
            does not import triton.
    """
    _library.define(name + SCHEMAS[name])
    torch.library.register_fake(f"amkd_fast::{name}", fake)
    if triton:
        _library.define(f"{name}_triton{SCHEMAS[name]}")
        torch.library.register_fake(f"amkd_fast::{name}_triton", fake)
        for key in ("CUDA", "CPU") if backends.INTERPRETING else ("CUDA",):
            _library.impl(f"{name}_triton", _launcher(triton), key)


def _launcher(place: str) -> Callable:
    module, _, function = place.partition(":")

    def launch(*arguments: object) -> object:
        return getattr(import_module(module), function)(*arguments)

    return launch


def operator(name: str, backend: str) -> Callable:
    """The operator of a backend other than the reference."""
    return getattr(torch.ops.amkd_fast, f"{name}_triton" if backend == "triton" else name).default
