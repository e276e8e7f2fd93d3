// Threads that share a sample or a row, and how they agree on what each of them has found.
#pragma once

#include <cooperative_groups.h>

#include <cstring>

#include "../common/reduce.cuh"
#include "attack_plan.h"

namespace amkd::attack::gpu {

constexpr int kSlot = 16;  // bytes that may be agreed on at once
constexpr int kMostWarps = 32;

// Shared memory of a block.
struct Desk {
  alignas(kSlot) unsigned char warps[2][kMostWarps * kSlot];
  alignas(kSlot) unsigned char ranks[2][kMostRanks * kSlot];
};

// What the lane `step` away has.
template <class T>
__device__ T shuffled(const T& value, int step) {
  static_assert(sizeof(T) % sizeof(unsigned) == 0);
  constexpr int kWords = sizeof(T) / sizeof(unsigned);
  unsigned words[kWords];
  memcpy(words, &value, sizeof(T));
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = __shfl_xor_sync(kAllLanes, words[i], step);
  T result;
  memcpy(&result, words, sizeof(T));
  return result;
}

// Part of a warp (a power of two), a block of several warps, or `ranks` such blocks, which are a cluster.
class Crew {
 public:
  __device__ Crew(int lanes, int ranks, Desk& desk) : team_{lanes}, ranks_(ranks), desk_(desk) {
    if (ranks > 1) meet();  // nobody writes to a block that has not started
  }

  __device__ int lanes() const { return team_.lanes; }
  __device__ int lane() const { return team_.lane(); }
  __device__ int rank() const { return ranks_ == 1 ? 0 : static_cast<int>(blockIdx.x % static_cast<unsigned>(ranks_)); }
  // The crew's place among all of the grid.
  __device__ int64_t index() const {
    return ranks_ == 1 ? static_cast<int64_t>(blockIdx.x) * team_.count() + team_.index()
                       : blockIdx.x / static_cast<unsigned>(ranks_);
  }

  // All values merged, the same bits for the whole crew; the order never changes. All threads of a block (of a warp,
  // where that holds the crew) call it together.
  template <class T, class Merge>
  __device__ T agree(T value, Merge merge) {
    static_assert(sizeof(T) <= kSlot);
    for (int step = (team_.whole_block() ? kWarp : team_.lanes) / 2; step > 0; step /= 2) {
      value = merge(value, shuffled(value, step));
    }
    if (!team_.whole_block()) return value;
    T* const warps = reinterpret_cast<T*>(desk_.warps[turn_]);
    if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = warps[0];
    for (int i = 1; i < static_cast<int>(blockDim.x) / kWarp; ++i) value = merge(value, warps[i]);
    if (ranks_ > 1) {
      T* const ranks = reinterpret_cast<T*>(desk_.ranks[turn_]);
      send(ranks + rank(), value);
      meet();
      value = ranks[0];
      for (int i = 1; i < ranks_; ++i) value = merge(value, ranks[i]);
    }
    turn_ ^= 1;  // others may still read these slots; a barrier passes before their next use
    return value;
  }

 private:
  __device__ static void meet() {
#if defined(_CG_HAS_CLUSTER_GROUP)
    cooperative_groups::this_cluster().sync();
#endif
  }
  // Into the same place of every block's shared memory.
  template <class T>
  __device__ void send(T* place, const T& value) const {
#if defined(_CG_HAS_CLUSTER_GROUP)
    const int to = threadIdx.x;
    if (to < ranks_) *cooperative_groups::this_cluster().map_shared_rank(place, to) = value;
#endif
  }

  Team team_;
  int ranks_;
  Desk& desk_;
  int turn_ = 0;
};

}  // namespace amkd::attack::gpu
