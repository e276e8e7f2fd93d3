// Rows of logits on a CPU: the attack's objective with its gradient, and how much two networks disagree.
#include "../common/philox.h"
#include "../common/simd.h"
#include "attack_cpu.h"

namespace amkd::attack::AMKD_SIMD {
namespace {

using namespace amkd::AMKD_SIMD;

template <class T>
struct StatisticsOf {
  using type = float;
};
template <>
struct StatisticsOf<double> {
  using type = double;
};

constexpr double kInfinity = __builtin_inf();

// An element that no maximum and no sum of exponentials sees.
template <class T>
T nothing() {
  return static_cast<T>(-kInfinity);
}
template <>
Half nothing<Half>() {
  return {0xfc00};
}
template <>
BFloat16 nothing<BFloat16>() {
  return {0xff80};
}

inline bool is_nan(double v) { return v != v; }
inline bool is_finite(double v) { return v - v == 0.0; }

template <class T>
double at(const T* row, int64_t k) {
  return load_some(row + k, 1, nothing<T>())[0];
}
template <>
double at<double>(const double* row, int64_t k) {
  return row[k];
}
template <>
double at<float>(const float* row, int64_t k) {
  return row[k];
}

// Calls body(k, v, count) for vectors of the row, with -inf behind its end.
template <class T, class Body>
AMKD_INLINE void sweep(const T* row, int64_t classes, Body body) {
  constexpr int64_t kStep = lanes<Vector<T>>;
  int64_t k = 0;
  for (; k + kStep <= classes; k += kStep) body(k, load(row + k), kStep);
  if (k < classes) body(k, load_some(row + k, classes - k, nothing<T>()), classes - k);
}

template <class T>
AMKD_INLINE void put(T* out, int64_t count, Vector<T> v) {
  if (count == lanes<Vector<T>>) {
    store(out, v);
  } else {
    store_some(out, count, v);
  }
}

template <class T>
struct Top {
  double peak;  // NaN where the row holds one
  int64_t at;   // as torch.argmax: the first NaN, or the lowest index of the maximum
};

// A vector that begins at class k, with `value` in the lane of class `at`.
AMKD_INLINE Floats with(Floats v, int64_t k, int64_t at, double value) {
  return lane_numbers() == static_cast<int32_t>(at - k) ? splat<Floats>(value) : v;
}
AMKD_INLINE double with(double v, int64_t k, int64_t at, double value) { return at == k ? value : v; }

// The vector with 0 from lane `count` on.
AMKD_INLINE Floats first(Floats v, int64_t count) {
  return lane_numbers() < static_cast<int32_t>(count) ? v : Floats{};
}
AMKD_INLINE double first(double v, int64_t) { return v; }

template <class T>
int64_t first_nan(const T* row) {
  int64_t k = 0;
  while (!is_nan(at(row, k))) ++k;
  return k;
}

// The lowest class besides `without` whose logit is `value`, which some class has.
template <class T>
int64_t find(const T* row, int64_t classes, double value, int64_t without = -1) {
  using V = Vector<T>;
  const V wanted = splat<V>(value);
  for (int64_t k = 0; k < classes; k += lanes<V>) {
    const int64_t count = classes - k;
    const V v = count >= lanes<V> ? load(row + k) : load_some(row + k, count, nothing<T>());
    const uint32_t found = mask_of(with(v, k, without, __builtin_nan("")) == wanted);
    if (found != 0) return k + __builtin_ctz(found);
  }
  return 0;
}

template <class T>
Top<T> top_of(const T* row, int64_t classes) {
  using V = Vector<T>;
  V peak = splat<V>(-kInfinity), poison{};
  sweep(row, classes, [&](int64_t, V v, int64_t) {
    peak = larger(v, peak);
    poison += v == v ? V{} : v;
  });
  if (is_nan(sum_lanes(poison))) return {__builtin_nan(""), first_nan(row)};
  const double most = max_lanes(peak);
  return {most, find(row, classes, most)};
}

// Σ exp(z - peak) over the classes besides the top, whose own term is 1: next to it a confident row's would be lost.
// NaN where the peak is infinite. The exponentials go to `keep`, where there is one.
template <class T>
double others(const T* row, int64_t classes, const Top<T>& top, T* keep = nullptr) {
  using V = Vector<T>;
  V sum{};
  const V shift = splat<V>(top.peak);
  sweep(row, classes, [&](int64_t k, V v, int64_t count) {
    const V power = exp_nonpositive(v - shift);
    if (keep != nullptr) put(keep + k, count, power);
    sum += with(power, k, top.at, 0.0);
  });
  return sum_lanes(sum) + (top.peak - top.peak);
}

// The highest class besides `label`, the lowest index among equals; NaN wins as in torch.argmax.
template <class T>
int64_t best_other(const T* row, int64_t classes, int64_t label) {
  using V = Vector<T>;
  V peak = splat<V>(-kInfinity), poison{};
  sweep(row, classes, [&](int64_t k, V v, int64_t) {
    const V other = with(v, k, label, -kInfinity);
    peak = larger(other, peak);
    poison += other == other ? V{} : other;
  });
  if (is_nan(sum_lanes(poison))) {
    int64_t k = 0;
    while (k == label || !is_nan(at(row, k))) ++k;
    return k;
  }
  return find(row, classes, max_lanes(peak), label);
}

template <class T>
class Row {
  using V = Vector<T>;
  using Stat = typename StatisticsOf<T>::type;

