// Mining over every pair on a CPU: one row of inner products at a time becomes distances, terms and, on the way back,
// the weight of each pair. Nothing of the size of all triplets is visited for the hinge: how many of the positives'
// thresholds lie above a negative's distance says all.
#include "labelled_vectors.h"

namespace amkd::triplet::AMKD_SIMD {
namespace {

constexpr double kInfinity = __builtin_huge_val();
constexpr double kCancelled =
    1.0 / 64.0;                          // an expanded distance² below this fraction of the lengths² is computed again
constexpr int64_t kCountLinearly = 192;  // thresholds; a search for each distance pays above it

constexpr int64_t kCompareEach = 10;  // thresholds with all negatives; one rank for each negative pays above it

// The work arrays of one row, P elements each.
template <class T>
struct Work {
  double* table;      // hinge: sums of the thresholds from each on; [positives + 1]
  int64_t* above;     // hinge: negatives below each threshold; [positives + 1]
  T* distance;        // to every reference row
  T* negative;        // the same where it is a negative, elsewhere `outside`
  T* threshold;       // ascending
  T* bucket;          // semi-hard: nearest negative of each bucket; [positives + 1]
  int32_t* rank;      // thresholds above (hinge) or below (semi-hard) each negative
  int32_t* positive;  // the reference row of each threshold
  int32_t* bucket_index;
  double* sum;  // close pairs: [D]
  int64_t positives = 0, negatives = 0;
  bool nan_negative = false;
  int32_t first_nan = 0;

  static constexpr int64_t kBehind = 4 * kWidth<T>;  // of `negative`, behind the last row: `outside` as well

