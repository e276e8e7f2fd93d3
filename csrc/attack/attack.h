// The attack family: what the CPU and the CUDA implementation share. METHODS §3 has the mathematics,
// amkd_fast/ops/attack/{steps,objective,bases}.py the specification, operators.py the Python side of the same numbers.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define AMKD_ATTACK_DEVICE __host__ __device__
#else
#define AMKD_ATTACK_DEVICE
#endif

namespace amkd::attack {

// kUnit and kNewton are the boundary steps of norm_power 1 and 2.
enum class Rule : int64_t { kLinf = 0, kL2 = 1, kL1 = 2, kUnit = 3, kNewton = 4 };
enum class Loss : int64_t { kCrossEntropy = 0, kBoundary = 1, kDlr = 2 };

constexpr double kGapMargin = 1e-4;  // a step from the boundary itself is not zero
constexpr double kDlrFloor = 1e-12;

// The numbers of a step that are one for all samples or channels, where no tensor replaces them.
struct StepScalars {
  Rule rule;
  double step_size;
  double radius;  // counts where there is an x0
  double lower;   // -inf for none
  double upper;
  double decay;
  bool project;
  int64_t top;  // coordinates that an l1 step moves at least
};

// What a step kernel works on. Images [samples, size] lie alike; the channel of flat position e is (e / run) %
// channels. Pointers are null for what is not there.
struct StepProblem {
  StepScalars scalars;
  int64_t samples, size, channels, run;
  void* out;
  const void *x, *grad, *x0;
  const void *step_sizes, *radii, *gap;  // [samples] in the dtype of the arithmetic
  void* velocity;                        // likewise, [samples, size]
  const void *lowers, *uppers;           // likewise, [channels]
  const bool* active;                    // [samples]
};

// Number `counter` of the stream of `seed`: Philox-4x32-10, 53 bits of the first two words, in [0, 1).
// Static: the linker must not replace a SIMD level's copy with another level's.
AMKD_ATTACK_DEVICE static inline double philox_uniform(uint64_t seed, uint64_t counter) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32), c2 = 0, c3 = 0;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * c0, product1 = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(product0);
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return static_cast<double>((uint64_t{c0} << 21) + (c1 >> 11)) * 0x1p-53;
}

}  // namespace amkd::attack
