// Functional models of the PTX that the kernels use: translate.py makes a call of every instruction, with its operands
// as they stand. What is asynchronous happens as late as it may, at its wait; until then the registers hold NaN.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "engine.h"

namespace emulator::ptx {

// {%0, %1, ...}
template <class... T>
std::array<float*, sizeof...(T)> registers(T&... values) {
  return {&values...};
}

// "setp": a predicate register.
inline void setp_ne_b32(bool& predicate, int a, int b) { predicate = a != b; }

// "ex2": with .ftz subnormal operands and results become 0. Its error, up to 2 ulp, is not modelled.
inline void ex2_approx_ftz_f32(float& y, float x) {
  const auto flushed = [](float v) { return std::fpclassify(v) == FP_SUBNORMAL ? std::copysign(0.0f, v) : v; };
  y = flushed(exp2f(flushed(x)));
}

// "bar": a barrier of so many threads of the block.
inline void bar_sync(unsigned barrier, unsigned threads, Place place = Place::current()) {
  meet_block(barrier, threads, 0, "bar.sync", place);
}

// "cp.async": in the generic proxy; the bytes behind `given` become 0.
void cp_async_cg_shared_global(uint32_t target, const void* source, int bytes, int given);
void cp_async_wait_all();

// "fence.proxy.async"
void fence_proxy_async_shared_cta();

// "wgmma": .sync.aligned, all lanes of a warp execute the same one with the same operands.
void wgmma_fence_sync_aligned(Place place = Place::current());
void wgmma_commit_group_sync_aligned(Place place = Place::current());
void wgmma_wait_group_sync_aligned(int pending, Place place = Place::current());
void multiply(const std::array<float*, 64>& d, uint64_t a, uint64_t b, bool add, int scale_a, int scale_b, int trans_a,
              int trans_b, bool is_half, Place place);
inline __attribute__((always_inline)) void wgmma_mma_async_sync_aligned_m64n128k16_f32_bf16_bf16(
    const std::array<float*, 64>& d, uint64_t a, uint64_t b, bool add, int scale_a, int scale_b, int trans_a,
    int trans_b, Place place = Place::current()) {
  multiply(d, a, b, add, scale_a, scale_b, trans_a, trans_b, false, place);
}
inline __attribute__((always_inline)) void wgmma_mma_async_sync_aligned_m64n128k16_f32_f16_f16(
    const std::array<float*, 64>& d, uint64_t a, uint64_t b, bool add, int scale_a, int scale_b, int trans_a,
    int trans_b, Place place = Place::current()) {
  multiply(d, a, b, add, scale_a, scale_b, trans_a, trans_b, true, place);
}

// Used by the engine alone.
void new_threads();
void end_of_thread();

}  // namespace emulator::ptx
