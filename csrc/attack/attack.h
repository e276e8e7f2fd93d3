// The attack family: what the CPU and the CUDA implementation share. docs/methods.md has the
// mathematics (Attack steps, Boundary samples), amkd_fast/ops/attack/reference.py the specification,
// operators.py the Python side of the same numbers.
#pragma once

#include <cstdint>

namespace amkd::attack {

// kUnit and kNewton are the boundary steps of norm_power 1 and 2.
enum class Rule : int64_t { kLinf = 0, kL2 = 1, kL1 = 2, kUnit = 3, kNewton = 4 };
enum class Loss : int64_t { kCrossEntropy = 0, kBoundary = 1, kDlr = 2 };

constexpr double kGapMargin = 1e-4;  // a step from the boundary itself is not zero
constexpr double kDlrFloor = 1e-12;

// The numbers of a step that are one for all samples or channels, where no tensor replaces them.
struct StepScalars {
  Rule rule;
  double step_size;
  double radius;  // counts where there is an x0
  double lower;   // -inf for none
  double upper;
  double decay;
  bool project;
  int64_t top;  // coordinates that an l1 step moves at least
};

// What a step kernel works on. Images [samples, size] lie alike; the channel of flat position e is (e / run) %
// channels. Pointers are null for what is not there.
struct StepProblem {
  StepScalars scalars;
  int64_t samples, size, channels, run;
  void* out;
  const void *x, *grad, *x0;
  const void *step_sizes, *radii, *gap;  // [samples] in the dtype of the arithmetic
  void* velocity;                        // likewise, [samples, size]
  const void *lowers, *uppers;           // likewise, [channels]
  const bool* active;                    // [samples]
};

}  // namespace amkd::attack
