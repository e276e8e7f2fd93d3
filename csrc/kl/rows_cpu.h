// Rows of logits as vectors, and the sums of a forward KL divergence, for the CPU kernels of several operators.
// Included by what is compiled once per SIMD level alone.
#pragma once

#include "../common/doubles.h"

namespace amkd::kl::AMKD_SIMD {

using namespace amkd::AMKD_SIMD;

namespace {

constexpr double kInfinity = __builtin_huge_val();
// Columns whose sums are taken in the vectors' lanes; longer rows add up such blocks in fp64.
constexpr int64_t kBlock = 2048;
constexpr int64_t kShort = 32;  // classes of a row that shares its vectors with others

template <class T>
struct ElementTraits {
  using Stat = float;
};
template <>
struct ElementTraits<double> {
  using Stat = double;
  static double excluded() { return -kInfinity; }
};
template <>
struct ElementTraits<float> {
  using Stat = float;
  static float excluded() { return static_cast<float>(-kInfinity); }
};
template <>
struct ElementTraits<Half> {
  using Stat = float;
  static Half excluded() { return {0xfc00}; }
};
template <>
struct ElementTraits<BFloat16> {
  using Stat = float;
  static BFloat16 excluded() { return {0xff80}; }
};

template <class T>
using Stat = typename ElementTraits<T>::Stat;

inline Floats exclude_first(Floats v, int64_t count) {
  return lane_numbers() < static_cast<int32_t>(count) ? splat<Floats>(-kInfinity) : v;
}
inline double exclude_first(double v, int64_t) { return v; }

// Some neighbouring columns. `of` reads them from a row, with -inf in the lanes that are not meant: a class that is
// masked out adds nothing to any sum here.
template <class T>
struct Whole {
  int64_t at;
  AMKD_INLINE Vector<T> of(const T* row) const { return load(row + at); }
  AMKD_INLINE void put(T* row, Vector<T> v) const { store(row + at, v); }
};
// The last of several vectors, whose first `seen` columns the one before it has covered.
template <class T>
struct Last {
  int64_t at, seen;
  AMKD_INLINE Vector<T> of(const T* row) const { return exclude_first(load(row + at), seen); }
};
// Fewer columns than a vector has.
template <class T>
struct Few {
  int64_t at, count;
  AMKD_INLINE Vector<T> of(const T* row) const { return load_some(row + at, count, ElementTraits<T>::excluded()); }
  AMKD_INLINE void put(T* row, Vector<T> v) const { store_some(row + at, count, v); }
};

// Calls body(columns) until [begin, end) is covered, each column once.
template <class T, class Body>
AMKD_INLINE void for_each_vector(int64_t begin, int64_t end, Body body) {
  constexpr int64_t kStep = lanes<Vector<T>>;
  int64_t i = begin;
  for (; i + kStep <= end; i += kStep) body(Whole<T>{i});
  if (i == end) return;
  if (end - begin >= kStep) {
    body(Last<T>{end - kStep, i - (end - kStep)});
  } else {
    body(Few<T>{i, end - i});
  }
}

// Likewise, with some columns twice: for what is computed column by column.
template <class T, class Body>
AMKD_INLINE void for_each_output(int64_t end, Body body) {
  constexpr int64_t kStep = lanes<Vector<T>>;
  int64_t i = 0;
  for (; i + kStep <= end; i += kStep) body(Whole<T>{i});
  if (i == end) return;
  if (end >= kStep) {
    body(Whole<T>{end - kStep});
  } else {
    body(Few<T>{0, end});
  }
}

// Calls body(begin, end) for blocks that cover [0, classes).
template <class Body>
AMKD_INLINE void for_each_block(int64_t classes, Body body) {
  for (int64_t begin = 0; begin < classes; begin += kBlock) {
    body(begin, begin + kBlock < classes ? begin + kBlock : classes);
  }
}

// What to subtract for a maximum: a row without any class has none, and its terms must stay e^-inf = 0.
inline double shift_of(double max) { return max == -kInfinity ? 0.0 : max; }
AMKD_INLINE Floats shift_of(Floats max) { return max == splat<Floats>(-kInfinity) ? Floats{} : max; }

template <class V>
AMKD_INLINE V zero_where_excluded(V logits, V value) {
  return logits == splat<V>(-kInfinity) ? V{} : value;
}

template <class V>
AMKD_INLINE V product_or_zero(V probability, V factor) {
  return probability * (probability == V{} ? V{} : factor);  // in this order the product can join a sum
}

// The sums over a row of KL(p‖q), relative to the maxima.
struct DivergenceSums {
  double student = 0.0, teacher = 0.0;  // Σ e^x, Σ e^y
  double inner = 0.0;                   // Σ e^y (y - x)

