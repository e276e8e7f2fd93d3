// The KL divergence of standardised logits: what the CPU and the CUDA implementation share. docs/methods.md
// (Standardised divergence) has the mathematics, amkd_fast/ops/kl/standardised/function.py the Python side.
#pragma once

#include <cstdint>

namespace amkd::kl::standardised {

// Row statistics that the forward pass leaves for the backward pass: stats[field * rows + row].
enum Field : int64_t {
  kStudentMax = 0,
  kStudentLogSum = 1,  // log Σ exp((z - max) / (s T))
  kStudentCentre = 2,  // the mean of z - max
  kStudentScale = 3,   // 1 / s, and 0 for a row without gradient: all logits equal, or two, which become ±1/√2
  kStudentPull = 4,    // Σ (q - p) u / (n - 1), u = (z - max - centre) / s: of the gradient through s
  kTeacherMax = 5,
  kTeacherLogSum = 6,
  kTeacherScale = 7,
  kFields = 8,
};

// loss = factor · Σ weight[i] · KL[i], or these rows. A missing weight is 1.
struct Scalars {
  double temperature;
  double factor;
  bool per_row;
};

}  // namespace amkd::kl::standardised
