// Between standardised_cpu.cpp, which speaks with torch and shares the work among threads, and
// standardised_cpu_kernels.cpp, which is compiled once per SIMD level and knows nothing of torch.
#pragma once

#include <cstdint>

#include "../common/cpu_element.h"
#include "standardised.h"

namespace amkd::kl {
namespace standardised {

struct Problem {
  Scalars scalars;
  int64_t rows, classes;
  const void* student;  // [rows, classes], unit column stride
  const void* teacher;
  int64_t student_stride;  // of a row, in elements
  int64_t teacher_stride;
  const void* weight;  // [rows] in the statistics' dtype, or null
  void* stats;         // csrc/kl/standardised.h
};

struct Forward : Problem {
  double* divergence;  // [rows], with factor and weight
};

struct Backward : Problem {
  const void* grad_loss;  // [] or [rows], contiguous
  void* grad_student;     // [rows, classes], contiguous
};

struct Kernels {
  void (*forward)(const Forward&, int64_t first, int64_t last);
  void (*backward)(const Backward&, int64_t first, int64_t last);
};

using KernelTable = const Kernels[kElements];

}  // namespace standardised

namespace baseline {
extern standardised::KernelTable standardised_kernels;
}
namespace avx2 {
extern standardised::KernelTable standardised_kernels;
}
namespace avx512 {
extern standardised::KernelTable standardised_kernels;
}

}  // namespace amkd::kl