 public:
  Row(const Objective& o, int64_t i)
      : o_(o),
        i_(i),
        row_(static_cast<const T*>(o.logits) + i * o.stride),
        gradient_(static_cast<T*>(o.gradient) + i * o.classes),
        top_(top_of(row_, o.classes)) {}

  void evaluate() {
    const int64_t label = o_.labels[i_], target = o_.target == nullptr ? -1 : o_.target[i_];
    double value = top_.peak;
    if (is_nan(top_.peak)) {
      fill([](V, int64_t) { return V{}; });
    } else if (o_.loss == Loss::kCrossEntropy) {
      value = cross_entropy(o_.targeted ? target : label, o_.targeted ? -1.0 : 1.0);
    } else {
      const int64_t rival = o_.target == nullptr ? best_other(row_, o_.classes, label) : target;
      if (o_.loss == Loss::kDlr) {
        value = ratio(label, rival);
      } else {
        value = o_.softmax ? of_probabilities(label, rival) : of_logits(label, rival);
      }
    }
    const Stat rounded = static_cast<Stat>(value);
    const bool usable = is_finite(rounded) && finite_;
    if (!usable) fill([](V, int64_t) { return V{}; });
    const bool open = o_.targeted ? top_.at != target : top_.at == label;
    static_cast<Stat*>(o_.value)[i_] = rounded;
    o_.prediction[i_] = top_.at;
    o_.active[i_] = open && usable;
  }

 private:
  // The gradient, element by element of `from`.
  template <class Element>
  AMKD_INLINE void fill(const T* from, Element element) {
    V poison{};
    sweep(from, o_.classes, [&](int64_t k, V v, int64_t count) {
      const V gradient = element(v, k), seen = first(gradient, count);
      poison += seen - seen;
      put(gradient_ + k, count, gradient);
    });
    finite_ = !is_nan(sum_lanes(poison));
  }
  template <class Element>
  AMKD_INLINE void fill(Element element) {
    fill(row_, element);
  }

  // Of exp(z - peak), which the gradient's memory holds since others(), where that rounds nothing.
  static constexpr bool kKept = std::is_same_v<T, Stat>;
  double others_kept() { return others(row_, o_.classes, top_, kKept ? gradient_ : nullptr); }
  template <class Element>
  AMKD_INLINE void fill_from_powers(Element element) {
    if constexpr (kKept) {
      fill(gradient_, element);
    } else {
      const V shift = splat<V>(top_.peak);
      fill([&](V v, int64_t k) { return element(exp_nonpositive(v - shift), k); });
    }
  }

  AMKD_INLINE static V only(int64_t index, int64_t k, double amount) { return with(V{}, k, index, amount); }

  // A class's probability, and 1 minus it. `rest` is the sum of the others.
  double p(int64_t k, double rest) const { return ::exp(at(row_, k) - top_.peak) / (1 + rest); }
  double not_p(int64_t k, double rest) const { return k == top_.at ? rest / (1 + rest) : 1 - p(k, rest); }

  double cross_entropy(int64_t label, double sign) {
    const double rest = others_kept(), at_label = -sign * not_p(label, rest);
    const V share = splat<V>(sign / (1 + rest));
    fill_from_powers([&](V power, int64_t k) { return with(power * share, k, label, at_label); });
    return sign * (::log1p(rest) - (at(row_, label) - top_.peak));
  }

  double of_logits(int64_t base, int64_t target) {
    fill([&](V, int64_t k) { return only(target, k, 1.0) - only(base, k, 1.0); });
    return at(row_, target) - at(row_, base);
  }

  double of_probabilities(int64_t base, int64_t target) {
    const double rest = others_kept(), up = p(target, rest), down = p(base, rest);
    const double value = up - down;
    // p · (±1 - value) for the two
    const double at_target = target == base ? 0.0 : up * (not_p(target, rest) + down);
    const double at_base = target == base ? 0.0 : -down * (not_p(base, rest) + up);
    const V share = splat<V>(-value / (1 + rest));
    fill_from_powers(
        [&](V power, int64_t k) { return with(with(power * share, k, target, at_target), k, base, at_base); });
    return value;
  }

