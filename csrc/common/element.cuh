// The dtypes of tensors on the device: 16-byte vectors, and arithmetic in the statistics' type (fp32, fp64 for fp64).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace amkd {

template <class Scalar>
using StatOf = std::conditional_t<std::is_same_v<Scalar, double>, double, float>;

template <class Scalar>
struct alignas(16) Vector {
  static constexpr int kWidth = 16 / sizeof(Scalar);
  Scalar at[kWidth];
};

template <class Scalar>
__device__ Vector<Scalar> load_vector(const Scalar* aligned) {
  return *reinterpret_cast<const Vector<Scalar>*>(aligned);
}
template <class Scalar>
__device__ void store_vector(Scalar* aligned, const Vector<Scalar>& vector) {
  *reinterpret_cast<Vector<Scalar>*>(aligned) = vector;
}

template <class Scalar>
__device__ StatOf<Scalar> widen(Scalar value) {
  if constexpr (std::is_same_v<Scalar, __half>) {
    return __half2float(value);
  } else if constexpr (std::is_same_v<Scalar, __nv_bfloat16>) {
    return __bfloat162float(value);
  } else {
    return value;
  }
}

template <class Scalar>
__device__ Scalar narrow(StatOf<Scalar> value) {
  if constexpr (std::is_same_v<Scalar, __half>) {
    return __float2half_rn(value);
  } else if constexpr (std::is_same_v<Scalar, __nv_bfloat16>) {
    return __float2bfloat16_rn(value);
  } else {
    return value;
  }
}

// How a row of `classes` elements is read: 16-byte vectors from the first aligned element on, and single elements for
// the edges before and behind them. Where the row's tensors are aligned differently, all of it is edge.
template <class Scalar>
struct Columns {
  static constexpr int kWidth = Vector<Scalar>::kWidth;
  int head;
  int vectors;
  int edges;

  template <class... Pointers>
  __device__ Columns(int classes, bool use_vectors, const Scalar* row, Pointers... others) {
    const auto offset = [](const void* p) { return static_cast<int>(reinterpret_cast<uintptr_t>(p) % 16); };
    use_vectors = use_vectors && (... && (offset(row) == offset(others)));
    head = static_cast<int>((16 - offset(row)) % 16 / sizeof(Scalar));
    vectors = use_vectors && classes > head ? (classes - head) / kWidth : 0;
    edges = classes - vectors * kWidth;
  }

  __device__ int of_edge(int i) const { return i < head ? i : i + vectors * kWidth; }
  __device__ int of_vector(int i) const { return head + i * kWidth; }
};

}  // namespace amkd
