// Counter-based random numbers, Philox-4x32-10, as amkd_fast/philox.py makes them, for every compiler and device.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define AMKD_PHILOX_DEVICE __host__ __device__
#else
#define AMKD_PHILOX_DEVICE
#endif

namespace amkd {

struct PhiloxWords {
  uint32_t w0, w1, w2, w3;
};

// The words of `counter` in the stream `stream` of `seed`.
// Static: the linker must not replace a SIMD level's copy with another level's.
AMKD_PHILOX_DEVICE static inline PhiloxWords philox_words(uint64_t seed, uint64_t counter, uint64_t stream) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32);
  uint32_t c2 = static_cast<uint32_t>(stream), c3 = static_cast<uint32_t>(stream >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * c0, product1 = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(product0);
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return {c0, c1, c2, c3};
}

// 53 bits of the first two words, in [0, 1).
AMKD_PHILOX_DEVICE static inline double philox_uniform(uint64_t seed, uint64_t counter) {
  const PhiloxWords words = philox_words(seed, counter, 0);
  return static_cast<double>((uint64_t{words.w0} << 21) + (words.w1 >> 11)) * 0x1p-53;
}

}  // namespace amkd
