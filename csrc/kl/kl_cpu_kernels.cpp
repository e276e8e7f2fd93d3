// The arithmetic of the KL family on a CPU, compiled once per SIMD level (see common/simd.h for the rules that follow
// from that). Logits are read from memory once a pass: the maximum and the sums of a block both find it in L1.
#include "kl_cpu.h"
#include "rows_cpu.h"

namespace amkd::kl::AMKD_SIMD {

using namespace amkd::AMKD_SIMD;

namespace {

constexpr int64_t kTogether = 8;  // rows that are swept step by step

// What a last, shorter vector does about the elements that the vector before it has covered already: kNone leaves them
// out, as what is written over its input cannot be computed twice.
enum class Overlap { kExclude, kRepeat, kNone };

// Calls body(student, teacher, column, count) for vectors that cover [begin, end). The last vector starts early enough
// to be a full one: a full load is several times faster than one through a buffer. For sums the elements seen before
// become classes that both networks exclude, which contribute 0; an elementwise body just computes them again.
template <class T, Overlap kOverlap, class Body>
AMKD_INLINE void for_each_vector(const T* student, const T* teacher, int64_t begin, int64_t end, Body body) {
  using V = Vector<T>;
  constexpr int64_t kStep = lanes<V>;
  int64_t i = begin;
  for (; i + kStep <= end; i += kStep) body(load(student + i), load(teacher + i), i, kStep);
  if (i == end) return;
  if (kOverlap != Overlap::kNone && end - begin >= kStep) {
    const int64_t last = end - kStep;
    V s = load(student + last), t = load(teacher + last);
    if constexpr (kOverlap == Overlap::kExclude) {
      s = exclude_first(s, i - last);
      t = exclude_first(t, i - last);
    }
    body(s, t, last, kStep);
  } else {
    const T excluded = ElementTraits<T>::excluded();
    body(load_some(student + i, end - i, excluded), load_some(teacher + i, end - i, excluded), i, end - i);
  }
}

template <class T>
struct Row {
  const T* student;
  const T* teacher;
  Row(const Problem& p, int64_t row)
      : student(static_cast<const T*>(p.student) + row * p.student_stride),
        teacher(static_cast<const T*>(p.teacher) + row * p.teacher_stride) {}
};

template <class T>
Stat<T>& stat(const Problem& p, Field field, int64_t row) {
  return static_cast<Stat<T>*>(p.stats)[field * p.rows + row];
}

template <class T>
double weight_of(const void* weight, int64_t row) {
  return weight ? static_cast<const Stat<T>*>(weight)[row] : 1.0;
}

// ---- forward ----------------------------------------------------------------------------------------------------

Partial merge(const Problem& p, const Partial& a, const Partial& b) {
  const double per_t = p.per_t;
  Partial out{};
  out.student_max = a.student_max > b.student_max ? a.student_max : b.student_max;
  out.teacher_max = a.teacher_max > b.teacher_max ? a.teacher_max : b.teacher_max;
  out.teacher_at_top = a.student_max >= b.student_max ? a.teacher_at_top : b.teacher_at_top;
  const double student_shift = shift_of(out.student_max), teacher_shift = shift_of(out.teacher_max);
  const Partial* const parts[] = {&a, &b};
  for (const Partial* part : parts) {
    const double down_s = shift_of(part->student_max) - student_shift;
    const double down_t = shift_of(part->teacher_max) - teacher_shift;
    const bool has_student = part->student_max != -kInfinity, has_teacher = part->teacher_max != -kInfinity;
    const double scale_s = !has_student ? 0.0 : down_s == 0.0 ? 1.0 : ::exp(down_s * per_t);
    const double scale_t = !has_teacher ? 0.0 : down_t == 0.0 ? 1.0 : ::exp(down_t * per_t);
    out.student_sum += part->student_sum * scale_s;
    out.teacher_sum += part->teacher_sum * scale_t;
    if (p.labels && has_student) out.student_sum_at_one += part->student_sum_at_one * ::exp(down_s);
    switch (p.scalars.divergence) {
      case Divergence::kForward:
        if (scale_t != 0.0) out.inner += scale_t * (part->inner + part->teacher_sum * (down_t - down_s) * per_t);
        break;
      case Divergence::kReverse:
        if (scale_s != 0.0) {
          const double moved = down_s - (part->teacher_at_top - out.teacher_at_top);
          out.inner += scale_s * (part->inner + part->student_sum * moved * per_t);
        }
        break;
      case Divergence::kSoftCrossEntropy:
        if (scale_t != 0.0) out.inner += scale_t * (part->inner + part->teacher_sum * down_s * per_t);
        break;
      case Divergence::kJs:
        break;
    }
  }
  return out;
}

// What a pass over logits with known maxima adds up, in every lane apart.
template <class V, Divergence kDivergence, bool kLabels, bool kFromTop>
struct Sums {
  V student_shift, teacher_shift, teacher_at_top, per_t;
  V student{}, teacher{}, inner{}, student_at_one{};

