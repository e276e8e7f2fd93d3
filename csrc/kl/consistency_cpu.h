// Between consistency_cpu.cpp, which speaks with torch and shares the work among threads, and
// consistency_cpu_kernels.cpp, which is compiled once per SIMD level and knows nothing of torch.
#pragma once

#include <cstdint>

#include "../common/cpu_element.h"
#include "consistency.h"

namespace amkd::kl {
namespace consistency {

struct Problem {
  double per_t;  // 1 / temperature
  int64_t rows, classes;
  const void* student[kViews];  // [rows, classes], unit column stride
  const void* teacher[kViews];
  int64_t student_stride[kViews];  // of a row, in elements
  int64_t teacher_stride[kViews];
  void* stats;  // csrc/kl/consistency.h
};

struct Forward : Problem {
  double* terms[kViews];  // [rows]: KL of a view, the augmented one times the confidence
};

struct Backward : Problem {
  double factor;               // of either view's sum, with the upstream gradient
  void* grad_student[kViews];  // [rows, classes], contiguous
};

struct Kernels {
  void (*forward)(const Forward&, int64_t first, int64_t last);
  void (*backward)(const Backward&, int64_t first, int64_t last);
};

using KernelTable = const Kernels[kElements];

}  // namespace consistency

namespace baseline {
extern consistency::KernelTable consistency_kernels;
}
namespace avx2 {
extern consistency::KernelTable consistency_kernels;
}
namespace avx512 {
extern consistency::KernelTable consistency_kernels;
}

}  // namespace amkd::kl
