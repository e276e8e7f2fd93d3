// The arithmetic of cosine-confidence distillation on a CPU, compiled once per SIMD level. A row's logits are read from
// memory once a pass: its maxima and its sums both find them in a cache.
#include "consistency_cpu.h"
#include "rows_cpu.h"

namespace amkd::kl::AMKD_SIMD {
namespace {

using consistency::Backward, consistency::Forward, consistency::Problem;
using consistency::kConfidence, consistency::kViews, consistency::kViewFields;
using consistency::kStudentLogSum, consistency::kStudentMax, consistency::kTeacherLogSum, consistency::kTeacherMax;

template <class T>
struct Rows {
  const T* student[kViews];
  const T* teacher[kViews];
  Rows(const Problem& p, int64_t row) {
    for (int v = 0; v < kViews; ++v) {
      student[v] = static_cast<const T*>(p.student[v]) + row * p.student_stride[v];
      teacher[v] = static_cast<const T*>(p.teacher[v]) + row * p.teacher_stride[v];
    }
  }
};

template <class T>
Stat<T>& stat(const Problem& p, int64_t field, int64_t row) {
  return static_cast<Stat<T>*>(p.stats)[field * p.rows + row];
}

// The row maxima of either view, and what the cosine of the teachers' rows takes.
struct Overview {
  double student_max[kViews], teacher_max[kViews];
  double product = 0.0, squares[kViews] = {};

