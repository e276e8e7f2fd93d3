// The SIMD level that the CPU kernels run at.
#pragma once

namespace amkd {

enum class CpuLevel { kBaseline, kAvx2, kAvx512 };

// The best level that is compiled in and that this machine has.
CpuLevel best_cpu_level();

// The same, or the lower one that AMKD_FAST_SIMD=baseline|avx2|avx512 names. Read once; throws std::invalid_argument
// where the variable is no level, or none of this machine's.
CpuLevel cpu_level();

const char* name_of(CpuLevel level);

}  // namespace amkd