  // (z_rival - z_label) / (z_(1) - z_(3)), targeted over z_(1) - (z_(3) + z_(4)) / 2; the lowest index of equals first.
  double ratio(int64_t label, int64_t rival) {
    int64_t order[4];
    for (int place = 0; place < 4; ++place) {
      order[place] = -1;
      for (int64_t k = 0; k < o_.classes; ++k) {
        bool taken = false;
        for (int earlier = 0; earlier < place; ++earlier) taken = taken || order[earlier] == k;
        if (!taken && (order[place] < 0 || at(row_, k) > at(row_, order[place]))) order[place] = k;
      }
    }
    const bool pair = o_.targeted;
    const double third = at(row_, order[2]);
    const double below = pair ? (third + at(row_, order[3])) / 2 : third;
    const double width = at(row_, order[0]) - below + kDlrFloor;
    const double value = (at(row_, rival) - at(row_, label)) / width;
    fill([&](V, int64_t k) {
      V spread = only(order[0], k, 1.0) - only(order[2], k, pair ? 0.5 : 1.0);
      if (pair) spread = spread - only(order[3], k, 0.5);
      const V lift = only(rival, k, 1.0) - only(label, k, 1.0);
      return (lift - splat<V>(value) * spread) / splat<V>(width);
    });
    return value;
  }

  const Objective& o_;
  int64_t i_;
  const T* row_;
  T* gradient_;
  Top<T> top_;
  bool finite_ = true;
};

template <class T>
void objective(const Objective& o, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) Row<T>(o, i).evaluate();
}

template <class T>
void top(const Rows& r, int64_t* at, bool* poisoned) {
  for (int64_t i = 0; i < r.rows; ++i) {
    const Top<T> found = top_of(static_cast<const T*>(r.logits) + i * r.stride, r.classes);
    at[i] = found.at;
    poisoned[i] = is_nan(found.peak);
  }
}

// Σ over the classes besides the label of the squared difference of the probabilities; -1 where not both predict it.
template <class T>
void disagreement(const Disagreement& d, int64_t first, int64_t last) {
  using V = Vector<T>;
  constexpr int64_t kStep = lanes<V>;
  const int64_t classes = d.teacher.classes;
  for (int64_t i = first; i < last; ++i) {
    const T* student = static_cast<const T*>(d.student.logits) + i * d.student.stride;
    const T* teacher = static_cast<const T*>(d.teacher.logits) + i * d.teacher.stride;
    const Top<T> student_top = top_of(student, classes), teacher_top = top_of(teacher, classes);
    d.key[i] = -1.0;
    const int64_t label = d.labels[i];
    if (student_top.at != label || teacher_top.at != label) continue;
    const V student_sum = splat<V>(1 + others(student, classes, student_top));
    const V teacher_sum = splat<V>(1 + others(teacher, classes, teacher_top));
    const V student_shift = splat<V>(student_top.peak), teacher_shift = splat<V>(teacher_top.peak);
    V sum{};
    sweep(teacher, classes, [&](int64_t k, V t, int64_t count) {
      const V s = count == kStep ? load(student + k) : load_some(student + k, count, nothing<T>());
      // Divided, because the compiler would fuse a product with the difference, and equal rows would differ.
      V difference =
          exp_nonpositive(t - teacher_shift) / teacher_sum - exp_nonpositive(s - student_shift) / student_sum;
      difference = with(difference, k, label, 0.0);
      sum += difference * difference;
    });
    const double total = sum_lanes(sum);
    if (is_finite(total)) d.key[i] = total;
  }
}

// Inversion in fp64, so that two devices that round differently disagree about once in 10¹⁵ draws.
template <class T>
void draw(const Draw& d, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    const T* row = static_cast<const T*>(d.logits) + (d.at == nullptr ? i : d.at[i]) * d.stride;
    const int64_t base = d.base[i], rival = best_other(row, d.classes, base);
    const double peak = at(row, rival);
    const auto weight = [&](int64_t k) { return k == base ? 0.0 : ::exp(at(row, k) - peak); };
    double total = 0.0;
    for (int64_t k = 0; k < d.classes; ++k) total += weight(k);
    const double threshold = philox_uniform(d.seed, d.counter == nullptr ? i : d.counter[i]) * total;
    // Where no class has a weight, nothing below is above the threshold, which is NaN.
    d.target[i] = rival;
    double sum = 0.0;
    for (int64_t k = 0; k < d.classes; ++k) {
      sum += weight(k);
      if (sum > threshold) {
        d.target[i] = k;
        break;
      }
    }
  }
}

}  // namespace

extern const ObjectiveKernel objective_kernels[kElements] = {objective<float>, objective<double>, objective<Half>,
                                                             objective<BFloat16>};
extern const TopKernel top_kernels[kElements] = {top<float>, top<double>, top<Half>, top<BFloat16>};
extern const DisagreementKernel disagreement_kernels[kElements] = {disagreement<float>, disagreement<double>,
                                                                   disagreement<Half>, disagreement<BFloat16>};
extern const DrawKernel draw_kernels[kElements] = {draw<float>, draw<double>, draw<Half>, draw<BFloat16>};

}  // namespace amkd::attack::AMKD_SIMD
