// The KL kernels on a GPU. docs/methods.md (Divergences) has the mathematics, kl.h the layout of the
// statistics, kl_cuda.cu the launches.
//
// Forward: a team of threads sweeps its row once, each thread with its own running maxima; the team then agrees on the
// maxima and adds up. js takes a second look at the row, which is still in a cache then. Rows of one block are summed
// there, blocks by `reduce_kernel`. Where there are few long rows, several blocks share a row and `combine_kernel`
// merges their sums. Backward: every block recomputes the probabilities of its columns from the row's statistics.
#pragma once

#include <cstring>

#include "../common/element.cuh"
#include "../common/math.cuh"
#include "../common/reduce.cuh"
#include "kl.h"
#include "kl_plan.h"

namespace amkd::kl {

constexpr int kUnroll = 2;     // vectors that a thread loads from each tensor before it uses the first
constexpr int kEdgeBatch = 4;  // the same for single elements
constexpr double kLog2E = 1.4426950408889634;

// Columns that one thread takes in one trip.
template <class Scalar>
constexpr int kBatch = kUnroll * Vector<Scalar>::kWidth;

// Divergences with the same sums and gradient. The soft cross-entropy is the forward divergence without Σ p·c.
enum class Form { kTeacherWeighted, kStudentWeighted, kMixture };

// Largest blocks, by the registers that a thread needs: 1024 threads have 64 each, 768 have 80.
template <class Scalar, Form kForm>
constexpr int kMaxThreads = sizeof(Scalar) == 8       ? 256
                            : sizeof(Scalar) == 2     ? 768
                            : kForm == Form::kMixture ? 512
                                                      : 1024;
// Blocks of the backward pass on a multiprocessor at once.
template <class Scalar>
constexpr int kBackwardBlocks = sizeof(Scalar) == 4   ? 4
                                : sizeof(Scalar) == 2 ? 3
                                                      : 2;

// The sums over the rows, in a block and then over all blocks.
enum Total : int { kWeightedDivergence, kDivergences, kWeightedCrossEntropy, kCrossEntropies, kLabels, kTotals };

// What the blocks that share a row leave for combine_kernel.
enum Partial : int {
  kPartStudentMax,
  kPartTeacherMax,
  kPartStudentSum,
  kPartTeacherSum,
  kPartCross,
  kPartStudentSumAtOne,
  kPartMixtureTeacher,
  kPartMixtureStudent,
  kPartTeacherAtTop,
  kPartials,
};

// Scalars of a call in the type that the kernel computes in.
template <class Stat>
struct Numbers {
  Stat exponent;  // log2(e) / T
  Stat inverse_temperature;
  Stat keep_teacher;  // 1, and 0 for the soft cross-entropy
  Stat row_scale;
  Stat kl_factor;
  Stat ce_factor;
  Stat beta;
  Stat one_minus_beta;
  int64_t ignore_index;
  bool per_row;
};

// What one call reads, [rows, classes] and [rows].
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
  bool labels_are_int64;
  const void* labels;  // or null
  const Stat* weight;  // or null
  const Stat* ce_weight;
  Numbers<Stat> numbers;

  __device__ const Scalar* student_row(int64_t row) const { return student + row * student_stride; }
  __device__ const Scalar* teacher_row(int64_t row) const { return teacher + row * teacher_stride; }
  __device__ Stat weight_of(int64_t row) const { return weight == nullptr ? Stat(1) : weight[row]; }
  __device__ Stat ce_weight_of(int64_t row) const { return ce_weight == nullptr ? Stat(1) : ce_weight[row]; }
  __device__ int64_t label_of(int64_t row) const {
    return labels_are_int64 ? static_cast<const int64_t*>(labels)[row] : static_cast<const int32_t*>(labels)[row];
  }
};

template <class Scalar>
struct Forward {
  using Stat = StatOf<Scalar>;
  Inputs<Scalar> in;
  Stat* stats;
  Stat* loss;
  Stat* block_totals;  // [kTotals, blocks], or null: the only block writes the results
  Stat* partials;      // [kPartials, rows, splits], or null: a row has one block
  int64_t rows_per_block;
  int lanes;
  int splits;
  int split_width;  // columns
};

