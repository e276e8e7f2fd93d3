// Numbers of two bytes that rounding has put outside of a ball, and the next ones inside.
#pragma once

#include "sample_cpu.h"

namespace amkd::attack::AMKD_SIMD {

// The numbers next to those that are `change` away from another one, on the way there. A zero has the sign of the other
// one: what is beyond a ball around it has not crossed it.
AMKD_INLINE Ints next_towards(Ints number, Floats change) {
  return number - (((bits<Ints>(change) ^ (number << 16)) >> 31) | 1);
}

// The bits in which numbers of a sample differ.
AMKD_INLINE Ints differing(Floats a, Floats b, All) { return bits<Ints>(a) ^ bits<Ints>(b); }
AMKD_INLINE Ints differing(Floats a, Floats b, Some part) {
  Ints lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return lane < static_cast<int32_t>(part.count) ? differing(a, b, All{}) : Ints{};
}

// Whether a sample has changed, before it was held back.
struct Changes {
  Ints found{};
  bool any() const {
    int32_t all = 0;
    for (int lane = 0; lane < kLanes; ++lane) all |= found[lane];
    return all != 0;
  }
};

template <class T>
AMKD_INLINE void put_halves(T* p, All, Ints numbers) {
  store_halves(p, numbers);
}
template <class T>
AMKD_INLINE void put_halves(T* p, Some part, Ints numbers) {
  uint16_t buffer[kLanes];
  store_halves(buffer, numbers);
  std::memcpy(p, buffer, part.count * sizeof(T));
}

}  // namespace amkd::attack::AMKD_SIMD
