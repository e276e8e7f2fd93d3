// Between kl_cpu.cpp, which speaks with torch and shares the work among threads, and kl_cpu_kernels.cpp, which is
// compiled once per SIMD level and knows nothing of torch.
#pragma once

#include <cstdint>

#include "../common/cpu_element.h"
#include "kl.h"

namespace amkd::kl {

constexpr int64_t kBlock = 2048;  // classes that are summed apart; two networks' fp32 logits: 16 KiB

struct Problem {
  Scalars scalars;
  double per_t;  // 1 / temperature
  double log_beta;
  double log_rest;  // log(1 - beta)
  int64_t rows;
  int64_t classes;
  const void* student;  // [rows, classes], unit column stride
  const void* teacher;
  int64_t student_stride;  // of a row, in elements
  int64_t teacher_stride;
  const void* labels;     // [rows] or null
  bool labels_are_int64;  // else int32
  const void* weight;     // [rows] in the statistics' dtype, or null
  const void* ce_weight;
  void* stats;  // csrc/kl/kl.h
};

static inline int64_t label_of(const Problem& p, int64_t row) {
  return p.labels_are_int64 ? static_cast<const int64_t*>(p.labels)[row] : static_cast<const int32_t*>(p.labels)[row];
}

struct Forward : Problem {
  double* divergence;     // [rows], with row_scale and before weights
  double* cross_entropy;  // [rows], 0 where the label is ignored; null without labels
  int64_t bad_row;        // the first row whose label is out of range, or -1
};

struct Backward : Problem {
  const void* grad_loss;  // [] or [rows]
  void* grad_student;     // [rows, classes], contiguous
};

// Sums over a range of columns, relative to the range's own maxima; ranges merge in any grouping.
struct Partial {
  double student_max, student_sum, student_sum_at_one;
  double teacher_max, teacher_sum;
  // forward Σ e^y (y - x), soft cross-entropy Σ e^y x, reverse Σ e^x (x - y) with y from `teacher_at_top`.
  double inner;
  double teacher_at_top;  // reverse: a logit of the teacher's, of the student's largest class where that nearly is all
};

// The same steps serve a row on one thread (one range) and a row that several threads share.
struct Kernels {
  Partial (*sweep)(const Problem&, int64_t row, int64_t begin, int64_t end);
  Partial (*merge)(const Problem&, const Partial&, const Partial&);
  // Writes the row's statistics and its results; of the js divergence only what the mixture does not enter.
  void (*finish)(Forward&, int64_t row, const Partial&);
  // js: Σ p (c - log m) and Σ q (a - log m) over the range, once the row's statistics are known.
  struct Mixture {
    double teacher, student;
  };
  Mixture (*sweep_mixture)(const Problem&, int64_t row, int64_t begin, int64_t end);
  void (*finish_mixture)(Forward&, int64_t row, Mixture);
  // Whole rows from first to last.
  void (*forward_rows)(Forward&, int64_t first, int64_t last);
  // The columns [begin, end) of the rows [first, last).
  void (*backward)(const Backward&, int64_t first, int64_t last, int64_t begin, int64_t end);
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

}  // namespace amkd::kl
