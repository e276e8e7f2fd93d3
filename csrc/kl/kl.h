// The KL family: what the CPU and the CUDA implementation share. docs/methods.md (Divergences) has the
// mathematics, amkd_fast/ops/kl/op.py the Python side of the same layout.
#pragma once

#include <cstdint>

namespace amkd::kl {

enum class Divergence : int64_t { kForward = 0, kReverse = 1, kJs = 2, kSoftCrossEntropy = 3 };

// Row statistics that the forward pass leaves for the backward pass, field by field: stats[field * rows + row].
// A maximum is of the raw logits; a log-sum is log Σ exp((z - max) / T). The two stay apart: folded into one number
// they lose the low digits of logits with a large common offset. A field that a call has no use for is 0.
enum Field : int64_t {
  kStudentMax = 0,
  kStudentLogSum = 1,
  kTeacherMax = 2,  // reverse: the logit of the teacher's that logarithms are measured from, see below
  kTeacherLogSum = 3,
  kInner = 4,               // reverse: Σ q (a - c) measured from there; js: KL(q‖m)
  kStudentLogSumAtOne = 5,  // with labels: the student's log-sum at T = 1
  kFields = 6,
};

// Reverse: the gradient of a class is q (a - c - KL(q‖p)), of which almost nothing is left where q is nearly 1. So
// there logarithms of q/p are measured from that of the student's largest class, (a - c) - (a_top - c_top) = ((z_s -
// max_s) - (z_t - z_t,top)) / T, and their mean under q is a sum over the other classes alone: no large numbers cancel.
// Elsewhere the teacher's maximum does as well.

// Behind the fields: three scalars over all rows.
enum Tail : int64_t {
  kLabelled = 0,      // number of rows whose label is not ignored
  kCrossEntropy = 1,  // their mean cross-entropy, before weighting
  kDivergence = 2,    // mean of row_scale · divergence over all rows, before weighting
  kTail = 3,
};

// loss = kl_factor · Σ weight[i] · row_scale · divergence[i] + ce_factor · Σ ce_weight[i] · ce[i] / labelled, or the
// rows of the first term when per_row. Missing weights are 1; means over no rows are 0.
struct Scalars {
  double temperature;
  Divergence divergence;
  double beta;
  double row_scale;
  double kl_factor;
  double ce_factor;
  int64_t ignore_index;
  bool per_row;
};

}  // namespace amkd::kl
