// Division by a number that all threads share.
#pragma once

#include <cstdint>

namespace amkd {

// Of numbers below 2^31 by a number below 2^31.
struct Divider {
  uint32_t divisor = 1, multiplier = 1;
  int shift = 0;

  Divider() = default;
  explicit Divider(int64_t by) : divisor(static_cast<uint32_t>(by)) {
    while ((uint64_t{1} << shift) < divisor) ++shift;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift) - divisor)) / divisor + 1);
  }
  __device__ uint32_t quotient(uint32_t n) const {
    return (static_cast<uint32_t>((uint64_t{n} * multiplier) >> 32) + n) >> shift;
  }
  __device__ uint32_t remainder(uint32_t n) const { return n - quotient(n) * divisor; }
};

}  // namespace amkd
