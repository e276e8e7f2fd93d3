// Vectors of the SIMD level that a translation unit is compiled for, in the compiler's own vector types: the same
// source gives SSE2 or NEON, AVX2 and AVX-512. `double` takes part as a vector of one lane.
//
// Everything lives in a namespace of the level, and nothing here uses an inline function of a header that other
// levels use too: the linker would keep one copy, possibly with instructions that the machine lacks.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __F16C__
#include <immintrin.h>
#endif

#ifndef AMKD_SIMD
#error "compile with -DAMKD_SIMD=<level>"
#endif

namespace amkd::AMKD_SIMD {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kLanes = kBytes / 4;

typedef float Floats __attribute__((vector_size(kBytes)));
typedef int32_t Ints __attribute__((vector_size(kBytes)));
typedef uint16_t Halves __attribute__((vector_size(kBytes / 2)));

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The vector that elements of a dtype are computed in.
template <class T>
struct VectorOf {
  using type = Floats;
};
template <>
struct VectorOf<double> {
  using type = double;
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class V>
constexpr int lanes = sizeof(V) / (sizeof(V) == sizeof(double) ? sizeof(double) : sizeof(float));

template <class To, class From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

template <class V>
inline V splat(double value) {
  return V{} + static_cast<float>(value);
}
template <>
inline double splat<double>(double value) {
  return value;
}

// ---- loads and stores -------------------------------------------------------------------------------------------

inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline double load(const double* p) { return *p; }

inline Floats load(const BFloat16* p) {
  Halves h;
  std::memcpy(&h, p, sizeof(h));
  return bits<Floats>(__builtin_convertvector(h, Ints) << 16);
}

inline Floats load(const Half* p) {
#if defined(__AVX512F__)
  return bits<Floats>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__)
  return bits<Floats>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  Halves h;
  std::memcpy(&h, p, sizeof(h));
  const Ints wide = __builtin_convertvector(h, Ints);
  const Ints magnitude = (wide & 0x7fff) << 13;
  // Exponent and mantissa sit where fp32 has them, with a bias that is 112 too small; the product mends normal and
  // subnormal numbers alike. Infinity and NaN take the exponent's top instead.
  const Floats scaled = bits<Floats>(magnitude) * 0x1p112f;
  const Ints special = (wide & 0x7c00) == 0x7c00;
  const Ints value = special ? (magnitude | 0x7f800000) : bits<Ints>(scaled);
  return bits<Floats>(value | ((wide & 0x8000) << 16));
#endif
}

inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof(v)); }
inline void store(double* p, double v) { *p = v; }

inline void store(BFloat16* p, Floats v) {
  const Ints i = bits<Ints>(v);
  const Ints rounded = (i + 0x7fff + ((i >> 16) & 1)) >> 16;  // to nearest, ties to even
  const Ints nan = v != v;
  const Halves h = __builtin_convertvector((nan ? (Ints{} + 0x7fc0) : rounded) & 0xffff, Halves);
  std::memcpy(p, &h, sizeof(h));
}

