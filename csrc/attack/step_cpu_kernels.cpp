// The attack step on a CPU, one sample at a time: the size of its gradient, its move, its ball, its bounds.
#include <type_traits>

#include "bfloat16_box_cpu.h"

namespace amkd::attack::AMKD_SIMD {
namespace {

// ---- sums over a sample -------------------------------------------------------------------------------------------

constexpr int64_t kBlock = 4096;  // elements that are summed in the dtype of the arithmetic; blocks in fp64
constexpr int kWays = 4;

// Σ over what add(begin, end, sums) adds up: blocks of a sample, each in four sums.
template <class W, class Add>
AMKD_INLINE double sum_blocks(int64_t size, Add add) {
  double total = 0.0;
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    Vector<W> sums[kWays] = {};
    add(begin, begin + kBlock < size ? begin + kBlock : size, sums);
    total += sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
  return total;
}

// Σ term(k, part), which must be 0 behind the end of the sample.
template <class W, class Term>
AMKD_INLINE double sum_over(int64_t size, Term term) {
  return sum_blocks<W>(size, [=](int64_t begin, int64_t end, Vector<W>* sums) {
    sweep<W, kWays>(begin, end, [=](int64_t k, auto part) { sums[part.way] += term(k, part); });
  });
}

// Σ term(v); term(0) must be 0.
template <class W, class Term>
AMKD_INLINE double sum_of(const W* values, int64_t size, Term term) {
  return sum_over<W>(size, [=](int64_t k, auto part) { return term(get(values + k, part)); });
}

template <class W>
double count_from(const W* values, int64_t size, W least) {
  using V = Vector<W>;
  const V limit = splat<V>(least), one = splat<V>(1.0), none{};
  // No more than a block of ones is summed in fp32, so that the count is exact. `least` is above 0 in padded lanes.
  return sum_of(values, size, [=](V v) { return absolute(v) >= limit ? one : none; });
}

// The size of a sample's gradient. `square` = Σ (scale · g)², where the scale keeps it in range and is a power of two.
template <class W>
struct Size {
  bool moves;  // finite, and not all zero
  W peak, scale;
  double square;
};

template <class W>
constexpr double kSafeLow = sizeof(W) == 4 ? 1e-25 : 1e-250;
template <class W>
constexpr double kSafeHigh = sizeof(W) == 4 ? 1e35 : 1e290;

template <class W>
double square_of(const W* g, int64_t size, W scale) {
  const auto factor = splat<Vector<W>>(scale);
  return sum_of(g, size, [=](Vector<W> v) { return (v * factor) * (v * factor); });
}

template <class W>
W peak_of(const W* g, int64_t size) {
  using V = Vector<W>;
  V peak{}, poison{};
  sweep<W>(0, size, [&](int64_t k, auto part) {
    const V v = get(g + k, part);
    peak = larger(absolute(v), peak);
    poison += v - v;
  });
  const double fault = sum_lanes(poison);
  return fault == fault ? static_cast<W>(max_lanes(peak)) : static_cast<W>(fault);
}

// A power of two that takes `peak` near 1; subnormal numbers come as near as the exponent reaches.
template <class W>
W scale_for(W peak) {
  const int most = sizeof(W) == 4 ? 126 : 1022;
  int exponent = 0;
  __builtin_frexp(peak, &exponent);
  exponent = -exponent > most ? -most : (exponent > most ? most : exponent);
  return static_cast<W>(__builtin_ldexp(1.0, -exponent));
}

// `square`: Σ g². `exact`: with the peak, and scaled in any case.
template <class W>
Size<W> size_of(const W* g, int64_t size, double square, bool exact) {
  const bool safe = square >= kSafeLow<W> && square <= kSafeHigh<W>;  // a NaN is not
  if (safe && !exact) return {true, W(0), W(1), square};
  const W peak = peak_of(g, size);
  if (!(peak > 0) || !is_finite(peak)) return {false, W(0), W(1), 0.0};
  const W scale = scale_for(peak);
  return {true, peak, scale, square_of(g, size, scale)};
}

// ---- l1 -----------------------------------------------------------------------------------------------------------

template <class W>
struct WordOf {
  using type = uint32_t;
};
template <>
struct WordOf<double> {
  using type = uint64_t;
};

// The `top`-th largest |g|, by bisection of its bits: they order numbers ≥ 0 as the numbers themselves.
template <class W>
W threshold_of(const W* g, int64_t size, int64_t top, W peak) {
  using Word = typename WordOf<W>::type;
  Word low = 1, high = bits<Word>(peak) + 1;  // from `low` on there are `top` numbers, from `high` on fewer
  if (count_from(g, size, bits<W>(low)) < top) return bits<W>(low);  // fewer than `top` are not 0: all of them move
  while (high - low > 1) {
    const Word middle = low + (high - low) / 2;
    const double count = count_from(g, size, bits<W>(middle));
    if (count == top) return bits<W>(middle);
    (count > top ? low : high) = middle;
  }
  return bits<W>(low);
}

// What the projection on the l1 ball takes off every |d|: Newton's iteration on Σ max(|d| - τ, 0) = radius, which rises
// to the root and ends on it when no more entries drop out.
template <class W>
W shrinkage_of(const W* d, int64_t size, double total, W radius) {
  using V = Vector<W>;
  double tau = (total - radius) / size, count = size;
  while (true) {
    const V limit = splat<V>(tau), one = splat<V>(1.0), none{};
    const double left = sum_of(d, size, [=](V v) { return absolute(v) > limit ? one : none; });
    if (left >= count || left == 0.0) break;
    const double sum = sum_of(d, size, [=](V v) { return absolute(v) > limit ? absolute(v) : none; });
    count = left;
    tau = (sum - radius) / left;
  }
  return static_cast<W>(tau > 0.0 ? tau : 0.0);
}

// ---- where a sample goes ------------------------------------------------------------------------------------------

template <class W>
struct AlongGradient {
  W scale, factor;
  AMKD_INLINE Vector<W> operator()(Vector<W> g) const { return (g * scale) * factor; }
};

template <class W>
struct AlongLargest {
  W least, share;  // least > 0
  AMKD_INLINE Vector<W> operator()(Vector<W> g) const {
    const Vector<W> most = splat<Vector<W>>(share), none{};
    return g >= least ? most : (g <= -least ? -most : none);
  }
};

struct Anywhere {
  template <class V, class Part>
  AMKD_INLINE V operator()(V moved, int64_t, Part) const {
    return moved;
  }
};

// Finite, so that a ball can pull it back.
AMKD_INLINE Floats held(Floats v) {
  return smaller(splat<Floats>(kMost<float>), larger(splat<Floats>(-kMost<float>), v));
}
AMKD_INLINE double held(double v) { return smaller(kMost<double>, larger(-kMost<double>, v)); }

// The last step into an l2 or l1 ball, from what left it.
template <class T, class W, bool kSquare>
struct PulledIn {
  const T* x0;
  W amount;  // l2: a factor; l1: what every coordinate of the difference loses
  template <class Part>
  AMKD_INLINE Vector<W> operator()(Vector<W> moved, int64_t k, Part part) const {
    const Vector<W> clean = get(x0 + k, part), difference = held(moved) - clean, none{};
    if constexpr (kSquare) return clean + difference * amount;
    return clean + with_sign(larger(absolute(difference) - amount, none), difference);
  }
};

template <class Ball>
constexpr bool is_box = false;
template <class T, class W>
constexpr bool is_box<InBox<T, W>> = true;

// Where the results of a sample go: into the ball, into the bounds, and out. What is new at `at` becomes `target`.
template <class T, class Ball, bool kHolds = sizeof(T) == 2 && is_box<Ball>>
struct Landing {
  static constexpr bool kKeeps = false;  // counts changes
  Ball ball;
  T* out;

