#include "cpu_level.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace amkd {
namespace {

CpuLevel best_of_machine() {
#ifdef AMKD_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) return CpuLevel::kAvx512;
  if (avx2) return CpuLevel::kAvx2;
#endif
  return CpuLevel::kBaseline;
}

CpuLevel chosen() {
  const CpuLevel best = best_of_machine();
  const char* wanted = std::getenv("AMKD_FAST_SIMD");
  if (wanted == nullptr) return best;
  for (CpuLevel level : {CpuLevel::kBaseline, CpuLevel::kAvx2, CpuLevel::kAvx512}) {
    if (std::strcmp(wanted, name_of(level)) == 0 && level < best) return level;
  }
  return best;
}

}  // namespace

CpuLevel cpu_level() {
  static const CpuLevel level = chosen();
  return level;
}

const char* name_of(CpuLevel level) {
  switch (level) {
    case CpuLevel::kAvx512:
      return "avx512";
    case CpuLevel::kAvx2:
      return "avx2";
    case CpuLevel::kBaseline:
      break;
  }
  return "baseline";
}

}  // namespace amkd
