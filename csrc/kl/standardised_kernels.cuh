// The standardised KL divergence on a GPU. A team of threads looks at its row four times (maxima, means, variances,
// exponentials), of which only the first comes from memory. Rows of one block are summed there, blocks by
// `total_kernel`.
#pragma once

#include "rows_kernels.cuh"
#include "standardised.h"

namespace amkd::kl::standardised {

constexpr double kLog2 = 0.693147180559945309417;

template <class Scalar>
struct Inputs {
  using Stat = StatOf<Scalar>;
  const Scalar* student;
  const Scalar* teacher;
  int64_t student_stride;  // of a row
  int64_t teacher_stride;
  int64_t rows;
  int classes;
  bool use_vectors;
  bool per_row;
  int lanes;
  const Stat* weight;  // or null
  Stat exponent;       // log2(e) / T
  Stat factor;         // backward: with 1/T
};

template <class Scalar>
struct Forward {
  using Stat = StatOf<Scalar>;
  Inputs<Scalar> in;
  Stat* stats;
  Stat* loss;
  double* block_totals;  // [blocks], or null: the only block writes the loss, or it is per row
  int64_t rows_per_block;
};

template <class Scalar>
struct Backward {
  using Stat = StatOf<Scalar>;
  Inputs<Scalar> in;
  const Stat* stats;
  const Stat* grad_loss;
  int64_t grad_loss_stride;
  Scalar* grad;  // [rows, classes], contiguous
  int splits;    // blocks that share a row
};

template <class Stat>
struct StandardisedScratch {
  Stat maxima[2][kWarp];
  Stat means[4][kWarp];
  Stat squares[2][kWarp];
  Stat sums[5][kWarp];
  double total[1][kWarp];
};

// What multiplies z - max in an exponent. Where nothing varies that is 0, or -inf for a class that is masked out, and
// has to stay so.
template <class Stat>
__device__ Stat exponent_of(Stat scale) {
  return scale == 0 ? Stat(1) : scale;
}

template <class Stat>
__device__ Stat scale_of(Stat square, Stat count) {
  return square == 0 ? Stat(0) : sqrt(Larger()(count - 1, Stat(1)) / square);
}

template <class Stat>
__device__ bool is_kept(Stat logit) {
  return logit != -infinity<Stat>();
}

template <class Scalar>
__global__ void __launch_bounds__(kMaxThreads<Scalar, Form::kMixture>, 1)
    standardised_forward_kernel(const Forward<Scalar> call) {
  using Stat = StatOf<Scalar>;
  __shared__ StandardisedScratch<Stat> scratch;
  const Inputs<Scalar>& in = call.in;
  const Team team{in.lanes};
  const int64_t first = blockIdx.x * call.rows_per_block;
  const int64_t last = min(first + call.rows_per_block, in.rows);
  double total[1] = {};  // one number of the call: none of its digits is lost here

  for (int64_t base = first; base < last; base += team.count()) {  // the same trips for the whole block: it reduces
    const int64_t row = base + team.index();
    const bool active = row < last;
    const int classes = active ? in.classes : 0;
    const Scalar* const student = in.student + (active ? row : 0) * in.student_stride;
    const Scalar* const teacher = in.teacher + (active ? row : 0) * in.teacher_stride;
    const auto look = [&](auto body) {
      sweep(student, teacher, classes, in.use_vectors, team, [&](const auto& s, const auto& t) {
        constexpr int kCount = sizeof(s) / sizeof(s[0]);
#pragma unroll
        for (int i = 0; i < kCount; ++i) body(s[i], t[i]);
      });
    };

    Stat maxima[2] = {-infinity<Stat>(), -infinity<Stat>()};
    look([&](Stat s, Stat t) {
      maxima[0] = Larger()(maxima[0], s);
      maxima[1] = Larger()(maxima[1], t);
    });
    reduce_team(team, maxima, -infinity<Stat>(), scratch.maxima, Larger());
    const Stat student_origin = origin(maxima[0]), teacher_origin = origin(maxima[1]);

    // From the maximum on, the differences of a row of equal logits are exactly 0.
    Stat means[4] = {};
    look([&](Stat s, Stat t) {
      means[0] += is_kept(s) ? s - student_origin : Stat(0);
      means[1] += is_kept(t) ? t - teacher_origin : Stat(0);
      means[2] += is_kept(s) ? Stat(1) : Stat(0);
      means[3] += is_kept(t) ? Stat(1) : Stat(0);
    });
    reduce_team(team, means, Stat(0), scratch.means, Plus());
    const Stat centre = means[0] / means[2], teacher_centre = means[1] / means[3];

    Stat squares[2] = {};
    look([&](Stat s, Stat t) {
      const Stat u = is_kept(s) ? s - student_origin - centre : Stat(0);
      const Stat v = is_kept(t) ? t - teacher_origin - teacher_centre : Stat(0);
      squares[0] += u * u;
      squares[1] += v * v;
    });
    reduce_team(team, squares, Stat(0), scratch.squares, Plus());
    const Stat scale = scale_of(squares[0], means[2]), teacher_scale = scale_of(squares[1], means[3]);
    const Stat student_exponent = exponent_of(scale) * in.exponent;
    const Stat teacher_exponent = exponent_of(teacher_scale) * in.exponent;

    Stat sums[5] = {};  // Σ 2^x, Σ 2^y, Σ 2^y (y - x), Σ 2^x u, Σ 2^y u
    look([&](Stat s, Stat t) {
      const Stat from_max = s - student_origin;
      const Stat x = from_max * student_exponent, y = (t - teacher_origin) * teacher_exponent;
      const Stat ex = exp2_of(x), ey = exp2_of(y), u = is_kept(s) ? from_max - centre : Stat(0);
      sums[0] += ex;
      sums[1] += ey;
      sums[2] += ey == 0 ? Stat(0) : ey * (y - x);
      sums[3] += ex * u;
      sums[4] += ey * u;
    });
    reduce_team(team, sums, Stat(0), scratch.sums, Plus());
    if (!active || team.lane() != 0) continue;

    const Stat pull = (sums[3] / sums[0] - sums[4] / sums[1]) * scale / Larger()(means[2] - 1, Stat(1));
    Stat* const stats = call.stats + row;
    stats[kStudentMax * in.rows] = maxima[0];
    stats[kStudentLogSum * in.rows] = log_of(sums[0]);
    stats[kStudentCentre * in.rows] = centre;
    stats[kStudentScale * in.rows] = means[2] > 2 ? scale : Stat(0);
    stats[kStudentPull * in.rows] = pull;
    stats[kTeacherMax * in.rows] = maxima[1];
    stats[kTeacherLogSum * in.rows] = log_of(sums[1]);
    stats[kTeacherScale * in.rows] = teacher_scale;
    const Stat weight = in.weight == nullptr ? Stat(1) : in.weight[row];
    const Stat value =
        product_or_zero(in.factor * weight, Stat(kLog2) * (sums[2] / sums[1]) + log_of(sums[0] / sums[1]));
    if (in.per_row) call.loss[row] = value;
    total[0] += value;
  }

  if (in.per_row) return;
  reduce_team(Team{static_cast<int>(blockDim.x)}, total, 0.0, scratch.total, Plus());
  if (threadIdx.x != 0) return;
  if (call.block_totals == nullptr) {
    *call.loss = static_cast<Stat>(total[0]);
  } else {
    call.block_totals[blockIdx.x] = total[0];
  }
}

template <class Stat>
__global__ void __launch_bounds__(kReduceThreads)
    standardised_total_kernel(const double* block_totals, int blocks, Stat* loss) {
  add_up_blocks<1>(block_totals, blocks, [&](const auto& total) { *loss = static_cast<Stat>(total[0]); });
}

template <class Scalar>
__global__ void __launch_bounds__(kBackwardThreads, kBackwardBlocks<Scalar>)
    standardised_backward_kernel(const Backward<Scalar> call) {
  using Stat = StatOf<Scalar>;
  const Inputs<Scalar>& in = call.in;
  const Team team{in.lanes};
  const int split = static_cast<int>(blockIdx.x % static_cast<unsigned>(call.splits));
  const int64_t row =
      static_cast<int64_t>(blockIdx.x / static_cast<unsigned>(call.splits)) * team.count() + team.index();
  if (row >= in.rows) return;
  const Stat* const stats = call.stats + row;
  const Stat max = stats[kStudentMax * in.rows], centre = stats[kStudentCentre * in.rows];
  const Stat scale = stats[kStudentScale * in.rows], pull = stats[kStudentPull * in.rows] * scale;
  const Stat weight = in.weight == nullptr ? Stat(1) : in.weight[row];
  const bool is_seen = in.factor * weight != 0;  // what a weight of 0 hides may be NaN
  const Stat factor = call.grad_loss[row * call.grad_loss_stride] * in.factor * weight * scale;
  const Probability<Stat> q{max, exp_of(-stats[kStudentLogSum * in.rows]), exponent_of(scale) * in.exponent};
  const Probability<Stat> p{stats[kTeacherMax * in.rows], exp_of(-stats[kTeacherLogSum * in.rows]),
                            exponent_of(stats[kTeacherScale * in.rows]) * in.exponent};
  write_gradient(in.student + row * in.student_stride, in.teacher + row * in.teacher_stride,
                 call.grad + row * in.classes, in.classes, in.use_vectors, team, split, call.splits,
                 [&](Stat s, Stat t) {
                   const Stat u = is_kept(s) ? s - max - centre : Stat(0);
                   return is_seen ? factor * (q(s) - p(t) - pull * u) : Stat(0);
                 });
}

}  // namespace amkd::kl::standardised
