// Vectors of doubles of the SIMD level that a translation unit is compiled for.
#pragma once

#include "../common/simd.h"

namespace amkd::AMKD_SIMD {

constexpr int kDoubles = kBytes / 8;

typedef double Doubles __attribute__((vector_size(kBytes)));
typedef int64_t LongInts __attribute__((vector_size(kBytes)));

AMKD_INLINE Doubles load_doubles(const double* p) {
  Doubles v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
AMKD_INLINE void store_doubles(double* p, Doubles v) { std::memcpy(p, &v, sizeof(v)); }

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

AMKD_INLINE double sum_of(Doubles v) {
  double sum = v[0];
  for (int i = 1; i < kDoubles; ++i) sum += v[i];
  return sum;
}

}  // namespace amkd::AMKD_SIMD
