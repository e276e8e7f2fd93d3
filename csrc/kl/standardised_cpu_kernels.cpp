// The arithmetic of the standardised KL divergence on a CPU, compiled once per SIMD level. A row is looked at four
// times (maxima, means, variances, exponentials) and read from memory once: after that it is in a cache.
#include "rows_cpu.h"
#include "standardised_cpu.h"

namespace amkd::kl::AMKD_SIMD {
namespace {

using standardised::Backward, standardised::Forward, standardised::Problem;
using namespace standardised;

template <class T>
const T* row_of(const void* logits, int64_t stride, int64_t row) {
  return static_cast<const T*>(logits) + row * stride;
}

template <class T>
Stat<T>& stat(const Problem& p, Field field, int64_t row) {
  return static_cast<Stat<T>*>(p.stats)[field * p.rows + row];
}

template <class T>
double weight_of(const Problem& p, int64_t row) {
  return p.weight ? static_cast<const Stat<T>*>(p.weight)[row] : 1.0;
}

// What multiplies z - max in an exponent. Where nothing varies that is 0, or -inf for a class that is masked out, and
// has to stay so.
double exponent_of(double scale) { return scale == 0.0 ? 1.0 : scale; }

// Of the classes that are not masked out.
struct Moments {
  double max;
  double count;
  double centre;  // mean of z - max
  double scale;   // 1 / s; 0 where nothing varies

  double degrees() const { return count > 1.0 ? count - 1.0 : 1.0; }
};

constexpr int kNetworks = 2;  // whose rows are looked at together: each look waits for the sums of the one before

template <class T>
AMKD_INLINE void find_moments(const T* const (&rows)[kNetworks], int64_t classes, Moments (&out)[kNetworks]) {
  using V = Vector<T>;
  V max[kNetworks], shift[kNetworks], centre[kNetworks];
  double sum[kNetworks] = {}, count[kNetworks] = {}, square[kNetworks] = {};
  for (V& v : max) v = splat<V>(-kInfinity);
  for_each_block(classes, [&](int64_t begin, int64_t end) {
    V counts[kNetworks] = {};
    for_each_vector<T>(begin, end, [&](auto columns) {
      for (int i = 0; i < kNetworks; ++i) {
        const V z = columns.of(rows[i]);
        max[i] = larger(max[i], z);
        counts[i] += zero_where_excluded(z, splat<V>(1.0));
      }
    });
    for (int i = 0; i < kNetworks; ++i) count[i] += sum_lanes(counts[i]);
  });
  for (int i = 0; i < kNetworks; ++i) {
    out[i].max = max_lanes(max[i]);
    // From the maximum on, the differences of a row of equal logits are exactly 0.
    shift[i] = splat<V>(shift_of(out[i].max));
  }
  for_each_block(classes, [&](int64_t begin, int64_t end) {
    V sums[kNetworks] = {};
    for_each_vector<T>(begin, end, [&](auto columns) {
      for (int i = 0; i < kNetworks; ++i) {
        const V z = columns.of(rows[i]);
        sums[i] += zero_where_excluded(z, z - shift[i]);
      }
    });
    for (int i = 0; i < kNetworks; ++i) sum[i] += sum_lanes(sums[i]);
  });
  for (int i = 0; i < kNetworks; ++i) {
    out[i].count = count[i];
    out[i].centre = sum[i] / count[i];
    centre[i] = splat<V>(out[i].centre);
  }
  for_each_block(classes, [&](int64_t begin, int64_t end) {
    V squares[kNetworks] = {};
    for_each_vector<T>(begin, end, [&](auto columns) {
      for (int i = 0; i < kNetworks; ++i) {
        const V z = columns.of(rows[i]), u = zero_where_excluded(z, z - shift[i] - centre[i]);
        squares[i] += u * u;
      }
    });
    for (int i = 0; i < kNetworks; ++i) square[i] += sum_lanes(squares[i]);
  });
  for (int i = 0; i < kNetworks; ++i) {
    out[i].scale = square[i] == 0.0 ? 0.0 : ::sqrt(out[i].degrees() / square[i]);
  }
}

// The moments of rows that have a lane each.
struct MomentLanes {
  Floats max, shift, centre, degrees, square;