template <class Scalar>
struct Backward {
  using Stat = StatOf<Scalar>;
  Inputs<Scalar> in;
  const Stat* stats;
  const Stat* grad_loss;
  int64_t grad_loss_stride;
  Scalar* grad;  // [rows, classes], contiguous
  int lanes;
  int splits;  // blocks that share a row
};

template <class Stat>
__device__ Stat infinity() {
  return static_cast<Stat>(INFINITY);
}

// 2^x. fp32: 2 units in the last place, and 0 instead of a subnormal result.
__device__ inline float exp2_of(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}
__device__ inline double exp2_of(double x) { return exp2(x); }

// What logits are measured from: their maximum, or 0 where there is none yet, which keeps -inf - (-inf) out.
template <class Stat>
__device__ Stat origin(Stat maximum) {
  return maximum == -infinity<Stat>() ? Stat(0) : maximum;
}

// Sums over some columns of a row, relative to the maxima of those columns.
template <class Stat, Form kForm>
struct RowSums {
  Stat student_max = -infinity<Stat>();
  Stat teacher_max = -infinity<Stat>();
  Stat student_sum = 0;                     // Σ e^x, x = (student - student_max) / T
  Stat teacher_sum = 0;                     // Σ e^y, y = (teacher - teacher_max) / T
  Stat cross = 0;                           // T Σ e^y (keep·y - x), or T Σ e^x (x - y) with y from `teacher_at_top`
  Stat student_sum_at_one = 0;              // Σ e^(student - student_max)
  Stat teacher_at_top = -infinity<Stat>();  // reverse: the teacher's logit of the student's largest class

  __device__ void rescale(Stat new_student_max, Stat new_teacher_max, Stat new_teacher_at_top, const Numbers<Stat>& n,
                          bool at_one) {
    const Stat student_origin = origin(new_student_max), teacher_origin = origin(new_teacher_max);
    const Stat student_scale = scale(student_max, student_origin, n.exponent);
    const Stat teacher_scale = scale(teacher_max, teacher_origin, n.exponent);
    const Stat student_shift = student_origin - origin(student_max);
    const Stat teacher_shift = teacher_origin - origin(teacher_max);
    if constexpr (kForm == Form::kTeacherWeighted) {
      cross = scaled(cross + teacher_sum * (student_shift - n.keep_teacher * teacher_shift), teacher_scale);
    } else if constexpr (kForm == Form::kStudentWeighted) {
      const Stat moved = origin(new_teacher_at_top) - origin(teacher_at_top) - student_shift;
      cross = scaled(cross + student_sum * moved, student_scale);
    }
    if (at_one) student_sum_at_one *= scale(student_max, student_origin, Stat(kLog2E));
    student_sum *= student_scale;
    teacher_sum *= teacher_scale;
    student_max = new_student_max;
    teacher_max = new_teacher_max;
    teacher_at_top = new_teacher_at_top;
  }

  template <int kCount>
  __device__ void add(const Stat (&student)[kCount], const Stat (&teacher)[kCount], const Numbers<Stat>& n,
                      bool at_one) {
    Stat new_student_max = student_max, new_teacher_max = teacher_max, new_teacher_at_top = teacher_at_top;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if constexpr (kForm == Form::kStudentWeighted) {
        if (student[i] > new_student_max) new_teacher_at_top = teacher[i];
      }
      new_student_max = Larger()(new_student_max, student[i]);
      new_teacher_max = Larger()(new_teacher_max, teacher[i]);
    }
    rescale(new_student_max, new_teacher_max, new_teacher_at_top, n, at_one);
    const Stat student_origin = origin(student_max), teacher_origin = origin(teacher_max);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const Stat x = student[i] - student_origin, y = teacher[i] - teacher_origin;
      const Stat ex = exp2_of(x * n.exponent), ey = exp2_of(y * n.exponent);
      student_sum += ex;
      teacher_sum += ey;
      // A class of probability 0 adds nothing, even where the other factor is infinite; NaN != 0 stays.
      if constexpr (kForm == Form::kTeacherWeighted) {
        if (ey != 0) cross += ey * (n.keep_teacher * y - x);
      } else if constexpr (kForm == Form::kStudentWeighted) {
        if (ex != 0) cross += ex * (x - (teacher[i] - origin(teacher_at_top)));  // 0 - 0 of the largest class
      }
    }
    if (!at_one) return;
