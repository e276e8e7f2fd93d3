// What the CPU kernels on images have in common: sweeps in vectors, bounds, and a step along a sign into a box.
#pragma once

#include "../common/simd.h"
#include "attack_cpu.h"

namespace amkd::attack::AMKD_SIMD {

using namespace amkd::AMKD_SIMD;

template <class T>
struct WorkOf {
  using type = float;
};
template <>
struct WorkOf<double> {
  using type = double;
};

// ---- vectors, whole or the last few elements ----------------------------------------------------------------------

struct All {
  int way;  // which of a few sums this vector adds to
};
struct Some {
  int64_t count;
  static constexpr int way = 0;
};

template <class T>
AMKD_INLINE Vector<T> get(const T* p, All) {
  return load(p);
}
template <class T>
AMKD_INLINE Vector<T> get(const T* p, Some part) {
  return load_some(p, part.count, T{});
}
template <class T>
AMKD_INLINE void put(T* p, All, Vector<T> v) {
  store(p, v);
}
template <class T>
AMKD_INLINE void put(T* p, Some part, Vector<T> v) {
  store_some(p, part.count, v);
}

// Calls body(k, part) for vectors, kWays of them at a time, so that sums need not wait for one another.
template <class W, int kWays = 1, class Body>
AMKD_INLINE void sweep(int64_t begin, int64_t end, Body body) {
  constexpr int64_t kStep = lanes<Vector<W>>;
  int64_t i = begin;
  for (; i + kWays * kStep <= end; i += kWays * kStep) {
#pragma GCC unroll 4
    for (int way = 0; way < kWays; ++way) body(i + way * kStep, All{way});
  }
  if constexpr (kWays > 1) {
    for (; i + kStep <= end; i += kStep) body(i, All{0});
  }
  if (i < end) body(i, Some{end - i});
}

AMKD_INLINE Floats absolute(Floats v) { return bits<Floats>(bits<Ints>(v) & 0x7fffffff); }
AMKD_INLINE double absolute(double v) { return __builtin_fabs(v); }
// `a`, or -a where `v` is negative.
AMKD_INLINE Floats with_sign(Floats a, Floats v) { return bits<Floats>(bits<Ints>(a) ^ (bits<Ints>(v) & INT32_MIN)); }
AMKD_INLINE double with_sign(double a, double v) { return __builtin_signbit(v) ? -a : a; }

template <class W>
constexpr W kMost = sizeof(W) == 4 ? W(0x1.fffffep127) : W(0x1.fffffffffffffp1023);
template <class W>
bool is_finite(W v) {
  return __builtin_fabs(v) <= kMost<W>;
}

// What the numbers of a gradient have among them. The bits of numbers ≥ 0 are in the order of the numbers, with
// infinity and NaN on top.
struct Largest {
  Ints most{};
  AMKD_INLINE void see(Floats v) {
    const Ints size = bits<Ints>(absolute(v));
    most = size > most ? size : most;
  }
  bool usable() const {  // finite, and not all zero
    int32_t found = 0;
    for (int lane = 0; lane < kLanes; ++lane) found = most[lane] > found ? most[lane] : found;
    return found > 0 && found < bits<int32_t>(__builtin_inff());
  }
};
struct LargestDouble {
  int64_t most = 0;
  AMKD_INLINE void see(double v) {
    const int64_t size = bits<int64_t>(absolute(v));
    most = size > most ? size : most;
  }
  bool usable() const { return most > 0 && most < bits<int64_t>(__builtin_inf()); }
};
template <class W>
struct LargestOf {
  using type = Largest;
};
template <>
struct LargestOf<double> {
  using type = LargestDouble;
};

// ---- bounds -------------------------------------------------------------------------------------------------------

template <class W>
struct Splat {
  W low, high;
  template <class Part>
  AMKD_INLINE Vector<W> lower(int64_t, Part) const {
    return splat<Vector<W>>(low);
  }
  template <class Part>
  AMKD_INLINE Vector<W> upper(int64_t, Part) const {
    return splat<Vector<W>>(high);
  }
};

template <class W>
struct Table {
  const W *low, *high;
  template <class Part>
  AMKD_INLINE Vector<W> lower(int64_t k, Part part) const {
    return get(low + k, part);
  }
  template <class Part>
  AMKD_INLINE Vector<W> upper(int64_t k, Part part) const {
    return get(high + k, part);
  }
};

// Calls body(k, part, bounds) for a sample from begin to end, with the bounds that hold there. They are numbers that
// the samples' dtype has, so that a result that keeps them is finite; `spread` in bounds_cpu.h sees to the table's.
template <class T, int kWays = 1, class Body>
AMKD_INLINE void sweep_bounded(const StepWork& p, int64_t begin, int64_t end, Body body) {
  using W = typename WorkOf<T>::type;
  const auto with = [body](int64_t from, int64_t to, auto bounds) {
    sweep<W, kWays>(from, to, [body, bounds](int64_t k, auto part) { body(k, part, bounds); });
  };
  if (p.lower_at != nullptr) {
    with(begin, end, Table<W>{static_cast<const W*>(p.lower_at), static_cast<const W*>(p.upper_at)});
    return;
  }
  const auto* lowers = static_cast<const W*>(p.lowers);
  const auto* uppers = static_cast<const W*>(p.uppers);
  const int64_t run = lowers == nullptr && uppers == nullptr ? p.size : p.run;
  for (int64_t from = begin, channel = begin / run; from < end; ++channel) {
    const double low = saturated(lowers == nullptr ? p.scalars.lower : lowers[channel], -p.largest, p.largest);
    const double high = saturated(uppers == nullptr ? p.scalars.upper : uppers[channel], p.largest, p.largest);
    const int64_t to = (channel + 1) * run < end ? (channel + 1) * run : end;
    with(from, to, Splat<W>{static_cast<W>(low), static_cast<W>(high)});
    from = to;
  }
}

// These hold numbers, which a loop spreads before it begins: a struct of a pointer and a vector would go through memory
// in pieces that do not match.

template <class W>
struct AlongSign {
  W reach;
  AMKD_INLINE Vector<W> operator()(Vector<W> g) const {
    return g == Vector<W>{} ? g : with_sign(splat<Vector<W>>(reach), g);
  }
};

template <class T, class W>
struct InBox {
  const T* x0;
  W radius;
  template <class Part>
  AMKD_INLINE Vector<W> operator()(Vector<W> moved, int64_t k, Part part) const {
    const Vector<W> clean = get(x0 + k, part), reach = splat<Vector<W>>(radius);
    return smaller(clean + reach, larger(clean - reach, moved));
  }
};

}  // namespace amkd::attack::AMKD_SIMD
