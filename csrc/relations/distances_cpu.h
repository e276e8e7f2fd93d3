// The distances' loss where fp32 serves: between distances_cpu.cpp and distances_cpu_kernels.cpp, which is compiled
// once per SIMD level and knows nothing of torch.
#pragma once

#include <cstdint>

#include "../common/cpu_element.h"
#include "relations_cpu.h"

namespace amkd::relations {

constexpr int64_t kBlock = 32;       // rows that are packed together
constexpr int64_t kTileRows = 8;     // rows whose distances are computed together, at most
constexpr int64_t kGatherRows = 12;  // rows whose gradients are taken at a time: a multiple of what any level gathers

constexpr int64_t kGroup = 4;  // columns whose squares are added up first

constexpr int64_t packed_width(int64_t width) { return (width + kGroup - 1) / kGroup * kGroup; }

// Rows of fp32 and their distances from one another.
struct Points {
  float* rows;                   // [count, width]
  float* packed;                 // [blocks, packed_width, kBlock]: the same, filled up with zeros; lanes are rows
  double* distances;             // [count, stride]: right of the diagonal, zeros from `count` on
  int64_t count, width, stride;  // stride: a multiple of kBlock, and more
};

struct DistanceKernels {
  void (*read[kElements])(const void* from, int64_t count, float* to);  // none of fp64
  void (*pack)(const Points&, int64_t block);
  // Rows first to last, with the sums of each. Returns whether fp32 served: squares of what is very small or very large
  // need fp64.
  bool (*measure)(const Points&, int64_t first, int64_t last, DistanceSums* sums);
  // Of a row's pairs to the right of the diagonal the loss, and Σ h d of the student.
  void (*compare)(const Points& student, const Points& teacher, const Relative&, int64_t row, double* loss,
                  double* product);
  // Row `row` of `weights` [count, stride] from its diagonal on, and what mirrors it: what a pair's difference is
  // multiplied by in the gradient.
  void (*weigh)(const Points& student, const Points& teacher, const Relative&, double factor, int64_t row,
                float* weights);
  // Rows first to last of the gradient Σ_b weights_ab (x_b - x_a).
  void (*gather)(const Points& student, const float* weights, int64_t first, int64_t last, float* grad);
};

#define AMKD_RELATIONS_LEVEL(level)              \
  namespace level {                              \
  extern const DistanceKernels distance_kernels; \
  }
AMKD_RELATIONS_LEVEL(baseline)
AMKD_RELATIONS_LEVEL(avx2)
AMKD_RELATIONS_LEVEL(avx512)
#undef AMKD_RELATIONS_LEVEL

}  // namespace amkd::relations