#pragma unroll
    for (int i = 0; i < kCount; ++i) student_sum_at_one += exp2_of((student[i] - student_origin) * Stat(kLog2E));
  }

 private:
  // Without a maximum there are no terms yet, and 0 · inf must not make a NaN of them.
  __device__ static Stat scale(Stat maximum, Stat new_origin, Stat exponent) {
    return maximum == -infinity<Stat>() ? Stat(0) : exp2_of((maximum - new_origin) * exponent);
  }
  // An infinite term whose probability turns out as 0 vanishes.
  __device__ static Stat scaled(Stat sum, Stat factor) {
    return factor == 0 && sum == infinity<Stat>() ? Stat(0) : sum * factor;
  }
};

// Σ p (c - log m) and Σ q (a - log m): what is left of js once the row's maxima and sums are known.
template <class Stat>
struct MixtureSums {
  Stat student_max, teacher_max;
  Stat student_inverse, teacher_inverse;  // of the sums
  Stat teacher = 0;
  Stat student = 0;

  template <int kCount>
  __device__ void add(const Stat (&student_logits)[kCount], const Stat (&teacher_logits)[kCount],
                      const Numbers<Stat>& n) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const Stat q = exp2_of((student_logits[i] - student_max) * n.exponent) * student_inverse;
      const Stat p = exp2_of((teacher_logits[i] - teacher_max) * n.exponent) * teacher_inverse;
      const Stat m = mixture(q, p, n);
      student += times_log_ratio(q, m);
      teacher += times_log_ratio(p, m);
    }
  }

  // βp + (1-β)q, exact where p = q, with the smaller weight as the factor.
  __device__ static Stat mixture(Stat q, Stat p, const Numbers<Stat>& n) {
    return n.beta <= n.one_minus_beta ? q + n.beta * (p - q) : p + n.one_minus_beta * (q - p);
  }
  // r·log(r/m), 0 where r is too small to matter: there r/m may be 0/0 or overflow.
  __device__ static Stat times_log_ratio(Stat r, Stat m) { return negligible(r, m) ? Stat(0) : r * log_of(r / m); }
  __device__ static bool negligible(Stat r, Stat m) { return r <= Stat(1e-35) || m <= 0; }
};

// What a factor of 0 hides may be NaN, and 0 times that too.
template <class Stat>
__device__ Stat product_or_zero(Stat factor, Stat value) {
  return factor == 0 ? Stat(0) : factor * value;
}

// A vector as whole registers. Where it is chosen between two of them, halves of registers would be chosen one by one.
struct alignas(16) Words {
  uint32_t at[4];
};

template <class Scalar>
__device__ Words words_of(const Vector<Scalar>& vector) {
  Words words;
  memcpy(&words, &vector, sizeof(words));
  return words;
}
template <class Scalar>
__device__ Words load_words(const Scalar* aligned) {
  return *reinterpret_cast<const Words*>(aligned);
}
// Element k, in the statistics' type.
template <class Scalar>
__device__ StatOf<Scalar> widen_at(const Words& words, int k) {
  if constexpr (std::is_same_v<Scalar, __nv_bfloat16>) {  // the upper half of a float
    const uint32_t two = words.at[k / 2];
    return __uint_as_float(k % 2 == 0 ? two << 16 : two & 0xffff0000u);
  } else {
    Vector<Scalar> vector;
    memcpy(&vector, &words, sizeof(words));
    return widen(vector.at[k]);
  }
}