  // 1 / s, times what is said, in fp64 until then; 0 where nothing varies.
  AMKD_INLINE Floats scale(double factor = 1.0) const {
    const auto scale_of = [&](Doubles degrees, Doubles square) {
      return square == 0.0 ? Doubles{} : root_of(degrees / square) * factor;
    };
    return in_doubles(scale_of, degrees, square);
  }
  // What multiplies z - max in an exponent to base 2, as exponent_of says.
  AMKD_INLINE Floats exponent(double per_t) const {
    const Floats scaled = scale(per_t * kLog2E);
    return square == 0.0f ? splat<Floats>(per_t * kLog2E) : scaled;
  }
};

template <class T>
AMKD_INLINE MomentLanes moments_of(const ShortRows<T>& rows, int64_t classes) {
  using V = Vector<T>;
  const V zero{}, one = splat<V>(1.0);
  MomentLanes out{splat<V>(-kInfinity), zero, zero, zero, zero};
  V count{}, sum{};
  for (int64_t i = 0; i < classes; ++i) {
    const V z = rows[i];
    out.max = larger(out.max, z);
    count += zero_where_excluded(z, one);
  }
  out.shift = shift_of(out.max);
  for (int64_t i = 0; i < classes; ++i) {
    const V z = rows[i];
    sum += zero_where_excluded(z, z - out.shift);
  }
  out.centre = sum / count;
  for (int64_t i = 0; i < classes; ++i) {
    const V z = rows[i], u = zero_where_excluded(z, z - out.shift - out.centre);
    out.square += u * u;
  }
  out.degrees = count > one ? count - one : one;
  return out;
}

// Of rows of few classes, which share their vectors.
template <class T>
void forward_short(const Forward& p, int64_t row, int64_t count, double per_t) {
  using V = Vector<T>;
  const ShortRows<T> student(p.student, p.student_stride, row, count, p.classes);
  const ShortRows<T> teacher(p.teacher, p.teacher_stride, row, count, p.classes);
  const MomentLanes of_student = moments_of(student, p.classes), of_teacher = moments_of(teacher, p.classes);
  DivergenceLanes<V> lanes({of_student.max, of_teacher.max}, of_student.exponent(per_t), of_teacher.exponent(per_t));
  V from_student{}, from_teacher{};  // Σ e^x (z - max - centre), Σ e^y (z - max - centre)
  for (int64_t i = 0; i < p.classes; ++i) {
    const V s = student[i];
    const auto terms = lanes.add(s, teacher[i]);
    const V u = zero_where_excluded(s, terms.from_student_max - of_student.centre);
    from_student += terms.student * u;
    from_teacher += terms.teacher * u;
  }
  const V scale = of_student.scale();
  const V pull = in_doubles([](Doubles of_q, Doubles q, Doubles of_p, Doubles p, Doubles scale,
                               Doubles degrees) { return (of_q / q - of_p / p) * scale / degrees; },
                            from_student, lanes.student, from_teacher, lanes.teacher, scale, of_student.degrees);
  const auto log = [](Doubles x) { return log_of(x); };
  const V fields[kFields] = {of_student.max,
                             in_doubles(log, lanes.student),
                             of_student.centre,
                             of_student.degrees > splat<V>(1.0) ? scale : V{},
                             pull,
                             of_teacher.max,
                             in_doubles(log, lanes.teacher),
                             of_teacher.scale()};
  for (int field = 0; field < kFields; ++field) {
    put_rows(&stat<T>(p, static_cast<Field>(field), row), count, fields[field]);
  }
  double values[kLanes];
  lanes.put_values(values, count);
  for (int64_t i = 0; i < count; ++i) {
    const double factor = p.scalars.factor * weight_of<T>(p, row + i);
    p.divergence[row + i] = factor == 0.0 ? 0.0 : factor * values[i];  // what has weight 0 may be NaN
  }
}

template <class T>
void forward(const Forward& p, int64_t first, int64_t last) {
  using V = Vector<T>;
  const double per_t = 1.0 / p.scalars.temperature;
  if constexpr (lanes<V> > 1) {
    constexpr int64_t kRows = lanes<V>;
    if (p.classes <= kShort) {
      for (int64_t row = first; row < last; row += kRows) {
        forward_short<T>(p, row, last - row < kRows ? last - row : kRows, per_t);
      }
      return;
    }
  }
  for (int64_t row = first; row < last; ++row) {
    const T* student = row_of<T>(p.student, p.student_stride, row);
    const T* teacher = row_of<T>(p.teacher, p.teacher_stride, row);
    Moments moments[kNetworks];
    find_moments<T>({student, teacher}, p.classes, moments);
    const Moments &of_student = moments[0], &of_teacher = moments[1];
    const V centre = splat<V>(of_student.centre);
    Divergence sums;
    double from_student = 0.0, from_teacher = 0.0;  // Σ e^x (z - max - centre), Σ e^y (z - max - centre)
    for_each_block(p.classes, [&](int64_t begin, int64_t end) {
      DivergenceLanes<V> lanes(of_student.max, of_teacher.max, exponent_of(of_student.scale) * per_t,
                               exponent_of(of_teacher.scale) * per_t);
      V of_q{}, of_p{};
      for_each_vector<T>(begin, end, [&](auto columns) {
        const V s = columns.of(student), t = columns.of(teacher);
        const auto terms = lanes.add(s, t);
        const V u = zero_where_excluded(s, terms.from_student_max - centre);
        of_q += terms.student * u;
        of_p += terms.teacher * u;
      });
      lanes.flush(sums);
      from_student += sum_lanes(of_q);
      from_teacher += sum_lanes(of_p);
    });
    const double pull = (from_student / sums.student - from_teacher / sums.teacher) * of_student.scale;
    stat<T>(p, kStudentMax, row) = of_student.max;
    stat<T>(p, kStudentLogSum, row) = ::log(sums.student);
    stat<T>(p, kStudentCentre, row) = of_student.centre;
    stat<T>(p, kStudentScale, row) = of_student.count > 2.0 ? of_student.scale : 0.0;
    stat<T>(p, kStudentPull, row) = pull / of_student.degrees();
    stat<T>(p, kTeacherMax, row) = of_teacher.max;
    stat<T>(p, kTeacherLogSum, row) = ::log(sums.teacher);
    stat<T>(p, kTeacherScale, row) = of_teacher.scale;
    const double factor = p.scalars.factor * weight_of<T>(p, row);
    p.divergence[row] = factor == 0.0 ? 0.0 : factor * sums.value();  // what has weight 0 may be NaN
  }
}

template <class T>
void backward(const Backward& p, int64_t first, int64_t last) {
  using V = Vector<T>;
  const double per_t = 1.0 / p.scalars.temperature;
  for (int64_t row = first; row < last; ++row) {
    const T* student = row_of<T>(p.student, p.student_stride, row);
    const T* teacher = row_of<T>(p.teacher, p.teacher_stride, row);
    const double weight = p.scalars.factor * weight_of<T>(p, row);
    T* out = static_cast<T*>(p.grad_student) + row * p.classes;
    if (weight == 0.0) {
      for (int64_t i = 0; i < p.classes; ++i) out[i] = T{};
      continue;
    }
    const double upstream = static_cast<const Stat<T>*>(p.grad_loss)[p.scalars.per_row ? row : 0];
    const double scale = stat<T>(p, kStudentScale, row), max = stat<T>(p, kStudentMax, row);
    const V factor = splat<V>(upstream * weight * scale * per_t);
    const V pull = splat<V>(stat<T>(p, kStudentPull, row) * scale);
    const V shift = splat<V>(max), centre = splat<V>(stat<T>(p, kStudentCentre, row));
    const Probability<V> of_student(max, stat<T>(p, kStudentLogSum, row), exponent_of(scale) * per_t);
    const Probability<V> of_teacher(stat<T>(p, kTeacherMax, row), stat<T>(p, kTeacherLogSum, row),
                                    exponent_of(stat<T>(p, kTeacherScale, row)) * per_t);
    for_each_output<T>(p.classes, [&](auto columns) {
      const V s = columns.of(student);
      const V u = zero_where_excluded(s, s - shift - centre);
      columns.put(out, factor * (of_student(s) - of_teacher(columns.of(teacher)) - pull * u));
    });
  }
}

template <class T>
constexpr standardised::Kernels kernels_for = {forward<T>, backward<T>};

}  // namespace

// In the order of Element.
extern const standardised::Kernels standardised_kernels[kElements] = {kernels_for<float>, kernels_for<double>,
                                                                      kernels_for<Half>, kernels_for<BFloat16>};

}  // namespace amkd::kl::AMKD_SIMD
