// Squared differences of many segments on a GPU, in one launch. amkd_fast/ops/segments/reference.py has the
// mathematics.
//
// The segments come in a table by value among the kernel's arguments, so that nothing has to be copied to the device
// before. A segment has some blocks; each takes every so-manieth of its tiles and leaves one sum.
#pragma once

#include "../common/cpu_element.h"
#include "../common/element.cuh"
#include "../common/reduce.cuh"
#include "segments.h"

namespace amkd::segments::gpu {

constexpr int kThreads = 256;
constexpr int kTile = 4096;        // elements: four vectors a thread in fp32
constexpr int kMostBlocks = 1024;  // of a segment
constexpr int kGroup = 60;         // segments of a launch: their table fits into the 4 KiB of a kernel's arguments

struct Entry {
  Segment segment;
  double factor, slope;  // slope: of the gradient, but for what the device knows
  int32_t first_block;
  Element element;
  bool aligned;  // to 16 bytes, all its tensors
};

struct Table {
  Entry entries[kGroup];
  double* partials;       // [blocks], or null where no sums are wanted
  const void* weights;    // [count] on the device, or null
  const void* grad_loss;  // one number on the device, or null
  int32_t count, blocks;
  bool wide;  // weights and grad_loss are fp64, else fp32

  __device__ int first_block(int i) const { return i < count ? entries[i].first_block : blocks; }
};
static_assert(sizeof(Table) <= 4096 - 64, "the arguments of a kernel");

__device__ inline double number_at(const void* numbers, int i, bool wide) {
  return wide ? static_cast<const double*>(numbers)[i] : static_cast<const float*>(numbers)[i];
}

// Calls one(i) for single elements and vector(i) for whole vectors of the tiles of this block.
template <int kWidth, class Vectors, class One>
__device__ void for_each(const Entry& entry, int block, int blocks, Vectors vector, One one) {
  const int64_t size = entry.segment.size, step = int64_t{blocks} * kTile;
  for (int64_t first = int64_t{block} * kTile; first < size; first += step) {
    const int here = static_cast<int>(size - first < kTile ? size - first : kTile);
    const int vectors = entry.aligned ? here / kWidth : 0;
#pragma unroll 4
    for (int v = threadIdx.x; v < vectors; v += kThreads) vector(first + v * kWidth);
    for (int i = vectors * kWidth + threadIdx.x; i < here; i += kThreads) one(first + i);
  }
}

template <class Scalar>
__device__ double sweep(const Entry& entry, int block, int blocks, double slope) {
  using Stat = StatOf<Scalar>;
  const Scalar* student = static_cast<const Scalar*>(entry.segment.student);
  const Scalar* teacher = static_cast<const Scalar*>(entry.segment.teacher);
  Scalar* grad = static_cast<Scalar*>(entry.segment.grad);
  const Stat by = static_cast<Stat>(slope);
  Stat sum = 0;
  for_each<Vector<Scalar>::kWidth>(
      entry, block, blocks,
      [&](int64_t i) {
        const Vector<Scalar> s = load_vector(student + i), t = load_vector(teacher + i);
        Vector<Scalar> g;
#pragma unroll
        for (int k = 0; k < Vector<Scalar>::kWidth; ++k) {
          const Stat difference = widen(s.at[k]) - widen(t.at[k]);
          sum += difference * difference;
          g.at[k] = narrow<Scalar>(difference * by);
        }
        if (grad != nullptr) store_vector(grad + i, g);
      },
      [&](int64_t i) {
        const Stat difference = widen(student[i]) - widen(teacher[i]);
        sum += difference * difference;
        if (grad != nullptr) grad[i] = narrow<Scalar>(difference * by);
      });
  return sum;
}

// A segment that is not seen may have anything in it.
template <class Scalar>
__device__ double hide(const Entry& entry, int block, int blocks) {
  Scalar* grad = static_cast<Scalar*>(entry.segment.grad);
  if (grad == nullptr) return 0.0;
  const Scalar zero = narrow<Scalar>(StatOf<Scalar>(0));
  Vector<Scalar> zeros;
#pragma unroll
  for (int k = 0; k < Vector<Scalar>::kWidth; ++k) zeros.at[k] = zero;
  for_each<Vector<Scalar>::kWidth>(
      entry, block, blocks, [&](int64_t i) { store_vector(grad + i, zeros); }, [&](int64_t i) { grad[i] = zero; });
  return 0.0;
}

template <class Scalar>
__device__ void multiply(const Entry& entry, int block, int blocks, double factor) {
  using Stat = StatOf<Scalar>;
  Scalar* grad = static_cast<Scalar*>(entry.segment.grad);
  const Stat by = static_cast<Stat>(factor);
  for_each<Vector<Scalar>::kWidth>(
      entry, block, blocks,
      [&](int64_t i) {
        Vector<Scalar> g = load_vector(grad + i);
#pragma unroll
        for (int k = 0; k < Vector<Scalar>::kWidth; ++k) g.at[k] = narrow<Scalar>(widen(g.at[k]) * by);
        store_vector(grad + i, g);
      },
      [&](int64_t i) { grad[i] = narrow<Scalar>(widen(grad[i]) * by); });
}

// The segment of this block.
__device__ inline int segment_of(const Table& table) {
  int low = 0, high = table.count;  // first_block(low) ≤ block < first_block(high)
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (table.first_block(middle) <= static_cast<int>(blockIdx.x) ? low : high) = middle;
  }
  return low;
}