// Calls body(student, teacher) with a fixed number of columns at a time, in the statistics' type. Where the columns run
// out the body gets -inf in both, as from masked classes, which add nothing.
template <class Scalar, class Body>
__device__ void sweep(const Scalar* student, const Scalar* teacher, int classes, bool use_vectors, const Team& team,
                      Body body) {
  using Stat = StatOf<Scalar>;
  constexpr int kWidth = Vector<Scalar>::kWidth;
  const Columns<Scalar> columns(classes, use_vectors, student, teacher);
  const int lane = team.lane(), lanes = team.lanes;

  for (int first = lane; first < columns.edges; first += kEdgeBatch * lanes) {
    Stat s[kEdgeBatch], t[kEdgeBatch];
#pragma unroll
    for (int u = 0; u < kEdgeBatch; ++u) {
      const int i = first + u * lanes;
      const int column = columns.of_edge(i);
      s[u] = i < columns.edges ? widen(student[column]) : -infinity<Stat>();
      t[u] = i < columns.edges ? widen(teacher[column]) : -infinity<Stat>();
    }
    body(s, t);
  }

  Vector<Scalar> nothing;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) nothing.at[k] = narrow<Scalar>(-infinity<Stat>());
  for (int first = lane; first < columns.vectors; first += kUnroll * lanes) {
    Words student_words[kUnroll], teacher_words[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int i = first + u * lanes;
      student_words[u] = teacher_words[u] = words_of(nothing);
      if (i < columns.vectors) {
        student_words[u] = load_words(student + columns.of_vector(i));
        teacher_words[u] = load_words(teacher + columns.of_vector(i));
      }
    }
    Stat s[kBatch<Scalar>], t[kBatch<Scalar>];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        s[u * kWidth + k] = widen_at<Scalar>(student_words[u], k);
        t[u * kWidth + k] = widen_at<Scalar>(teacher_words[u], k);
      }
    }
    body(s, t);
  }
}

template <class Stat>
struct Scratch {
  Stat maxima[2][kWarp];
  Stat tops[1][kWarp];
  Stat sums[4][kWarp];
  Stat mixture[2][kWarp];
  Stat totals[kTotals][kWarp];
};

// Merges the sums of the team's threads; all of them get the row's.
template <class Stat, Form kForm>
__device__ void merge(const Team& team, RowSums<Stat, kForm>& row, const Numbers<Stat>& n, bool at_one,
                      Scratch<Stat>& scratch) {
  Stat maxima[2] = {row.student_max, row.teacher_max};
  reduce_team(team, maxima, -infinity<Stat>(), scratch.maxima, Larger());
  Stat top[1] = {row.student_max == maxima[0] ? row.teacher_at_top : -infinity<Stat>()};
  if constexpr (kForm == Form::kStudentWeighted) reduce_team(team, top, -infinity<Stat>(), scratch.tops, Larger());
  row.rescale(maxima[0], maxima[1], top[0], n, at_one);
  Stat sums[4] = {row.student_sum, row.teacher_sum, row.cross, row.student_sum_at_one};
  reduce_team(team, sums, Stat(0), scratch.sums, Plus());
  row.student_sum = sums[0];
  row.teacher_sum = sums[1];
  row.cross = sums[2];
  row.student_sum_at_one = sums[3];
}

template <class Stat>
__device__ void merge(const Team& team, MixtureSums<Stat>& row, Scratch<Stat>& scratch) {
  Stat sums[2] = {row.teacher, row.student};
  reduce_team(team, sums, Stat(0), scratch.mixture, Plus());
  row.teacher = sums[0];
  row.student = sums[1];
}

