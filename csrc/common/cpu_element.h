// The element types that CPU kernels are tabulated by; known on both sides of the line that torch does not cross.
#pragma once

#include <cstdint>

namespace amkd {

enum class Element : int { kFloat = 0, kDouble = 1, kHalf = 2, kBFloat16 = 3 };
constexpr int kElements = 4;

// Of the rows that several threads refuse the first; -1 while there is none.
static inline void keep_first(int64_t& first, int64_t row) {
  int64_t seen = __atomic_load_n(&first, __ATOMIC_RELAXED);
  while ((seen < 0 || row < seen) &&
         !__atomic_compare_exchange_n(&first, &seen, row, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

}  // namespace amkd
