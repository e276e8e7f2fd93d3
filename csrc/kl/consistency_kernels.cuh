// Cosine-confidence distillation on a GPU. A team of threads sweeps a row of both views; the teachers' rows, which are
// in a cache then, once more for the cosine. Rows of one block are summed there, blocks by `total_kernel`.
#pragma once

#include "consistency.h"
#include "rows_kernels.cuh"

namespace amkd::kl::consistency {

template <class Scalar>
struct Inputs {
  using Stat = StatOf<Scalar>;
  const Scalar* student[kViews];
  const Scalar* teacher[kViews];
  int64_t student_stride[kViews];  // of a row
  int64_t teacher_stride[kViews];
  int64_t rows;
  int classes;
  bool use_vectors;
  int lanes;
  Numbers<Stat> numbers;
  double factor;  // row_scale / rows
};

template <class Scalar>
struct Forward {
  using Stat = StatOf<Scalar>;
  Inputs<Scalar> in;
  Stat* stats;
  Stat* total;
  double* block_totals;  // [kViews, blocks], or null: the only block writes the results
  int64_t rows_per_block;
};

template <class Scalar>
struct Backward {
  using Stat = StatOf<Scalar>;
  Inputs<Scalar> in;
  const Stat* stats;
  const Stat* grad_total;
  Scalar* grad[kViews];  // [rows, classes], contiguous
  int splits;            // blocks that share a row
};

template <class Stat>
__device__ void finish_call(const double (&totals)[kViews], Stat* total, Stat* stats, int64_t rows) {
  Stat* const tail = stats + kFields * rows;
  tail[0] = static_cast<Stat>(totals[0]);
  tail[1] = static_cast<Stat>(totals[1]);
  *total = static_cast<Stat>(0.5 * (totals[0] + totals[1]));
}

// Σ a b, Σ a², Σ b² of the teachers' rows.
template <class Stat>
struct CosineSums {
  Stat sums[3] = {};

  template <int kCount>
  __device__ void add(const Stat (&clean)[kCount], const Stat (&augmented)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const Stat a = clean[i] == -infinity<Stat>() ? Stat(0) : clean[i];
      const Stat b = augmented[i] == -infinity<Stat>() ? Stat(0) : augmented[i];
      sums[0] += a * b;
      sums[1] += a * a;
      sums[2] += b * b;
    }
  }
  __device__ Stat cosine() const {
    const bool no_length = sums[1] == 0 || sums[2] == 0;  // a NaN is no row without length
    return no_length ? Stat(0) : sums[0] / (sqrt(sums[1]) * sqrt(sums[2]));
  }
};

// Writes a row's statistics in one view and returns its divergence. One thread does it.
template <class Stat, class Sums>
__device__ Stat finish_view(Stat* stats, int64_t rows, const Sums& sums, const Numbers<Stat>& n) {
  stats[kStudentMax * rows] = sums.student_max;
  stats[kStudentLogSum * rows] = log_of(sums.student_sum);
  stats[kTeacherMax * rows] = sums.teacher_max;
  stats[kTeacherLogSum * rows] = log_of(sums.teacher_sum);
  return n.inverse_temperature * (sums.cross / sums.teacher_sum) + log_of(sums.student_sum / sums.teacher_sum);
}