// Writes a row's statistics and its loss, and adds the row to the totals. One thread does it.
template <class Scalar, Form kForm, class Stat = StatOf<Scalar>>
__device__ void finish_row(const Forward<Scalar>& call, int64_t row, const RowSums<Stat, kForm>& sums,
                           const MixtureSums<Stat>& mixture, Stat (&totals)[kTotals]) {
  const Inputs<Scalar>& in = call.in;
  const Numbers<Stat>& n = in.numbers;
  Stat value, inner = 0;
  if constexpr (kForm == Form::kTeacherWeighted) {
    const Stat log_sums = n.keep_teacher != 0 ? sums.student_sum / sums.teacher_sum : sums.student_sum;
    value = n.inverse_temperature * (sums.cross / sums.teacher_sum) + log_of(log_sums);
  } else if constexpr (kForm == Form::kStudentWeighted) {
    const Stat from_top = origin(sums.teacher_max) - origin(sums.teacher_at_top);
    inner = n.inverse_temperature * (sums.cross / sums.student_sum);
    value = inner + n.inverse_temperature * from_top + log_of(sums.teacher_sum / sums.student_sum);
  } else {
    value = n.beta * mixture.teacher + n.one_minus_beta * mixture.student;
    inner = mixture.student;
  }

  Stat ce = 0, log_sum_at_one = 0;
  bool labelled = false;
  if (in.labels != nullptr) {
    log_sum_at_one = log_of(sums.student_sum_at_one);
    const int64_t label = in.label_of(row);
    labelled = label != n.ignore_index;
    if (labelled) {
      const bool valid = label >= 0 && label < in.classes;
      ce = valid ? log_sum_at_one - (widen(in.student_row(row)[label]) - sums.student_max) : static_cast<Stat>(NAN);
    }
  }

  Stat* const stats = call.stats + row;
  stats[kStudentMax * in.rows] = sums.student_max;
  stats[kStudentLogSum * in.rows] = log_of(sums.student_sum);
  stats[kTeacherMax * in.rows] = kForm == Form::kStudentWeighted ? origin(sums.teacher_at_top) : sums.teacher_max;
  stats[kTeacherLogSum * in.rows] = log_of(sums.teacher_sum);
  stats[kInner * in.rows] = inner;
  stats[kStudentLogSumAtOne * in.rows] = log_sum_at_one;

  const Stat weight = in.weight_of(row), divergence = weight == 0 ? Stat(0) : n.row_scale * value;
  const Stat weighted = divergence * weight;
  if (n.per_row) call.loss[row] = product_or_zero(n.kl_factor, weighted);
  totals[kWeightedDivergence] += weighted;
  totals[kDivergences] += divergence;
  if (labelled) {
    const Stat ce_weight = in.ce_weight_of(row);
    if (ce_weight == 0) ce = 0;
    totals[kWeightedCrossEntropy] += ce * ce_weight;
    totals[kCrossEntropies] += ce;
    totals[kLabels] += 1;
  }
}

// The loss over all rows and the three scalars behind the statistics. One thread of the whole grid does it.
template <class Stat>
__device__ void finish_call(const Stat (&totals)[kTotals], Stat* loss, Stat* stats, int64_t rows,
                            const Numbers<Stat>& n) {
  const Stat per_label = 1 / Larger()(totals[kLabels], Stat(1));
  if (!n.per_row) {
    *loss = product_or_zero(n.kl_factor, totals[kWeightedDivergence]) +
            product_or_zero(n.ce_factor, totals[kWeightedCrossEntropy] * per_label);
  }
  Stat* const tail = stats + kFields * rows;
  tail[kLabelled] = totals[kLabels];
  tail[kCrossEntropy] = totals[kCrossEntropies] * per_label;
  tail[kDivergence] = totals[kDivergences] / static_cast<Stat>(rows);
}

// Sums the totals of the block's threads; the only block of a grid finishes the call.
template <class Scalar, class Stat = StatOf<Scalar>>
__device__ void finish_block(const Forward<Scalar>& call, Stat (&totals)[kTotals], Scratch<Stat>& scratch) {
  reduce_team(Team{static_cast<int>(blockDim.x)}, totals, Stat(0), scratch.totals, Plus());
  if (threadIdx.x != 0) return;
  if (call.block_totals == nullptr) {
    finish_call(totals, call.loss, call.stats, call.in.rows, call.in.numbers);
    return;
  }
#pragma unroll
  for (int i = 0; i < kTotals; ++i) call.block_totals[static_cast<int64_t>(i) * gridDim.x + blockIdx.x] = totals[i];
}

template <class Stat>
__device__ MixtureSums<Stat> mixture_sums(Stat student_max, Stat student_sum, Stat teacher_max, Stat teacher_sum) {
  return {student_max, teacher_max, 1 / student_sum, 1 / teacher_sum};
}

