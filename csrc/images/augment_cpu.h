// Between augment_cpu.cpp and augment_cpu_kernels.cpp, as images_cpu.h is for the other operator.
#pragma once

#include "augment.h"

namespace amkd::images {

// Of one thread, for one image after another.
struct AugmentScratch {
  uint32_t* packed;   // [height · width + 1]
  int32_t* places;    // [height · width and a vector]
  uint16_t* columns;  // [height · width]
};

using JointAugmentKernel = void (*)(const JointAugment&, int64_t first, int64_t last, const AugmentScratch&);

namespace baseline {
extern const JointAugmentKernel joint_augment_kernel;
}
namespace avx2 {
extern const JointAugmentKernel joint_augment_kernel;
}
namespace avx512 {
extern const JointAugmentKernel joint_augment_kernel;
}

}  // namespace amkd::images