  template <class V, class Part, class Bounds>
  AMKD_INLINE void operator()(V, V target, int64_t k, Part part, Bounds bounds, Changes&) const {
    put(out + k, part, smaller(bounds.upper(k, part), larger(bounds.lower(k, part), ball(target, k, part))));
  }
};

// Takes back what rounding to two bytes would put outside of a box. Where x0 itself breaks a bound, the bound prevails.
template <class T, class Ball>
struct Landing<T, Ball, true> {
  static constexpr bool kKeeps = true;
  Ball ball;
  T* out;

  template <class Part, class Bounds>
  AMKD_INLINE void operator()(Floats at, Floats target, int64_t k, Part part, Bounds bounds, Changes& changes) const {
    const Floats low = bounds.lower(k, part), high = bounds.upper(k, part), clean = get(ball.x0 + k, part);
    const Ints number = narrowed(smaller(high, larger(low, ball(target, k, part))), T{});
    const Floats far = widened(number, T{}), change = far - clean;
    const Ints leaves = (absolute(change) > ball.radius) & (clean >= low) & (clean <= high);
    changes.found |= differing(far, at, part);
    put_halves(out + k, part, leaves ? next_towards(number, change) : number);
  }
};

template <class T, class W>
struct Sample {
  using V = Vector<W>;
  const StepWork& p;
  const T *x, *x0;
  T* out;
  const W* g;
  W* moved;  // scratch
  W reach, radius;