template <class Scalar>
__global__ void __launch_bounds__(kMaxThreads<Scalar, Form::kTeacherWeighted>, 1)
    consistency_forward_kernel(const Forward<Scalar> call) {
  using Stat = StatOf<Scalar>;
  __shared__ Scratch<Stat> scratch;
  __shared__ Stat cosine_scratch[3][kWarp];
  const Inputs<Scalar>& in = call.in;
  const Team team{in.lanes};
  const int64_t first = blockIdx.x * call.rows_per_block;
  const int64_t last = min(first + call.rows_per_block, in.rows);
  __shared__ double total_scratch[kViews][kWarp];
  double totals[kViews] = {};  // one number of the call: none of its digits is lost here

  for (int64_t base = first; base < last; base += team.count()) {  // the same trips for the whole block: it reduces
    const int64_t row = base + team.index();
    const bool active = row < last;
    const int classes = active ? in.classes : 0;
    const int64_t at = active ? row : 0;
    const Scalar* const teacher = in.teacher[0] + at * in.teacher_stride[0];
    const Scalar* const augmented_teacher = in.teacher[1] + at * in.teacher_stride[1];
    RowSums<Stat, Form::kTeacherWeighted> clean, augmented;
    sweep(in.student[0] + at * in.student_stride[0], teacher, classes, in.use_vectors, team,
          [&](const auto& s, const auto& t) { clean.add(s, t, in.numbers, false); });
    merge(team, clean, in.numbers, false, scratch);
    sweep(in.student[1] + at * in.student_stride[1], augmented_teacher, classes, in.use_vectors, team,
          [&](const auto& s, const auto& t) { augmented.add(s, t, in.numbers, false); });
    merge(team, augmented, in.numbers, false, scratch);
    CosineSums<Stat> teachers;
    sweep(teacher, augmented_teacher, classes, in.use_vectors, team,
          [&](const auto& a, const auto& b) { teachers.add(a, b); });
    reduce_team(team, teachers.sums, Stat(0), cosine_scratch, Plus());
    if (!active || team.lane() != 0) continue;
    Stat* const stats = call.stats + row;
    const Stat confidence = 1 + teachers.cosine();
    stats[kConfidence * in.rows] = confidence;
    totals[0] += in.factor * finish_view(stats, in.rows, clean, in.numbers);
    totals[1] += in.factor * confidence * finish_view(stats + kViewFields * in.rows, in.rows, augmented, in.numbers);
  }

  reduce_team(Team{static_cast<int>(blockDim.x)}, totals, 0.0, total_scratch, Plus());
  if (threadIdx.x != 0) return;
  if (call.block_totals == nullptr) return finish_call(totals, call.total, call.stats, in.rows);
  call.block_totals[blockIdx.x] = totals[0];
  call.block_totals[static_cast<int64_t>(gridDim.x) + blockIdx.x] = totals[1];
}

template <class Stat>
__global__ void __launch_bounds__(kReduceThreads)
    consistency_total_kernel(const double* block_totals, int blocks, Stat* total, Stat* stats, int64_t rows) {
  add_up_blocks<kViews>(block_totals, blocks, [&](const auto& totals) { finish_call(totals, total, stats, rows); });
}

// Block y takes view y.
template <class Scalar>
__global__ void __launch_bounds__(kBackwardThreads, kBackwardBlocks<Scalar>)
    consistency_backward_kernel(const Backward<Scalar> call) {
  using Stat = StatOf<Scalar>;
  const Inputs<Scalar>& in = call.in;
  const Team team{in.lanes};
  const int view = static_cast<int>(blockIdx.y);
  const int split = static_cast<int>(blockIdx.x % static_cast<unsigned>(call.splits));
  const int64_t row =
      static_cast<int64_t>(blockIdx.x / static_cast<unsigned>(call.splits)) * team.count() + team.index();
  if (row >= in.rows) return;
  const Stat* const stats = call.stats + view * kViewFields * in.rows + row;
  const Stat weight = view == 0 ? Stat(1) : call.stats[kConfidence * in.rows + row];
  const Stat factor =
      Stat(0.5) * *call.grad_total * static_cast<Stat>(in.factor) * weight * in.numbers.inverse_temperature;
  const Probability<Stat> q{stats[kStudentMax * in.rows], exp_of(-stats[kStudentLogSum * in.rows]),
                            in.numbers.exponent};
  const Probability<Stat> p{stats[kTeacherMax * in.rows], exp_of(-stats[kTeacherLogSum * in.rows]),
                            in.numbers.exponent};
  // Indices that the compiler knows: arrays of a kernel's parameters would move into local memory otherwise.
  const Scalar* const student =
      view == 0 ? in.student[0] + row * in.student_stride[0] : in.student[1] + row * in.student_stride[1];
  const Scalar* const teacher =
      view == 0 ? in.teacher[0] + row * in.teacher_stride[0] : in.teacher[1] + row * in.teacher_stride[1];
  Scalar* const grad = (view == 0 ? call.grad[0] : call.grad[1]) + row * in.classes;
  write_gradient(student, teacher, grad, in.classes, in.use_vectors, team, split, call.splits,
                 [&](Stat s, Stat t) { return factor * (q(s) - p(t)); });
}

}  // namespace amkd::kl::consistency