  Work(void* scratch, int64_t references) {
    const int64_t size = references + 64;
    table = static_cast<double*>(scratch);
    sum = table + 8 * size;  // behind the 64 bytes that each reference row has here
    above = reinterpret_cast<int64_t*>(table + size);
    distance = reinterpret_cast<T*>(above + size);
    negative = distance + size;
    threshold = negative + size;
    bucket = threshold + size;
    rank = reinterpret_cast<int32_t*>(bucket + size);
    positive = rank + size;
    bucket_index = positive + size;
  }
};

#if defined(__AVX512F__)
AMKD_INLINE Floats root_of(Floats x) { return bits<Floats>(_mm512_sqrt_ps(bits<__m512>(x))); }
AMKD_INLINE Doubles root_of(Doubles x) { return bits<Doubles>(_mm512_sqrt_pd(bits<__m512d>(x))); }
#elif defined(__AVX2__)
AMKD_INLINE Floats root_of(Floats x) { return bits<Floats>(_mm256_sqrt_ps(bits<__m256>(x))); }
AMKD_INLINE Doubles root_of(Doubles x) { return bits<Doubles>(_mm256_sqrt_pd(bits<__m256d>(x))); }
#else
template <class V>
AMKD_INLINE V root_of(V x) {
  for (unsigned i = 0; i < sizeof(V) / sizeof(x[0]); ++i) x[i] = static_cast<decltype(+x[0])>(root(x[i]));
  return x;
}
#endif

template <class T>
int64_t itself_of(const EveryPair<T>& p, int64_t i) {
  return p.classes.self_offset < 0 ? -1 : p.classes.self_offset + i;
}

// A vector from an array of `count` elements, the last one filled up with `fill`.
template <class V, class T>
AMKD_INLINE V load_up_to(const T* p, int64_t j, int64_t count, T fill) {
  if (j + kWidth<T> <= count) return load_as<V>(p + j);
  T buffer[kWidth<T>];
  for (int64_t lane = 0; lane < kWidth<T>; ++lane) buffer[lane] = j + lane < count ? p[j + lane] : fill;
  return load_as<V>(buffer);
}

template <class T>
T* product_row(const EveryPair<T>& p, int64_t i) {
  return p.product + (i - p.first) * p.product_stride;
}

template <class T>
uint64_t* close_row(const EveryPair<T>& p, int64_t i) {
  return p.close + (i - p.first) * close_words(p.reference.count);
}

template <class T>
T upstream_of(const EveryPair<T>& p, int64_t i) {
  return p.upstream == nullptr ? T(1) : p.upstream[i];
}

// The distances of anchor i into w.distance; not that to itself.
template <class T>
void measure(const EveryPair<T>& p, int64_t i, const Work<T>& w) {
  using V = Values<T>;
  const int64_t count = p.reference.count, itself = itself_of(p, i);
  const T* product = product_row(p, i);
  const V own = V{} + p.anchor_square[i];
  uint64_t* close = p.with_gradient ? close_row(p, i) : nullptr;
  for (int64_t j = 0; j < count; j += kWidth<T>) {
    const V lengths = own + load_as<V>(p.reference_square + j);
    const V square = lengths - 2 * load_as<V>(product + j);
    const Labels<T> cancelled = ~(square >= lengths * static_cast<T>(kCancelled));  // also where a length is NaN
    V d = square;
    if (p.distance == Distance::kEuclidean) d = root_of(d);
    if (p.distance == Distance::kCosine) d = d / 2;
    std::memcpy(w.distance + j, &d, sizeof(d));
    for (unsigned lanes = lanes_of(cancelled); lanes != 0; lanes &= lanes - 1) {
      const int64_t at = j + __builtin_ctz(lanes);
      if (at < count && at != itself) {
        w.distance[at] = static_cast<T>(distance_of(p.distance, p.anchor, i, p.reference, at));
        if (close != nullptr) close[at / kCloseColumns] |= uint64_t{1} << at % kCloseColumns;
      }
    }
  }
}

// Fills w.negative and w.positive (without thresholds) and counts them; false where the anchor has no triplet.
template <class T>
bool sort_out(const EveryPair<T>& p, int64_t i, T outside, Work<T>& w) {
  using V = Values<T>;
  using L = Labels<T>;
  w.positives = w.negatives = 0;
  w.nan_negative = false;
  if (p.used != nullptr && !p.used[i]) return false;
  measure(p, i, w);
  const int64_t count = p.reference.count, itself = itself_of(p, i);
  const Label<T> own = p.classes.anchor[i];
  const Label<T>* excluded = p.classes.excluded + i * p.classes.excluded_count;
  const Label<T> e0 = p.classes.excluded_count > 0 ? excluded[0] : own;
  const Label<T> e1 = p.classes.excluded_count > 1 ? excluded[1] : own;
  const bool with_positives = p.positive_distance == nullptr;
  if (itself >= 0) w.distance[itself] = T(0);
  L negatives = {};
  L nan = {};
  for (int64_t j = 0; j < count; j += kWidth<T>) {
    const L label = load_up_to<L>(p.classes.reference, j, count, own);
    const V d = load_as<V>(w.distance + j);
    const L is_negative = (label != own) & (label != e0) & (label != e1);
    const V negative = is_negative ? d : V{} + outside;
    std::memcpy(w.negative + j, &negative, sizeof(negative));
    negatives -= is_negative;
    nan |= is_negative & (d != d);
    if (!with_positives) continue;
    for (unsigned lanes = lanes_of(label == own); lanes != 0; lanes &= lanes - 1) {
      const int64_t at = j + __builtin_ctz(lanes);
      if (at < count && at != itself) w.positive[w.positives++] = static_cast<int32_t>(at);
    }
  }
  for (int lane = 0; lane < kWidth<T>; ++lane) w.negatives += negatives[lane];
  for (int64_t j = count; j < count + Work<T>::kBehind; ++j) w.negative[j] = outside;
  if (itself >= 0 && w.negative[itself] != outside) {  // by its label it was one
    --w.negatives;
    w.negative[itself] = outside;
  }
  w.nan_negative = lanes_of(nan) != 0;
  w.first_nan = 0;
  while (w.nan_negative && w.negative[w.first_nan] == w.negative[w.first_nan]) ++w.first_nan;
  if (!with_positives) w.positives = 1;
  return w.positives > 0 && w.negatives > 0;
}

template <class T>
T positive_distance(const EveryPair<T>& p, int64_t i, const Work<T>& w, int64_t q) {
  if (p.positive_distance == nullptr) return w.distance[w.positive[q]];
  return p.positive_distance[i] + p.positive_distance[i] * 0;  // NaN for that of a row which is not finite
}

// Thresholds D_ap + shift in ascending order; NaN ones at the end. Returns how many are numbers.
template <class T>
int64_t sort_thresholds(const EveryPair<T>& p, int64_t i, T shift, Work<T>& w) {
  const int64_t count = w.positives;
  int64_t numbers = 0;
  for (int64_t q = 0; q < count; ++q) {
    const T t = positive_distance(p, i, w, q) + shift;
    w.threshold[q] = t;
    if (t == t) {
      const int32_t row = w.positive[q];
      w.threshold[q] = w.threshold[numbers];
      w.positive[q] = w.positive[numbers];
      w.threshold[numbers] = t;
      w.positive[numbers++] = row;
    }
  }
  int64_t gap = 1;
  while (gap < numbers / 3) gap = 3 * gap + 1;
  for (; gap > 0; gap /= 3) {
    for (int64_t q = gap; q < numbers; ++q) {
      const T t = w.threshold[q];
      const int32_t row = w.positive[q];
      int64_t at = q;
      for (; at >= gap && t < w.threshold[at - gap]; at -= gap) {
        w.threshold[at] = w.threshold[at - gap];
        w.positive[at] = w.positive[at - gap];
      }
      w.threshold[at] = t;
      w.positive[at] = row;
    }
  }
  return numbers;
}

// How many of `thresholds` > 0 ascending numbers are above x (kAbove) or below it. No branch depends on the values.
template <bool kAbove, class T>
AMKD_INLINE int32_t rank_of(T x, const T* threshold, int64_t thresholds) {
  const T* base = threshold;
  for (int64_t left = thresholds; left > 1;) {
    const int64_t half = left / 2;
    base += (kAbove ? base[half - 1] <= x : base[half - 1] < x) ? half : 0;
    left -= half;
  }
  const int64_t before = base - threshold + (kAbove ? *base <= x : *base < x);
  return static_cast<int32_t>(kAbove ? thresholds - before : before);
}

// The rank of each of w.negative among the thresholds, into w.rank; 0 for a NaN.
template <bool kAbove, class T>
void rank_negatives(const Work<T>& w, int64_t thresholds, int64_t count) {
  using V = Values<T>;
  using L = Labels<T>;
  constexpr int kStep = 4 * kWidth<T>;
  if (thresholds > kCountLinearly) {
    for (int64_t j = 0; j < count; ++j) {
      const T x = w.negative[j];
      w.rank[j] = x == x ? rank_of<kAbove>(x, w.threshold, thresholds) : 0;
    }
    return;
  }
  for (int64_t j = 0; j < count; j += kStep) {  // the arrays have room behind their end
    V x[4];
    L rank[4] = {};
    for (int u = 0; u < 4; ++u) x[u] = load_as<V>(w.negative + j + u * kWidth<T>);
    for (int64_t q = 0; q < thresholds; ++q) {
      const V t = w.threshold[q] - V{};
      for (int u = 0; u < 4; ++u) rank[u] -= kAbove ? t > x[u] : t < x[u];
    }
    for (int u = 0; u < 4; ++u) {
      for (int lane = 0; lane < kWidth<T>; ++lane) {
        w.rank[j + u * kWidth<T> + lane] = static_cast<int32_t>(rank[u][lane]);
      }
    }
  }
}

// dD/d(distance²) · 2, which multiplies a difference of rows: the factor of U. 0 where there is no gradient.
template <class T>
T slope(const EveryPair<T>& p, int64_t i, int64_t j, T distance) {
  switch (p.distance) {
    case Distance::kEuclidean:
      return distance == 0 ? T(0) : 1 / distance;
    case Distance::kSquared:
      return distance == distance ? T(2) : distance;
    case Distance::kCosine:
      break;
  }
  if (!(distance == distance)) return distance;
  return p.anchor.scale[i] == 0.0 || p.reference.scale[j] == 0.0 ? T(0) : T(1);  // a row without direction
}

struct Sums {
  double total = 0.0;
  int64_t terms = 0, active = 0, triplets = 0;
  double positive = 0.0, negative = 0.0;
};

template <class T>
double sum_negatives(const Work<T>& w, int64_t count, T outside) {
  using V = Values<T>;
  double total = 0.0;
  for (int64_t first = 0; first < count; first += 64 * kWidth<T>) {  // short sums of T keep their digits
    const int64_t last = first + 64 * kWidth<T> < count ? first + 64 * kWidth<T> : count;
    V sum = {};
    for (int64_t j = first; j < last; j += kWidth<T>) {
      const V x = load_as<V>(w.negative + j);
      sum += x == outside ? V{} : x;
    }
    for (int lane = 0; lane < kWidth<T>; ++lane) total += sum[lane];
  }
  return total;
}

template <class T>
double sum_positives(const EveryPair<T>& p, int64_t i, const Work<T>& w) {
  double sum = 0.0;
  for (int64_t q = 0; q < w.positives; ++q) sum += positive_distance(p, i, w, q);
  return sum;
}

// ---- all: the hinge -------------------------------------------------------------------------------------------------

// Calls body(j, x) for four vectors of negatives at a time where one is below the largest threshold; the others cost
// nothing, nor does +inf behind the last one.
template <class T, class Body>
AMKD_INLINE void for_each_below(const Work<T>& w, int64_t thresholds, int64_t count, Body body) {
  using V = Values<T>;
  if (thresholds == 0) return;
  const T largest = w.threshold[thresholds - 1];
  for (int64_t j = 0; j < count; j += 4 * kWidth<T>) {
    V x[4];
    Labels<T> any = {};
    for (int u = 0; u < 4; ++u) {
      x[u] = load_as<V>(w.negative + j + u * kWidth<T>);
      any |= x[u] < largest;
    }
    if (lanes_of(any) != 0) body(j, x);
  }
}

// Slopes of a vector of distances that are numbers.
template <class T>
AMKD_INLINE Values<T> slopes(const EveryPair<T>& p, int64_t i, int64_t j, Values<T> d) {
  using V = Values<T>;
  if (p.distance == Distance::kEuclidean) return d == V{} ? V{} : 1 / d;
  if (p.distance == Distance::kSquared) return V{} + T(2);
  V out = {};
  for (int lane = 0; lane < kWidth<T>; ++lane) {
    if (j + lane < p.reference.count) out[lane] = slope(p, i, j + lane, d[lane]);
  }
  return out;
}

// A few thresholds: each of them against each negative. Adds to w.above and writes the negatives' part of u, or
// neither.
template <bool kGradient, class T>
void hinge_directly(const EveryPair<T>& p, int64_t i, int64_t numbers, Work<T>& w, Sums& sums, T* u) {
  using V = Values<T>;
  using L = Labels<T>;
  const int64_t count = p.reference.count;
  const T g = upstream_of(p, i);
  Doubles total = {};
  L active = {};
  for_each_below(w, numbers, count, [&](int64_t j, const V(&x)[4]) {
    V cost[4] = {};
    L rank[4] = {};
    for (int64_t q = 0; q < numbers; ++q) {
      const V t = w.threshold[q] - V{};
      int found = 0;
      for (int v = 0; v < 4; ++v) {
        const L is_above = t > x[v];
        rank[v] -= is_above;
        cost[v] += is_above ? t - x[v] : V{};
        if (kGradient) found += __builtin_popcount(lanes_of(is_above));
      }
      if (kGradient) w.above[q] += found;
    }
    total += doubles_of((cost[0] + cost[1]) + (cost[2] + cost[3]));
    active += (rank[0] + rank[1]) + (rank[2] + rank[3]);
    for (int v = 0; kGradient && v < 4; ++v) {
      const int64_t at = j + v * kWidth<T>;
      const V pull = __builtin_convertvector(rank[v], V) * -g;
      const V step = rank[v] == 0 ? V{} : pull * slopes(p, i, at, x[v]);
      const int64_t left = count - at < kWidth<T> ? count - at : kWidth<T>;
      if (left == kWidth<T>) {
        std::memcpy(u + at, &step, sizeof(step));
      } else if (left > 0) {
        std::memcpy(u + at, &step, left * sizeof(T));
      }
    }
  });
  sums.total = sum_of(total);
  for (int lane = 0; lane < kWidth<T>; ++lane) sums.active += active[lane];
}

// Many thresholds: the rank of a negative among them says how often it counts, and sums of the largest what it costs.
template <class T>
void hinge_by_rank(const EveryPair<T>& p, int64_t i, int64_t numbers, Work<T>& w, Sums& sums, T* u) {
  const int64_t count = p.reference.count;
  const T g = upstream_of(p, i);
  rank_negatives<true>(w, numbers, count);
  w.table[numbers] = 0.0;
  for (int64_t q = numbers - 1; q >= 0; --q) w.table[q] = w.table[q + 1] + w.threshold[q];
  for (int64_t j = 0; j < count; ++j) {
    const int64_t r = w.rank[j];
    if (r == 0) continue;
    sums.active += r;
    sums.total += w.table[numbers - r] - static_cast<double>(r) * w.negative[j];
    ++w.above[numbers - r];  // all thresholds from this one on
  }
  if (u == nullptr) return;
  for (int64_t q = 1; q < numbers; ++q) w.above[q] += w.above[q - 1];
  for (int64_t j = 0; j < count; j += kWidth<T>) {  // the arrays have room behind their end
    using V = Values<T>;
    V step = {};
    for (int lane = 0; lane < kWidth<T>; ++lane) step[lane] = static_cast<T>(w.rank[j + lane]);
    const V d = load_as<V>(w.negative + j);
    step = step == V{} ? V{} : step * -g * slopes(p, i, j, d);
    const int64_t left = count - j < kWidth<T> ? count - j : kWidth<T>;
    std::memcpy(u + j, &step, left * sizeof(T));
  }
}

// Terms and, with u, the weights of the pairs.
template <class T>
void hinge(const EveryPair<T>& p, int64_t i, Work<T>& w, Sums& sums, T* u, T* grad_positive) {
  const int64_t count = p.reference.count, numbers = sort_thresholds(p, i, static_cast<T>(p.margin), w);
  for (int64_t q = 0; q <= numbers; ++q) w.above[q] = 0;
  for (int64_t j = 0; u != nullptr && j < count; ++j) u[j] = T(0);
  if (numbers > kCompareEach) {
    hinge_by_rank(p, i, numbers, w, sums, u);
  } else if (u != nullptr) {
    hinge_directly<true>(p, i, numbers, w, sums, u);
  } else {
    hinge_directly<false>(p, i, numbers, w, sums, u);
  }
  if (w.nan_negative || numbers < w.positives) sums.total = __builtin_nan("");
  if (u == nullptr) return;
  const T g = upstream_of(p, i);
  for (int64_t j = 0; w.nan_negative && j < count; ++j) {
    if (!(w.negative[j] == w.negative[j])) u[j] = w.negative[j];
  }
  for (int64_t q = 0; q < w.positives; ++q) {
    const T pull = q < numbers ? g * static_cast<T>(w.above[q]) : static_cast<T>(__builtin_nan(""));
    if (p.positive_distance != nullptr) {
      *grad_positive = pull;
    } else {
      const int32_t j = w.positive[q];
      u[j] = pull * slope(p, i, j, w.distance[j]);
    }
  }
}

// ---- all: the soft margin -------------------------------------------------------------------------------------------

// Calls body(x, first, lanes) for x = D_ap - D_an of one positive; −inf, which costs nothing, for other rows.
template <class T, class Body>
AMKD_INLINE void for_each_gap(const Work<T>& w, T d_ap, int64_t count, Body body) {
  using V = Vector<T>;
  const V positive = V{} + d_ap;
  for (int64_t j = 0; j < count; j += lanes<V>) {
    const int64_t left = count - j;
    body(left >= lanes<V> ? positive - load(w.negative + j)
                          : positive - load_some(w.negative + j, left, static_cast<T>(kInfinity)),
         j, left >= lanes<V> ? lanes<V> : left);
  }
}

AMKD_INLINE Floats magnitude(Floats x) { return bits<Floats>(bits<Ints>(x) & 0x7fffffff); }
AMKD_INLINE double magnitude(double x) { return __builtin_fabs(x); }
AMKD_INLINE int count_positive(Floats x) { return __builtin_popcount(lanes_of(x > Floats{})); }
AMKD_INLINE int count_positive(double x) { return x > 0.0; }
AMKD_INLINE Floats step_of(Floats x, Floats small, Floats one) { return x > Floats{} ? one : small; }
AMKD_INLINE double step_of(double x, double small, double one) { return x > 0.0 ? one : small; }

template <class T>
void soft_forward(const EveryPair<T>& p, int64_t i, Work<T>& w, Sums& sums) {
  using V = Vector<T>;
  double total = 0.0;
  int64_t active = 0;
  for (int64_t q = 0; q < w.positives; ++q) {
    V sum = {};
    for_each_gap(w, positive_distance(p, i, w, q), p.reference.count, [&](V x, int64_t, int64_t) {
      const V cost = larger(V{}, x) + log1p_unit(exp_nonpositive(-magnitude(x)));
      active += count_positive(cost);
      sum += cost;
    });
    total += sum_lanes(sum);
  }
  sums.active = active;
  sums.total = total;
}

template <class T>
void soft_backward(const EveryPair<T>& p, int64_t i, Work<T>& w, T* u, T* grad_positive) {
  using V = Vector<T>;
  const int64_t count = p.reference.count;
  const T g = upstream_of(p, i);
  for (int64_t j = 0; j < count; ++j) u[j] = T(0);
  if (p.positive_distance != nullptr) *grad_positive = T(0);
  for (int64_t q = 0; q < w.positives; ++q) {
    V sum = {};
    for_each_gap(w, positive_distance(p, i, w, q), count, [&](V x, int64_t j, int64_t n) {
      const V e = exp_nonpositive(-magnitude(x));
      const V sigma = step_of(x, e, V{} + T(1)) / (V{} + T(1) + e);
      sum += sigma;
      T lane[lanes<V>];
      store(lane, sigma);
      for (int64_t l = 0; l < n; ++l) u[j + l] -= lane[l];
    });
    w.table[q] = sum_lanes(sum);
  }
  for (int64_t j = 0; j < count; ++j) {
    if (u[j] != 0) u[j] *= g * slope(p, i, j, w.distance[j]);
  }
  for (int64_t q = 0; q < w.positives; ++q) {
    const T pull = g * static_cast<T>(w.table[q]);
    if (p.positive_distance != nullptr) {
      *grad_positive = pull;
    } else {
      const int32_t j = w.positive[q];
      u[j] = pull * slope(p, i, j, w.distance[j]);
    }
  }
}

// ---- semi-hard ------------------------------------------------------------------------------------------------------

// For each threshold (NaN ones last) its negative, or -1, into w.bucket_index.
template <class T>
void pair_up(const EveryPair<T>& p, int64_t i, Work<T>& w) {
  const int64_t count = p.reference.count, numbers = sort_thresholds(p, i, T(0), w);
  // What the pairs without an interval take: the first NaN, which wins every selection, else by what is asked for.
  int64_t farthest = -1, nearest = -1;
  if (w.nan_negative) {
    for (int64_t q = 0; q < w.positives; ++q) w.bucket_index[q] = w.first_nan;
    return;
  }
  if (p.fallback || numbers < w.positives) {
    for (int64_t j = 0; j < count; ++j) {
      if (w.negative[j] < 0) continue;
      if (farthest < 0 || w.negative[j] > w.negative[farthest]) farthest = j;
      if (nearest < 0 || w.negative[j] < w.negative[nearest]) nearest = j;
    }
  }
  rank_negatives<false>(w, numbers, count);
  for (int64_t b = 0; b <= numbers; ++b) {
    w.bucket[b] = static_cast<T>(kInfinity);
    w.bucket_index[b] = -1;
  }
  for (int64_t j = 0; j < count; ++j) {
    const int32_t b = w.rank[j];
    if (b > 0 && w.negative[j] < w.bucket[b]) {
      w.bucket[b] = w.negative[j];
      w.bucket_index[b] = static_cast<int32_t>(j);
    }
  }
  // Threshold q may take any bucket from q + 1 on; going down, the nearest so far moves along.
  T best = static_cast<T>(kInfinity);
  int32_t best_index = -1;
  for (int64_t q = numbers - 1; q >= 0; --q) {
    if (w.bucket[q + 1] < best || (w.bucket[q + 1] == best && w.bucket_index[q + 1] < best_index)) {
      best = w.bucket[q + 1];
      best_index = w.bucket_index[q + 1];
    }
    const bool within = best_index >= 0 && best < w.threshold[q] + static_cast<T>(p.margin);
    w.bucket_index[q + 1] = within ? best_index : p.fallback ? static_cast<int32_t>(farthest) : -1;
  }
  for (int64_t q = 0; q < numbers; ++q) w.bucket_index[q] = w.bucket_index[q + 1];
  for (int64_t q = numbers; q < w.positives; ++q) w.bucket_index[q] = static_cast<int32_t>(nearest);
}

template <class T>
double penalty(const EveryPair<T>& p, double d_ap, double d_an) {
  const double x = d_ap - d_an;
  if (p.soft_margin) return (x > 0.0 ? x : 0.0) + __builtin_log1p(__builtin_exp(-__builtin_fabs(x))) + 0.0 * x;
  return x + p.margin <= 0.0 ? 0.0 : x + p.margin;
}

template <class T>
void semihard_forward(const EveryPair<T>& p, int64_t i, Work<T>& w, Sums& sums) {
  pair_up(p, i, w);
  for (int64_t q = 0; q < w.positives; ++q) {
    if (w.bucket_index[q] < 0) continue;
    const T d_ap = positive_distance(p, i, w, q), d_an = w.distance[w.bucket_index[q]];
    ++sums.triplets;
    sums.total += penalty(p, d_ap, d_an);
    sums.positive += d_ap;
    sums.negative += d_an;
  }
  if (sums.triplets > 0) sums.total /= sums.triplets;
  sums.terms = sums.triplets > 0;
  sums.active = sums.total > 0.0;
}

template <class T>
void semihard_backward(const EveryPair<T>& p, int64_t i, Work<T>& w, T* u, T* grad_positive) {
  pair_up(p, i, w);
  for (int64_t j = 0; j < p.reference.count; ++j) u[j] = T(0);
  if (p.positive_distance != nullptr) *grad_positive = T(0);
  int64_t pairs = 0;
  for (int64_t q = 0; q < w.positives; ++q) pairs += w.bucket_index[q] >= 0;
  for (int64_t q = 0; q < w.positives; ++q) {
    const int32_t n = w.bucket_index[q];
    if (n < 0) continue;
    const T d_ap = positive_distance(p, i, w, q), d_an = w.distance[n];
    const double x = static_cast<double>(d_ap) - d_an;
    double pull = upstream_of(p, i) / static_cast<double>(pairs);
    if (p.soft_margin) {
      pull /= 1.0 + __builtin_exp(-x);
    } else if (x + p.margin <= 0.0) {
      continue;
    }
    u[n] -= static_cast<T>(pull) * slope(p, i, n, d_an);
    if (p.positive_distance != nullptr) {
      *grad_positive = static_cast<T>(pull);
    } else {
      const int32_t j = w.positive[q];
      u[j] += static_cast<T>(pull) * slope(p, i, j, d_ap);
    }
  }
}

// ---- both -----------------------------------------------------------------------------------------------------------

template <class T>
T outside_of(const EveryPair<T>& p) {
  return p.semihard ? T(-1) : static_cast<T>(kInfinity);
}

// What the close pairs of an anchor do to it; `sum` [D].
template <class T>
void add_close_pairs(const EveryPair<T>& p, int64_t i, const T* u, double* sum) {
  const int64_t depth = p.anchor.depth, words = close_words(p.reference.count);
  bool touched = false;
  for (int64_t word = 0; word < words; ++word) {
    for (uint64_t bits = close_row(p, i)[word]; bits != 0; bits &= bits - 1) {
      const int64_t j = word * kCloseColumns + __builtin_ctzll(bits);
      if (u[j] == 0) continue;
      for (int64_t k = 0; !touched && k < depth; ++k) sum[k] = 0.0;
      touched = true;
      add_difference(u[j], row_of(p.anchor, i), scale_of(p.anchor, i), row_of(p.reference, j), scale_of(p.reference, j),
                     depth, sum);
    }
  }
  T* out = p.grad_anchor + i * depth;
  for (int64_t k = 0; touched && k < depth; ++k) out[k] += static_cast<T>(sum[k]);
}

// The terms of anchor i, which has triplets, and the weights of its pairs.
template <class T>
void mine(const EveryPair<T>& p, int64_t i, Work<T>& w, Sums& sums, T* u, T* grad_positive) {
  if (p.semihard) {
    semihard_forward(p, i, w, sums);
    if (p.with_gradient) semihard_backward(p, i, w, u, grad_positive);
    return;
  }
  sums.terms = sums.triplets = w.positives * w.negatives;
  sums.positive = sum_positives(p, i, w) * w.negatives;
  sums.negative = sum_negatives(w, p.reference.count, outside_of(p)) * w.positives;
  if (p.soft_margin) {
    soft_forward(p, i, w, sums);
    if (p.with_gradient) soft_backward(p, i, w, u, grad_positive);
  } else {
    hinge(p, i, w, sums, p.with_gradient ? u : nullptr, grad_positive);
  }
}

template <class T>
void sweep(const EveryPair<T>& p, const RowTerms<T>& out, void* scratch) {
  Work<T> w(scratch, p.reference.count);
  const int64_t words = close_words(p.reference.count);
  for (int64_t i = p.first; i < p.last; ++i) {
    Sums sums;
    T* u = product_row(p, i);
    T* pull = p.grad_positive == nullptr ? nullptr : p.grad_positive + i;
    for (int64_t word = 0; p.with_gradient && word < words; ++word) close_row(p, i)[word] = 0;
    if (sort_out(p, i, outside_of(p), w)) {
      mine(p, i, w, sums, u, pull);
    } else if (p.with_gradient) {
      for (int64_t j = 0; j < p.reference.count; ++j) u[j] = T(0);
      if (pull != nullptr) *pull = T(0);
    }
    if (p.with_gradient) add_close_pairs(p, i, u, w.sum);
    out.total[i] = static_cast<T>(sums.total);
    out.counts[3 * i] = sums.terms;
    out.counts[3 * i + 1] = sums.active;
    out.counts[3 * i + 2] = sums.triplets;
    out.sums[2 * i] = static_cast<T>(sums.positive);
    out.sums[2 * i + 1] = static_cast<T>(sums.negative);
  }
}

template <class T>
void settle(const EveryPair<T>& p, double* scratch, int64_t first, int64_t last) {
  const int64_t depth = p.reference.depth;
  for (int64_t word = first; word < last; ++word) {
    uint64_t touched = 0;
    for (int64_t i = p.first; i < p.last; ++i) {
      for (uint64_t bits = close_row(p, i)[word]; bits != 0; bits &= bits - 1) {
        const int column = __builtin_ctzll(bits);
        const int64_t j = word * kCloseColumns + column;
        T& u = product_row(p, i)[j];
        if (u == 0) continue;
        double* sum = scratch + column * depth;
        if ((touched >> column & 1) == 0) {
          for (int64_t k = 0; k < depth; ++k) sum[k] = 0.0;
          touched |= uint64_t{1} << column;
        }
        add_difference(u, row_of(p.reference, j), scale_of(p.reference, j), row_of(p.anchor, i), scale_of(p.anchor, i),
                       depth, sum);
        u = T(0);
      }
    }
    for (; touched != 0; touched &= touched - 1) {
      const int column = __builtin_ctzll(touched);
      T* out = p.grad_reference + (word * kCloseColumns + column) * depth;
      for (int64_t k = 0; k < depth; ++k) out[k] += static_cast<T>(scratch[column * depth + k]);
    }
  }
}

}  // namespace

extern const RowKernels<float> row_floats = {sweep, settle};
extern const RowKernels<double> row_doubles = {sweep, settle};

}  // namespace amkd::triplet::AMKD_SIMD