  template <class Heading, class Ball>
  void finish(Heading heading, Ball ball) const {
    // By value: for all the compiler knows, a store could change what a reference names.
    const T* x = this->x;
    const W* g = this->g;
    const Landing<T, Ball> land{ball, out};
    Changes changes;
    sweep_bounded<T>(p, 0, p.size, [=, &changes](int64_t k, auto part, auto bounds) {
      const V at = get(x + k, part);
      land(at, at + heading(get(g + k, part)), k, part, bounds, changes);
    });
    if (land.kKeeps && !changes.any()) stay();
  }

  // Balls that need a sum over the sample before a coordinate is known.
  template <class Heading>
  void finish_in_ball(Heading heading, bool square) const {
    const T *x = this->x, *x0 = this->x0;
    const W* g = this->g;
    W* moved = this->moved;
    const auto away = [=](int64_t k, auto part) {
      return held(get(x + k, part) + heading(get(g + k, part))) - V(get(x0 + k, part));
    };
    if (square) {
      const double length = length_of(away);
      if (!(length > radius)) return finish(heading, Anywhere{});
      return finish(heading, PulledIn<T, W, true>{x0, static_cast<W>(radius / length)});
    }
    const double total = sum_over<W>(p.size, [=](int64_t k, auto part) {
      const V difference = away(k, part);
      put(moved + k, part, difference);
      return absolute(difference);
    });
    if (!(total > radius)) return finish(heading, Anywhere{});
    if (!is_finite(total)) return finish(heading, PulledIn<T, W, false>{x0, kMost<W>});
    finish(heading, PulledIn<T, W, false>{x0, shrinkage_of(moved, p.size, total, radius)});
  }

  // √Σ term(k, part)².
  template <class Term>
  double length_of(Term term) const {
    W* moved = this->moved;
    const auto squared = [=](int64_t k, auto part) { return term(k, part) * term(k, part); };
    const double square = sum_over<W>(p.size, squared);
    if (square >= kSafeLow<W> && square <= kSafeHigh<W>) return __builtin_sqrt(square);
    sweep<W>(0, p.size, [=](int64_t k, auto part) { put(moved + k, part, term(k, part)); });
    const W peak = peak_of(moved, p.size);  // NaN: no ball
    if (!(peak > 0)) return peak;
    const W scale = scale_for(peak);
    return __builtin_sqrt(square_of(moved, p.size, scale)) / scale;
  }

  void stay() const {
    if (out != x) std::memcpy(out, x, p.size * sizeof(T));
  }
  void go_to_x0() const { std::memmove(out, x0, p.size * sizeof(T)); }

  // Takes back what rounding to two bytes has put outside of an l2 or l1 ball. Where x0 itself breaks a bound, the
  // bound prevails.
  void hold() const {
    if constexpr (sizeof(T) == 2) {
      if (x0 == nullptr || p.scalars.rule == Rule::kLinf) return;
      if (out != x && std::memcmp(out, x, p.size * sizeof(T)) == 0) return;
      const T* x0 = this->x0;
      T* out = this->out;
      const V unit = splat<V>(radius > 0 ? radius : W(1));
      const auto away = [=](int64_t k, auto part) { return (get(out + k, part) - get(x0 + k, part)) / unit; };
      const double length = p.scalars.rule == Rule::kL1
                                ? sum_over<W>(p.size, [=](int64_t k, auto part) { return absolute(away(k, part)); })
                                : length_of(away);
      if (!(length > 1.0)) return;
      const V shrink = splat<V>(length);
      sweep_bounded<T>(p, 0, p.size, [=](int64_t k, auto part, auto bounds) {
        const V far = get(out + k, part), clean = get(x0 + k, part), change = far - clean, inner = change / shrink;
        const Ints near = narrowed(clean + inner, T{});
        const V left = widened(near, T{}) - clean;
        const Ints back = absolute(left) > absolute(inner) ? next_towards(near, left) : near;
        const V low = bounds.lower(k, part), high = bounds.upper(k, part);
        const Ints shrinks = (inner != change) & (clean >= low) & (clean <= high);
        put_halves(out + k, part, shrinks ? back : narrowed(far, T{}));
      });
    }
  }

