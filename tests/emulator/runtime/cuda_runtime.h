// The part of CUDA C++ and of its runtime that the kernels use, for a compiler of the host.
#pragma once

#include <math.h>
#include <string.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "emulator/engine.h"
#include "emulator/ptx.h"
#include "emulator/race.h"
#include "emulator/shared.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __grid_constant__
#define __align__(n) alignas(n)

// threadIdx and its kin: translate.py makes calls of them, since members of the same names have to stay.
namespace emulator {
inline const uint3& thread_index() { return self->index; }
inline const uint3& block_index() { return self->block->index; }
inline const dim3& block_size() { return current.block; }
inline const dim3& grid_size() { return current.grid; }
}  // namespace emulator

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) longlong2 {
  long long x, y;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// As in CUDA's headers: mixed types, and of a number and a NaN the number.
template <class A, class B>
inline std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return fmin(static_cast<T>(a), static_cast<T>(b));
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b);
}
template <class A, class B>
inline std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return fmax(static_cast<T>(a), static_cast<T>(b));
  return static_cast<T>(a) > static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b);
}

namespace emulator {
template <class To, class From>
inline To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}
}  // namespace emulator
inline unsigned __float_as_uint(float x) { return ::emulator::bits_of<unsigned>(x); }
inline int __float_as_int(float x) { return ::emulator::bits_of<int>(x); }
inline float __uint_as_float(unsigned x) { return ::emulator::bits_of<float>(x); }
inline float __int_as_float(int x) { return ::emulator::bits_of<float>(x); }
inline long long __double_as_longlong(double x) { return ::emulator::bits_of<long long>(x); }
inline double __longlong_as_double(long long x) { return ::emulator::bits_of<double>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }

// Programming guide, "Synchronization Functions".
inline void __syncthreads(::emulator::Place place = ::emulator::Place::current()) {
  ::emulator::meet_block(0, 0, 0, "__syncthreads", place);
}
inline int __syncthreads_or(int vote, ::emulator::Place place = ::emulator::Place::current()) {
  return ::emulator::meet_block(0, 0, vote != 0, "__syncthreads_or", place);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, ::emulator::Place place = ::emulator::Place::current()) {
  ::emulator::meet_warp(::emulator::Together::kSync, "__syncwarp", mask, 0, 0, place);
}

// Programming guide, "Warp Vote Functions" and "Warp Shuffle Functions"; no order of memory accesses comes with them.
inline unsigned __ballot_sync(unsigned mask, int vote, ::emulator::Place place = ::emulator::Place::current()) {
  return static_cast<unsigned>(
      ::emulator::meet_warp(::emulator::Together::kBallot, "a vote", mask, vote != 0, 0, place));
}
inline int __any_sync(unsigned mask, int vote, ::emulator::Place place = ::emulator::Place::current()) {
  return __ballot_sync(mask, vote, place) != 0;
}
inline int __all_sync(unsigned mask, int vote, ::emulator::Place place = ::emulator::Place::current()) {
  return __ballot_sync(mask, !vote, place) == 0;
}

namespace emulator {
// `inside`: whether the source lies in the lane's part of the warp; else the lane keeps its own value.
template <class T>
inline T shuffled(unsigned mask, T value, int source, bool inside, Place place) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  const unsigned from = inside ? static_cast<unsigned>(source) : self->lane;
  bits = meet_warp(Together::kShuffle, "a shuffle", mask, bits, from, place);
  memcpy(&value, &bits, sizeof(T));
  return value;
}
}  // namespace emulator
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32,
                     ::emulator::Place place = ::emulator::Place::current()) {
  const int lane = static_cast<int>(::emulator::self->lane);
  return ::emulator::shuffled(mask, value, (lane & ~(width - 1)) | (source & (width - 1)), true, place);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32,
                         ::emulator::Place place = ::emulator::Place::current()) {
  const int lane = static_cast<int>(::emulator::self->lane), from = lane ^ with;
  return ::emulator::shuffled(mask, value, from, (from & ~(width - 1)) <= (lane & ~(width - 1)), place);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32,
                        ::emulator::Place place = ::emulator::Place::current()) {
  const int lane = static_cast<int>(::emulator::self->lane), from = lane - static_cast<int>(by);
  return ::emulator::shuffled(mask, value, from, from >= (lane & ~(width - 1)), place);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32,
                          ::emulator::Place place = ::emulator::Place::current()) {
  const int lane = static_cast<int>(::emulator::self->lane), from = lane + static_cast<int>(by);
  return ::emulator::shuffled(mask, value, from, from <= (lane | (width - 1)), place);
}

