// Matrix products a register block at a time: all sums of kBlockRows rows by kBlockVectors vectors in registers.
#pragma once

#include "labelled_vectors.h"

namespace amkd::triplet::AMKD_SIMD {

#if defined(__AVX512F__)
constexpr int kBlockRows = 12;
#else
constexpr int kBlockRows = 6;
#endif
constexpr int kBlockVectors = 2;
template <class T>
constexpr int kPanel = kBlockVectors * kWidth<T>;

template <class T>
struct Block {
  Values<T> of[kBlockRows][kBlockVectors];
};

// sums += Σ_k a[r][k · a_step] · b[k · b_step, …]
template <class T>
AMKD_INLINE void multiply_block(const T* const (&a)[kBlockRows], int64_t a_step, const T* b, int64_t b_step,
                                int64_t depth, Block<T>& sums) {
  using V = Values<T>;
  for (int64_t k = 0; k < depth; ++k) {
    V right[kBlockVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kBlockVectors; ++v) right[v] = load_as<V>(b + k * b_step + v * kWidth<T>);
#pragma GCC unroll 12
    for (int r = 0; r < kBlockRows; ++r) {
      const V x = a[r][k * a_step] - V{};  // a broadcast: adding to 0 would turn -0 around
#pragma GCC unroll 2
      for (int v = 0; v < kBlockVectors; ++v) sums.of[r][v] += x * right[v];
    }
  }
}

}  // namespace amkd::triplet::AMKD_SIMD
