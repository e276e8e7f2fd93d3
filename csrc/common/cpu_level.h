// The SIMD level that the CPU kernels run at.
#pragma once

namespace amkd {

enum class CpuLevel { kBaseline, kAvx2, kAvx512 };

// The best level that is compiled in and that this machine has; AMKD_FAST_SIMD=baseline|avx2|avx512 lowers it. Read
// once.
CpuLevel cpu_level();

const char* name_of(CpuLevel level);

}  // namespace amkd
