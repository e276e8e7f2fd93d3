// Teams of threads that share a row, and their reductions. Every thread of a team gets the same bits.
#pragma once

#include <cuda_runtime.h>

namespace amkd {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// `lanes` neighbours of one warp (a power of two), or the whole block where lanes > 32 (then lanes == blockDim.x).
struct Team {
  int lanes;

  __device__ bool whole_block() const { return lanes > kWarp; }
  __device__ int lane() const { return whole_block() ? threadIdx.x : threadIdx.x & (lanes - 1); }
  __device__ int index() const { return whole_block() ? 0 : threadIdx.x / lanes; }
  __device__ int count() const { return whole_block() ? 1 : blockDim.x / lanes; }
};

// fmax takes the other operand where one is NaN: a NaN has to reach the result some other way.
struct Larger {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
  __device__ double operator()(double a, double b) const { return fmax(a, b); }
};
struct Plus {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

template <int kCount, class T, class Combine>
__device__ void reduce_lanes(T (&values)[kCount], int lanes, Combine combine) {
  for (int step = lanes / 2; step > 0; step /= 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = combine(values[i], __shfl_xor_sync(kAllLanes, values[i], step));
  }
}

// All threads of the block call this together. A `scratch` may be used again once a barrier has passed in between;
// callers in a loop alternate between two.
template <int kCount, class T, class Combine>
__device__ void reduce_team(const Team& team, T (&values)[kCount], T identity, T (&scratch)[kCount][kWarp],
                            Combine combine) {
  reduce_lanes(values, team.whole_block() ? kWarp : team.lanes, combine);
  if (!team.whole_block()) return;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) scratch[i][warp] = values[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = lane < warps ? scratch[i][lane] : identity;
  reduce_lanes(values, kWarp, combine);
}

}  // namespace amkd
