// How many threads, blocks and launches the KL kernels get for a size. No CUDA in here: a test can run it anywhere.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kl.h"

namespace amkd::kl {

constexpr int64_t kMaxClasses = int64_t{1} << 30;
constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;
constexpr int64_t kVectorClasses = 64;    // shorter rows are read element by element: one trip instead of two
constexpr int64_t kSplitClasses = 16384;  // longer rows get several blocks where there are few of them
constexpr int64_t kSplitWidth = 4096;     // columns that are worth a block of their own
constexpr int64_t kOneBlockElements = 32768;
constexpr int64_t kManyRows = 2048;
constexpr int kCombineThreads = 512;
constexpr int kReduceThreads = 1024;
constexpr int kBackwardThreads = 256;
constexpr int64_t kMostBlocks = 8192;  // of the forward pass, so that one block can sum what they leave

struct ForwardPlan {
  int lanes;  // threads that share a row; above 32 they are the whole block
  int threads;
  unsigned blocks;
  int64_t rows_per_block;
  int splits = 1;  // blocks that share a row
  int split_width;
  int combine_lanes = 0;
  int combine_threads = 0;
  int reduce_threads = 0;
};

struct BackwardPlan {
  int lanes;
  int threads;
  int64_t blocks;
  int splits;
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t power_of_two_from(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}
constexpr int64_t whole_warps(int64_t threads) { return ceil_div(threads, 32) * 32; }

// Threads with which a row is read in one trip, where a thread takes `batch` columns a trip (`edge_batch` in short
// rows).
constexpr int64_t lanes_for_one_trip(int64_t classes, int batch, int edge_batch) {
  return std::max<int64_t>(4, power_of_two_from(ceil_div(classes, classes < kVectorClasses ? edge_batch : batch)));
}

inline ForwardPlan plan_forward(int64_t rows, int64_t classes, int batch, int edge_batch, int max_threads,
                                int multiprocessors) {
  ForwardPlan plan{};
  plan.splits = 1;
  plan.split_width = static_cast<int>(classes);
  int64_t lanes = lanes_for_one_trip(classes, batch, edge_batch);
  if (lanes > 32 && lanes <= 128 && rows >= kManyRows) lanes = 32;  // a few trips cost less than barriers

  if (lanes <= 32) {
    const bool one_block = rows * classes <= kOneBlockElements && rows * lanes <= 4096;
    plan.threads = one_block ? static_cast<int>(std::min<int64_t>(whole_warps(rows * lanes), max_threads)) : 256;
    const int64_t teams = plan.threads / lanes;
    plan.rows_per_block = one_block ? rows : ceil_div(std::max(ceil_div(rows, kMostBlocks), teams), teams) * teams;
  } else {
    // Few rows get large blocks, many rows small ones, whose barriers and loads overlap better.
    const bool splittable = multiprocessors > 0 && classes > kSplitClasses && rows < 2 * multiprocessors;
    lanes = std::clamp<int64_t>(lanes, 64, rows <= 264 && !splittable ? max_threads : 256);
    plan.threads = static_cast<int>(lanes);
    plan.rows_per_block = ceil_div(rows, kMostBlocks);
    if (splittable) {
      const int64_t wanted = std::min(ceil_div(4 * int64_t{multiprocessors}, rows), ceil_div(classes, kSplitWidth));
      plan.split_width = static_cast<int>(ceil_div(ceil_div(classes, wanted), 128) * 128);
      plan.splits = static_cast<int>(ceil_div(classes, plan.split_width));
      plan.rows_per_block = 1;
      const int64_t combine_lanes = std::min<int64_t>(power_of_two_from(plan.splits), 32);
      plan.combine_lanes = static_cast<int>(combine_lanes);
      plan.combine_threads = static_cast<int>(std::min<int64_t>(whole_warps(rows * combine_lanes), kCombineThreads));
    }
  }
  plan.lanes = static_cast<int>(lanes);
  plan.blocks = static_cast<unsigned>(ceil_div(rows, plan.rows_per_block));
  plan.reduce_threads = static_cast<int>(std::min<int64_t>(whole_warps(plan.blocks), kReduceThreads));
  return plan;
}

inline BackwardPlan plan_backward(int64_t rows, int64_t classes, int batch, int edge_batch) {
  constexpr int64_t kThreads = kBackwardThreads, kTrips = 4;
  BackwardPlan plan{};
  int64_t lanes = lanes_for_one_trip(classes, batch, edge_batch);
  if (lanes > 32 && lanes < kThreads) lanes = 32;  // nothing is reduced: rows of one warp need no whole block
  lanes = std::min(lanes, kThreads);
  plan.lanes = static_cast<int>(lanes);
  plan.threads = kThreads;
  plan.splits = lanes == kThreads ? static_cast<int>(ceil_div(classes, kThreads * batch * kTrips)) : 1;
  plan.blocks = lanes == kThreads ? rows * plan.splits : ceil_div(rows, kThreads / lanes);
  return plan;
}

}  // namespace amkd::kl