// Calls run(Scalar{}) with the element's type.
template <class Run>
__device__ void by_element(Element element, Run run) {
  switch (element) {
    case Element::kFloat:
      return run(float());
    case Element::kDouble:
      return run(double());
    case Element::kHalf:
      return run(__half());
    case Element::kBFloat16:
      return run(__nv_bfloat16());
  }
}

__global__ void __launch_bounds__(kThreads) sweep_kernel(const __grid_constant__ Table table) {
  const int i = segment_of(table);
  const Entry& entry = table.entries[i];
  const int block = blockIdx.x - entry.first_block, blocks = table.first_block(i + 1) - entry.first_block;
  double slope = entry.slope;
  if (table.weights != nullptr) slope *= number_at(table.weights, i, table.wide);
  const bool is_seen = slope != 0;
  if (table.grad_loss != nullptr) slope *= number_at(table.grad_loss, 0, table.wide);
  double sum[1] = {0.0};
  by_element(entry.element, [&](auto scalar) {
    using Scalar = decltype(scalar);
    sum[0] = is_seen ? sweep<Scalar>(entry, block, blocks, slope) : hide<Scalar>(entry, block, blocks);
  });
  if (table.partials == nullptr) return;
  __shared__ double scratch[1][kWarp];
  reduce_team(Team{kThreads}, sum, 0.0, scratch, Plus());
  if (threadIdx.x == 0) table.partials[blockIdx.x] = sum[0];
}

// The means of a group, a warp each, and their weighted sum, which is added to `total` unless the group is the first.
template <class Stat>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(const __grid_constant__ Table table, bool is_first, double* total, Stat* loss, Stat* means) {
  __shared__ double weighted[kGroup];
  const int lane = threadIdx.x % kWarp;
  for (int i = threadIdx.x / kWarp; i < table.count; i += kThreads / kWarp) {
    double sum[1] = {0.0};
    for (int b = table.first_block(i) + lane; b < table.first_block(i + 1); b += kWarp) sum[0] += table.partials[b];
    reduce_lanes(sum, kWarp, Plus());
    if (lane != 0) continue;
    const int64_t size = table.entries[i].segment.size;
    const double mean = size > 0 ? sum[0] / static_cast<double>(size) : 0.0;
    means[i] = static_cast<Stat>(mean);
    const double weight = table.weights == nullptr ? 1.0 : number_at(table.weights, i, table.wide);
    weighted[i] = table.entries[i].factor * weight * mean;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  double sum = is_first ? 0.0 : *total;
  for (int i = 0; i < table.count; ++i) sum += weighted[i];
  *total = sum;
  *loss = static_cast<Stat>(sum);
}

__global__ void __launch_bounds__(kThreads) scale_kernel(const __grid_constant__ Table table) {
  const double factor = number_at(table.grad_loss, 0, table.wide);
  if (factor == 1.0) return;
  const int i = segment_of(table);
  const Entry& entry = table.entries[i];
  const int block = blockIdx.x - entry.first_block, blocks = table.first_block(i + 1) - entry.first_block;
  by_element(entry.element, [&](auto scalar) { multiply<decltype(scalar)>(entry, block, blocks, factor); });
}

}  // namespace amkd::segments::gpu
