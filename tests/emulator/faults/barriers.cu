// Barriers of a block, and of some of its warps.
#include <vector>

#include "cases.h"

namespace {

constexpr int kThreads = 128;

// Threads of one warp come from two lines.
template <bool kDiverges>
__global__ void meet_in_branches(int* out) {
  __shared__ int values[kThreads];
  values[threadIdx.x] = threadIdx.x;
  if (kDiverges && threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = values[kThreads - 1 - threadIdx.x];
}
template <bool kDiverges>
uint64_t run_meet_in_branches() {
  std::vector<int> out(kThreads);
  meet_in_branches<kDiverges><<<1, kThreads>>>(out.data());
  return sum_of(out.data(), kThreads);
}

// Some threads pass one barrier more.
__global__ void loop_unevenly(int* out) {
  for (int i = 0; i < 1 + static_cast<int>(threadIdx.x) % 2; ++i) {
    __syncthreads();
  }
  __syncthreads();
  out[threadIdx.x] = 1;
}
uint64_t run_loop_unevenly() {
  std::vector<int> out(kThreads);
  loop_unevenly<<<1, kThreads>>>(out.data());
  return 0;
}

// Those who have ended are not waited for.
__global__ void leave_early(int* out) {
  __shared__ int values[kThreads];
  values[threadIdx.x] = threadIdx.x;
  if (threadIdx.x >= 96) return;
  __syncthreads();
  out[threadIdx.x] = values[95 - threadIdx.x];
}
uint64_t run_leave_early() {
  std::vector<int> out(kThreads);
  leave_early<<<1, kThreads>>>(out.data());
  return sum_of(out.data(), 96);
}

__device__ void meet(int barrier, int threads) {
  if (threads == 64) {
    asm volatile("bar.sync %0, 64;\n" ::"r"(barrier) : "memory");
  } else {
    asm volatile("bar.sync %0, 96;\n" ::"r"(barrier) : "memory");
  }
}

// Two warps each pass their numbers on at a barrier of their own; `kAcross`: to the other two.
template <bool kAcross, int kMet>
__global__ void meet_in_pairs(int* out) {
  __shared__ int values[kThreads];
  const int i = threadIdx.x, pair = i / 64;
  values[i] = i;
  meet(1 + pair, kMet);
  out[i] = values[kAcross ? kThreads - 1 - i : 64 * pair + 63 - i % 64];
}
template <bool kAcross, int kMet>
uint64_t run_meet_in_pairs() {
  std::vector<int> out(kThreads);
  meet_in_pairs<kAcross, kMet><<<1, kThreads>>>(out.data());
  return sum_of(out.data(), kThreads);
}

__global__ void vote(int* out) { out[threadIdx.x] = __syncthreads_or(threadIdx.x == 77); }
uint64_t run_vote() {
  std::vector<int> out(kThreads);
  vote<<<1, kThreads>>>(out.data());
  return sum_of(out.data(), kThreads);
}

__global__ void __launch_bounds__(kThreads) bounded(int* out) { out[threadIdx.x] = 1; }
template <int kCount>
uint64_t run_bounded() {
  std::vector<int> out(kCount);
  bounded<<<1, kCount>>>(out.data());
  check(cudaGetLastError());
  return sum_of(out.data(), kCount);
}

// What failed is the last error until somebody asks for it, also behind a launch that did not fail.
uint64_t run_last_error() {
  int out[kThreads];
  bounded<<<1, 2048>>>(out);
  bounded<<<1, kThreads>>>(out);
  const uint64_t first = cudaGetLastError(), second = cudaGetLastError();
  return 10 * first + second;
}

}  // namespace

const Case kBarrierCases[] = {
    {"meet", run_meet_in_branches<false>},
    {"meet_in_branches", run_meet_in_branches<true>},
    {"loop_unevenly", run_loop_unevenly},
    {"leave_early", run_leave_early},
    {"meet_in_pairs", run_meet_in_pairs<false, 64>},
    {"meet_in_pairs_across", run_meet_in_pairs<true, 64>},
    {"meet_too_few", run_meet_in_pairs<false, 96>},
    {"vote", run_vote},
    {"bounded", run_bounded<kThreads>},
    {"out_of_launch_bounds", run_bounded<kThreads + 32>},
    {"too_many_threads", run_bounded<1056>},
    {"last_error", run_last_error},
    {},
};
