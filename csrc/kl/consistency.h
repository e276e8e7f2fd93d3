// Cosine-confidence distillation: what the CPU and the CUDA implementation share. docs/methods.md has the
// mathematics (Consistency of two views), amkd_fast/ops/kl/consistency/function.py the Python side of the same layout.
#pragma once

#include <cstdint>

namespace amkd::kl::consistency {

constexpr int kViews = 2;  // the clean images, the augmented ones

// Row statistics that the forward pass leaves for the backward pass: stats[field * rows + row]. The first four are
// those of the clean view; the same of the augmented view follow.
enum Field : int64_t {
  kStudentMax = 0,
  kStudentLogSum = 1,
  kTeacherMax = 2,
  kTeacherLogSum = 3,
  kViewFields = 4,
  kConfidence = kViews * kViewFields,
  kFields = kConfidence + 1,
};
constexpr int64_t kTail = kViews;  // behind the fields: the mean of either view, with row_scale and confidence

}  // namespace amkd::kl::consistency
