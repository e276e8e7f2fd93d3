// Decoupled distillation on a GPU. decoupled.h has the layout of the statistics, decoupled_cuda.cu the launches.
//
// Forward: the classes before the target and those behind it are swept like rows of their own, with the sums of the
// forward divergence in kl_kernels.cuh. Backward: every block recomputes the probabilities of its columns.
#pragma once

#include "decoupled.h"
#include "rows_kernels.cuh"

namespace amkd::kl::decoupled {

template <class Stat>
using OtherSums = RowSums<Stat, Form::kTeacherWeighted>;
template <class Scalar>
constexpr int kForwardThreads = kMaxThreads<Scalar, Form::kTeacherWeighted>;

template <class Scalar>
struct Forward {
  using Stat = StatOf<Scalar>;
  Inputs<Scalar> in;
  Stat target_factor;
  Stat other_factor;
  Stat* stats;
  Stat* loss;
  double factor;         // of the loss
  double* block_totals;  // [blocks], or null: the only block writes the loss
  int64_t rows_per_block;
  int lanes;
};

template <class Scalar>
struct Backward {
  using Stat = StatOf<Scalar>;
  Inputs<Scalar> in;
  Stat target_factor;  // both with that of the rows and 1/T
  Stat other_factor;
  const Stat* stats;
  const Stat* grad_loss;
  int64_t grad_loss_stride;
  Scalar* grad;  // [rows, classes], contiguous
  int lanes;
  int splits;  // blocks that share a row
};

// The distribution of target against rest whose log-odds are d: probabilities and their logarithms.
template <class Stat>
struct Binary {
  Stat target, rest, log_target, log_rest;

  __device__ explicit Binary(Stat d) {
    const Stat e = exp_of(d > 0 ? -d : d), likely = 1 / (1 + e), unlikely = e / (1 + e);
    const Stat log = log1p_of(e);
    target = d > 0 ? likely : unlikely;
    rest = d > 0 ? unlikely : likely;
    log_target = (d > 0 ? Stat(0) : d) - log;
    log_rest = (d > 0 ? -d : Stat(0)) - log;
  }
};

// Log-odds of the target against others of this maximum and log-sum; NaN for a target of +inf.
template <class Stat>
__device__ Stat log_odds(Stat target, Stat maximum, Stat log_sum, Stat inverse_temperature) {
  const Stat d = (target - maximum) * inverse_temperature - log_sum;
  return d == infinity<Stat>() ? static_cast<Stat>(NAN) : d;
}

// Writes a row's statistics and its loss; returns its weighted value. One thread does it.
template <class Scalar, class Stat = StatOf<Scalar>>
__device__ Stat finish_row(const Forward<Scalar>& call, int64_t row, const OtherSums<Stat>& sums, Stat student_target,
                           Stat teacher_target) {
  const Inputs<Scalar>& in = call.in;
  const Numbers<Stat>& n = in.numbers;
  const bool no_student = sums.student_sum == 0, no_teacher = sums.teacher_sum == 0;
  const Stat student_max = origin(sums.student_max), teacher_max = origin(sums.teacher_max);
  const Stat student_sum = no_student ? Stat(1) : sums.student_sum;
  const Stat teacher_sum = no_teacher ? Stat(1) : sums.teacher_sum;
  const Stat student_log = log_of(student_sum), teacher_log = log_of(teacher_sum);
  Stat student_odds = log_odds(student_target, student_max, student_log, n.inverse_temperature);
  Stat teacher_odds = log_odds(teacher_target, teacher_max, teacher_log, n.inverse_temperature);
  if (no_student && no_teacher) {  // the target is certain, unless it is not there either
    student_odds = student_target - student_target;
    teacher_odds = teacher_target - teacher_target;
  } else if (no_student || no_teacher) {
    student_odds = static_cast<Stat>(NAN);
  }
  const Binary<Stat> s(student_odds), t(teacher_odds);
  // A class of probability 0 adds nothing, even where the other factor is infinite; NaN != 0 stays.
  const Stat target =
      product_or_zero(t.target, t.log_target - s.log_target) + product_or_zero(t.rest, t.log_rest - s.log_rest);
  const Stat others = sums.cross * n.inverse_temperature / teacher_sum + log_of(student_sum / teacher_sum);
  const Stat value = call.target_factor * target + call.other_factor * others;

  Stat* const stats = call.stats + row;
  stats[kStudentMax * in.rows] = student_max;
  stats[kStudentLogSum * in.rows] = student_log;
  stats[kTeacherMax * in.rows] = teacher_max;
  stats[kTeacherLogSum * in.rows] = teacher_log;
  // Of two probabilities near 1 the difference is that of what is missing from 1.
  stats[kSlope * in.rows] = student_odds + teacher_odds > 0 ? t.rest - s.rest : s.target - t.target;
  stats[kValue * in.rows] = value;
  const Stat weighted = product_or_zero(n.kl_factor == 0 ? Stat(0) : in.weight_of(row), value);
  if (n.per_row) call.loss[row] = n.kl_factor * weighted;
  return weighted;
}

// Rows of `rows_per_block` in a block.
template <class Scalar>
__global__ void __launch_bounds__(kForwardThreads<Scalar>, 1) decoupled_forward_kernel(const Forward<Scalar> call) {
  using Stat = StatOf<Scalar>;
  __shared__ Scratch<Stat> scratch;
  __shared__ double totals[1][kWarp];
  const Inputs<Scalar>& in = call.in;
  const Team team{call.lanes};
  const int64_t first = blockIdx.x * call.rows_per_block;
  const int64_t last = min(first + call.rows_per_block, in.rows);
  double total[1] = {};  // one number of the call: none of its digits is lost here

  for (int64_t base = first; base < last; base += team.count()) {  // the same trips for the whole block: it reduces
    const int64_t row = base + team.index();
    const bool active = row < last;
    const int64_t wanted = active ? in.label_of(row) : 0;
    const bool valid = wanted >= 0 && wanted < in.classes;
    const int label = valid ? static_cast<int>(wanted) : 0;
    const Scalar* student = active ? in.student_row(row) : in.student;
    const Scalar* teacher = active ? in.teacher_row(row) : in.teacher;

    OtherSums<Stat> sums;
    for (int side = 0; side < 2; ++side) {
      const int begin = side == 0 ? 0 : label + 1;
      const int count = !active ? 0 : side == 0 ? label : in.classes - begin;
      sweep(student + begin, teacher + begin, count, in.use_vectors, team,
            [&](const auto& s, const auto& t) { sums.add(s, t, in.numbers, false); });
    }
    merge(team, sums, in.numbers, false, scratch);
    if (!active || team.lane() != 0) continue;
    const Stat nan = static_cast<Stat>(NAN);  // looking at a label would stall the host
    total[0] += finish_row(call, row, sums, valid ? widen(student[label]) : nan, valid ? widen(teacher[label]) : nan);
  }
  if (in.numbers.per_row) return;
  reduce_team(Team{static_cast<int>(blockDim.x)}, total, 0.0, totals, Plus());
  if (threadIdx.x != 0) return;
  if (call.block_totals == nullptr) {
    *call.loss = static_cast<Stat>(call.factor * total[0]);
  } else {
    call.block_totals[blockIdx.x] = total[0];
  }
}

// Sums the totals of all blocks of the forward kernel, in one block.
template <class Stat>
__global__ void __launch_bounds__(kReduceThreads)
    decoupled_total_kernel(const double* block_totals, int blocks, Stat* loss, double factor) {
  add_up_blocks<1>(block_totals, blocks, [&](const auto& total) { *loss = static_cast<Stat>(factor * total[0]); });
}

// The gradient of a row's student logits, class by class.
template <class Stat>
struct RowGradient {
  Stat student_max, teacher_max;
  Stat student_inverse, teacher_inverse;  // of the sums
  Stat target, others;                    // factors, the former with the slope
  Stat exponent;
  int64_t label;
  bool is_seen;  // unless a weight of 0 hides the row

