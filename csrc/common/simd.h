// Vectors of the SIMD level that a translation unit is compiled for, in the compiler's own vector types: the same
// source gives SSE2 or NEON, AVX2 and AVX-512. `double` takes part as a vector of one lane.
//
// Everything lives in a namespace of the level, and nothing here uses an inline function of a header that other
// levels use too: the linker would keep one copy, possibly with instructions that the machine lacks.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#ifndef AMKD_SIMD
#error "compile with -DAMKD_SIMD=<level>"
#endif

// A call would send every live vector through memory: the calling convention keeps none of them in a register.
#define AMKD_INLINE inline __attribute__((always_inline))

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
typedef uint32_t UnsignedInts __attribute__((vector_size(kBytes)));
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
AMKD_INLINE To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

template <class V>
AMKD_INLINE V splat(double value) {
  return V{} + static_cast<float>(value);
}
template <>
AMKD_INLINE double splat<double>(double value) {
  return value;
}

// ---- loads and stores -------------------------------------------------------------------------------------------

AMKD_INLINE Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
AMKD_INLINE double load(const double* p) { return *p; }

// A vector of 16-bit numbers, each widened to 32 bits. (GCC widens the two halves of a generic vector apart.)
AMKD_INLINE Ints load_halves(const void* p) {
#if defined(__AVX512F__)
  return bits<Ints>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p))));
#elif defined(__AVX2__)
  return bits<Ints>(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
#else
  Halves h;
  std::memcpy(&h, p, sizeof(h));
  return __builtin_convertvector(h, Ints);
#endif
}

AMKD_INLINE void store(float* p, Floats v) { std::memcpy(p, &v, sizeof(v)); }
AMKD_INLINE void store(double* p, double v) { *p = v; }

// The low 16 bits of each number, none of which is above 0xffff.
#if defined(__AVX512F__)
AMKD_INLINE __m256i packed_halves(Ints values) { return _mm512_cvtepi32_epi16(bits<__m512i>(values)); }
#elif defined(__AVX2__)
AMKD_INLINE __m128i packed_halves(Ints values) {
  const __m256i packed = _mm256_packus_epi32(bits<__m256i>(values), bits<__m256i>(values));  // in each half apart
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0b1000));
}
#else
AMKD_INLINE Halves packed_halves(Ints values) { return __builtin_convertvector(values, Halves); }
#endif
AMKD_INLINE void store_halves(void* p, Ints values) {
  const auto packed = packed_halves(values);
  std::memcpy(p, &packed, sizeof(packed));
}

// ---- numbers of two bytes, in the low bits of 32 --------------------------------------------------------------------

AMKD_INLINE Floats widened(Ints number, BFloat16) { return bits<Floats>(number << 16); }

// The nearest one, ties to even.
AMKD_INLINE Ints narrowed(Floats v, BFloat16) {
  const Ints i = bits<Ints>(v);
  const Ints sum = i + 0x7fff + ((i >> 16) & 1);
  const Ints rounded = bits<Ints>(bits<UnsignedInts>(sum) >> 16);
  const Ints nan = v != v;
  return nan ? (Ints{} + 0x7fc0) : rounded;
}

AMKD_INLINE Floats widened(Ints number, Half) {
#if defined(__AVX512F__)
  return bits<Floats>(_mm512_cvtph_ps(packed_halves(number)));
#elif defined(__F16C__)
  return bits<Floats>(_mm256_cvtph_ps(packed_halves(number)));
#else
  const Ints magnitude = (number & 0x7fff) << 13;
  // Exponent and mantissa sit where fp32 has them, with a bias that is 112 too small; the product mends normal and
  // subnormal numbers alike. Infinity and NaN take the exponent's top instead.
  const Floats scaled = bits<Floats>(magnitude) * 0x1p112f;
  const Ints special = (number & 0x7c00) == 0x7c00;
  const Ints value = special ? (magnitude | 0x7f800000) : bits<Ints>(scaled);
  return bits<Floats>(value | ((number & 0x8000) << 16));
#endif
}

AMKD_INLINE Ints narrowed(Floats v, Half) {
#if defined(__AVX512F__)
  return bits<Ints>(_mm512_cvtepu16_epi32(_mm512_cvtps_ph(bits<__m512>(v), _MM_FROUND_TO_NEAREST_INT)));
#elif defined(__F16C__)
  return bits<Ints>(_mm256_cvtepu16_epi32(_mm256_cvtps_ph(bits<__m256>(v), _MM_FROUND_TO_NEAREST_INT)));
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
  return h | sign;
#endif
}

AMKD_INLINE Floats load(const BFloat16* p) { return widened(load_halves(p), BFloat16{}); }
AMKD_INLINE void store(BFloat16* p, Floats v) { store_halves(p, narrowed(v, BFloat16{})); }

