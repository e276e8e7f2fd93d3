// How many threads and blocks the attack kernels get for a size. No CUDA in here: a test can run it anywhere.
#pragma once

#include <algorithm>
#include <cstdint>

namespace amkd::attack::gpu {

constexpr int kSmallThreads = 128;
constexpr int kMostRanks = 8;                      // blocks of a cluster that every GPU with clusters has room for
constexpr int64_t kMostValues = int64_t{1} << 30;  // of a sample or a row
constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;

constexpr int64_t kWarpClasses = 1024;  // longer rows get a block
constexpr int kRowThreads = 256;
constexpr int kBasesThreads = 512;
constexpr int64_t kOneBlockRows = 512;  // a block compares as many keys with each other in a microsecond or two
constexpr int64_t kOneBlockElements = int64_t{1} << 15;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t whole_warps(int64_t threads) { return ceil_div(threads, 32) * 32; }
constexpr int64_t power_of_two_from(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}

struct StepPlan {
  bool held;  // a sample stays in registers
  int lanes;  // threads of one block that share a sample; above 32 they are the whole block
  int ranks;  // blocks that share a sample, a cluster
  int share;  // values of a sample that a block takes
  int threads;
  int64_t blocks;
};

// `values`: what a thread holds. `width`: of a 16-byte vector. Clusters spread samples that no block can hold.
inline StepPlan plan_step(int64_t samples, int64_t size, int width, int values, int most_threads, bool has_clusters) {
  const int64_t most = int64_t{most_threads} * values;
  StepPlan plan{};
  plan.ranks = 1;
  int64_t share = size;
  if (size > most && has_clusters) {
    plan.ranks = static_cast<int>(std::min(power_of_two_from(ceil_div(size, most)), int64_t{kMostRanks}));
    share = ceil_div(ceil_div(size, plan.ranks), width) * width;
  }
  plan.share = static_cast<int>(share);
  plan.held = share <= most;
  const int64_t threads = std::min<int64_t>(whole_warps(ceil_div(share, values)), most_threads);
  plan.lanes = static_cast<int>(threads);
  if (threads > 32) {
    plan.threads = plan.lanes;
    plan.blocks = samples * plan.ranks;
  } else {
    plan.threads = static_cast<int>(std::min<int64_t>(samples * 32, kSmallThreads));
    plan.blocks = ceil_div(samples, plan.threads / 32);
  }
  return plan;
}

struct RowsPlan {
  int lanes;
  int threads;
  int64_t blocks;
};

inline RowsPlan plan_objective(int64_t rows, int64_t classes) {
  RowsPlan plan{};
  const bool small = classes <= kWarpClasses;
  plan.threads = small ? kSmallThreads : kRowThreads;
  plan.lanes = small ? static_cast<int>(std::clamp<int64_t>(power_of_two_from(classes), 4, 32)) : kRowThreads;
  plan.blocks = ceil_div(rows, plan.threads / plan.lanes);
  return plan;
}

// A warp a row.
inline RowsPlan plan_warps(int64_t rows) { return {32, kSmallThreads, ceil_div(rows, kSmallThreads / 32)}; }

// Whether one block selects the bases; else one launch finds the disagreements and another their order.
constexpr bool one_block_selects(int64_t rows, int64_t classes) {
  return rows <= kOneBlockRows && rows * classes <= kOneBlockElements;
}

}  // namespace amkd::attack::gpu
