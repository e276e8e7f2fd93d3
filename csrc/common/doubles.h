// Vectors of doubles of the SIMD level that a translation unit is compiled for.
#pragma once

#include "simd.h"

namespace amkd::AMKD_SIMD {

constexpr int kDoubles = kBytes / 8;

typedef double Doubles __attribute__((vector_size(kBytes)));
typedef int64_t Longs __attribute__((vector_size(kBytes)));

AMKD_INLINE Doubles load_doubles(const double* p) {
  Doubles v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
AMKD_INLINE void store_doubles(double* p, Doubles v) { std::memcpy(p, &v, sizeof(v)); }

// As many numbers of fp32, in fp64 between. (GCC converts the two halves of a generic vector apart.)
typedef float HalfFloats __attribute__((vector_size(kBytes / 2)));

AMKD_INLINE Doubles widened(HalfFloats v) {
#if defined(__AVX512F__)
  return bits<Doubles>(_mm512_cvtps_pd(bits<__m256>(v)));
#elif defined(__AVX2__)
  return bits<Doubles>(_mm256_cvtps_pd(bits<__m128>(v)));
#else
  return __builtin_convertvector(v, Doubles);
#endif
}
AMKD_INLINE HalfFloats narrowed(Doubles v) {
#if defined(__AVX512F__)
  return bits<HalfFloats>(_mm512_cvtpd_ps(bits<__m512d>(v)));
#elif defined(__AVX2__)
  return bits<HalfFloats>(_mm256_cvtpd_ps(bits<__m256d>(v)));
#else
  return __builtin_convertvector(v, HalfFloats);
#endif
}

AMKD_INLINE Doubles load_doubles(const float* p) {
  HalfFloats v;
  std::memcpy(&v, p, sizeof(v));
  return widened(v);
}
AMKD_INLINE void store_doubles(float* p, Doubles v) {
  const HalfFloats rounded = narrowed(v);
  std::memcpy(p, &rounded, sizeof(rounded));
}

// The lower (0) and the upper (1) half of the lanes. By instructions: a pointer to a vector keeps it in memory.
template <int kHalf>
AMKD_INLINE HalfFloats half_of(Floats v) {
#if defined(__AVX512F__)
  return bits<HalfFloats>(_mm512_extractf32x8_ps(bits<__m512>(v), kHalf));
#elif defined(__AVX2__)
  return bits<HalfFloats>(_mm256_extractf128_ps(bits<__m256>(v), kHalf));
#else
  HalfFloats half[2];
  std::memcpy(half, &v, sizeof(v));
  return half[kHalf];
#endif
}
AMKD_INLINE Floats joined(HalfFloats low, HalfFloats high) {
#if defined(__AVX512F__)
  return bits<Floats>(_mm512_insertf32x8(_mm512_castps256_ps512(bits<__m256>(low)), bits<__m256>(high), 1));
#elif defined(__AVX2__)
  return bits<Floats>(_mm256_set_m128(bits<__m128>(high), bits<__m128>(low)));
#else
  const HalfFloats half[2] = {low, high};
  Floats v;
  std::memcpy(&v, half, sizeof(v));
  return v;
#endif
}

AMKD_INLINE Doubles doubles_of(Doubles v) { return v; }

// The sums of the lower and the upper half's lanes.
AMKD_INLINE Doubles doubles_of(Floats v) { return widened(half_of<0>(v)) + widened(half_of<1>(v)); }

// The nearest number in [-1, 1]; NaN stays NaN: either instruction gives its second operand for it.
AMKD_INLINE Doubles clamped(Doubles v) {
  const Doubles one = Doubles{} + 1.0;
#if defined(__AVX512F__)
  const __m512d most = _mm512_min_pd(bits<__m512d>(one), bits<__m512d>(v));
  return bits<Doubles>(_mm512_max_pd(bits<__m512d>(-one), most));
#elif defined(__AVX2__)
  const __m256d most = _mm256_min_pd(bits<__m256d>(one), bits<__m256d>(v));
  return bits<Doubles>(_mm256_max_pd(bits<__m256d>(-one), most));
#else
  const Doubles most = one < v ? one : v;
  return -one > most ? -one : most;
#endif
}

AMKD_INLINE Doubles root_of(Doubles x) {
#if defined(__AVX512F__)
  return bits<Doubles>(_mm512_sqrt_pd(bits<__m512d>(x)));
#elif defined(__AVX2__)
  return bits<Doubles>(_mm256_sqrt_pd(bits<__m256d>(x)));
#else
  for (int i = 0; i < kDoubles; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
#endif
}

// f(numbers) of every lane, computed in fp64 and rounded.
template <class F, class... V>
AMKD_INLINE Floats in_doubles(F f, V... numbers) {
  return joined(narrowed(f(widened(half_of<0>(numbers))...)), narrowed(f(widened(half_of<1>(numbers))...)));
}

AMKD_INLINE double sum_of(Doubles v) {
  double sum = v[0];
  for (int i = 1; i < kDoubles; ++i) sum += v[i];
  return sum;
}

// Σ of v[0] in lane 0, of v[1] in lane 1, and so on: each step adds halves of two vectors, so that one addition serves
// what would take kDoubles of them.
template <int kCount = kDoubles>
AMKD_INLINE Doubles sums_of(const Doubles* v) {
  if constexpr (kCount == 1) {
    return v[0];
  } else {
    constexpr int kHalf = kCount / 2, kRun = kDoubles / kCount;  // lanes that belong to one sum
    const Doubles a = sums_of<kHalf>(v), b = sums_of<kHalf>(v + kHalf);
    Longs low, high;
    for (int i = 0; i < kDoubles; ++i) {
      const int of = i / kRun % kCount, lane = of % kHalf * 2 * kRun + i % kRun;
      low[i] = (of / kHalf) * kDoubles + lane;
      high[i] = low[i] + kRun;
    }
    return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
  }
}

// log x of normal numbers in every lane, one unit in the last place; log 0 = -inf, NaN stays NaN. The library's
// function takes one number at a time, which is most of the time of a loss of short rows.
AMKD_INLINE Doubles log_of(Doubles x) {
  constexpr int64_t kRootHalf = 0x3fe6a09e667f3bcd;
  const Longs exponent = (bits<Longs>(x) - kRootHalf) >> 52;
  const Doubles m = bits<Doubles>(bits<Longs>(x) - (exponent << 52));  // between √½ and √2
  const Doubles w = (m - 1.0) / (m + 1.0), v = w * w;
  // 2·atanh(w) = 2w (1 + v/3 + v²/5 + …) to the term that is below 2e-17.
  Doubles series = v * (1.0 / 21.0) + 1.0 / 19.0;
  series = series * v + 1.0 / 17.0;
  series = series * v + 1.0 / 15.0;
  series = series * v + 1.0 / 13.0;
  series = series * v + 1.0 / 11.0;
  series = series * v + 1.0 / 9.0;
  series = series * v + 1.0 / 7.0;
  series = series * v + 1.0 / 5.0;
  series = series * v + 1.0 / 3.0;
  // Added to the bits of this, a small integer is added to the number: AVX2 knows no other way from 64 bits.
  constexpr double kRound = 0x1.8p52;
  const Doubles e = bits<Doubles>(exponent + bits<int64_t>(kRound)) - kRound;
  // log 2 in two parts, of which the first times any exponent is exact.
  const Doubles log = e * 0x1.62e42fee00000p-1 + (2.0 * w + (2.0 * w * (series * v) + e * 0x1.a39ef35793c76p-33));
  return x == 0.0 ? Doubles{} - __builtin_huge_val() : log + (x - x);
}

}  // namespace amkd::AMKD_SIMD