// Rows of `rows_per_block` in block x; where blocks share a row, columns of split y.
template <class Scalar, Form kForm>
__global__ void __launch_bounds__(kMaxThreads<Scalar, kForm>, 1) forward_kernel(const Forward<Scalar> call) {
  using Stat = StatOf<Scalar>;
  __shared__ Scratch<Stat> scratch;
  const Inputs<Scalar>& in = call.in;
  const Team team{call.lanes};
  const bool at_one = in.labels != nullptr;
  const int begin = static_cast<int>(blockIdx.y) * call.split_width;
  const int width = min(call.split_width, in.classes - begin);
  const int64_t first = blockIdx.x * call.rows_per_block;
  const int64_t last = min(first + call.rows_per_block, in.rows);
  Stat totals[kTotals] = {};

  for (int64_t base = first; base < last; base += team.count()) {  // the same trips for the whole block: it reduces
    const int64_t row = base + team.index();
    const bool active = row < last;
    const int classes = active ? width : 0;
    const Scalar* student = active ? in.student_row(row) + begin : in.student;
    const Scalar* teacher = active ? in.teacher_row(row) + begin : in.teacher;

    RowSums<Stat, kForm> sums;
    sweep(student, teacher, classes, in.use_vectors, team,
          [&](const auto& s, const auto& t) { sums.add(s, t, in.numbers, at_one); });
    merge(team, sums, in.numbers, at_one, scratch);

    if (call.partials != nullptr) {
      if (active && team.lane() == 0) {
        const int64_t step = in.rows * call.splits;
        Stat* const part = call.partials + row * call.splits + blockIdx.y;
        part[kPartStudentMax * step] = sums.student_max;
        part[kPartTeacherMax * step] = sums.teacher_max;
        part[kPartStudentSum * step] = sums.student_sum;
        part[kPartTeacherSum * step] = sums.teacher_sum;
        part[kPartCross * step] = sums.cross;
        part[kPartStudentSumAtOne * step] = sums.student_sum_at_one;
        part[kPartTeacherAtTop * step] = sums.teacher_at_top;
      }
      continue;
    }

    MixtureSums<Stat> mixture = mixture_sums(sums.student_max, sums.student_sum, sums.teacher_max, sums.teacher_sum);
    if constexpr (kForm == Form::kMixture) {
      sweep(student, teacher, classes, in.use_vectors, team,
            [&](const auto& s, const auto& t) { mixture.add(s, t, in.numbers); });
      merge(team, mixture, scratch);
    }
    if (active && team.lane() == 0) finish_row(call, row, sums, mixture, totals);
  }
  if (call.partials == nullptr) finish_block(call, totals, scratch);
}

// js where blocks share a row: the second look, after combine_kernel wrote the row's statistics.
template <class Scalar>
__global__ void __launch_bounds__(kMaxThreads<Scalar, Form::kMixture>) mixture_kernel(const Forward<Scalar> call) {
  using Stat = StatOf<Scalar>;
  __shared__ Scratch<Stat> scratch;
  const Inputs<Scalar>& in = call.in;
  const Team team{call.lanes};
  const int64_t row = blockIdx.x;
  const int begin = static_cast<int>(blockIdx.y) * call.split_width;
  const Stat* const stats = call.stats + row;
  MixtureSums<Stat> mixture = {stats[kStudentMax * in.rows], stats[kTeacherMax * in.rows],
                               exp_of(-stats[kStudentLogSum * in.rows]), exp_of(-stats[kTeacherLogSum * in.rows])};
  sweep(in.student_row(row) + begin, in.teacher_row(row) + begin, min(call.split_width, in.classes - begin),
        in.use_vectors, team, [&](const auto& s, const auto& t) { mixture.add(s, t, in.numbers); });
  merge(team, mixture, scratch);
  if (team.lane() != 0) return;
  const int64_t step = in.rows * call.splits;
  Stat* const part = call.partials + row * call.splits + blockIdx.y;
  part[kPartMixtureTeacher * step] = mixture.teacher;
  part[kPartMixtureStudent * step] = mixture.student;
}

