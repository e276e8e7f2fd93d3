// What the lanes of a warp do together, and in blocks that run together.
#include <cooperative_groups.h>

#include <vector>

#include "cases.h"

namespace {

constexpr unsigned kAll = 0xffffffffu;

// Every lane gets the sum of all: by what is not the mask of those who call, some lanes are missed.
template <unsigned kMask>
__global__ void add_up(int* out) {
  int sum = threadIdx.x;
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kMask, sum, step);
  out[threadIdx.x] = sum;
}
template <unsigned kMask>
uint64_t run_add_up() {
  std::vector<int> out(32);
  add_up<kMask><<<1, 32>>>(out.data());
  return sum_of(out.data(), 32);
}

// Half of the lanes, with the mask of all or their own.
template <unsigned kMask>
__global__ void add_up_half(int* out) {
  int sum = threadIdx.x;
  if (threadIdx.x < 16) {
    for (int step = 8; step > 0; step /= 2) sum += __shfl_xor_sync(kMask, sum, step);
  }
  __syncwarp();
  out[threadIdx.x] = sum;
}
template <unsigned kMask>
uint64_t run_add_up_half() {
  std::vector<int> out(32);
  add_up_half<kMask><<<1, 32>>>(out.data());
  return sum_of(out.data(), 32);
}

__global__ void scan(int* out) {
  int sum = threadIdx.x;
  for (unsigned step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(kAll, sum, step);
    if (threadIdx.x >= step) sum += before;
  }
  const unsigned odd = __ballot_sync(kAll, sum % 2);
  out[threadIdx.x] = __shfl_down_sync(kAll, sum, 1) + __popc(odd) + __any_sync(kAll, sum == 496) +
                     __all_sync(kAll, sum == 496) + __shfl_sync(kAll, sum, 3, 8);
}
uint64_t run_scan() {
  std::vector<int> out(32);
  scan<<<1, 32>>>(out.data());
  return sum_of(out.data(), 32);
}

// Neighbours in a warp pass numbers on in shared memory.
enum class Between { kSync, kNothing, kShuffle };
template <Between kBetween>
__global__ void pass_on(int* out) {
  __shared__ int values[32];
  const int i = threadIdx.x;
  values[i] = i;
  if (kBetween == Between::kSync) __syncwarp();
  if (kBetween == Between::kShuffle) out[i] = __shfl_sync(kAll, i, 0);
  out[i] = values[31 - i];
}
// Halves pass on among themselves alone.
__global__ void pass_on_in_halves(int* out) {
  __shared__ int values[32];
  const int i = threadIdx.x;
  values[i] = i;
  __syncwarp(i < 16 ? 0xffffu : 0xffff0000u);
  const int sum = values[i ^ 15];
  __syncwarp();
  values[i] = sum;
  __syncwarp();
  out[i] = values[31 - i];
}
template <Between kBetween>
uint64_t run_pass_on() {
  std::vector<int> out(32);
  pass_on<kBetween><<<1, 32>>>(out.data());
  return sum_of(out.data(), 32);
}
uint64_t run_pass_on_in_halves() {
  std::vector<int> out(32);
  pass_on_in_halves<<<1, 32>>>(out.data());
  return sum_of(out.data(), 32);
}
__global__ void pass_across_halves(int* out) {
  __shared__ int values[32];
  values[threadIdx.x] = threadIdx.x;
  __syncwarp(threadIdx.x < 16 ? 0xffffu : 0xffff0000u);
  out[threadIdx.x] = values[31 - threadIdx.x];
}
uint64_t run_pass_across_halves() {
  std::vector<int> out(32);
  pass_across_halves<<<1, 32>>>(out.data());
  return 0;
}

}  // namespace

const Case kWarpCases[] = {
    {"add_up", run_add_up<kAll>},
    {"mask_without_oneself", run_add_up<0x7fffffffu>},
    {"add_up_half", run_add_up_half<0xffffu>},
    {"mask_of_absent_lanes", run_add_up_half<kAll>},
    {"mask_too_narrow", run_add_up_half<0xffu>},
    {"scan", run_scan},
    {"warp_pass_on", run_pass_on<Between::kSync>},
    {"warp_without_sync", run_pass_on<Between::kNothing>},
    {"shuffle_is_no_barrier", run_pass_on<Between::kShuffle>},
    {"halves", run_pass_on_in_halves},
    {"halves_across", run_pass_across_halves},
    {},
};
