// From a tensor's dtype and the machine's SIMD level to the kernel that serves them.
#pragma once

#include "cpu_element.h"
#include "cpu_level.h"
#include "tensors.h"

namespace amkd {

inline Element element_of(ScalarType type, const char* name) {
  switch (type) {
    case ScalarType::Float:
      return Element::kFloat;
    case ScalarType::Double:
      return Element::kDouble;
    case ScalarType::Half:
      return Element::kHalf;
    case ScalarType::BFloat16:
      return Element::kBFloat16;
    default:
      STD_TORCH_CHECK(false, name, ": must be float32, float64, float16 or bfloat16");
  }
}

}  // namespace amkd

// Returns `kernels` of the level's namespace.
#ifdef AMKD_X86
#define AMKD_AT_LEVEL(kernels)        \
  switch (::amkd::cpu_level()) {      \
    case ::amkd::CpuLevel::kAvx512:   \
      return avx512::kernels;         \
    case ::amkd::CpuLevel::kAvx2:     \
      return avx2::kernels;           \
    case ::amkd::CpuLevel::kBaseline: \
      break;                          \
  }                                   \
  return baseline::kernels
#else
#define AMKD_AT_LEVEL(kernels) return baseline::kernels
#endif