// Merges the blocks that shared rows, a team per row. Of js it first writes the statistics only; `finish` comes after
// mixture_kernel.
template <class Scalar, Form kForm>
__global__ void __launch_bounds__(kCombineThreads, 1) combine_kernel(const Forward<Scalar> call, bool finish) {
  using Stat = StatOf<Scalar>;
  __shared__ Scratch<Stat> scratch;
  const Inputs<Scalar>& in = call.in;
  const Team team{call.lanes};
  const bool at_one = in.labels != nullptr;
  const int64_t step = in.rows * call.splits;
  Stat totals[kTotals] = {};

  for (int64_t base = 0; base < in.rows; base += team.count()) {
    const int64_t row = base + team.index();
    const bool active = row < in.rows;
    RowSums<Stat, kForm> sums;
    MixtureSums<Stat> mixture{};
    for (int split = active ? team.lane() : call.splits; split < call.splits; split += team.lanes) {
      const Stat* const part = call.partials + row * call.splits + split;
      RowSums<Stat, kForm> other;
      other.student_max = part[kPartStudentMax * step];
      other.teacher_max = part[kPartTeacherMax * step];
      other.student_sum = part[kPartStudentSum * step];
      other.teacher_sum = part[kPartTeacherSum * step];
      other.cross = part[kPartCross * step];
      other.student_sum_at_one = part[kPartStudentSumAtOne * step];
      other.teacher_at_top = part[kPartTeacherAtTop * step];
      const Stat student_max = Larger()(sums.student_max, other.student_max);
      const Stat teacher_max = Larger()(sums.teacher_max, other.teacher_max);
      const Stat top = other.student_max > sums.student_max ? other.teacher_at_top : sums.teacher_at_top;
      sums.rescale(student_max, teacher_max, top, in.numbers, at_one);
      other.rescale(student_max, teacher_max, top, in.numbers, at_one);
      sums.student_sum += other.student_sum;
      sums.teacher_sum += other.teacher_sum;
      sums.cross += other.cross;
      sums.student_sum_at_one += other.student_sum_at_one;
      if (kForm == Form::kMixture && finish) {
        mixture.teacher += part[kPartMixtureTeacher * step];
        mixture.student += part[kPartMixtureStudent * step];
      }
    }
    merge(team, sums, in.numbers, at_one, scratch);
    if constexpr (kForm == Form::kMixture) merge(team, mixture, scratch);
    if (active && team.lane() == 0) finish_row(call, row, sums, mixture, totals);
  }
  if (finish) finish_block(call, totals, scratch);
}

// Sums the totals of all blocks of forward_kernel, in one block.
template <class Stat>
__global__ void __launch_bounds__(kReduceThreads)
    reduce_kernel(const Stat* block_totals, int blocks, Stat* loss, Stat* stats, int64_t rows,
                  const Numbers<Stat> numbers) {
  __shared__ Scratch<Stat> scratch;
  Stat totals[kTotals] = {};
  for (int block = threadIdx.x; block < blocks; block += blockDim.x) {
#pragma unroll
    for (int i = 0; i < kTotals; ++i) totals[i] += block_totals[static_cast<int64_t>(i) * blocks + block];
  }
  reduce_team(Team{static_cast<int>(blockDim.x)}, totals, Stat(0), scratch.totals, Plus());
  if (threadIdx.x == 0) finish_call(totals, loss, stats, rows, numbers);
}

// The gradient of a row's student logits, class by class.
template <class Stat, Form kForm>
struct RowGradient {
  Stat student_max, teacher_max;
  Stat student_inverse, teacher_inverse;  // of the sums
  Stat constant;                          // kInner of the row
  Stat factor;                            // of the divergence
  bool is_seen;                           // unless a weight of 0 hides the divergence
  Stat ce_factor;
  Stat student_inverse_at_one;
  int label;  // -1 where there is none

  template <class Scalar>
  __device__ RowGradient(const Backward<Scalar>& call, int64_t row) {
    const Inputs<Scalar>& in = call.in;
    const Numbers<Stat>& n = in.numbers;
    const Stat* const stats = call.stats + row;
    const Stat grad_loss = call.grad_loss[row * call.grad_loss_stride];
    const Stat student_log_sum = stats[kStudentLogSum * in.rows], teacher_log_sum = stats[kTeacherLogSum * in.rows];
    student_max = stats[kStudentMax * in.rows];
    teacher_max = stats[kTeacherMax * in.rows];
    student_inverse = exp_of(-student_log_sum);
    teacher_inverse = exp_of(-teacher_log_sum);
    const Stat weight = n.kl_factor * in.weight_of(row);
    is_seen = weight != 0;
    factor = grad_loss * weight * n.row_scale * n.inverse_temperature;
    constant = stats[kInner * in.rows];
    if constexpr (kForm == Form::kMixture) {
      factor *= n.one_minus_beta;
    }
    ce_factor = 0;
    student_inverse_at_one = 0;
    label = -1;
    if (in.labels == nullptr) return;
    const int64_t wanted = in.label_of(row);
    if (wanted == n.ignore_index) return;
    const bool valid = wanted >= 0 && wanted < in.classes;
    const Stat ce_weight = n.ce_factor * in.ce_weight_of(row);
    if (ce_weight == 0) return;
    label = valid ? static_cast<int>(wanted) : 0;
    const Stat labelled = call.stats[kFields * in.rows + kLabelled];
    ce_factor = valid ? grad_loss * ce_weight / Larger()(labelled, Stat(1)) : static_cast<Stat>(NAN);
    student_inverse_at_one = exp_of(-stats[kStudentLogSumAtOne * in.rows]);
  }