inline void store(Half* p, Floats v) {
#if defined(__AVX512F__)
  const __m256i h = _mm512_cvtps_ph(bits<__m512>(v), _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(p, &h, sizeof(h));
#elif defined(__F16C__)
  const __m128i h = _mm256_cvtps_ph(bits<__m256>(v), _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(p, &h, sizeof(h));
#else
  const Ints i = bits<Ints>(v);
  const Ints sign = (i >> 16) & 0x8000;
  const Ints magnitude = i & 0x7fffffff;
  const Ints normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding one half makes the unit in the last place that of the smallest subnormal half, and the hardware rounds.
  const Ints subnormal = bits<Ints>(bits<Floats>(magnitude) + 0.5f) - bits<int32_t>(0.5f);
  const Ints overflow = magnitude >= 0x477ff000;
  Ints h = magnitude < (113 << 23) ? subnormal : normal;
  h = overflow ? (Ints{} + 0x7c00) : h;
  h = magnitude > 0x7f800000 ? (Ints{} + 0x7e00) : h;
  const Halves out = __builtin_convertvector(h | sign, Halves);
  std::memcpy(p, &out, sizeof(out));
#endif
}

// The first `count` elements; the other lanes get `fill`, whose bits are those of an element.
template <class T>
inline Vector<T> load_some(const T* p, int64_t count, T fill) {
  T buffer[lanes<Vector<T>>];
  for (T& element : buffer) element = fill;
  for (int64_t i = 0; i < count; ++i) buffer[i] = p[i];
  return load(buffer);
}

template <class T>
inline void store_some(T* p, int64_t count, Vector<T> v) {
  T buffer[lanes<Vector<T>>];
  store(buffer, v);
  for (int64_t i = 0; i < count; ++i) p[i] = buffer[i];
}

// ---- reductions over the lanes ----------------------------------------------------------------------------------

template <int kStep>
inline Floats rotate(Floats v) {
  Ints index;
  for (int i = 0; i < kLanes; ++i) index[i] = (i + kStep) % kLanes;
  return __builtin_shuffle(v, index);
}

template <class Combine>
inline float across(Floats v, Combine combine) {
  if constexpr (kLanes >= 16) v = combine(v, rotate<8>(v));
  if constexpr (kLanes >= 8) v = combine(v, rotate<4>(v));
  v = combine(v, rotate<2>(v));
  return combine(v, rotate<1>(v))[0];
}

template <class V>
inline V larger(V a, V b) {
  return a > b ? a : b;  // a NaN in `a` gives way to `b`: see `maximum` callers
}

inline double sum_lanes(Floats v) {
  return across(v, [](Floats a, Floats b) { return a + b; });
}
inline double sum_lanes(double v) { return v; }
inline double max_lanes(Floats v) {
  return across(v, [](Floats a, Floats b) { return larger(a, b); });
}
inline double max_lanes(double v) { return v; }

// ---- functions --------------------------------------------------------------------------------------------------

// e^x for x ≤ 0, one unit in the last place; below the smallest normal number 0. NaN stays NaN.
inline Floats exp_nonpositive(Floats x) {
  constexpr float kLowest = -87.3365478515625f;  // log of the smallest normal number
  const Floats clamped = x < kLowest ? (Floats{} + kLowest) : x;
  // Adding and taking away 1.5·2^23 rounds to an integer, whose bits stay in the low end of the sum.
  const Floats shifted = clamped * 1.44269504088896341f + 0x1.8p23f;
  const Floats n = shifted - 0x1.8p23f;
  const Floats r = clamped - n * 0x1.62e4p-1f - n * 0x1.7f7d1cp-20f;  // log 2 in two parts, the first one exact in n
  // Minimax fit of (e^r - 1 - r) / r² on |r| ≤ ½ log 2, relative error of e^r 3e-9.
  Floats p = r * 0x1.6a2430p-10f + 0x1.1239e4p-7f;
  p = p * r + 0x1.5558f2p-5f;
  p = p * r + 0x1.555492p-3f;
  p = p * r + 0x1.fffffcp-2f;
  p = p * r * r + r + 1.0f;
  const Floats power = bits<Floats>((bits<Ints>(shifted) << 23) + 0x3f800000);
  return x < kLowest ? Floats{} : p * power;
}
inline double exp_nonpositive(double x) { return ::exp(x); }

// log(1 + u) for 0 ≤ u ≤ 1, through 2·atanh(u / (2 + u)). NaN stays NaN.
inline Floats log1p_unit(Floats u) {
  const Floats w = u / (u + 2.0f);
  const Floats v = w * w;
  // Minimax fit of (atanh(w)/w - 1) / w² on w ≤ ⅓, relative error 1e-10.
  Floats p = v * 0.12150844f + 0.10713737f;
  p = p * v + 0.1430845f;
  p = p * v + 0.19999439f;
  p = p * v + 0.33333337f;
  return 2.0f * w + 2.0f * w * (p * v);
}
inline double log1p_unit(double u) { return ::log1p(u); }

}  // namespace amkd::AMKD_SIMD