  AMKD_INLINE void add(V s, V t) {
    const V x = (s - student_shift) * per_t, y = (t - teacher_shift) * per_t;
    const V ex = exp2_nonpositive(x), ey = exp2_nonpositive(y);
    student += ex;
    teacher += ey;
    if constexpr (kDivergence == Divergence::kForward) inner += product_or_zero(ey, y - x);
    if constexpr (kDivergence == Divergence::kReverse) {
      inner += product_or_zero(ex, x - (kFromTop ? (t - teacher_at_top) * per_t : y));  // 0 - 0 of the largest class
    }
    if constexpr (kDivergence == Divergence::kSoftCrossEntropy) inner += product_or_zero(ey, x);
    if constexpr (kLabels) student_at_one += exp2_nonpositive((s - student_shift) * splat<V>(kLog2E));
  }
};

// Above the sum of e^x where the student's largest class is nearly all there is, and small enough to be seldom met.
constexpr double kNearlyOne = 1.0 + 1.0 / 16.0;

// Measures the reverse divergence's logarithms from the student's largest class, where that is finite in the teacher.
template <class T>
void measure_from_top(const Problem& p, const Row<T>& row, int64_t begin, int64_t end, Partial& sums) {
  using V = Vector<T>;
  const V max = splat<V>(sums.student_max);
  V found = splat<V>(-kInfinity);
  for_each_vector<T, Overlap::kExclude>(row.student, row.teacher, begin, end, [&](V s, V t, int64_t, int64_t) {
    found = larger(found, s == max ? t : splat<V>(-kInfinity));
  });
  sums.teacher_at_top = shift_of(max_lanes(found));
  Sums<V, Divergence::kReverse, false, true> again{max, splat<V>(shift_of(sums.teacher_max)),
                                                   splat<V>(sums.teacher_at_top), splat<V>(p.per_t * kLog2E)};
  for_each_vector<T, Overlap::kExclude>(row.student, row.teacher, begin, end,
                                        [&](V s, V t, int64_t, int64_t) { again.add(s, t); });
  sums.inner = sum_lanes(again.inner) * kLog2;
}

template <class T>
struct Maxima {
  Vector<T> student, teacher;  // in every lane apart
};

template <class T>
AMKD_INLINE Maxima<T> maxima_of(const Row<T>& row, int64_t begin, int64_t end) {
  using V = Vector<T>;
  Maxima<T> out{splat<V>(-kInfinity), splat<V>(-kInfinity)};
  for_each_vector<T, Overlap::kExclude>(row.student, row.teacher, begin, end, [&](V s, V t, int64_t, int64_t) {
    out.student = larger(out.student, s);
    out.teacher = larger(out.teacher, t);
  });
  return out;
}

template <class T>
AMKD_INLINE Partial with(const Maxima<T>& maxima) {
  Partial out{};
  out.student_max = max_lanes(maxima.student);
  out.teacher_max = max_lanes(maxima.teacher);
  out.teacher_at_top = shift_of(out.teacher_max);
  return out;
}

template <class T, Divergence kDivergence, bool kLabels>
using RowSums = Sums<Vector<T>, kDivergence, kLabels, false>;

// kAhead: the block behind is fetched meanwhile, as memory would else rest while exponentials are computed.
template <class T, Divergence kDivergence, bool kLabels, bool kAhead = false>
AMKD_INLINE RowSums<T, kDivergence, kLabels> sums_of(const Problem& p, const Row<T>& row, int64_t begin, int64_t end,
                                                     const Partial& found) {
  using V = Vector<T>;
  const V teacher_shift = splat<V>(found.teacher_at_top);
  RowSums<T, kDivergence, kLabels> sums{splat<V>(shift_of(found.student_max)), teacher_shift, teacher_shift,
                                        splat<V>(p.per_t * kLog2E)};
  for_each_vector<T, Overlap::kExclude>(row.student, row.teacher, begin, end, [&](V s, V t, int64_t i, int64_t) {
    if constexpr (kAhead) {
      constexpr int kSecondCache = 2;
      __builtin_prefetch(row.student + i + kBlock, 0, kSecondCache);
      __builtin_prefetch(row.teacher + i + kBlock, 0, kSecondCache);
    }
    sums.add(s, t);
  });
  return sums;
}

template <class T, Divergence kDivergence, bool kLabels>
AMKD_INLINE void put(const RowSums<T, kDivergence, kLabels>& sums, Partial& out) {
  out.student_sum = sum_lanes(sums.student);
  out.teacher_sum = sum_lanes(sums.teacher);
  out.inner = sum_lanes(sums.inner) * kLog2;
  if constexpr (kLabels) out.student_sum_at_one = sum_lanes(sums.student_at_one);
}

template <class T, Divergence kDivergence>
AMKD_INLINE void mend_nearly_one(const Problem& p, const Row<T>& row, int64_t begin, int64_t end, Partial& out) {
  if constexpr (kDivergence == Divergence::kReverse) {
    if (out.student_sum < kNearlyOne && out.student_sum >= 1.0) measure_from_top(p, row, begin, end, out);
  }
}

template <class T, Divergence kDivergence, bool kLabels>
Partial sweep_block(const Problem& p, const Row<T>& row, int64_t begin, int64_t end) {
  Partial out = with(maxima_of(row, begin, end));
  put<T, kDivergence, kLabels>(sums_of<T, kDivergence, kLabels, true>(p, row, begin, end, out), out);
  mend_nearly_one<T, kDivergence>(p, row, begin, end, out);
  return out;
}

// Likewise of whole rows, step by step: a row alone would wait for each of its reductions.
template <class T, Divergence kDivergence, bool kLabels>
void sweep_rows(const Problem& p, int64_t row, int64_t count, Partial* out) {
  Maxima<T> maxima[kTogether];
  RowSums<T, kDivergence, kLabels> sums[kTogether];
  for (int64_t i = 0; i < count; ++i) maxima[i] = maxima_of(Row<T>(p, row + i), 0, p.classes);
  for (int64_t i = 0; i < count; ++i) out[i] = with(maxima[i]);
  for (int64_t i = 0; i < count; ++i) {
    sums[i] = sums_of<T, kDivergence, kLabels>(p, Row<T>(p, row + i), 0, p.classes, out[i]);
  }
  for (int64_t i = 0; i < count; ++i) put<T, kDivergence, kLabels>(sums[i], out[i]);
  for (int64_t i = 0; i < count; ++i) mend_nearly_one<T, kDivergence>(p, Row<T>(p, row + i), 0, p.classes, out[i]);
}

// A lane takes a row: rows that fill few vectors would spend most of their time adding up lanes. The lanes after
// `count` repeat its last row.
template <class T, Divergence kDivergence, bool kLabels>
void sweep_short_rows(const Problem& p, int64_t row, int64_t count, Partial* out) {
  using V = Vector<T>;
  const ShortRows<T> student(p.student, p.student_stride, row, count, p.classes);
  const ShortRows<T> teacher(p.teacher, p.teacher_stride, row, count, p.classes);
  V student_max = splat<V>(-kInfinity), teacher_max = student_max, teacher_at_top = student_max;
  for (int64_t i = 0; i < p.classes; ++i) {
    const V s = student[i], t = teacher[i];
    if constexpr (kDivergence == Divergence::kReverse) teacher_at_top = s > student_max ? t : teacher_at_top;
    student_max = larger(student_max, s);
    teacher_max = larger(teacher_max, t);
  }
  const V none = splat<V>(-kInfinity);
  teacher_at_top = teacher_at_top == none ? V{} : teacher_at_top;
  Sums<V, kDivergence, kLabels, true> sums{student_max == none ? V{} : student_max,
                                           teacher_max == none ? V{} : teacher_max, teacher_at_top,
                                           splat<V>(p.per_t * kLog2E)};
  for (int64_t i = 0; i < p.classes; ++i) sums.add(student[i], teacher[i]);
  for (int64_t i = 0; i < count; ++i) {
    out[i] = {student_max[i],  sums.student[i],       sums.student_at_one[i], teacher_max[i],
              sums.teacher[i], sums.inner[i] * kLog2, teacher_at_top[i]};
  }
}

template <class T, Divergence kDivergence, bool kLabels>
Partial sweep_as(const Problem& p, int64_t row, int64_t begin, int64_t end) {
  const Row<T> r(p, row);
  const int64_t first = begin + kBlock < end ? begin + kBlock : end;
  Partial out = sweep_block<T, kDivergence, kLabels>(p, r, begin, first);
  for (int64_t i = first; i < end; i += kBlock) {
    out = merge(p, out, sweep_block<T, kDivergence, kLabels>(p, r, i, i + kBlock < end ? i + kBlock : end));
  }
  return out;
}

template <class T, bool kLabels>
Partial sweep_with(const Problem& p, int64_t row, int64_t begin, int64_t end) {
  switch (p.scalars.divergence) {
    case Divergence::kForward:
      return sweep_as<T, Divergence::kForward, kLabels>(p, row, begin, end);
    case Divergence::kReverse:
      return sweep_as<T, Divergence::kReverse, kLabels>(p, row, begin, end);
    case Divergence::kSoftCrossEntropy:
      return sweep_as<T, Divergence::kSoftCrossEntropy, kLabels>(p, row, begin, end);
    case Divergence::kJs:
      break;
  }
  return sweep_as<T, Divergence::kJs, kLabels>(p, row, begin, end);
}

template <class T>
Partial sweep(const Problem& p, int64_t row, int64_t begin, int64_t end) {
  return p.labels ? sweep_with<T, true>(p, row, begin, end) : sweep_with<T, false>(p, row, begin, end);
}

template <class T>
void finish_label(Forward& p, int64_t row, const Partial& sums, double log_sum_at_one) {
  const int64_t label = label_of(p, row);
  if (label == p.scalars.ignore_index) {
    p.cross_entropy[row] = 0.0;
  } else if (label < 0 || label >= p.classes) {
    keep_first(p.bad_row, row);
    p.cross_entropy[row] = kInfinity - kInfinity;
  } else {
    const Vector<T> chosen = load_some(Row<T>(p, row).student + label, 1, ElementTraits<T>::excluded());
    p.cross_entropy[row] = log_sum_at_one - (max_lanes(chosen) - sums.student_max);
  }
}

struct Logs {
  double student, teacher, student_at_one;
};

// The logarithms of the sums of some rows.
template <class T>
AMKD_INLINE void take_logs(const Problem& p, const Partial* sums, int64_t count, Logs* out) {
  if constexpr (sizeof(T) == sizeof(double)) {
    for (int64_t i = 0; i < count; ++i) {
      out[i] = {::log(sums[i].student_sum), ::log(sums[i].teacher_sum),
                p.labels ? ::log(sums[i].student_sum_at_one) : 0.0};
    }
  } else {
    for (int64_t i = 0; i < count; i += kDoubles) {
      const int left = count - i < kDoubles ? count - i : kDoubles;
      Doubles student{}, teacher{}, at_one{};
      for (int lane = 0; lane < left; ++lane) {
        student[lane] = sums[i + lane].student_sum;
        teacher[lane] = sums[i + lane].teacher_sum;
        at_one[lane] = sums[i + lane].student_sum_at_one;
      }
      student = log_of(student);
      teacher = log_of(teacher);
      if (p.labels) at_one = log_of(at_one);
      for (int lane = 0; lane < left; ++lane) out[i + lane] = {student[lane], teacher[lane], at_one[lane]};
    }
  }
}

template <class T>
AMKD_INLINE void finish_with(Forward& p, int64_t row, const Partial& sums, const Logs& logs) {
  const double student_log = logs.student, teacher_log = logs.teacher;
  stat<T>(p, kStudentMax, row) = sums.student_max;
  stat<T>(p, kStudentLogSum, row) = student_log;
  stat<T>(p, kTeacherMax, row) = sums.teacher_max;
  stat<T>(p, kTeacherLogSum, row) = teacher_log;
  double divergence = 0.0, inner = 0.0;
  switch (p.scalars.divergence) {
    case Divergence::kForward:
      divergence = sums.inner / sums.teacher_sum - teacher_log + student_log;
      break;
    case Divergence::kReverse:
      inner = sums.inner / sums.student_sum;
      divergence = inner + (shift_of(sums.teacher_max) - sums.teacher_at_top) * p.per_t - student_log + teacher_log;
      stat<T>(p, kTeacherMax, row) = sums.teacher_at_top;
      break;
    case Divergence::kSoftCrossEntropy:
      divergence = student_log - sums.inner / sums.teacher_sum;
      break;
    case Divergence::kJs:
      break;
  }
  stat<T>(p, kInner, row) = inner;
  p.divergence[row] = p.scalars.row_scale * divergence;
  stat<T>(p, kStudentLogSumAtOne, row) = logs.student_at_one;
  if (p.labels) finish_label<T>(p, row, sums, logs.student_at_one);
}

template <class T>
void finish(Forward& p, int64_t row, const Partial& sums) {
  Logs logs;
  take_logs<T>(p, &sums, 1, &logs);
  finish_with<T>(p, row, sums, logs);
}

// log σ of a vector of logits, from the row's statistics; in units of log 2 where `unit` is kLog2E.
template <class V>
struct LogProbability {
  V max, log_sum, per_t;
  V operator()(V logits) const { return (logits - max) * per_t - log_sum; }
};

template <class T>
auto log_probability(const Problem& p, int64_t row, Field max, Field log_sum, double per_t, double unit = 1.0) {
  using V = Vector<T>;
  return LogProbability<V>{splat<V>(stat<T>(p, max, row)), splat<V>(stat<T>(p, log_sum, row) * unit),
                           splat<V>(per_t * unit)};
}

// log m = log(β p + (1-β) q), to base e: there the logarithms of equal distributions cancel to the last bit.
template <class V>
struct LogMixture {
  V log_beta, log_rest;
  explicit LogMixture(const Problem& p) : log_beta(splat<V>(p.log_beta)), log_rest(splat<V>(p.log_rest)) {}
  V operator()(V a, V c) const {
    const V u = c + log_beta, v = a + log_rest;
    const V high = larger(u, v), low = u > v ? v : u;
    return high + log1p_unit(exp_nonpositive(low - high));
  }
};

template <class T>
Kernels::Mixture sweep_mixture(const Problem& p, int64_t row, int64_t begin, int64_t end) {
  using V = Vector<T>;
  const auto log_q = log_probability<T>(p, row, kStudentMax, kStudentLogSum, p.per_t);
  const auto log_p = log_probability<T>(p, row, kTeacherMax, kTeacherLogSum, p.per_t);
  const LogMixture<V> log_mixture(p);
  const Row<T> r(p, row);
  Kernels::Mixture out{};
  for (int64_t i = begin; i < end; i += kBlock) {
    V teacher{}, student{};
    for_each_vector<T, Overlap::kExclude>(r.student, r.teacher, i, i + kBlock < end ? i + kBlock : end,
                                          [&](V s, V t, int64_t, int64_t) {
                                            const V a = log_q(s), c = log_p(t), log_m = log_mixture(a, c);
                                            teacher += product_or_zero(exp_nonpositive(c), c - log_m);
                                            student += product_or_zero(exp_nonpositive(a), a - log_m);
                                          });
    out.teacher += sum_lanes(teacher);
    out.student += sum_lanes(student);
  }
  return out;
}

template <class T>
void finish_mixture(Forward& p, int64_t row, Kernels::Mixture sums) {
  stat<T>(p, kInner, row) = sums.student;
  p.divergence[row] = p.scalars.row_scale * (p.scalars.beta * sums.teacher + (1.0 - p.scalars.beta) * sums.student);
}

template <class T, Divergence kDivergence, bool kLabels>
void forward_rows_as(Forward& p, int64_t first, int64_t last) {
  constexpr int kRows = lanes<Vector<T>>;
  constexpr int64_t kMost = kRows > kTogether ? kRows : kTogether;
  const bool is_short = kRows > 1 && p.classes <= kShort;
  const int64_t step = is_short ? kRows : p.classes <= kBlock ? kTogether : 1;
  Partial sums[kMost];
  Logs logs[kMost];
  for (int64_t row = first; row < last; row += step) {
    const int64_t count = last - row < step ? last - row : step;
    if (step == 1) {
      sums[0] = sweep_as<T, kDivergence, kLabels>(p, row, 0, p.classes);
    } else if (!is_short) {
      sweep_rows<T, kDivergence, kLabels>(p, row, count, sums);
    } else if constexpr (kRows > 1) {
      sweep_short_rows<T, kDivergence, kLabels>(p, row, count, sums);
    }
    take_logs<T>(p, sums, count, logs);
    for (int64_t i = 0; i < count; ++i) {
      finish_with<T>(p, row + i, sums[i], logs[i]);
      if constexpr (kDivergence == Divergence::kJs) {
        finish_mixture<T>(p, row + i, sweep_mixture<T>(p, row + i, 0, p.classes));
      }
    }
  }
}

template <class T, bool kLabels>
void forward_rows_with(Forward& p, int64_t first, int64_t last) {
  switch (p.scalars.divergence) {
    case Divergence::kForward:
      return forward_rows_as<T, Divergence::kForward, kLabels>(p, first, last);
    case Divergence::kReverse:
      return forward_rows_as<T, Divergence::kReverse, kLabels>(p, first, last);
    case Divergence::kSoftCrossEntropy:
      return forward_rows_as<T, Divergence::kSoftCrossEntropy, kLabels>(p, first, last);
    case Divergence::kJs:
      return forward_rows_as<T, Divergence::kJs, kLabels>(p, first, last);
  }
}

template <class T>
void forward_rows(Forward& p, int64_t first, int64_t last) {
  p.labels ? forward_rows_with<T, true>(p, first, last) : forward_rows_with<T, false>(p, first, last);
}

// ---- backward ---------------------------------------------------------------------------------------------------

template <class T, Divergence kDivergence, bool kLabels>
AMKD_INLINE void backward_row(const Backward& p, int64_t row, int64_t begin, int64_t end) {
  using V = Vector<T>;
  const Scalars& s = p.scalars;
  const double upstream = static_cast<const Stat<T>*>(p.grad_loss)[s.per_row ? row : 0];
  constexpr bool kJs = kDivergence == Divergence::kJs;
  constexpr double kUnit = kJs ? 1.0 : kLog2E;  // of logarithms: see LogMixture for the 1
  const double side = kJs ? 1.0 - s.beta : kDivergence == Divergence::kReverse ? kLog2 : 1.0;
  const double weight = weight_of<T>(p.weight, row), ce_weight = weight_of<T>(p.ce_weight, row);
  const int64_t label = kLabels ? label_of(p, row) : s.ignore_index;
  // What a weight of 0 hides may be NaN, and 0 times that too.
  const bool is_seen = weight != 0.0 && s.kl_factor != 0.0;
  const bool has_ce = kLabels && label != s.ignore_index && ce_weight != 0.0 && s.ce_factor != 0.0;
  T* out = static_cast<T*>(p.grad_student) + row * p.classes;
  if (!is_seen && !has_ce) {
    for (int64_t i = begin; i < end; ++i) out[i] = T{};
    return;
  }
  const V scale = splat<V>(upstream * s.kl_factor * weight * s.row_scale * side * p.per_t);
  const V inner = splat<V>(stat<T>(p, kInner, row) * kUnit);
  const auto log_q = log_probability<T>(p, row, kStudentMax, kStudentLogSum, p.per_t, kUnit);
  const auto log_p = log_probability<T>(p, row, kTeacherMax, kTeacherLogSum, p.per_t, kUnit);
  const V per_t = splat<V>(p.per_t * kUnit);
  const auto log2_q1 = log_probability<T>(p, row, kStudentMax, kStudentLogSumAtOne, 1.0, kLog2E);
  const LogMixture<V> log_mixture(p);
  const double labelled = static_cast<const Stat<T>*>(p.stats)[kFields * p.rows + kLabelled];
  const double ce_scale = has_ce ? upstream * s.ce_factor * ce_weight / labelled : 0.0;
  const V ce = splat<V>(ce_scale);
  const Row<T> r(p, row);
  const auto write = [&](V student, V teacher, int64_t i, int64_t count) {
    const V a = log_q(student), c = log_p(teacher);
    const V q = kJs ? exp_nonpositive(a) : exp2_nonpositive(a);
    V grad;
    if constexpr (kDivergence == Divergence::kReverse) {
      const V from_top = (student - log_q.max) - (teacher - log_p.max);
      grad = scale * product_or_zero(q, from_top * per_t - inner);
    } else if constexpr (kJs) {
      grad = scale * product_or_zero(q, a - log_mixture(a, c) - inner);
    } else {
      grad = scale * (q - exp2_nonpositive(c));
    }
    if constexpr (kLabels) {
      if (!is_seen) grad = V{};
      grad += ce * exp2_nonpositive(log2_q1(student));
      if (label >= i && label < i + count) {
        Stat<T> lane[lanes<V>];
        store(lane, grad);
        lane[label - i] -= static_cast<Stat<T>>(ce_scale);
        grad = load(lane);
      }
    }
    if (count == lanes<V>) {
      store(out + i, grad);
    } else {
      store_some(out + i, count, grad);
    }
  };
  if (static_cast<const void*>(out) == r.student) {
    for_each_vector<T, Overlap::kNone>(r.student, r.teacher, begin, end, write);
  } else {
    for_each_vector<T, Overlap::kRepeat>(r.student, r.teacher, begin, end, write);
  }
}

template <class T, Divergence kDivergence, bool kLabels>
void backward_as(const Backward& p, int64_t first, int64_t last, int64_t begin, int64_t end) {
  for (int64_t row = first; row < last; ++row) backward_row<T, kDivergence, kLabels>(p, row, begin, end);
}

template <class T, bool kLabels>
void backward_with(const Backward& p, int64_t first, int64_t last, int64_t begin, int64_t end) {
  switch (p.scalars.divergence) {
    case Divergence::kForward:
    case Divergence::kSoftCrossEntropy:
      return backward_as<T, Divergence::kForward, kLabels>(p, first, last, begin, end);
    case Divergence::kReverse:
      return backward_as<T, Divergence::kReverse, kLabels>(p, first, last, begin, end);
    case Divergence::kJs:
      return backward_as<T, Divergence::kJs, kLabels>(p, first, last, begin, end);
  }
}

template <class T>
void backward(const Backward& p, int64_t first, int64_t last, int64_t begin, int64_t end) {
  p.labels ? backward_with<T, true>(p, first, last, begin, end) : backward_with<T, false>(p, first, last, begin, end);
}

template <class T>
constexpr Kernels kernels_for = {sweep<T>,          merge,           finish<T>,  sweep_mixture<T>,
                                 finish_mixture<T>, forward_rows<T>, backward<T>};

}  // namespace

// In the order of Element.
extern const Kernels kernels[kElements] = {kernels_for<float>, kernels_for<double>, kernels_for<Half>,
                                           kernels_for<BFloat16>};

}  // namespace amkd::kl::AMKD_SIMD
