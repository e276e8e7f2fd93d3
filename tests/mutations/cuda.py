"""Faults of the CUDA kernels, as in mutants.py; files lie below csrc/."""

from __future__ import annotations

CUDA = (
    (
        "kl-cuda-merge-sign", "kl", "kl/kl_kernels.cuh",
        "cross + student_sum * moved", "cross - student_sum * moved",
        "the reverse divergence is wrong wherever a larger logit comes after others",
    ),
    (
        "kl-cuda-js-last-split", "kl", "kl/kl_kernels.cuh",
        "in.teacher_row(row) + begin, min(call.split_width, in.classes - begin),",
        "in.teacher_row(row) + begin, call.split_width,",
        "js of very long rows takes classes of the next row for its own",
    ),
    (
        "kl-cuda-block-totals", "kl", "kl/kl_kernels.cuh",
        "block_totals[static_cast<int64_t>(i) * blocks + block]",
        "block_totals[static_cast<int64_t>(i) * blockDim.x + block]",
        "cross-entropy and statistics of batches of several blocks are sums of something else",
    ),
    (
        "kl-cuda-upstream-of-labels", "kl", "kl/kl_kernels.cuh",
        "valid ? grad_loss * ce_weight", "valid ? ce_weight",
        "a loss scale, or a weight of the whole loss, misses the cross-entropy's gradient",
    ),
    (
        "kl-cuda-edges", "kl", "common/element.cuh",
        "return i < head ? i : i + vectors * kWidth;", "return i <= head ? i : i + vectors * kWidth;",
        "rows that do not fill their vectors have one class twice and another not at all",
    ),
    (
        "consistency-cuda-last-columns", "consistency", "kl/rows_kernels.cuh",
        "const int edges = (columns.edges + splits - 1) / splits;", "const int edges = columns.edges / splits;",
        "the last classes of long unaligned rows have no gradient but what was in memory",
    ),
    (
        "consistency-cuda-confidence", "consistency", "kl/consistency_kernels.cuh",
        "view == 0 ? Stat(1) : call.stats[kConfidence * in.rows + row]", "view == 0 ? Stat(1) : Stat(1)",
        "the gradient of the augmented view is not weighted by its confidence",
    ),
    (
        "decoupled-cuda-split-start", "decoupled", "kl/decoupled_kernels.cuh",
        "start = split * team.lanes + team.lane();", "start = team.lane();",
        "where blocks share a row all of them write the same part of its gradient",
    ),
    (
        "decoupled-cuda-weight-gradient", "decoupled", "kl/decoupled_kernels.cuh",
        "call.grad_loss[row * call.grad_loss_stride] * weight;", "call.grad_loss[row * call.grad_loss_stride];",
        "the rows' weights miss the gradient",
    ),
    (
        "standardised-cuda-upstream-of-rows", "standardised", "kl/standardised_kernels.cuh",
        "call.grad_loss[row * call.grad_loss_stride] * in.factor", "call.grad_loss[0] * in.factor",
        'with reduction="none" all rows take the upstream gradient of the first',
    ),
    (
        "standardised-cuda-last-warp", "standardised", "common/reduce.cuh",
        "lane < warps ? scratch[i][lane]", "lane + 1 < warps ? scratch[i][lane]",
        "what the last warp of a block has found in a long row is lost",
    ),
    (
        "triplet-cuda-scales-barrier", "triplet", "triplet/select_kernels.cuh",
        "reference_scales[r] = scale;\n      }\n      __syncthreads();\n", "reference_scales[r] = scale;\n      }\n",
        "by cosine, rows are scaled with the lengths of other rows: what is selected differs from run to run",
    ),
    (
        "triplet-cuda-full-list", "triplet", "triplet/select_kernels.cuh",
        "worst = __shfl_sync(kAllLanes, value, count - 1);", "worst = __shfl_sync(kAllLanes, value, count);",
        "of 32 negatives or more, most are missing",
    ),
    (
        "triplet-cuda-rescan-place", "triplet", "triplet/select_kernels.cuh",
        "(s * found.anchors + place) * found.count", "(s * found.anchors + anchor) * found.count",
        "in large half-precision sets an anchor that needs a second look gets the negative of another",
    ),
    (
        "triplet-cuda-meet", "triplet", "triplet/select_products.cuh",
        "meet(group);  // the copies of all are here, and nobody multiplies the other tile any more\n    if (step + 1",
        "if (step + 1",
        "products read rows that other warps have not copied yet: what is selected differs from run to run",
    ),
    (
        "triplet-cuda-wait-for-copies", "triplet", "triplet/select_products.cuh",
        "wait_for_copies();\n    meet(group);", "meet(group);",
        "products read tiles whose rows are still under way",
    ),
    (
        "triplet-cuda-wait-for-products", "triplet", "triplet/select_products.cuh",
        "close_products();\n    wait_for_products();", "close_products();",
        "keys are made of sums that are not there yet",
    ),
    (
        "triplet-cuda-piece", "triplet", "triplet/select_products.cuh",
        "+ 2 * piece, b + 2 * piece,", "+ 2 * piece, b + piece,",
        "anchors are multiplied with other elements of the references: candidates are not the nearest",
    ),
    (
        "triplet-cuda-last-tile", "triplet", "triplet/select_products.cuh",
        "(tiles - group + kGroups - 1) / kGroups * chunks", "(tiles - group) / kGroups * chunks",
        "in large half-precision sets the last references are never selected",
    ),
    (
        "triplet-cuda-proxy-fence", "triplet", "triplet/warpgroup.cuh",
        "cp.async.wait_all;\\nfence.proxy.async.shared::cta;\\n", "cp.async.wait_all;\\n",
        "the tensor cores may read what was in shared memory before the copies",
    ),
    (
        "triplet-cuda-stride", "triplet", "triplet/warpgroup.cuh",
        "kStride = 1024 >> 4", "kStride = 512 >> 4",
        "the tensor cores take other rows than those that a product is for",
    ),
    (
        "triplet-cuda-swizzle", "triplet", "triplet/warpgroup.cuh",
        "(byte ^ ((row & 7) << 4))", "(byte ^ ((row & 3) << 4))",
        "half of the products have the pieces of one row in another order",
    ),
    (
        "triplet-cuda-second-exclusion", "triplet", "triplet/pairs.cuh",
        "exclude_labels.at(i * excluded + e)", "exclude_labels.at(i * excluded)",
        "the second excluded class of an anchor is among its negatives",
    ),
    (
        "triplet-cuda-chunk-start", "triplet", "triplet/rows_kernels.cuh",
        "__syncthreads();  // all have read where it starts\n  if (call.positive_distance",
        "if (call.positive_distance",
        "with explicit positives, threads that come late find none: the kernel hangs",
    ),
    (
        "triplet-cuda-reduce-again", "triplet", "triplet/rows_kernels.cuh",
        "T values[1] = {value};\n  __syncthreads();\n", "T values[1] = {value};\n",
        "a sum takes numbers of the next one: totals and counts differ from run to run",
    ),
    (
        "triplet-cuda-thresholds", "triplet", "triplet/rows_kernels.cuh",
        "sum += __shfl_sync(kAllLanes, part, kWarp - 1);", "sum += __shfl_sync(kAllLanes, part, 0);",
        "the loss over all pairs is wrong for anchors of more than 32 positives",
    ),
    (
        "triplet-cuda-chunk-room", "triplet", "triplet/rows_kernels.cuh",
        "count <= kChunk - kThreads", "count <= kChunk",
        "the positives of an anchor that has more than 1024 run over their place in shared memory",
    ),
    (
        "triplet-cuda-fallback", "triplet", "triplet/rows_kernels.cuh",
        "index != kNoRow ? index : call.fallback ? row.farthest : -1", "index != kNoRow ? index : row.farthest",
        "positives without a semi-hard negative take part, whatever semihard_fallback says",
    ),
    (
        "triplet-cuda-grid-barrier", "triplet", "triplet/terms_kernels.cuh",
        "cooperative_groups::this_grid().sync();\n  if (blockIdx.x != 0) return;", "if (blockIdx.x != 0) return;",
        "the loss of large batches is added up before all blocks have left their sums",
    ),
    (
        "triplet-cuda-last-anchors", "triplet", "triplet/terms_kernels.cuh",
        "anchor_blocks = (in.anchors + kWarps - 1) / kWarps;", "anchor_blocks = in.anchors / kWarps;",
        "the last anchors of a batch that is no multiple of eight have no gradient but what was in memory",
    ),
    (
        "triplet-cuda-cosine-gradient", "triplet", "triplet/terms_kernels.cuh",
        "(u - v - distance * u)", "(u - v + distance * u)",
        "the gradient of a cosine distance also pulls at lengths, which change nothing",
    ),
    (
        "attack-cuda-cluster-start", "attack", "attack/block_collectives.cuh",
        "desk_(desk) {\n    if (ranks > 1) meet();  // nobody writes to a block that has not started\n  }",
        "desk_(desk) {}",
        "steps of large images write into blocks that have not started: now and then a launch fails",
    ),
    (
        "attack-cuda-last-share", "attack", "attack/attack_step_kernels.cuh",
        "count_ = min(call.share, call.size - begin_);", "count_ = call.share;",
        "the last block of a large image also moves the first numbers of the next one",
    ),
    (
        "attack-cuda-active", "attack", "attack/attack_step_kernels.cuh",
        "call_.active[sample_]", "call_.active[0]",
        "samples that have succeeded are moved on for as long as the first of their batch is",
    ),
    (
        "attack-cuda-top", "attack", "attack/attack_step_kernels.cuh",
        "if (counts.at[d] < call_.top) continue;", "if (counts.at[d] <= call_.top) continue;",
        "an l1 step moves one coordinate more than it should, and each of them less far",
    ),
    (
        "attack-cuda-bases-barrier", "attack", "attack/attack_rows_kernels.cuh",
        "__syncthreads();\n  for (int64_t i = crew.index(); i < call.rows; i += kBasesThreads / kWarp) place_row",
        "for (int64_t i = crew.index(); i < call.rows; i += kBasesThreads / kWarp) place_row",
        "rows are ranked among others whose keys are not there yet: the bases differ from run to run",
    ),
    (
        "attack-cuda-draw", "attack", "attack/attack_rows_kernels.cuh",
        "before += __shfl_sync(kAllLanes, reached, kWarp - 1);", "before += __shfl_sync(kAllLanes, reached, 0);",
        "of more than 1024 classes some are drawn too often and others too seldom",
    ),
    (
        "attack-cuda-targeted-dlr", "attack", "attack/attack_rows_kernels.cuh",
        "const Stat part = call.targeted ? Stat(0.5) : Stat(1);", "const Stat part = Stat(1);",
        "the gradient of the targeted dlr loss is not that of its value",
    ),
    (
        "particles-cuda-fault-of-one-lane", "particles", "attack/particles_kernels.cuh",
        "__all_sync(kAllLanes, fault == 0)", "__any_sync(kAllLanes, fault == 0)",
        "one NaN of a particle reaches all particles of its image",
    ),
    (
        "particles-cuda-median-barrier", "particles", "attack/particles_kernels.cuh",
        "find_median(square, members, found, n, &median);\n    __syncthreads();\n",
        "find_median(square, members, found, n, &median);\n",
        "some particles take the bandwidth for 0 and leave the others alone",
    ),
    (
        "images-cuda-right-edge", "images", "images/crop_flip_kernels.cuh",
        "x >= 0 && x < width;", "x >= 0 && x <= width;",
        "windows that stand out on the right have pixels of the next line there",
    ),
    (
        "images-cuda-divider", "images", "common/divider.cuh",
        "/ divisor + 1);", "/ divisor);",
        "images whose sides are no powers of two have wrong pixels at the starts of their lines",
    ),
    (
        "augment-cuda-autocontrast-barrier", "augment", "images/augment_kernels.cuh",
        "__syncthreads();\n    if (own == 0) scratch.highest = -1;", "if (own == 0) scratch.highest = -1;",
        "levels miss the autocontrast: images differ from run to run",
    ),
    (
        "augment-cuda-equalize", "augment", "images/augment_kernels.cuh",
        "if (lane >= step) sum += other;", "if (lane > step) sum += other;",
        "equalize counts too few pixels below a level",
    ),
    (
        "segments-cuda-many-blocks", "segments", "segments/segments_kernels.cuh",
        "reduce_lanes(sum, kWarp, Plus());", "reduce_lanes(sum, kWarp / 2, Plus());",
        "the loss of large segments lacks up to half of them",
    ),
    (
        "segments-cuda-weights-of-groups", "segments", "segments/segments_cuda.cu",
        "(call.weights.const_data_ptr()) + first * call.weights.element_size();", "(call.weights.const_data_ptr());",
        "of more than 60 segments the later ones take the weights of the first",
    ),
    (
        "relations-cuda-tile-barrier", "relations", "relations/relations_kernels.cuh",
        "    __syncthreads();\n  }\n  const double root", "  }\n  const double root",
        "distances of rows wider than a tile mix its columns: the loss differs from run to run",
    ),
    (
        "relations-cuda-other-tile", "relations", "relations/relations_kernels.cuh",
        "const int other = blockIdx.x * kTile + y;", "const int other = blockIdx.y * kTile + y;",
        "in batches of more than a tile the distances are those of other pairs",
    ),
)  # fmt: skip
