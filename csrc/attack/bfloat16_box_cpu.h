// A step along signs of bfloat16 images into a box, a vector of 16-bit numbers at a time: its even numbers and its odd
// ones are in the upper half of a lane of 32 bits after one instruction each, and together again after two.
#pragma once

#include "two_bytes_cpu.h"

namespace amkd::attack::AMKD_SIMD {

typedef uint16_t Shorts __attribute__((vector_size(kBytes)));

AMKD_INLINE Shorts load_shorts(const BFloat16* p) {
  Shorts v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
AMKD_INLINE Shorts larger_shorts(Shorts a, Shorts b) {
#if defined(__AVX512F__)
  return bits<Shorts>(_mm512_max_epu16(bits<__m512i>(a), bits<__m512i>(b)));
#elif defined(__AVX2__)
  return bits<Shorts>(_mm256_max_epu16(bits<__m256i>(a), bits<__m256i>(b)));
#else
  return a > b ? a : b;
#endif
}
AMKD_INLINE Ints even_of(Shorts v) { return bits<Ints>(v) << 16; }
AMKD_INLINE Ints odd_of(Shorts v) { return bits<Ints>(v) & static_cast<int32_t>(0xffff0000); }

// Numbers that are not negative are in the order of their bits, and infinity and NaN are above all that are finite.
inline uint32_t most_of(Shorts v) {
  uint32_t most = 0;
  for (int i = 0; i < 2 * kLanes; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

struct BoxStep {
  float reach, radius, low, high;

  // Where numbers go, as bits of fp32 that end in 16 zeros; `g` has the gradient's signs, `flat` says where it is 0.
  AMKD_INLINE Ints operator()(Floats at, Floats clean, Ints g, Ints nonzero, Changes& changes) const {
    const Floats step = bits<Floats>(bits<Ints>(splat<Floats>(reach)) ^ (g & INT32_MIN));
    const Floats target = nonzero ? at + step : at;
    const Floats boxed = smaller(clean + radius, larger(clean - radius, target));
    const Ints i = bits<Ints>(smaller(splat<Floats>(high), larger(splat<Floats>(low), boxed)));
    const Ints far = (i + 0x7fff + ((i >> 16) & 1)) & static_cast<int32_t>(0xffff0000);
    const Floats change = bits<Floats>(far) - clean;
    changes.found |= far ^ bits<Ints>(at);
    const Ints down = change > radius ? far - 0x10000 : far;
    return change < -radius ? far + 0x10000 : down;
  }
};

// Steps as many of a sample's numbers as fill vectors, and says how many these are: 0 where the images are not finite
// and at least 0, or clean ones break a bound. Then what is in `out` does not count.
inline int64_t step_pairs(const StepWork& p, const BFloat16* x, const BFloat16* x0, const BFloat16* grad, BFloat16* out,
                          float reach, float radius, Largest& largest, Changes& changes) {
  if (p.lowers != nullptr || p.uppers != nullptr || p.lower_at != nullptr || !(p.scalars.lower >= 0)) return 0;
  const BoxStep step{reach, radius, static_cast<float>(saturated(p.scalars.lower, 0.0, p.largest)),
                     static_cast<float>(saturated(p.scalars.upper, p.largest, p.largest))};
  constexpr int64_t kStep = 2 * kLanes;
  const int64_t size = p.size;
  Shorts gradient{}, image{}, highest{}, lowest{};  // the largest; of clean images also the largest of ~v
  Changes changed;
  int64_t k = 0;
  for (; k + kStep <= size; k += kStep) {
    const Shorts at = load_shorts(x + k), clean = load_shorts(x0 + k), g = load_shorts(grad + k);
    gradient = larger_shorts(g & 0x7fff, gradient);
    image = larger_shorts(at, image);
    highest = larger_shorts(clean, highest);
    lowest = larger_shorts(~clean, lowest);
    const Ints even_g = even_of(g);
    const Ints even =
        step(bits<Floats>(even_of(at)), bits<Floats>(even_of(clean)), even_g, (even_g & INT32_MAX) != 0, changed);
    const Ints odd = step(bits<Floats>(odd_of(at)), bits<Floats>(odd_of(clean)), bits<Ints>(g),
                          (bits<Ints>(g) & 0x7fff0000) != 0, changed);
    const Ints both = bits<Ints>(bits<UnsignedInts>(even) >> 16) | odd;
    std::memcpy(out + k, &both, sizeof(both));
  }
  const auto number = [](uint32_t half) { return bits<float>(half << 16); };
  const bool is_bounded = number(~most_of(lowest) & 0xffff) >= step.low && number(most_of(highest)) <= step.high;
  if (k == 0 || most_of(image) >= 0x7f80 || most_of(highest) >= 0x7f80 || !is_bounded) return 0;
  largest.see(bits<Floats>(even_of(gradient)));
  largest.see(bits<Floats>(odd_of(gradient)));
  changes.found |= changed.found;
  return k;
}

}  // namespace amkd::attack::AMKD_SIMD
