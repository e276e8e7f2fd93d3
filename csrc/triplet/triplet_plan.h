// How many threads, blocks and launches the triplet kernels get for a size. No CUDA in here: a test can run it
// anywhere.
#pragma once

#include <algorithm>
#include <cstdint>

namespace amkd::triplet::gpu {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kTileColumns = 128;  // reference rows of a tile: four a lane
constexpr int kListed = 32;        // negatives that one pass finds: one a lane
constexpr int kMostSplits = 64;

constexpr int64_t kSmallAnchors = 1024;     // fewer anchors get a warp each ...
constexpr int64_t kSmallReferences = 4096;  // ... where each may sweep all references alone
constexpr int64_t kTensorAnchors = 512;     // from here on products pay for what it takes to be sure of their order
constexpr int64_t kTensorReferences = 2048;
constexpr int64_t kTensorWidth = 32;
constexpr int64_t kTensorRowsBytes = 128 * 1024;  // of the anchors that a block of the tensor cores' kernel keeps
constexpr int kRescanSplits = 32;

constexpr int64_t kGatherEntries = 4096;             // more selected rows than this are scattered with atomics
constexpr int64_t kExactWork = int64_t{1} << 24;     // n P D: smaller problems take every distance from differences
constexpr int64_t kOneBlockWork = int64_t{1} << 14;  // elements of the anchors that one block may as well do alone
constexpr int kChunk = 1024;                         // positives of an anchor in shared memory at a time

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The difference kernel: `warp_rows` anchors a warp against the columns of one of the splits.
struct SelectPlan {
  int warp_rows;
  int64_t blocks;
  int splits;
  int64_t split_columns;
};

inline void split_columns(SelectPlan& plan, int64_t references, int64_t wanted) {
  const int64_t tiles = std::max<int64_t>(ceil_div(references, kTileColumns), 1);
  const int64_t splits = std::clamp<int64_t>(wanted, 1, std::min<int64_t>(tiles, kMostSplits));
  plan.split_columns = ceil_div(tiles, splits) * kTileColumns;
  plan.splits = static_cast<int>(std::max<int64_t>(ceil_div(references, plan.split_columns), 1));
}

// `most_rows`: anchors of a warp of the large-tile kernel of this dtype. A list of negatives has its own kernel.
inline SelectPlan plan_select(int64_t anchors, int64_t references, int64_t k, int most_rows, int list_rows,
                              int multiprocessors) {
  SelectPlan plan{};
  const bool small = anchors <= kSmallAnchors && references <= kSmallReferences;
  plan.warp_rows = k > 1 ? list_rows : small ? 1 : most_rows;
  plan.blocks = ceil_div(anchors, int64_t{kWarps} * plan.warp_rows);
  // One launch where that is quick; else splits, which a second one merges, until every multiprocessor has two blocks.
  const int64_t wanted = small ? 1 : ceil_div(int64_t{2} * multiprocessors, std::max<int64_t>(plan.blocks, 1));
  split_columns(plan, references, wanted);
  return plan;
}

// Products on tensor cores: two-byte rows in 16-byte steps, one negative, anchors that fit into shared memory 64 at a
// time.
inline bool products_select(int64_t anchors, int64_t references, int64_t width, int64_t k) {
  return k == 1 && anchors >= kTensorAnchors && references >= kTensorReferences && width >= kTensorWidth &&
         width % 8 == 0 && width * 2 * 64 <= kTensorRowsBytes;
}

struct ProductsPlan {
  int parts;  // times 64 anchors are a block's
  SelectPlan grid;
};

inline ProductsPlan plan_products(int64_t anchors, int64_t references, int64_t width, int multiprocessors) {
  ProductsPlan plan{};
  plan.parts = width * 2 * 128 <= kTensorRowsBytes ? 2 : 1;
  plan.grid.blocks = ceil_div(anchors, 64 * plan.parts);
  const int64_t waves = ceil_div(plan.grid.blocks, multiprocessors);
  split_columns(plan.grid, references, waves * multiprocessors / plan.grid.blocks);
  return plan;
}

// Lanes that share a row so that each has about four 16-byte vectors of it.
inline int lanes_for(int64_t width, int vector) {
  int lanes = 4;
  while (lanes < 32 && int64_t{lanes} * vector * 4 < width) lanes *= 2;
  return lanes;
}

struct TermsPlan {
  int lanes;
  int blocks;  // all at once on the device: they meet at a barrier where there is more than one
};

inline TermsPlan plan_terms(int64_t anchors, int64_t width, int vector, int multiprocessors) {
  TermsPlan plan{};
  plan.lanes = lanes_for(width, vector);
  const int64_t blocks = std::max<int64_t>(ceil_div(anchors, kThreads / plan.lanes), 1);
  plan.blocks = anchors * width <= kOneBlockWork ? 1 : static_cast<int>(std::min<int64_t>(blocks, multiprocessors));
  return plan;
}

// Whether every block looks through all indices for its rows' contributions, or each anchor adds to its rows.
inline bool backward_gathers(int64_t anchors, int64_t k, bool deterministic) {
  return deterministic || anchors * (1 + k) <= kGatherEntries;
}

inline bool exact_pairs(int64_t anchors, int64_t references, int64_t width) {
  return anchors * references * std::max<int64_t>(width, 1) <= kExactWork;
}

}  // namespace amkd::triplet::gpu
