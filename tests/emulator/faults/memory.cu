// Accesses of shared and global memory.
#include <vector>

#include "cases.h"

namespace {

constexpr int kThreads = 64;

enum class Fault { kNone, kReadEarly, kWriteEarly };

// Every thread gives its number to the next one, twice.
template <Fault kFault>
__global__ void pass_on(int* out) {
  __shared__ int values[kThreads];
  const int i = threadIdx.x, from = (i + 1) % kThreads;
  values[i] = i;
  if (kFault != Fault::kReadEarly) __syncthreads();
  const int first = values[from];
  if (kFault != Fault::kWriteEarly) __syncthreads();
  values[i] = first;
  __syncthreads();
  out[i] = values[from];
}
template <Fault kFault>
uint64_t run_pass_on() {
  std::vector<int> out(kThreads);
  pass_on<kFault><<<1, kThreads>>>(out.data());
  return sum_of(out.data(), kThreads);
}

__global__ void write_together(int* out) {
  __shared__ int value;
  value = threadIdx.x;
  __syncthreads();
  if (threadIdx.x == 0) *out = value;
}
uint64_t run_write_together() {
  int out = 0;
  write_together<<<1, kThreads>>>(&out);
  return 0;
}

__global__ void read_unwritten(int* out) {
  __shared__ int values[kThreads];
  if (threadIdx.x > 0) values[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[kThreads - 1 - threadIdx.x];
}
uint64_t run_read_unwritten() {
  std::vector<int> out(kThreads);
  read_unwritten<<<1, kThreads>>>(out.data());
  return 0;
}

__global__ void leave_shared(int* out, int extra) {
  __shared__ int values[kThreads];
  values[threadIdx.x + extra] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x + extra];
}
template <int kExtra>
uint64_t run_leave_shared() {
  std::vector<int> out(kThreads);
  leave_shared<<<1, kThreads>>>(out.data(), kExtra);
  return sum_of(out.data(), kThreads);
}

__global__ void leave_dynamic(int* out) {
  extern __shared__ int numbers[];
  numbers[threadIdx.x] = 1;
  out[threadIdx.x] = numbers[threadIdx.x];
}
template <int kBytes>
uint64_t run_leave_dynamic() {
  std::vector<int> out(kThreads);
  leave_dynamic<<<1, kThreads, kBytes>>>(out.data());
  check(cudaGetLastError());
  return sum_of(out.data(), kThreads);
}

__global__ void leave_global(const int* in, int* out) { out[threadIdx.x] = in[threadIdx.x]; }
template <int kCount>
uint64_t run_leave_global() {
  const std::vector<int> in(kCount, 3);
  std::vector<int> out(kThreads);
  leave_global<<<1, kThreads>>>(in.data(), out.data());
  return sum_of(out.data(), kThreads);
}

// Bytes that are used as what needs a larger alignment than they ask for.
template <bool kAligned>
__global__ void use_bytes(double* out) {
  if constexpr (kAligned) {
    extern __shared__ __align__(16) unsigned char aligned_bytes[];
    reinterpret_cast<double*>(aligned_bytes)[threadIdx.x] = 1;
    out[threadIdx.x] = reinterpret_cast<double*>(aligned_bytes)[threadIdx.x];
  } else {
    extern __shared__ unsigned char bytes[];
    reinterpret_cast<double*>(bytes)[threadIdx.x] = 1;
    out[threadIdx.x] = reinterpret_cast<double*>(bytes)[threadIdx.x];
  }
}
template <bool kAligned>
uint64_t run_use_bytes() {
  std::vector<double> out(kThreads);
  use_bytes<kAligned><<<1, kThreads, kThreads * sizeof(double)>>>(out.data());
  return static_cast<uint64_t>(out[kThreads - 1]);
}

__global__ void write_from_blocks(int* out) { out[threadIdx.x] = blockIdx.x; }
uint64_t run_write_from_blocks() {
  std::vector<int> out(kThreads);
  write_from_blocks<<<2, kThreads>>>(out.data());
  return 0;
}

template <bool kBarrier>
__global__ void count(int* out) {
  __shared__ int total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  atomicAdd(&total, 1);
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = total;
}
template <bool kBarrier>
uint64_t run_count() {
  std::vector<int> out(kThreads);
  count<kBarrier><<<1, kThreads>>>(out.data());
  return sum_of(out.data(), kThreads);
}

// Whoever comes first takes the lowest place: nothing races, and the result depends on the order.
__global__ void take_tickets(int* next, int* out) {
  const int place = atomicAdd(next, 1);
  out[place] = blockIdx.x * kThreads + threadIdx.x;
}
uint64_t run_take_tickets() {
  int next = 0;
  std::vector<int> out(4 * kThreads);
  take_tickets<<<4, kThreads>>>(&next, out.data());
  return sum_of(out.data(), 4 * kThreads);
}

__global__ void shift_too_far(int by, int* out) { *out = 1 << (by + threadIdx.x); }
uint64_t run_shift_too_far() {
  int out = 0;
  shift_too_far<<<1, 2>>>(31, &out);
  return 0;
}

}  // namespace

const Case kMemoryCases[] = {
    {"pass_on", run_pass_on<Fault::kNone>},
    {"read_before_barrier", run_pass_on<Fault::kReadEarly>},
    {"write_before_barrier", run_pass_on<Fault::kWriteEarly>},
    {"write_together", run_write_together},
    {"read_unwritten", run_read_unwritten},
    {"inside_shared", run_leave_shared<0>},
    {"outside_shared", run_leave_shared<1>},
    {"inside_dynamic", run_leave_dynamic<4 * kThreads>},
    {"outside_dynamic", run_leave_dynamic<4 * kThreads - 4>},
    {"too_much_dynamic", run_leave_dynamic<(48 << 10) + 4>},
    {"inside_global", run_leave_global<kThreads>},
    {"outside_global", run_leave_global<kThreads - 1>},
    {"aligned_bytes", run_use_bytes<true>},
    {"misaligned_bytes", run_use_bytes<false>},
    {"blocks_write_together", run_write_from_blocks},
    {"count", run_count<true>},
    {"count_read_early", run_count<false>},
    {"tickets", run_take_tickets},
    {"shift_too_far", run_shift_too_far},
    {},
};