  void move(const Size<W>& size) const {
    if (x0 != nullptr && radius == 0) return go_to_x0();
    const StepScalars& s = p.scalars;
    if (s.rule == Rule::kLinf) {
      const AlongSign<W> heading{reach};
      x0 == nullptr ? finish(heading, Anywhere{}) : finish(heading, InBox<T, W>{x0, radius});
    } else if (s.rule == Rule::kL1) {
      const W least = threshold_of(g, p.size, s.top, size.peak);
      const AlongLargest<W> heading{least, reach / static_cast<W>(count_from(g, p.size, least))};
      x0 == nullptr ? finish(heading, Anywhere{}) : finish_in_ball(heading, false);
    } else {
      // reach · g / ‖g‖^p with g = (scale · g) / scale; infinity would make NaN of the zeros in g.
      const double most = kMost<W>, length = __builtin_sqrt(size.square);
      double factor = s.rule == Rule::kNewton ? reach * (size.scale / size.square) : reach / length;
      factor = factor > most ? most : (factor < -most ? -most : factor);
      const AlongGradient<W> heading{size.scale, static_cast<W>(factor)};
      x0 == nullptr ? finish(heading, Anywhere{}) : finish_in_ball(heading, true);
    }
  }
};

// A step along the sign in one pass over gradient and sample, which finds on the way whether it may be taken: false
// leaves something in `out` that is not the result. The gradient is in its own dtype.
template <class T, class G, class W, class Ball>
bool step_along_sign(const StepWork& p, const T* x, const G* grad, T* out, W reach, Ball ball) {
  using V = Vector<W>;
  const AlongSign<W> heading{reach};
  typename LargestOf<W>::type largest;
  const Landing<T, Ball> land{ball, out};
  Changes changes;
  int64_t done = 0;
  if constexpr (is_box<Ball> && std::is_same_v<T, BFloat16> && std::is_same_v<G, BFloat16>) {
    done = step_pairs(p, x, ball.x0, grad, out, reach, ball.radius, largest, changes);
  }
  sweep_bounded<T>(p, done, p.size, [=, &largest, &changes](int64_t k, auto part, auto bounds) {
    const V g = get(grad + k, part), at = get(x + k, part);
    largest.see(g);
    land(at, at + heading(g), k, part, bounds, changes);
  });
  return largest.usable() && (!land.kKeeps || changes.any());
}

// g ← v = decay · v + g / mean|g| in the scratch, and in the velocity where all of it is finite.
template <class W>
bool gather_momentum(W* g, W* velocity, int64_t size, double decay) {
  using V = Vector<W>;
  const W peak = peak_of(g, size);
  if (!(peak > 0) || !is_finite(peak)) return false;
  const V by = splat<V>(peak);
  const double sum = sum_of(g, size, [=](V v) { return absolute(v / by); });
  const V mean = splat<V>(sum / size), keep = splat<V>(decay);
  V poison{};
  sweep<W>(0, size, [&](int64_t k, auto part) {
    const V fresh = keep * get(velocity + k, part) + get(g + k, part) / by / mean;
    poison += fresh - fresh;
    put(g + k, part, fresh);
  });
  const double fault = sum_lanes(poison);
  if (fault != fault) return false;
  std::memcpy(velocity, g, size * sizeof(W));
  return true;
}

// Without the coordinates that stand at a bound and would leave through it.
template <class W>
struct Unblocked {
  W sign;  // of the reach
  template <class Bounds, class Part>
  AMKD_INLINE Vector<W> operator()(Vector<W> v, Vector<W> at, int64_t k, Part part, Bounds bounds) const {
    const Vector<W> direction = v * sign, none{};
    const Vector<W> above = at <= bounds.lower(k, part) ? (direction < none ? none : v) : v;
    return at >= bounds.upper(k, part) ? (direction > none ? none : above) : above;
  }
};

struct Gathered {
  bool usable;  // of what was taken out nothing hides a fault
  double square;
};

// g ← the gradient in the dtype of the arithmetic, where `project` without its blocked coordinates; and Σ g².
template <class T, class G, class W>
Gathered gather(const StepWork& p, const T* x, const G* grad, W* g, W reach) {
  using V = Vector<W>;
  const Unblocked<W> unblocked{W(reach > 0 ? 1 : reach < 0 ? -1 : 0)};
  typename LargestOf<W>::type largest;
  const double square = sum_blocks<W>(p.size, [=, &p, &largest](int64_t begin, int64_t end, V* sums) {
    const auto take = [=](int64_t k, auto part, V v) {
      put(g + k, part, v);
      sums[part.way] += v * v;
    };
    if (!p.scalars.project) {
      sweep<W, kWays>(begin, end, [=](int64_t k, auto part) { take(k, part, get(grad + k, part)); });
      return;
    }
    sweep_bounded<T, kWays>(p, begin, end, [=, &largest](int64_t k, auto part, auto bounds) {
      const V v = get(grad + k, part);
      largest.see(v);
      take(k, part, unblocked(v, get(x + k, part), k, part, bounds));
    });
  });
  return {!p.scalars.project || largest.usable(), square};
}

template <class T, class G>
void step_one(const StepWork& p, int64_t i, typename WorkOf<T>::type* scratch) {
  using W = typename WorkOf<T>::type;
  const StepScalars& s = p.scalars;
  const auto number = [&](const void* tensor, double scalar) {
    return tensor == nullptr ? static_cast<W>(scalar) : static_cast<const W*>(tensor)[i];
  };
  const int64_t at = i * p.size;
  const W eta = number(p.step_sizes, s.step_size);
  const W reach = p.gap == nullptr ? eta : eta * (number(p.gap, 0.0) + static_cast<W>(kGapMargin));
  const T* x0 = p.x0 == nullptr ? nullptr : static_cast<const T*>(p.x0) + at;
  const T* x = static_cast<const T*>(p.x) + at;
  const G* grad = static_cast<const G*>(p.grad) + at;
  Sample<T, W> sample{p,       x,
                      x0,      static_cast<T*>(p.out) + (p.place == nullptr ? at : p.place[i] * p.size),
                      nullptr, scratch + p.size,
                      reach,   number(p.radii, s.radius)};
  const bool wanted = p.active == nullptr || p.active[i];
  if (!wanted || !is_finite(reach) || (x0 != nullptr && !(sample.radius >= 0))) return sample.stay();

  W* velocity = static_cast<W*>(p.velocity);
  // In place there would be no way back.
  if (s.rule == Rule::kLinf && velocity == nullptr && !s.project && sample.out != x && !(x0 && sample.radius == 0)) {
    const InBox<T, W> box{x0, sample.radius};
    const bool moves = x0 == nullptr ? step_along_sign(p, x, grad, sample.out, reach, Anywhere{})
                                     : step_along_sign(p, x, grad, sample.out, reach, box);
    moves ? sample.hold() : sample.stay();
    return;
  }
  sample.g = scratch;
  Gathered found{true, 0.0};
  if (velocity != nullptr) {
    sweep<W>(0, p.size, [=](int64_t k, auto part) { put(scratch + k, part, get(grad + k, part)); });
    if (!gather_momentum(scratch, velocity + at, p.size, s.decay)) return sample.stay();
    found = gather<T, W, W>(p, x, scratch, scratch, reach);
  } else if (s.project || sizeof(G) != sizeof(W)) {
    found = gather<T, G, W>(p, x, grad, scratch, reach);
  } else if constexpr (sizeof(G) == sizeof(W)) {
    sample.g = grad;
    found.square = square_of(grad, p.size, W(1));
  }
  if (!found.usable) return sample.stay();
  const bool far = __builtin_fabs(reach) > W(1e12);  // a factor of the plain gradient might overflow
  const bool exact = s.rule == Rule::kL1 || (s.rule != Rule::kLinf && far);
  const Size<W> size = size_of(sample.g, p.size, found.square, exact);
  if (!size.moves) return sample.stay();
  if (s.rule == Rule::kNewton && size.peak > 0 && !is_finite(reach / size.peak)) return sample.stay();
  sample.move(size);
  sample.hold();
}

template <class T>
void step(const StepWork& p, bool wide_grad, int64_t first, int64_t last, void* scratch) {
  using W = typename WorkOf<T>::type;
  for (int64_t i = first; i < last; ++i) {
    wide_grad ? step_one<T, W>(p, i, static_cast<W*>(scratch)) : step_one<T, T>(p, i, static_cast<W*>(scratch));
  }
}

}  // namespace

extern const StepKernel step_kernels[kElements] = {step<float>, step<double>, step<Half>, step<BFloat16>};

}  // namespace amkd::attack::AMKD_SIMD