  double cosine() const {
    // A NaN is no row without length.
    if (squares[0] == 0.0 || squares[1] == 0.0) return 0.0;
    return product / (::sqrt(squares[0]) * ::sqrt(squares[1]));
  }
};

template <class T>
AMKD_INLINE Overview look_over(const Rows<T>& r, int64_t classes) {
  using V = Vector<T>;
  Overview out;
  V student_max[kViews], teacher_max[kViews];
  for (int v = 0; v < kViews; ++v) student_max[v] = teacher_max[v] = splat<V>(-kInfinity);
  for_each_block(classes, [&](int64_t begin, int64_t end) {
    V product{}, squares[kViews] = {};
    for_each_vector<T>(begin, end, [&](auto columns) {
      V teacher[kViews];
      for (int v = 0; v < kViews; ++v) {
        student_max[v] = larger(student_max[v], columns.of(r.student[v]));
        const V t = columns.of(r.teacher[v]);
        teacher_max[v] = larger(teacher_max[v], t);
        teacher[v] = zero_where_excluded(t, t);
        squares[v] += teacher[v] * teacher[v];
      }
      product += teacher[0] * teacher[1];
    });
    out.product += sum_lanes(product);
    for (int v = 0; v < kViews; ++v) out.squares[v] += sum_lanes(squares[v]);
  });
  for (int v = 0; v < kViews; ++v) {
    out.student_max[v] = max_lanes(student_max[v]);
    out.teacher_max[v] = max_lanes(teacher_max[v]);
  }
  return out;
}

// Of rows of few classes, which share their vectors.
template <class T>
void forward_short(const Forward& p, int64_t row, int64_t count) {
  using V = Vector<T>;
  const auto logits = [&](const void* const(&of)[kViews], const int64_t (&stride)[kViews], int v) {
    return ShortRows<T>(of[v], stride[v], row, count, p.classes);
  };
  const ShortRows<T> student[kViews] = {logits(p.student, p.student_stride, 0), logits(p.student, p.student_stride, 1)};
  const ShortRows<T> teacher[kViews] = {logits(p.teacher, p.teacher_stride, 0), logits(p.teacher, p.teacher_stride, 1)};
  V student_max[kViews], teacher_max[kViews], product{}, squares[kViews] = {};
  for (int v = 0; v < kViews; ++v) student_max[v] = teacher_max[v] = splat<V>(-kInfinity);
  for (int64_t i = 0; i < p.classes; ++i) {
    V seen[kViews];
    for (int v = 0; v < kViews; ++v) {
      const V t = teacher[v][i];
      student_max[v] = larger(student_max[v], student[v][i]);
      teacher_max[v] = larger(teacher_max[v], t);
      seen[v] = zero_where_excluded(t, t);
      squares[v] += seen[v] * seen[v];
    }
    product += seen[0] * seen[1];
  }
  const V confidence = in_doubles(
      [](Doubles product, Doubles clean, Doubles augmented) {
        const Doubles cosine = product / (root_of(clean) * root_of(augmented));
        return 1.0 + (((clean == 0.0) | (augmented == 0.0)) ? Doubles{} : cosine);  // a NaN is no row without length
      },
      product, squares[0], squares[1]);
  const V scale = splat<V>(p.per_t * kLog2E);
  for (int v = 0; v < kViews; ++v) {
    DivergenceLanes<V> lanes({student_max[v], teacher_max[v]}, scale, scale);
    for (int64_t i = 0; i < p.classes; ++i) lanes.add(student[v][i], teacher[v][i]);
    const auto log = [](Doubles x) { return log_of(x); };
    const auto put = [&](int64_t field, V numbers) {
      put_rows(&stat<T>(p, v * kViewFields + field, row), count, numbers);
    };
    put(kStudentMax, student_max[v]);
    put(kStudentLogSum, in_doubles(log, lanes.student));
    put(kTeacherMax, teacher_max[v]);
    put(kTeacherLogSum, in_doubles(log, lanes.teacher));
    lanes.put_values(p.terms[v] + row, count);
    for (int64_t i = 0; v == 1 && i < count; ++i) p.terms[v][row + i] *= confidence[i];
  }
  put_rows(&stat<T>(p, kConfidence, row), count, confidence);
}

template <class T>
void forward(const Forward& p, int64_t first, int64_t last) {
  if constexpr (lanes<Vector<T>> > 1) {
    constexpr int64_t kRows = lanes<Vector<T>>;
    if (p.classes <= kShort) {
      for (int64_t row = first; row < last; row += kRows) {
        forward_short<T>(p, row, last - row < kRows ? last - row : kRows);
      }
      return;
    }
  }
  for (int64_t row = first; row < last; ++row) {
    const Rows<T> r(p, row);
    const Overview seen = look_over(r, p.classes);
    const double confidence = 1.0 + seen.cosine();
    stat<T>(p, kConfidence, row) = confidence;
    for (int v = 0; v < kViews; ++v) {
      Divergence sums;
      for_each_block(p.classes, [&](int64_t begin, int64_t end) {
        DivergenceLanes<Vector<T>> lanes(seen.student_max[v], seen.teacher_max[v], p.per_t, p.per_t);
        for_each_vector<T>(begin, end,
                           [&](auto columns) { lanes.add(columns.of(r.student[v]), columns.of(r.teacher[v])); });
        lanes.flush(sums);
      });
      const int64_t view = v * kViewFields;
      stat<T>(p, view + kStudentMax, row) = seen.student_max[v];
      stat<T>(p, view + kStudentLogSum, row) = ::log(sums.student);
      stat<T>(p, view + kTeacherMax, row) = seen.teacher_max[v];
      stat<T>(p, view + kTeacherLogSum, row) = ::log(sums.teacher);
      p.terms[v][row] = v == 0 ? sums.value() : confidence * sums.value();
    }
  }
}

template <class T>
void backward(const Backward& p, int64_t first, int64_t last) {
  using V = Vector<T>;
  for (int64_t row = first; row < last; ++row) {
    const Rows<T> r(p, row);
    for (int v = 0; v < kViews; ++v) {
      const int64_t view = v * kViewFields;
      const double weight = v == 0 ? 1.0 : stat<T>(p, kConfidence, row);
      const V factor = splat<V>(p.factor * weight * p.per_t);
      const Probability<V> q(stat<T>(p, view + kStudentMax, row), stat<T>(p, view + kStudentLogSum, row), p.per_t);
      const Probability<V> t(stat<T>(p, view + kTeacherMax, row), stat<T>(p, view + kTeacherLogSum, row), p.per_t);
      T* out = static_cast<T*>(p.grad_student[v]) + row * p.classes;
      for_each_output<T>(p.classes, [&](auto columns) {
        columns.put(out, factor * (q(columns.of(r.student[v])) - t(columns.of(r.teacher[v]))));
      });
    }
  }
}

template <class T>
constexpr consistency::Kernels kernels_for = {forward<T>, backward<T>};

}  // namespace

// In the order of Element.
extern const consistency::Kernels consistency_kernels[kElements] = {kernels_for<float>, kernels_for<double>,
                                                                    kernels_for<Half>, kernels_for<BFloat16>};

}  // namespace amkd::kl::AMKD_SIMD
