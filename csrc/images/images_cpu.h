// Between images_cpu.cpp, which speaks with torch and shares the work among threads, and the *_cpu_kernels.cpp, which
// are compiled once per SIMD level and know nothing of torch.
#pragma once

#include "../common/cpu_element.h"
#include "images.h"

namespace amkd::images {

constexpr int64_t kVectorBytes = 64;  // of the widest level

// Samples from first to last; `index` is in range. scratch: room for two images and a vector a channel, aligned for
// doubles.
using CropFlipKernel = void (*)(const CropFlip&, int64_t first, int64_t last, uint8_t* scratch);

#define AMKD_IMAGES_LEVEL(level)                            \
  namespace level {                                         \
  extern const CropFlipKernel crop_flip_kernels[kElements]; \
  }
AMKD_IMAGES_LEVEL(baseline)
AMKD_IMAGES_LEVEL(avx2)
AMKD_IMAGES_LEVEL(avx512)
#undef AMKD_IMAGES_LEVEL

}  // namespace amkd::images
