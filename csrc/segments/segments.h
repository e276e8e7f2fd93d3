// The segments family: what the CPU and the CUDA implementation share. docs/methods.md (Segments)
// and amkd_fast/ops/segments/reference.py have the mathematics.
#pragma once

#include <cstdint>

namespace amkd::segments {

// A pair of tensors whose elements lie in one block of memory, in the same order: a sum does not care which.
struct Segment {
  const void *student, *teacher;  // [size]
  void* grad;                     // [size], or null where none is wanted
  int64_t size;
};

// The gradient of a segment is this, times its difference, times what comes from above.
inline double slope(double weight, int64_t size) { return 2.0 * weight / static_cast<double>(size); }

}  // namespace amkd::segments
