// Between search_cpu.cpp and search_cpu_kernels.cpp, which is compiled once per SIMD level and knows nothing of torch.
#pragma once

#include "attack_cpu.h"

namespace amkd::attack {

// out ← the point half way from a to b [size], rounded to their dtype.
using MiddleKernel = void (*)(const void* a, const void* b, int64_t size, void* out);

// A convolution's weight [O, I, S] and what its BatchNorm makes of the O outputs: filter o becomes scale[o] times it,
// in the same order or, with `last`, as [O, S, I].
struct Filters {
  const void* weight;
  const double* scale;
  int64_t inputs, pixels;
  bool last;
  void* out;
};
using FoldKernel = void (*)(const Filters&, int64_t first, int64_t last);

#define AMKD_SEARCH_LEVEL(level)                       \
  namespace level {                                    \
  extern const MiddleKernel middle_kernels[kElements]; \
  extern const FoldKernel fold_kernels[2];             \
  }
AMKD_SEARCH_LEVEL(baseline)
AMKD_SEARCH_LEVEL(avx2)
AMKD_SEARCH_LEVEL(avx512)
#undef AMKD_SEARCH_LEVEL

}  // namespace amkd::attack
