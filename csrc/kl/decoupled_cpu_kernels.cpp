// The arithmetic of decoupled distillation on a CPU, compiled once per SIMD level (see common/simd.h for the rules that
// follow from that). The sums are those of a forward divergence among the classes other than the target, whose logits
// become -inf in registers; what is done once a row is done for a vector of rows.
#include "decoupled_cpu.h"
#include "rows_cpu.h"

namespace amkd::kl::decoupled::AMKD_SIMD {

using namespace amkd::kl::AMKD_SIMD;

namespace {

// The columns of a vector's lanes, and comparisons of them: Ints, or one number beside `double`.
template <class V>
struct IndexOf {
  using type = Ints;
};
template <>
struct IndexOf<double> {
  using type = int64_t;
};
template <class V>
using Index = typename IndexOf<V>::type;

template <class V>
AMKD_INLINE Index<V> columns_from(int64_t first) {
  if constexpr (lanes<V> == 1) {
    return first;
  } else {
    return lane_numbers() + static_cast<int32_t>(first);
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

// Calls body(student, teacher, column, is_target, is_repeated, count) for vectors that cover [begin, end). The last one
// starts early enough to be a full one, which repeats some columns; where there is no room it is filled up with zeros,
// which count as repeated too.
template <class T, class Body>
AMKD_INLINE void for_each_vector(const Row<T>& row, int64_t begin, int64_t end, int64_t label, Body body) {
  using V = Vector<T>;
  constexpr int64_t kStep = lanes<V>;
  const Index<V> target = Index<V>{} + static_cast<int32_t>(label);
  Index<V> column = columns_from<V>(begin);
  int64_t i = begin;
  for (; i + kStep <= end; i += kStep, column += static_cast<int32_t>(kStep)) {
    body(load(row.student + i), load(row.teacher + i), i, column == target, column != column, kStep);
  }
  if (i == end) return;
  if (end - begin >= kStep) {
    const int64_t last = end - kStep;
    column = columns_from<V>(last);
    body(load(row.student + last), load(row.teacher + last), last, column == target, column < static_cast<int32_t>(i),
         kStep);
  } else {
    body(load_some(row.student + i, end - i, T{}), load_some(row.teacher + i, end - i, T{}), i, column == target,
         column >= static_cast<int32_t>(end), end - i);
  }
}

// Natural logarithm of a normal number, one unit in the last place; of 1 exactly 0. NaN stays NaN.
AMKD_INLINE Floats log_of(Floats x) {
  constexpr int32_t kRootHalf = 0x3f3504f3;
  const Ints shifted = bits<Ints>(x) - kRootHalf;
  const Ints exponent = shifted >> 23;
  const Floats m = bits<Floats>(bits<Ints>(x) - (exponent << 23));  // between √½ and √2
  const Floats w = (m - 1.0f) / (m + 1.0f), v = w * w;
  // 2·atanh(w); the term after these is below 2e-9 of it.
  const Floats series = v * (v * (v * (v * (1.0f / 9.0f) + 1.0f / 7.0f) + 1.0f / 5.0f) + 1.0f / 3.0f);
  const Floats e = __builtin_convertvector(exponent, Floats);
  const Floats log = e * 0x1.62e4p-1f + (2.0f * w + (2.0f * w * series + e * 0x1.7f7d1cp-20f));
  return log + (x - x);
}
AMKD_INLINE double log_of(double x) { return ::log(x); }

// ---- forward ----------------------------------------------------------------------------------------------------

// Sums over the others in a range of columns, relative to their own maxima.
struct Sums {
  double student_max, student_sum, teacher_max, teacher_sum;
  double inner;  // Σ e^y (y - x)
};

Sums merge(double per_t, const Sums& a, const Sums& b) {
  Sums out{};
  out.student_max = a.student_max > b.student_max ? a.student_max : b.student_max;
  out.teacher_max = a.teacher_max > b.teacher_max ? a.teacher_max : b.teacher_max;
  const Sums* const parts[] = {&a, &b};
  for (const Sums* part : parts) {
    const double down_s = (shift_of(part->student_max) - shift_of(out.student_max)) * per_t;
    const double down_t = (shift_of(part->teacher_max) - shift_of(out.teacher_max)) * per_t;
    const double scale_s = part->student_max == -kInfinity ? 0.0 : ::exp(down_s);
    const double scale_t = part->teacher_max == -kInfinity ? 0.0 : ::exp(down_t);
    out.student_sum += part->student_sum * scale_s;
    out.teacher_sum += part->teacher_sum * scale_t;
    if (scale_t != 0.0) out.inner += scale_t * (part->inner + part->teacher_sum * (down_t - down_s));
  }
  return out;
}

// What a pass over logits with known maxima adds up, in every lane apart.
template <class V>
struct LaneSums {
  V student_shift, teacher_shift, per_t;  // the last in units of log 2
  V student{}, teacher{}, inner{};

  AMKD_INLINE void add(V s, V t) {
    const V x = (s - student_shift) * per_t, y = (t - teacher_shift) * per_t;
    const V ey = exp2_nonpositive(y);
    student += exp2_nonpositive(x);
    teacher += ey;
    inner += product_or_zero(ey, y - x);
  }
};

template <class T>
Sums sweep_block(const Problem& p, const Row<T>& row, int64_t begin, int64_t end, int64_t label) {
  using V = Vector<T>;
  const V none = splat<V>(-kInfinity);
  V student_max = none, teacher_max = none;
  const auto for_each_other = [&](auto body) {
    for_each_vector(row, begin, end, label, [&](V s, V t, int64_t, auto is_target, auto is_repeated, int64_t) {
      const auto left_out = is_target | is_repeated;
      body(left_out ? none : s, left_out ? none : t);
    });
  };
  for_each_other([&](V s, V t) {
    student_max = larger(student_max, s);
    teacher_max = larger(teacher_max, t);
  });
  Sums out{};
  out.student_max = max_lanes(student_max);
  out.teacher_max = max_lanes(teacher_max);
  LaneSums<V> sums{splat<V>(shift_of(out.student_max)), splat<V>(shift_of(out.teacher_max)),
                   splat<V>(p.per_t * kLog2E)};
  for_each_other([&](V s, V t) { sums.add(s, t); });
  out.student_sum = sum_lanes(sums.student);
  out.teacher_sum = sum_lanes(sums.teacher);
  out.inner = sum_lanes(sums.inner) * kLog2;
  return out;
}

template <class T>
Sums sweep(const Problem& p, const Row<T>& row, int64_t label) {
  Sums out = sweep_block(p, row, 0, kBlock < p.classes ? kBlock : p.classes, label);
  for (int64_t i = kBlock; i < p.classes; i += kBlock) {
    out = merge(p.per_t, out, sweep_block(p, row, i, i + kBlock < p.classes ? i + kBlock : p.classes, label));
  }
  return out;
}

// A lane holds what was summed over a row's others, and its target's logits.
template <class V>
struct Group {
  V student_max, student_sum, teacher_max, teacher_sum, inner, student_target, teacher_target;
};

// One element in the type of the statistics.
template <class T>
AMKD_INLINE Stat<T> widened(const T* element) {
  if constexpr (sizeof(T) >= sizeof(float)) {
    return *element;
  } else {
    return load_some(element, 1, T{})[0];
  }
}

template <class T>
double weight_of(const Problem& p, int64_t row) {
  return p.weight ? static_cast<const Stat<T>*>(p.weight)[row] : 1.0;
}

// The label of a row; where it is out of range, the call will fail and any class will do, as in a row of weight 0.
template <class T>
AMKD_INLINE int64_t checked_label(Forward& p, int64_t row) {
  const int64_t label = label_of(p, row);
  if (label >= 0 && label < p.classes) return label;
  if (weight_of<T>(p, row) != 0.0) keep_first(p.bad_row, row);
  return 0;
}

// A row after the other. The lanes after `count` repeat the last row.
template <class T>
void sweep_rows(Forward& p, int64_t row, int64_t count, Group<Vector<T>>& out) {
  constexpr int kRows = lanes<Vector<T>>;
  Stat<T> fields[7][kRows];
  for (int lane = 0; lane < kRows; ++lane) {
    if (lane >= count) {
      for (auto& field : fields) field[lane] = field[count - 1];
      continue;
    }
    const Row<T> r(p, row + lane);
    const int64_t label = checked_label<T>(p, row + lane);
    const Sums sums = sweep(p, r, label);
    fields[0][lane] = sums.student_max;
    fields[1][lane] = sums.student_sum;
    fields[2][lane] = sums.teacher_max;
    fields[3][lane] = sums.teacher_sum;
    fields[4][lane] = sums.inner;
    fields[5][lane] = widened(r.student + label);
    fields[6][lane] = widened(r.teacher + label);
  }
  out = {load(fields[0]), load(fields[1]), load(fields[2]), load(fields[3]),
         load(fields[4]), load(fields[5]), load(fields[6])};
}

// A lane takes a row: rows that fill few vectors would spend most of their time adding up lanes.
template <class T>
void sweep_short_rows(Forward& p, int64_t row, int64_t count, Group<Vector<T>>& out) {
  using V = Vector<T>;
  constexpr int kRows = lanes<V>;
  const V none = splat<V>(-kInfinity);
  const ShortRows<T> student(p.student, p.student_stride, row, count, p.classes);
  const ShortRows<T> teacher(p.teacher, p.teacher_stride, row, count, p.classes);
  Index<V> target{};
  for (int lane = 0; lane < kRows; ++lane) target[lane] = checked_label<T>(p, row + (lane < count ? lane : count - 1));
  out.student_max = out.teacher_max = none;
  out.student_target = out.teacher_target = V{};
  for (int64_t i = 0; i < p.classes; ++i) {
    const auto is_target = target == static_cast<int32_t>(i);
    const V s = student[i], t = teacher[i];
    out.student_max = larger(out.student_max, is_target ? none : s);
    out.teacher_max = larger(out.teacher_max, is_target ? none : t);
    out.student_target = is_target ? s : out.student_target;
    out.teacher_target = is_target ? t : out.teacher_target;
  }
  LaneSums<V> sums{out.student_max == none ? V{} : out.student_max, out.teacher_max == none ? V{} : out.teacher_max,
                   splat<V>(p.per_t * kLog2E)};
  for (int64_t i = 0; i < p.classes; ++i) {
    const auto is_target = target == static_cast<int32_t>(i);
    sums.add(is_target ? none : student[i], is_target ? none : teacher[i]);
  }
  out.student_sum = sums.student;
  out.teacher_sum = sums.teacher;
  out.inner = sums.inner * splat<V>(kLog2);
}

// The distribution of target against rest whose log-odds are d: probabilities and their logarithms.
template <class V>
struct Binary {
  V target, rest, log_target, log_rest;

  explicit Binary(V d) {
    const V zero{}, one = splat<V>(1.0);
    const V e = exp_nonpositive(d > zero ? -d : d), likely = one / (one + e), unlikely = e / (one + e);
    const V log = log1p_unit(e);
    target = d > zero ? likely : unlikely;
    rest = d > zero ? unlikely : likely;
    log_target = (d > zero ? zero : d) - log;
    log_rest = (d > zero ? -d : zero) - log;
  }
};

template <class T>
void finish(Forward& p, int64_t row, int64_t count, const Group<Vector<T>>& group) {
  using V = Vector<T>;
  const V zero{}, one = splat<V>(1.0), none = splat<V>(-kInfinity), nan = splat<V>(__builtin_nan(""));
  const V per_t = splat<V>(p.per_t);
  const auto no_student = group.student_sum == zero, no_teacher = group.teacher_sum == zero;
  const auto alone = no_student & no_teacher, torn = no_student ^ no_teacher;
  const V student_max = group.student_max == none ? zero : group.student_max;
  const V teacher_max = group.teacher_max == none ? zero : group.teacher_max;
  const V student_sum = no_student ? one : group.student_sum, teacher_sum = no_teacher ? one : group.teacher_sum;
  const V student_log = log_of(student_sum), teacher_log = log_of(teacher_sum);

  const auto log_odds = [&](V target, V max, V log_sum) {
    const V d = (target - max) * per_t - log_sum;
    const V certain = target - target;  // 0, or NaN of a target that is not there
    return alone ? certain : torn | (d == splat<V>(kInfinity)) ? nan : d;
  };
  const V d_s = log_odds(group.student_target, student_max, student_log);
  const V d_t = log_odds(group.teacher_target, teacher_max, teacher_log);
  const Binary<V> s(d_s), t(d_t);
  const V binary =
      product_or_zero(t.target, t.log_target - s.log_target) + product_or_zero(t.rest, t.log_rest - s.log_rest);
  // One logarithm of the ratio is exact where both sums are large; the difference of two is not.
  const V others = group.inner / teacher_sum + log_of(student_sum / teacher_sum);
  const V fields[kFields] = {student_max, student_log, teacher_max, teacher_log,
                             // Of two probabilities near 1 the difference is that of what is missing from 1.
                             d_s + d_t > zero ? t.rest - s.rest : s.target - t.target,
                             splat<V>(p.scalars.target_factor) * binary + splat<V>(p.scalars.other_factor) * others};
  for (int64_t field = 0; field < kFields; ++field) {
    Stat<T>* out = static_cast<Stat<T>*>(p.stats) + field * p.rows + row;
    if (count == lanes<V>) {
      store(out, fields[field]);
    } else {
      store_some(out, count, fields[field]);
    }
  }
}

template <class T>
void forward(Forward& p, int64_t first, int64_t last) {
  using V = Vector<T>;
  constexpr int64_t kRows = lanes<V>;
  for (int64_t row = first; row < last; row += kRows) {
    const int64_t count = last - row < kRows ? last - row : kRows;
    Group<V> group;
    if constexpr (kRows > 1) {
      p.classes <= kShort ? sweep_short_rows<T>(p, row, count, group) : sweep_rows<T>(p, row, count, group);
    } else {
      sweep_rows<T>(p, row, count, group);
    }
    finish<T>(p, row, count, group);
  }
}

// ---- backward ---------------------------------------------------------------------------------------------------

template <class T>
void backward(const Backward& p, int64_t first, int64_t last) {
  using V = Vector<T>;
  const Scalars& s = p.scalars;
  const auto* stats = static_cast<const Stat<T>*>(p.stats);
  for (int64_t row = first; row < last; ++row) {
    const double weight = weight_of<T>(p, row);
    T* out = static_cast<T*>(p.grad_student) + row * p.classes;
    if (weight == 0.0 || s.factor == 0.0) {  // what that hides may be NaN
      for (int64_t i = 0; i < p.classes; ++i) out[i] = T{};
      continue;
    }
    const auto stat = [&](Field field) { return stats[field * p.rows + row]; };
    const double upstream = static_cast<const Stat<T>*>(p.grad_loss)[s.per_row ? row : 0];
    const double scale = upstream * s.factor * weight * p.per_t;
    const V target = splat<V>(scale * s.target_factor * stat(kSlope)), others = splat<V>(scale * s.other_factor);
    const V per_t = splat<V>(p.per_t * kLog2E);
    const V student_max = splat<V>(stat(kStudentMax)), student_log = splat<V>(stat(kStudentLogSum) * kLog2E);
    const V teacher_max = splat<V>(stat(kTeacherMax)), teacher_log = splat<V>(stat(kTeacherLogSum) * kLog2E);
    for_each_vector(Row<T>(p, row), 0, p.classes, label_of(p, row),
                    [&](V student, V teacher, int64_t i, auto is_target, auto, int64_t count) {
                      const V q = exp2_nonpositive((student - student_max) * per_t - student_log);
                      const V p_hat = exp2_nonpositive((teacher - teacher_max) * per_t - teacher_log);
                      const V grad = is_target ? target : others * (q - p_hat) - target * q;
                      if (count == lanes<V>) {
                        store(out + i, grad);
                      } else {
                        store_some(out + i, count, grad);
                      }
                    });
  }
}

template <class T>
constexpr Kernels kernels_for = {forward<T>, backward<T>};

}  // namespace

// In the order of Element.
extern const Kernels kernels[kElements] = {kernels_for<float>, kernels_for<double>, kernels_for<Half>,
                                           kernels_for<BFloat16>};

}  // namespace amkd::kl::decoupled::AMKD_SIMD