  __device__ Stat at(int column, Stat student, Stat teacher, const Numbers<Stat>& n) const {
    const Stat x = student - student_max, y = teacher - teacher_max;
    const Stat q = rounded_product(exp2_of(x * n.exponent), student_inverse);
    Stat slope;
    if constexpr (kForm == Form::kTeacherWeighted) {
      slope = q - rounded_product(exp2_of(y * n.exponent), teacher_inverse);
    } else if constexpr (kForm == Form::kStudentWeighted) {
      slope = q == 0 ? Stat(0) : q * (n.inverse_temperature * (x - y) - constant);
    } else {
      const Stat p = rounded_product(exp2_of(y * n.exponent), teacher_inverse);
      const Stat m = MixtureSums<Stat>::mixture(q, p, n);
      slope = MixtureSums<Stat>::negligible(q, m) ? Stat(0) : q * (log_of(q / m) - constant);
    }
    Stat grad = is_seen ? factor * slope : Stat(0);
    if (label >= 0) {
      grad += ce_factor * (exp2_of(x * Stat(kLog2E)) * student_inverse_at_one - (column == label ? Stat(1) : Stat(0)));
    }
    return grad;
  }
};

// A team takes its share of a row: the split'th range of the vectors and of the edges.
template <class Scalar, Form kForm>
__global__ void __launch_bounds__(kBackwardThreads, kBackwardBlocks<Scalar>)
    backward_kernel(const Backward<Scalar> call) {
  using Stat = StatOf<Scalar>;
  constexpr int kWidth = Vector<Scalar>::kWidth;
  const Inputs<Scalar>& in = call.in;
  const Team team{call.lanes};
  const int splits = call.splits, lane = team.lane(), lanes = team.lanes;
  const int split = splits == 1 ? 0 : static_cast<int>(blockIdx.x % static_cast<unsigned>(splits));
  const int64_t row = splits == 1 ? static_cast<int64_t>(blockIdx.x) * team.count() + team.index()
                                  : blockIdx.x / static_cast<unsigned>(splits);
  if (row >= in.rows) return;
  const Scalar* const student = in.student_row(row);
  const Scalar* const teacher = in.teacher_row(row);
  Scalar* const grad = call.grad + row * in.classes;
  const Columns<Scalar> columns(in.classes, in.use_vectors, student, teacher, grad);
  const RowGradient<Stat, kForm> gradient(call, row);

  const int edges = (columns.edges + splits - 1) / splits;
  const int last_edge = min((split + 1) * edges, columns.edges);
  for (int i = split * edges + lane; i < last_edge; i += lanes) {
    const int column = columns.of_edge(i);
    grad[column] = narrow<Scalar>(gradient.at(column, widen(student[column]), widen(teacher[column]), in.numbers));
  }

  const int vectors = (columns.vectors + splits - 1) / splits;
  const int last_vector = min((split + 1) * vectors, columns.vectors);
  for (int first = split * vectors + lane; first < last_vector; first += kUnroll * lanes) {
    Vector<Scalar> student_vectors[kUnroll], teacher_vectors[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int i = first + u * lanes;
      if (i < last_vector) {
        student_vectors[u] = load_vector(student + columns.of_vector(i));
        teacher_vectors[u] = load_vector(teacher + columns.of_vector(i));
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int i = first + u * lanes;
      if (i >= last_vector) break;
      const int column = columns.of_vector(i);
      Vector<Scalar> out;
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        out.at[k] = narrow<Scalar>(
            gradient.at(column + k, widen(student_vectors[u].at[k]), widen(teacher_vectors[u].at[k]), in.numbers));
      }
      store_vector(grad + column, out);
    }
  }
}

}  // namespace amkd::kl
