// Between relations_cpu.cpp, which speaks with torch and shares the work among threads, and the *_cpu_kernels.cpp,
// which are compiled once per SIMD level and know nothing of torch.
#pragma once

#include <cstdint>

#include "../common/cpu_element.h"

namespace amkd::relations {

constexpr int64_t kMostLanes = 8;                           // doubles of the widest vector
constexpr int64_t kPack = 32;                               // vertices whose angles are computed together
constexpr int64_t kPackBytes = 6 * kPack * sizeof(double);  // of scratch a row
// Squared distances below it are taken for 0: their reciprocals would overflow.
constexpr double kCoincide = 1e-300;

// What is known of the pairs of one side's rows: matrices [count, stride], symmetric, 0 from `count` on.
struct Side {
  const double* rows;  // [count, width], 0 in the columns that were added
  int64_t width;       // a multiple of kMostLanes
  double* squared;     // distances
  double* inverse;     // 1 / √(2 squared), 0 where rows coincide: the product of two of them normalises a cosine
};

struct Pairs {
  int64_t count, stride;  // stride: a multiple of kMostLanes
  Side student, teacher;
};

// Sums over a row of the pairs, of one side's distances and of those that are not 0.
struct DistanceSums {
  double total, apart;
};

// Of the distances' loss: what distances are multiplied by, 1 / mean, and after the first pass what the gradient
// through the student's mean needs.
struct Relative {
  double student_factor, teacher_factor;
  double through_mean;  // Σ h d / (mean² · number of distances that are not 0), h the slope
};

// Σ_k of the derivatives by a cosine, times what a squared distance changes in it; [count, stride] each, row j, lane i:
// the triples with their vertex at i and one leg to j.
struct Legs {
  double* stretch;  // h / (2 d_ij d_ik), as the opposite side's distance enters, with its sign turned
  double* turn;     // h · cosine
};

struct Kernels {
  // A row into fp64; the columns from `count` to `width` become 0.
  void (*widen[kElements])(const void* from, int64_t count, int64_t width, double* to);
  // Rows first to last of both matrices from their diagonal on, and what mirrors them.
  void (*distances)(const Side&, int64_t count, int64_t stride, int64_t first, int64_t last);
  // The angles at rows first to last (multiples of kMostLanes), all of them. Fills those lanes of `legs` and, at [j,
  // k] for j < k, `across` [count, stride] with Σ_i stretch: none of it where these are null. Returns the loss of the
  // triples j < k. scratch: kPackBytes a row.
  double (*angles)(const Pairs&, const Legs&, double* across, int64_t first, int64_t last, void* scratch);
  // The loss of the triples j = k at row i: a cosine is 1, or 0 where rows coincide. NaN where a distance is no number.
  double (*straight)(const Pairs&, int64_t row);
  DistanceSums (*sum)(const Side&, int64_t count, int64_t stride, int64_t row);
  // Of a row's pairs the loss, and Σ h d of the student.
  void (*compare)(const Pairs&, const Relative&, int64_t row, double* loss, double* product);
  // Row `row` of `weights` [count, stride] from its diagonal on and what mirrors it, so that row a's gradient is
  // Σ_b weights_ab (x_b - x_a). `parts` matrices of `across` lie behind one another, and the weights may be the first.
  void (*weigh)(const Pairs&, const Legs&, const double* across, int64_t parts, double angle_factor, const Relative&,
                double distance_factor, int64_t row, double* weights);
  // Rows first to last of that gradient, [count, width].
  void (*gather)(const Side&, int64_t count, int64_t stride, const double* weights, int64_t first, int64_t last,
                 double* grad);
};

#define AMKD_RELATIONS_LEVEL(level) \
  namespace level {                 \
  extern const Kernels kernels;     \
  }
AMKD_RELATIONS_LEVEL(baseline)
AMKD_RELATIONS_LEVEL(avx2)
AMKD_RELATIONS_LEVEL(avx512)
#undef AMKD_RELATIONS_LEVEL

}  // namespace amkd::relations
