// Between segments_cpu.cpp, which speaks with torch and shares the work among threads, and the *_cpu_kernels.cpp, which
// are compiled once per SIMD level and know nothing of torch.
#pragma once

#include "../common/cpu_element.h"
#include "segments.h"

namespace amkd::segments {

struct Kernels {
  // Σ (student − teacher)² of the elements from first to last; writes their gradient, slope times the difference, where
  // the segment has one.
  double (*sweep)(const Segment&, int64_t first, int64_t last, double slope);
  // Multiplies the elements from first to last.
  void (*scale)(void* data, int64_t first, int64_t last, double factor);
};

#define AMKD_SEGMENTS_LEVEL(level)         \
  namespace level {                        \
  extern const Kernels kernels[kElements]; \
  }
AMKD_SEGMENTS_LEVEL(baseline)
AMKD_SEGMENTS_LEVEL(avx2)
AMKD_SEGMENTS_LEVEL(avx512)
#undef AMKD_SEGMENTS_LEVEL

}  // namespace amkd::segments