// The conversions read and write numbers of 16 bits side by side, which saves taking them apart and together.
AMKD_INLINE Floats load(const Half* p) {
#if defined(__AVX512F__)
  return bits<Floats>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__)
  return bits<Floats>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  return widened(load_halves(p), Half{});
#endif
}
AMKD_INLINE void store(Half* p, Floats v) {
#if defined(__AVX512F__)
  const __m256i h = _mm512_cvtps_ph(bits<__m512>(v), _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(p, &h, sizeof(h));
#elif defined(__F16C__)
  const __m128i h = _mm256_cvtps_ph(bits<__m256>(v), _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(p, &h, sizeof(h));
#else
  store_halves(p, narrowed(v, Half{}));
#endif
}

// The first `count` elements; the other lanes get `fill`, whose bits are those of an element. Through a buffer where
// there are no masks: a load of what was just stored in smaller pieces waits for the stores to retire.
template <class T>
AMKD_INLINE Vector<T> load_some(const T* p, int64_t count, T fill) {
  T buffer[lanes<Vector<T>>];
  for (T& element : buffer) element = fill;
  for (int64_t i = 0; i < count; ++i) buffer[i] = p[i];
  return load(buffer);
}

template <class T>
AMKD_INLINE void store_some(T* p, int64_t count, Vector<T> v) {
  T buffer[lanes<Vector<T>>];
  store(buffer, v);
  for (int64_t i = 0; i < count; ++i) p[i] = buffer[i];
}

#if defined(__AVX512F__)
AMKD_INLINE __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }

AMKD_INLINE Floats load_some(const float* p, int64_t count, float fill) {
  return bits<Floats>(_mm512_mask_loadu_ps(_mm512_set1_ps(fill), first_lanes(count), p));
}
AMKD_INLINE void store_some(float* p, int64_t count, Floats v) {
  _mm512_mask_storeu_ps(p, first_lanes(count), bits<__m512>(v));
}

template <class T>
AMKD_INLINE Floats load_some_halves(const T* p, int64_t count, T fill) {
  T buffer[kLanes];
  const __m256i found = _mm256_mask_loadu_epi16(_mm256_set1_epi16(fill.bits), first_lanes(count), p);
  std::memcpy(buffer, &found, sizeof(buffer));
  return load(buffer);
}
template <class T>
AMKD_INLINE void store_some_halves(T* p, int64_t count, Floats v) {
  T buffer[kLanes];
  store(buffer, v);
  __m256i made;
  std::memcpy(&made, buffer, sizeof(made));
  _mm256_mask_storeu_epi16(p, first_lanes(count), made);
}
AMKD_INLINE Floats load_some(const Half* p, int64_t count, Half fill) { return load_some_halves(p, count, fill); }
AMKD_INLINE Floats load_some(const BFloat16* p, int64_t count, BFloat16 fill) {
  return load_some_halves(p, count, fill);
}
AMKD_INLINE void store_some(Half* p, int64_t count, Floats v) { store_some_halves(p, count, v); }
AMKD_INLINE void store_some(BFloat16* p, int64_t count, Floats v) { store_some_halves(p, count, v); }
#elif defined(__AVX2__)
AMKD_INLINE __m256i first_lanes(int64_t count) {
  const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7};
  return bits<__m256i>(lane < static_cast<int32_t>(count));
}

AMKD_INLINE Floats load_some(const float* p, int64_t count, float fill) {
  const __m256i mask = first_lanes(count);
  return bits<Floats>(_mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask)));
}
AMKD_INLINE void store_some(float* p, int64_t count, Floats v) {
  _mm256_maskstore_ps(p, first_lanes(count), bits<__m256>(v));
}
#endif

// ---- lanes by their number --------------------------------------------------------------------------------------

AMKD_INLINE Ints lane_numbers() {
  Ints lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return lane;
}

// A bit for every lane of a comparison's result that holds, from the lowest on.
AMKD_INLINE uint32_t mask_of(Ints holds) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(bits<__m512i>(holds));
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(bits<__m256>(holds)));
#else
  uint32_t mask = 0;
  for (int i = 0; i < kLanes; ++i) mask |= static_cast<uint32_t>(holds[i] & 1) << i;
  return mask;
#endif
}
AMKD_INLINE uint32_t mask_of(bool holds) { return holds; }

// ---- reductions over the lanes ----------------------------------------------------------------------------------

template <int kStep>
AMKD_INLINE Floats rotate(Floats v) {
  Ints index;
  for (int i = 0; i < kLanes; ++i) index[i] = (i + kStep) % kLanes;
  return __builtin_shuffle(v, index);
}

template <class Combine>
AMKD_INLINE float across(Floats v, Combine combine) {
  if constexpr (kLanes >= 16) v = combine(v, rotate<8>(v));
  if constexpr (kLanes >= 8) v = combine(v, rotate<4>(v));
  v = combine(v, rotate<2>(v));
  return combine(v, rotate<1>(v))[0];
}

