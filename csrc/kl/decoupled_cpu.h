// Between decoupled_cpu.cpp, which speaks with torch and shares the work among threads, and decoupled_cpu_kernels.cpp,
// which is compiled once per SIMD level and knows nothing of torch.
#pragma once

#include <cstdint>

#include "../common/cpu_element.h"
#include "decoupled.h"

namespace amkd::kl::decoupled {

struct Problem {
  Scalars scalars;
  double per_t;  // 1 / temperature
  int64_t rows;
  int64_t classes;
  const void* student;  // [rows, classes], unit column stride
  const void* teacher;
  int64_t student_stride;  // of a row, in elements
  int64_t teacher_stride;
  const void* labels;     // [rows]
  bool labels_are_int64;  // else int32
  const void* weight;     // [rows] in the statistics' dtype, or null
  void* stats;            // decoupled.h
};

static inline int64_t label_of(const Problem& p, int64_t row) {
  return p.labels_are_int64 ? static_cast<const int64_t*>(p.labels)[row] : static_cast<const int32_t*>(p.labels)[row];
}

struct Forward : Problem {
  int64_t bad_row;  // the first row whose label is out of range, or -1
};

struct Backward : Problem {
  const void* grad_loss;  // [] or [rows]
  void* grad_student;     // [rows, classes], contiguous
};

// Both take the rows [first, last).
struct Kernels {
  void (*forward)(Forward&, int64_t first, int64_t last);
  void (*backward)(const Backward&, int64_t first, int64_t last);
};

using KernelTable = const Kernels[kElements];

namespace baseline {
extern KernelTable kernels;
}
namespace avx2 {
extern KernelTable kernels;
}
namespace avx512 {
extern KernelTable kernels;
}

}  // namespace amkd::kl::decoupled