  double value() const { return inner / teacher - ::log(teacher) + ::log(student); }
};

// What a block adds to it, in every lane apart; scales are in units of log 2.
template <class V>
struct DivergenceLanes {
  V student_shift, teacher_shift, student_scale, teacher_scale;
  V student{}, teacher{}, inner{};

  DivergenceLanes(double student_max, double teacher_max, double student_per_t, double teacher_per_t)
      : student_shift(splat<V>(shift_of(student_max))),
        teacher_shift(splat<V>(shift_of(teacher_max))),
        student_scale(splat<V>(student_per_t * kLog2E)),
        teacher_scale(splat<V>(teacher_per_t * kLog2E)) {}

  struct Maxima {
    V student, teacher;
  };
  // Of rows that have a lane each.
  DivergenceLanes(Maxima max, V student_scale, V teacher_scale)
      : student_shift(shift_of(max.student)),
        teacher_shift(shift_of(max.teacher)),
        student_scale(student_scale),
        teacher_scale(teacher_scale) {}

  struct Terms {
    V from_student_max, student, teacher;
  };

  AMKD_INLINE Terms add(V s, V t) {
    const V from_student_max = s - student_shift;
    const V x = from_student_max * student_scale, y = (t - teacher_shift) * teacher_scale;
    const V ex = exp2_nonpositive(x), ey = exp2_nonpositive(y);
    student += ex;
    teacher += ey;
    inner += product_or_zero(ey, y - x);
    return {from_student_max, ex, ey};
  }

  // The divergences of rows that have a lane each, for the first `count` of them.
  AMKD_INLINE void put_values(double* out, int64_t count) const {
    double values[kLanes];
    store_doubles(values, half_of_values<0>());
    store_doubles(values + kDoubles, half_of_values<1>());
    for (int64_t i = 0; i < count; ++i) out[i] = values[i];
  }

  void flush(DivergenceSums& sums) const {
    sums.student += sum_lanes(student);
    sums.teacher += sum_lanes(teacher);
    sums.inner += sum_lanes(inner) * kLog2;
  }

 private:
  template <int kHalf>
  AMKD_INLINE Doubles half_of_values() const {
    const Doubles sum = widened(half_of<kHalf>(teacher));
    return widened(half_of<kHalf>(inner)) * kLog2 / sum - log_of(sum) + log_of(widened(half_of<kHalf>(student)));
  }
};

// Rows of few classes side by side: a lane takes a row, so that nothing is added up across lanes, and what is done once
// a row is done for all of them. The lanes after `count` repeat its last row.
template <class T>
struct ShortRows {
  static constexpr int kRows = lanes<Vector<T>>;
  T columns[kShort][kRows];

  ShortRows(const void* logits, int64_t stride, int64_t row, int64_t count, int64_t classes) {
    for (int lane = 0; lane < kRows; ++lane) {
      const T* from = static_cast<const T*>(logits) + (row + (lane < count ? lane : count - 1)) * stride;
      for (int64_t i = 0; i < classes; ++i) columns[i][lane] = from[i];
    }
  }
  AMKD_INLINE Vector<T> operator[](int64_t column) const { return load(columns[column]); }
};

// Writes numbers of `count` rows.
AMKD_INLINE void put_rows(float* out, int64_t count, Floats numbers) {
  if (count == kLanes) {
    store(out, numbers);
  } else {
    store_some(out, count, numbers);
  }
}

// σ of a vector of logits, from the row's statistics.
template <class V>
struct Probability {
  V max, scale, log2_sum;

  Probability(double max_of_row, double log_sum, double per_t)
      : max(splat<V>(max_of_row)), scale(splat<V>(per_t * kLog2E)), log2_sum(splat<V>(log_sum * kLog2E)) {}
  AMKD_INLINE V operator()(V logits) const { return exp2_nonpositive((logits - max) * scale - log2_sum); }
};

}  // namespace
}  // namespace amkd::kl::AMKD_SIMD
