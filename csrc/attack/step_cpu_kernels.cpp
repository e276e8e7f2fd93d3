// The attack step on a CPU, one sample at a time: the size of its gradient, its move, its ball, its bounds.
#include "sample_cpu.h"

namespace amkd::attack::AMKD_SIMD {
namespace {

// ---- sums over a sample -------------------------------------------------------------------------------------------

constexpr int64_t kBlock = 4096;  // elements that are summed in the dtype of the arithmetic; blocks in fp64

// Σ term(v); term(0) must be 0.
template <class W, class Term>
AMKD_INLINE double sum_of(const W* values, int64_t size, Term term) {
  using V = Vector<W>;
  constexpr int64_t kStep = lanes<V>;
  double total = 0.0;
  for (int64_t start = 0; start < size; start += kBlock) {
    const int64_t end = start + kBlock < size ? start + kBlock : size;
    V sums[4] = {};
    int64_t i = start;
    for (; i + 4 * kStep <= end; i += 4 * kStep) {
#pragma GCC unroll 4
      for (int s = 0; s < 4; ++s) sums[s] += term(load(values + i + s * kStep));
    }
    sweep<W>(i, end, [&](int64_t k, auto part) { sums[0] += term(get(values + k, part)); });
    total += sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
  return total;
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

// `exact`: with the peak, and scaled in any case.
template <class W>
Size<W> size_of(const W* g, int64_t size, bool exact) {
  const double square = square_of(g, size, W(1));
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
  Vector<W> scale, factor;
  AMKD_INLINE Vector<W> operator()(Vector<W> g) const { return (g * scale) * factor; }
};

template <class W>
struct AlongLargest {
  Vector<W> least, share;  // least > 0
  AMKD_INLINE Vector<W> operator()(Vector<W> g) const {
    const Vector<W> none{};
    return g >= least ? share : (g <= -least ? -share : none);
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
  Vector<W> amount;  // l2: a factor; l1: what every coordinate of the difference loses
  template <class Part>
  AMKD_INLINE Vector<W> operator()(Vector<W> moved, int64_t k, Part part) const {
    const Vector<W> clean = get(x0 + k, part), difference = held(moved) - clean, none{};
    if constexpr (kSquare) return clean + difference * amount;
    return clean + with_sign(larger(absolute(difference) - amount, none), difference);
  }
};

// The number of a two-byte type that is next to `from` on the way to `to`, which is another one.
template <class T>
T next_towards(T from, T to) {
  const auto order = [](T v) {
    return v.bits & 0x8000 ? -static_cast<int>(v.bits & 0x7fff) : static_cast<int>(v.bits);
  };
  const int next = order(from) + (order(to) > order(from) ? 1 : -1);
  return {static_cast<uint16_t>(next < 0 ? 0x8000 | -next : next)};
}

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
    T* out = this->out;
    sweep_bounded<T>(p, 0, p.size, [=](int64_t k, auto part, auto bounds) {
      const V v = ball(get(x + k, part) + heading(get(g + k, part)), k, part);
      put(out + k, part, smaller(bounds.upper(k, part), larger(bounds.lower(k, part), v)));
    });
  }

  // Balls that need a sum over the sample before a coordinate is known.
  template <class Heading>
  void finish_in_ball(Heading heading, bool square) const {
    sweep<W>(0, p.size, [&](int64_t k, auto part) {
      put(moved + k, part, held(get(x + k, part) + heading(get(g + k, part))) - V(get(x0 + k, part)));
    });
    if (square) {
      const double length = length_of_moved();
      if (!(length > radius)) return finish(heading, Anywhere{});
      return finish(heading, PulledIn<T, W, true>{x0, splat<V>(radius / length)});
    }
    const double total = sum_of(moved, p.size, [](V v) { return absolute(v); });
    if (!(total > radius)) return finish(heading, Anywhere{});
    if (!is_finite(total)) return finish(heading, PulledIn<T, W, false>{x0, splat<V>(kMost<W>)});
    finish(heading, PulledIn<T, W, false>{x0, splat<V>(shrinkage_of(moved, p.size, total, radius))});
  }

  double length_of_moved() const {
    const double square = square_of(moved, p.size, W(1));
    if (square >= kSafeLow<W> && square <= kSafeHigh<W>) return __builtin_sqrt(square);
    const W peak = peak_of(moved, p.size);  // NaN: no ball
    if (!(peak > 0)) return peak;
    const W scale = scale_for(peak);
    return __builtin_sqrt(square_of(moved, p.size, scale)) / scale;
  }

  void stay() const {
    if (out != x) std::memcpy(out, x, p.size * sizeof(T));
  }
  void go_to_x0() const { std::memmove(out, x0, p.size * sizeof(T)); }

  // Takes back what rounding to two bytes has put outside of the ball. Where x0 itself breaks a bound, the bound
  // prevails.
  void hold() const {
    if constexpr (sizeof(T) == 2) {
      if (x0 == nullptr || (out != x && std::memcmp(out, x, p.size * sizeof(T)) == 0)) return;
      const V most = splat<V>(radius);
      const bool is_box = p.scalars.rule == Rule::kLinf;
      V shrink = splat<V>(1.0);
      if (is_box) {
        V farthest{};
        sweep<W>(0, p.size, [&](int64_t k, auto part) {
          farthest = larger(absolute(get(out + k, part) - get(x0 + k, part)), farthest);
        });
        if (!(max_lanes(farthest) > radius)) return;
      } else {
        const V unit = splat<V>(radius > 0 ? radius : W(1));
        sweep<W>(0, p.size,
                 [&](int64_t k, auto part) { put(moved + k, part, (get(out + k, part) - get(x0 + k, part)) / unit); });
        const double length =
            p.scalars.rule == Rule::kL1 ? sum_of(moved, p.size, [](V v) { return absolute(v); }) : length_of_moved();
        if (!(length > 1.0)) return;
        shrink = splat<V>(length);
      }
      sweep_bounded<T>(p, 0, p.size, [&](int64_t k, auto part, auto bounds) {
        const V far = get(out + k, part), clean = get(x0 + k, part), change = far - clean;
        const V inner = is_box ? smaller(most, larger(-most, change)) : change / shrink;
        const V bounded = smaller(bounds.upper(k, part), larger(bounds.lower(k, part), clean));
        T back[lanes<V>], centre[lanes<V>];
        store(back, clean + inner);
        store(centre, clean);
        const auto beyond = absolute(load(back) - clean) > absolute(inner);
        for (int lane = 0; lane < lanes<V>; ++lane) {
          if (beyond[lane]) back[lane] = next_towards(back[lane], centre[lane]);
        }
        put(out + k, part, (inner != change) & (bounded == clean) ? load(back) : far);
      });
    }
  }

  void move(const Size<W>& size) const {
    if (x0 != nullptr && radius == 0) return go_to_x0();
    const StepScalars& s = p.scalars;
    if (s.rule == Rule::kLinf) {
      const AlongSign<W> heading{splat<V>(reach)};
      x0 == nullptr ? finish(heading, Anywhere{}) : finish(heading, InBox<T, W>{x0, splat<V>(radius)});
    } else if (s.rule == Rule::kL1) {
      const W least = threshold_of(g, p.size, s.top, size.peak);
      const AlongLargest<W> heading{splat<V>(least), splat<V>(reach / static_cast<W>(count_from(g, p.size, least)))};
      x0 == nullptr ? finish(heading, Anywhere{}) : finish_in_ball(heading, false);
    } else {
      // reach · g / ‖g‖^p with g = (scale · g) / scale; infinity would make NaN of the zeros in g.
      const double most = kMost<W>, length = __builtin_sqrt(size.square);
      double factor = s.rule == Rule::kNewton ? reach * (size.scale / size.square) : reach / length;
      factor = factor > most ? most : (factor < -most ? -most : factor);
      const AlongGradient<W> heading{splat<V>(size.scale), splat<V>(factor)};
      x0 == nullptr ? finish(heading, Anywhere{}) : finish_in_ball(heading, true);
    }
  }
};

// A step along the sign in one pass over gradient and sample, which finds on the way whether it may be taken: false
// leaves something in `out` that is not the result. The gradient is in its own dtype.
template <class T, class G, class W, class Ball>
bool step_along_sign(const StepWork& p, const T* x, const G* grad, T* out, W reach, Ball ball) {
  const AlongSign<W> heading{splat<Vector<W>>(reach)};
  typename LargestOf<W>::type largest;
  sweep_bounded<T>(p, 0, p.size, [=, &largest](int64_t k, auto part, auto bounds) {
    const Vector<W> g = get(grad + k, part), v = ball(get(x + k, part) + heading(g), k, part);
    largest.see(g);
    put(out + k, part, smaller(bounds.upper(k, part), larger(bounds.lower(k, part), v)));
  });
  return largest.usable();
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

// Takes out of g the coordinates that stand at a bound and would leave through it.
template <class T, class W>
void take_out_blocked(const StepWork& p, const T* x, W* g, W reach) {
  using V = Vector<W>;
  const V sign = splat<V>(reach > 0 ? 1.0 : reach < 0 ? -1.0 : 0.0), none{};
  sweep_bounded<T>(p, 0, p.size, [&](int64_t k, auto part, auto bounds) {
    const V at = get(x + k, part), v = get(g + k, part), direction = v * sign;
    const V above = at <= bounds.lower(k, part) ? (direction < none ? none : v) : v;
    put(g + k, part, at >= bounds.upper(k, part) ? (direction > none ? none : above) : above);
  });
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
    const InBox<T, W> box{x0, splat<Vector<W>>(sample.radius)};
    const bool moves = x0 == nullptr ? step_along_sign(p, x, grad, sample.out, reach, Anywhere{})
                                     : step_along_sign(p, x, grad, sample.out, reach, box);
    moves ? sample.hold() : sample.stay();
    return;
  }
  bool as_it_is = velocity == nullptr && !s.project;
  if constexpr (sizeof(G) == sizeof(W)) {
    sample.g = grad;
  } else {
    as_it_is = false;
  }
  if (!as_it_is) {
    sweep<W>(0, p.size, [&](int64_t k, auto part) { put(scratch + k, part, get(grad + k, part)); });
    sample.g = scratch;
    if (velocity != nullptr && !gather_momentum(scratch, velocity + at, p.size, s.decay)) return sample.stay();
    // A coordinate that is taken out must not hide a fault.
    if (s.project && !is_finite(peak_of(scratch, p.size))) return sample.stay();
    if (s.project) take_out_blocked(p, x, scratch, reach);
  }
  const bool far = __builtin_fabs(reach) > W(1e12);  // a factor of the plain gradient might overflow
  const Size<W> size = size_of(sample.g, p.size, s.rule == Rule::kL1 || (s.rule != Rule::kLinf && far));
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
