// Decoupled knowledge distillation: what the CPU and the CUDA implementation share.
// amkd_fast/ops/kl/decoupled/op.py is the Python side of the same layout.
//
// With m the maximum of the classes other than the target y, S = Σ exp((z - m) / T) over them and d = (z_y - m) / T -
// log S, the target's probability is σ(d) and that of all others σ(-d). Kept apart from the target, the others cannot
// underflow beside it, and no logarithm of a difference is taken.
#pragma once

#include <cstdint>

namespace amkd::kl::decoupled {

// Row statistics that the forward pass leaves for the backward pass, field by field: stats[field * rows + row].
enum Field : int64_t {
  kStudentMax = 0,     // m of the student, or 0 where there are no others
  kStudentLogSum = 1,  // log S, or 0
  kTeacherMax = 2,
  kTeacherLogSum = 3,
  kSlope = 4,  // σ(d) of the student less that of the teacher: the slope of the target's divergence in the former's d
  kValue = 5,  // target_factor · KL(target) + other_factor · KL(others)
  kFields = 6,
};

// loss = factor · Σ weight[i] · value[i], or the rows of it when per_row. A missing weight is 1.
struct Scalars {
  double temperature;
  double target_factor;
  double other_factor;
  double factor;
  bool per_row;
};

}  // namespace amkd::kl::decoupled
