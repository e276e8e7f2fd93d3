// The Python module: importing it registers the operators; build_info() tells what is inside. No tensor passes here.
#include <pybind11/pybind11.h>

#include "common/cpu_level.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.def("build_info", [] {
    py::dict info;
    info["decision"] = AMKD_BUILD_DECISION;
    info["cuda"] = AMKD_CUDA_VERSION;
    info["cuda_archs"] = AMKD_CUDA_ARCHS;
    info["torch"] = AMKD_TORCH_VERSION;
    info["compiler"] = __VERSION__;
    info["simd_compiled"] = AMKD_SIMD_LEVELS;
    py::list levels;
    for (auto level : {amkd::CpuLevel::kBaseline, amkd::CpuLevel::kAvx2, amkd::CpuLevel::kAvx512}) {
      if (level <= amkd::best_cpu_level()) levels.append(amkd::name_of(level));
    }
    info["simd_usable"] = levels;
    info["simd"] = amkd::name_of(amkd::cpu_level());  // an import would turn its error into an ImportError
    return info;
  });
}
