// From a tensor's dtype to a kernel's element type.
#pragma once

#include "element.cuh"
#include "tensors.h"

namespace amkd {

// Calls run with an element of the dtype; `name` is the argument's, for the error.
template <class Run>
void dispatch(ScalarType type, const char* name, Run run) {
  switch (type) {
    case ScalarType::Float:
      return run(float());
    case ScalarType::Double:
      return run(double());
    case ScalarType::Half:
      return run(__half());
    case ScalarType::BFloat16:
      return run(__nv_bfloat16());
    default:
      STD_TORCH_CHECK(false, name, ": must be float32, float64, float16 or bfloat16");
  }
}

}  // namespace amkd
