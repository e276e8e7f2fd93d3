// A product of a warpgroup by the instructions of csrc/triplet/warpgroup.cuh.
#include <cmath>
#include <stdexcept>
#include <vector>

#include "../csrc/triplet/warpgroup.cuh"  // beside this folder where both are translated
#include "cases.h"

namespace {

using namespace amkd;

constexpr int kRows = 64, kColumns = 128, kDepth = 64, kBytes = (kRows + kColumns) * kSwizzleRow + 1024;
constexpr int kThere = kColumns - 3;  // of the columns; what is copied for the others are zeros

enum class Fault {
  kNone,
  kNoProxyFence,
  kNoBarrier,
  kNoFence,
  kNoWait,
  kEarlyRead,
  kStride,
  kBaseOffset,
  kOutside,
  kOneWarp,
  kDifferent,
  kBadAlignment,
};

__device__ void copy(uint32_t target, const __nv_bfloat16* rows, int count, int there) {
  for (int i = threadIdx.x; i < count * 8; i += 128) {
    copy_async(target + swizzled(i / 8, i % 8 * 16), rows + i / 8 * kDepth + i % 8 * 8, i / 8 < there);
  }
}

template <Fault kFault>
__global__ void multiply_kernel(const __nv_bfloat16* a, const __nv_bfloat16* b, float* out) {
  const uint32_t first = (shared_address(dynamic_shared()) + 1023) / 1024 * 1024;
  copy(first + (kFault == Fault::kBadAlignment ? 8 : 0), a, kRows, kRows);
  copy(first + kRows * kSwizzleRow, b, kColumns, kThere);
  if (kFault == Fault::kNoProxyFence) {
    asm volatile("cp.async.wait_all;\n" ::: "memory");
  } else {
    wait_for_copies();
  }
  if (kFault != Fault::kNoBarrier) meet(0);

  uint64_t left = describe(first);
  const uint64_t right = describe(first + kRows * kSwizzleRow);
  if (kFault == Fault::kStride) left += uint64_t{1} << 32;
  if (kFault == Fault::kBaseOffset) left |= uint64_t{1} << 49;
  if (kFault == Fault::kOutside) left |= 0x3fff;
  if (kFault == Fault::kDifferent && threadIdx.x % 32 == 5) left += 2;
  float d[64];
  if (kFault == Fault::kOneWarp && threadIdx.x % 32 >= 16) return;
  if (kFault != Fault::kNoFence) open_products();
  for (int piece = 0; piece < kDepth / 16; ++piece) {
    multiply(d, left + 2 * piece, right + 2 * piece, piece > 0, __nv_bfloat16());
  }
  if (kFault == Fault::kEarlyRead) out[threadIdx.x] = d[0];
  close_products();
  if (kFault == Fault::kNoWait) return;
  wait_for_products();
  settle(d);
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
  for (int i = 0; i < 64; ++i) {
    if (kFault == Fault::kEarlyRead) continue;
    out[(row + i / 2 % 2 * 8) * kColumns + column + i / 4 * 8 + i % 2] = d[i];
  }
}

// How many numbers of the product are wrong.
template <Fault kFault>
uint64_t run() {
  // Rows of 16 bytes for cp.async: operator new aligns to 16.
  std::vector<__nv_bfloat16> a(kRows * kDepth), b(kThere * kDepth);
  for (int i = 0; i < kRows * kDepth; ++i) a[i] = __float2bfloat16_rn(static_cast<float>(i * 7 % 13 - 6));
  for (int i = 0; i < kThere * kDepth; ++i) b[i] = __float2bfloat16_rn(static_cast<float>(i * 5 % 11 - 5));
  std::vector<float> out(kRows * kColumns);
  multiply_kernel<kFault><<<1, 128, kBytes>>>(a.data(), b.data(), out.data());
  check(cudaGetLastError());
  uint64_t wrong = 0;
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < kColumns; ++column) {
      float sum = 0;
      for (int k = 0; k < kDepth && column < kThere; ++k) {
        sum += __bfloat162float(a[row * kDepth + k]) * __bfloat162float(b[column * kDepth + k]);
      }
      wrong += !(out[row * kColumns + column] == sum);
    }
  }
  return wrong;
}
// Where nothing is said and the numbers are wrong, that has to be seen in them.
template <Fault kFault>
uint64_t run_wrong() {
  if (run<kFault>() > 0) throw std::runtime_error("wrong numbers");
  return 0;
}

}  // namespace

const Case kProductCases[] = {
    {"product", run<Fault::kNone>},
    {"product_without_proxy_fence", run<Fault::kNoProxyFence>},
    {"product_without_barrier", run<Fault::kNoBarrier>},
    {"product_without_fence", run<Fault::kNoFence>},
    {"product_without_wait", run<Fault::kNoWait>},
    {"product_read_early", run_wrong<Fault::kEarlyRead>},
    {"descriptor_stride", run_wrong<Fault::kStride>},
    {"descriptor_base_offset", run<Fault::kBaseOffset>},
    {"descriptor_outside", run<Fault::kOutside>},
    {"product_of_half_a_warp", run<Fault::kOneWarp>},
    {"descriptors_differ", run<Fault::kDifferent>},
    {"copy_misaligned", run<Fault::kBadAlignment>},
    {},
};
