#include "cpu_level.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace amkd {
namespace {

CpuLevel chosen() {
  const char* variable = std::getenv("AMKD_FAST_SIMD");
  if (variable == nullptr) return best_cpu_level();
  const std::string wanted = variable, said = "AMKD_FAST_SIMD='" + wanted + "': must be ";
  for (CpuLevel level : {CpuLevel::kBaseline, CpuLevel::kAvx2, CpuLevel::kAvx512}) {
    if (wanted != name_of(level)) continue;
    if (level <= best_cpu_level()) return level;
    throw std::invalid_argument(said + "at most '" + name_of(best_cpu_level()) + "' on this CPU");
  }
  throw std::invalid_argument(said + "'baseline', 'avx2' or 'avx512'");
}

}  // namespace

CpuLevel best_cpu_level() {
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