// a > b ? a : b, and so `b` where either is NaN. The intrinsics mean just that, where the compiler finds the one
// instruction for the expression only some of the time.
AMKD_INLINE Floats larger(Floats a, Floats b) {
#if defined(__AVX512F__)
  return bits<Floats>(_mm512_max_ps(bits<__m512>(a), bits<__m512>(b)));
#elif defined(__AVX2__)
  return bits<Floats>(_mm256_max_ps(bits<__m256>(a), bits<__m256>(b)));
#else
  return a > b ? a : b;
#endif
}
AMKD_INLINE double larger(double a, double b) { return a > b ? a : b; }

// a < b ? a : b, likewise.
AMKD_INLINE Floats smaller(Floats a, Floats b) {
#if defined(__AVX512F__)
  return bits<Floats>(_mm512_min_ps(bits<__m512>(a), bits<__m512>(b)));
#elif defined(__AVX2__)
  return bits<Floats>(_mm256_min_ps(bits<__m256>(a), bits<__m256>(b)));
#else
  return a < b ? a : b;
#endif
}
AMKD_INLINE double smaller(double a, double b) { return a < b ? a : b; }

AMKD_INLINE double sum_lanes(Floats v) {
  return across(v, [](Floats a, Floats b) { return a + b; });
}
AMKD_INLINE double sum_lanes(double v) { return v; }
AMKD_INLINE double max_lanes(Floats v) {
  return across(v, [](Floats a, Floats b) { return larger(a, b); });
}
AMKD_INLINE double max_lanes(double v) { return v; }

// ---- functions --------------------------------------------------------------------------------------------------

constexpr double kLog2E = 1.44269504088896340736;  // 1 / log 2
constexpr double kLog2 = 0.693147180559945309417;

// 2^x for x ≤ 0 (rounding errors above it do no harm), one unit in the last place; 0 below 2^-126.5. NaN stays NaN.
// To base 2 the reduction of the range is exact and costs nothing: callers fold log2(e) into a factor they have anyway.
AMKD_INLINE Floats exp2_nonpositive(Floats x) {
#if defined(__AVX512F__)
  // The instruction that scales by 2^n also masks, so that nothing has to be clamped.
  const __m512 n = _mm512_roundscale_ps(bits<__m512>(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __mmask16 normal = _mm512_cmp_ps_mask(bits<__m512>(x), _mm512_set1_ps(-126.5f), _CMP_NLT_UQ);
  const Floats r = x - bits<Floats>(n);
#else
  // Adding this rounds to an integer n, and leaves n + 127 in the low bits: the exponent of 2^n, or of 0 for n = -127.
  constexpr float kRound = 0x1.8p23f + 127.0f;
  const Floats clamped = larger(Floats{} - 127.0f, x);
  const Floats shifted = clamped + kRound;
  const Floats r = clamped - (shifted - kRound);
#endif
  // Minimax fit of (2^r - 1) / r on |r| ≤ ½, relative error of 2^r 3e-9.
  Floats fraction = r * 0x1.416b5ep-13f + 0x1.5f0830p-10f;
  fraction = fraction * r + 0x1.3b2de0p-7f;
  fraction = fraction * r + 0x1.c6af7cp-5f;
  fraction = fraction * r + 0x1.ebfbdcp-3f;
  fraction = fraction * r + 0x1.62e430p-1f;
  const Floats power = fraction * r + 1.0f;
#if defined(__AVX512F__)
  return bits<Floats>(_mm512_maskz_scalef_ps(normal, bits<__m512>(power), n));
#else
  return power * bits<Floats>(bits<Ints>(shifted) << 23);
#endif
}
AMKD_INLINE double exp2_nonpositive(double x) { return ::exp2(x); }

AMKD_INLINE Floats exp_nonpositive(Floats x) { return exp2_nonpositive(x * static_cast<float>(kLog2E)); }
AMKD_INLINE double exp_nonpositive(double x) { return ::exp(x); }

// log(1 + u) for 0 ≤ u ≤ 1, through 2·atanh(u / (2 + u)). NaN stays NaN.
AMKD_INLINE Floats log1p_unit(Floats u) {
  const Floats w = u / (u + 2.0f);
  const Floats v = w * w;
  // Minimax fit of (atanh(w)/w - 1) / w² on w ≤ ⅓, relative error 1e-10.
  Floats p = v * 0.12150844f + 0.10713737f;
  p = p * v + 0.1430845f;
  p = p * v + 0.19999439f;
  p = p * v + 0.33333337f;
  return 2.0f * w + 2.0f * w * (p * v);
}
AMKD_INLINE double log1p_unit(double u) { return ::log1p(u); }

}  // namespace amkd::AMKD_SIMD
