// Vectors of fp32 or fp64 with the labels beside them, and exact distances. See common/simd.h for the rules.
#pragma once

#include "../common/doubles.h"
#include "triplet_cpu.h"

namespace amkd::triplet::AMKD_SIMD {

using namespace amkd::AMKD_SIMD;

template <class T>
struct Wide {
  using Values = Floats;
  using Labels = Ints;
};
template <>
struct Wide<double> {
  using Values = Doubles;
  using Labels = Longs;
};
template <class T>
using Values = typename Wide<T>::Values;
template <class T>
using Labels = typename Wide<T>::Labels;  // also the mask of a comparison of Values: all bits of a lane or none
template <class T>
constexpr int kWidth = kBytes / sizeof(T);

template <class V, class T>
AMKD_INLINE V load_as(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

// One bit for each lane of a mask.
AMKD_INLINE unsigned lanes_of(Ints mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(bits<__m512i>(mask));
#elif defined(__AVX2__)
  return _mm256_movemask_ps(bits<__m256>(mask));
#elif defined(__SSE2__)
  return _mm_movemask_ps(bits<__m128>(mask));
#else
  unsigned out = 0;
  for (int i = 0; i < kLanes; ++i) out |= (mask[i] & 1u) << i;
  return out;
#endif
}
AMKD_INLINE unsigned lanes_of(Longs mask) {
#if defined(__AVX512F__)
  return _mm512_movepi64_mask(bits<__m512i>(mask));
#elif defined(__AVX2__)
  return _mm256_movemask_pd(bits<__m256d>(mask));
#elif defined(__SSE2__)
  return _mm_movemask_pd(bits<__m128d>(mask));
#else
  unsigned out = 0;
  for (int i = 0; i < kLanes / 2; ++i) out |= (static_cast<unsigned>(mask[i]) & 1u) << i;
  return out;
#endif
}

AMKD_INLINE double root(double x) { return __builtin_sqrt(x); }

// Σ (a·u - b·v)² in fp64: what every selection is decided by in the end, and what enters the loss. The difference of
// two fp32 numbers is exact here.
template <class T>
inline double square_of_difference(const T* u, double a, const T* v, double b, int64_t depth) {
  constexpr int kStep = kWidth<double>;
  Doubles sums[4] = {};
  int64_t k = 0;
  for (; k + 4 * kStep <= depth; k += 4 * kStep) {
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) {
      const Doubles d = load_doubles(u + k + s * kStep) * a - load_doubles(v + k + s * kStep) * b;
      sums[s] += d * d;
    }
  }
  double total = sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; k < depth; ++k) {
    const double d = u[k] * a - v[k] * b;
    total += d * d;
  }
  return total;
}

template <class T>
inline double scale_of(const Rows<T>& rows, int64_t i) {
  return rows.scale == nullptr ? 1.0 : rows.scale[i];
}

// out += c (a·u - b·v)
template <class T>
inline void add_difference(double c, const T* u, double a, const T* v, double b, int64_t depth, double* out) {
  constexpr int kStep = kWidth<double>;
  int64_t k = 0;
  for (; k + kStep <= depth; k += kStep) {
    const Doubles sum = load_doubles(out + k) + c * (load_doubles(u + k) * a - load_doubles(v + k) * b);
    std::memcpy(out + k, &sum, sizeof(sum));
  }
  for (; k < depth; ++k) out[k] += c * (u[k] * a - v[k] * b);
}

template <class T>
bool is_finite(const Rows<T>& rows, int64_t i) {
  const T* row = row_of(rows, i);
  T zero = 0;
  for (int64_t k = 0; k < rows.depth; ++k) zero += row[k] * 0;  // NaN where an element is not finite
  return zero == 0;
}

// The distance of rows u and v: NaN where one of them is not finite, else held at the largest finite number so that
// +inf is free to mean "no candidate".
template <class T>
inline double distance_of(Distance distance, const Rows<T>& u, int64_t i, const Rows<T>& v, int64_t j) {
  constexpr double kLargest = sizeof(T) == 4 ? 0x1.fffffep127 : 0x1.fffffffffffffp1023;
  double d;
  if (distance == Distance::kCosine) {
    const double a = u.scale[i], b = v.scale[j];
    // 1 - cos is half the squared distance of the unit vectors, and only that keeps its digits where they nearly agree.
    d = a == 0.0 || b == 0.0 ? 1.0 : square_of_difference(row_of(u, i), a, row_of(v, j), b, u.depth) / 2.0;
  } else {
    d = square_of_difference(row_of(u, i), 1.0, row_of(v, j), 1.0, u.depth);
    if (distance == Distance::kEuclidean) d = root(d);
  }
  if (d <= kLargest) return d;
  return is_finite(u, i) && is_finite(v, j) ? kLargest : __builtin_nan("");
}

}  // namespace amkd::triplet::AMKD_SIMD