  template <class Scalar>
  __device__ RowGradient(const Backward<Scalar>& call, int64_t row) {
    const Inputs<Scalar>& in = call.in;
    const Stat* const stats = call.stats + row;
    student_max = stats[kStudentMax * in.rows];
    teacher_max = stats[kTeacherMax * in.rows];
    student_inverse = exp_of(-stats[kStudentLogSum * in.rows]);
    teacher_inverse = exp_of(-stats[kTeacherLogSum * in.rows]);
    const Stat weight = in.weight_of(row), upstream = call.grad_loss[row * call.grad_loss_stride] * weight;
    is_seen = weight != 0 && in.numbers.kl_factor != 0;
    target = upstream * call.target_factor * stats[kSlope * in.rows];
    others = upstream * call.other_factor;
    exponent = in.numbers.exponent;
    label = in.label_of(row);
  }

  __device__ Stat at(int column, Stat student, Stat teacher) const {
    if (!is_seen) return Stat(0);
    const Stat q = rounded_product(exp2_of((student - student_max) * exponent), student_inverse);
    const Stat p = rounded_product(exp2_of((teacher - teacher_max) * exponent), teacher_inverse);
    return column == label ? target : others * (q - p) - target * q;
  }
};

// A team takes its share of a row: the split'th range of the vectors and of the edges.
template <class Scalar>
__global__ void __launch_bounds__(kBackwardThreads, kBackwardBlocks<Scalar>)
    decoupled_backward_kernel(const Backward<Scalar> call) {
  using Stat = StatOf<Scalar>;
  constexpr int kWidth = Vector<Scalar>::kWidth;
  const Inputs<Scalar>& in = call.in;
  const Team team{call.lanes};
  const unsigned splits = static_cast<unsigned>(call.splits);
  const int split = static_cast<int>(blockIdx.x % splits);
  const int64_t row = static_cast<int64_t>(blockIdx.x / splits) * team.count() + team.index();
  if (row >= in.rows) return;
  const Scalar* const student = in.student_row(row);
  const Scalar* const teacher = in.teacher_row(row);
  Scalar* const grad = call.grad + row * in.classes;
  const Columns<Scalar> columns(in.classes, in.use_vectors, student, teacher, grad);
  const RowGradient<Stat> gradient(call, row);

  const int step = team.lanes * call.splits, start = split * team.lanes + team.lane();
  for (int i = start; i < columns.edges; i += step) {
    const int column = columns.of_edge(i);
    grad[column] = narrow<Scalar>(gradient.at(column, widen(student[column]), widen(teacher[column])));
  }
  for (int i = start; i < columns.vectors; i += step) {
    const int column = columns.of_vector(i);
    const Vector<Scalar> s = load_vector(student + column), t = load_vector(teacher + column);
    Vector<Scalar> out;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      out.at[k] = narrow<Scalar>(gradient.at(column + k, widen(s.at[k]), widen(t.at[k])));
    }
    store_vector(grad + column, out);
  }
}

}  // namespace amkd::kl::decoupled
