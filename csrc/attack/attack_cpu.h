// Between attack_cpu.cpp, which speaks with torch and shares the work among threads, and the *_cpu_kernels.cpp, which
// are compiled once per SIMD level and know nothing of torch.
#pragma once

#include "../common/cpu_element.h"
#include "attack.h"

namespace amkd::attack {

// Bounds of every coordinate of a sample, [size] in the dtype of the arithmetic, where channels are too short a run to
// be served by two numbers at a time; null else.
struct StepWork : StepProblem {
  double largest;  // finite number of the samples' dtype
  const void *lower_at, *upper_at;
  const int64_t* place = nullptr;  // of a sample among those in `out`; null: its own
};

// A bound among the numbers that a sample can hold; a NaN becomes `none`.
static inline double saturated(double bound, double none, double largest) {
  if (bound != bound) return none;
  return bound > largest ? largest : (bound < -largest ? -largest : bound);
}

struct Rows {
  int64_t rows, classes;
  const void* logits;  // [rows, classes], unit column stride
  int64_t stride;      // of a row, in elements
};

struct Objective : Rows {
  const int64_t *labels, *target;  // target: null for none
  Loss loss;
  bool softmax, targeted;
  void* value;  // [rows] in the dtype of the statistics
  void* gradient;
  int64_t* prediction;
  bool* active;
};

struct Disagreement {
  Rows student, teacher;
  const int64_t* labels;
  double* key;  // [rows], -1 where the row is not eligible
};

// Draw i: a class other than base[i] for row at[i] of the logits.
struct Draw : Rows {
  const int64_t* at;       // null: row i
  const int64_t* base;     // in [0, classes)
  const int64_t* counter;  // null: i
  uint64_t seed;
  int64_t* target;
};

// Steps of the samples from first to last. wide_grad: grad is in the dtype of the arithmetic. scratch: room for
// 2 · size numbers of that dtype.
using StepKernel = void (*)(const StepWork&, bool wide_grad, int64_t first, int64_t last, void* scratch);
using ObjectiveKernel = void (*)(const Objective&, int64_t first, int64_t last);
// The class with the largest logit of every row, as torch.argmax, and whether the row holds a NaN.
using TopKernel = void (*)(const Rows&, int64_t* at, bool* poisoned);
using DisagreementKernel = void (*)(const Disagreement&, int64_t first, int64_t last);
using DrawKernel = void (*)(const Draw&, int64_t first, int64_t last);

#define AMKD_ATTACK_LEVEL(level)                                   \
  namespace level {                                                \
  extern const StepKernel step_kernels[kElements];                 \
  extern const ObjectiveKernel objective_kernels[kElements];       \
  extern const TopKernel top_kernels[kElements];                   \
  extern const DisagreementKernel disagreement_kernels[kElements]; \
  extern const DrawKernel draw_kernels[kElements];                 \
  }
AMKD_ATTACK_LEVEL(baseline)
AMKD_ATTACK_LEVEL(avx2)
AMKD_ATTACK_LEVEL(avx512)
#undef AMKD_ATTACK_LEVEL

}  // namespace amkd::attack