namespace emulator {
// Programming guide, "Atomic Functions": relaxed, so that they order nothing. No other thread runs in between.
template <class T, class Change>
__attribute__((noinline, no_sanitize_thread)) T atomic(T* at, Change change) {
  pause();
  race::access(at, sizeof(T), race::Kind::kAtomic, __builtin_return_address(0));
  const T before = *at;
  *at = change(before);
  return before;
}
}  // namespace emulator
template <class T, class V>
__forceinline__ T atomicAdd(T* at, V by) {
  return ::emulator::atomic(at, [=](T x) { return static_cast<T>(x + static_cast<T>(by)); });
}
inline float4 atomicAdd(float4* at, float4 by) {  // of each element for itself
  float* const p = reinterpret_cast<float*>(at);
  return {atomicAdd(p, by.x), atomicAdd(p + 1, by.y), atomicAdd(p + 2, by.z), atomicAdd(p + 3, by.w)};
}
template <class T, class V>
__forceinline__ T atomicMin(T* at, V by) {
  return ::emulator::atomic(at, [=](T x) { return static_cast<T>(by) < x ? static_cast<T>(by) : x; });
}
template <class T, class V>
__forceinline__ T atomicMax(T* at, V by) {
  return ::emulator::atomic(at, [=](T x) { return static_cast<T>(by) > x ? static_cast<T>(by) : x; });
}
inline uint32_t __cvta_generic_to_shared(const void* p) { return ::emulator::shared_offset(p); }

// The runtime. It keeps what it has returned as its last error, as CUDA's does, until that is asked for.
using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorCooperativeLaunchTooLarge = 720,
};
namespace emulator {
inline cudaError_t last_error = cudaSuccess;
inline cudaError_t returned(int error) {
  if (error != 0) last_error = static_cast<cudaError_t>(error);
  return static_cast<cudaError_t>(error);
}
}  // namespace emulator
inline cudaError_t cudaGetLastError() {
  const cudaError_t error = ::emulator::last_error;
  ::emulator::last_error = cudaSuccess;
  return error;
}
inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
    default:
      return "unknown error";
  }
}

// One device: with clusters, running what was compiled for it.
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrClusterLaunch };
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? ::emulator::multiprocessors() : 1;
  return cudaSuccess;
}
struct cudaFuncAttributes {
  size_t sharedSizeBytes = 32768;  // a kernel's own is not known before it runs
  int ptxVersion = 90;
};
template <class Kernel>
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
  *attributes = cudaFuncAttributes{};
  return cudaSuccess;
}
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <class Kernel>
inline cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute, int bytes) {
  return ::emulator::returned(
      ::emulator::allow_dynamic_shared(reinterpret_cast<const void*>(kernel), static_cast<size_t>(bytes)));
}
inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  memset(at, value, bytes);
  return cudaSuccess;
}

namespace emulator {
template <class... Parameters>
struct Launcher {
  void (*kernel)(Parameters...);
  Launch launch;
  cudaError_t operator()(Parameters... arguments) const {
    return returned(run(launch, reinterpret_cast<const void*>(kernel), [&] { kernel(arguments...); }));
  }
};
// kernel<<<grid, block, shared_bytes, stream>>>
template <class... Parameters>
Launcher<Parameters...> launcher(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes = 0,
                                 cudaStream_t = nullptr) {
  return {kernel, {grid, block, shared_bytes}};
}
// What DeviceGuard and current_stream are for tensors of a CPU.
struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
};
template <class Tensor>
int32_t device_index(const Tensor&) {
  return 0;
}
inline int current_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
}  // namespace emulator

enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
template <class... Parameters, class... Arguments>
inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                                      Arguments&&... arguments) {
  auto launcher = ::emulator::launcher(kernel, config->gridDim, config->blockDim, config->dynamicSmemBytes);
  for (unsigned i = 0; i < config->numAttrs; ++i) launcher.launch.cluster = config->attrs[i].val.clusterDim.x;
  return launcher(arguments...);
}
template <class Kernel>
inline cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel, const cudaLaunchConfig_t* config) {
  *clusters = static_cast<int>(::emulator::blocks_together() / config->attrs[0].val.clusterDim.x);
  return cudaSuccess;
}
template <class Parameter>
inline cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(Parameter), dim3 grid, dim3 block, void** arguments,
                                               size_t shared_bytes, cudaStream_t) {
  auto launcher = ::emulator::launcher(kernel, grid, block, shared_bytes);
  launcher.launch.cooperative = true;
  return launcher(*static_cast<std::remove_const_t<Parameter>*>(arguments[0]));
}
