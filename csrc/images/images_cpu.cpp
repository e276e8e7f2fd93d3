// images_crop_flip on CPU tensors: checks, and threads.
#include "images_cpu.h"

#include <torch/csrc/stable/library.h>

#include <memory>

#include "../common/cpu_dispatch.h"
#include "../common/cpu_share.h"
#include "images_arguments.h"

namespace amkd::images {
namespace {

const CropFlipKernel* crop_flip_kernels() { AMKD_AT_LEVEL(crop_flip_kernels); }

void crop_flip(const Tensor& out, const Tensor& pixels, const std::optional<Tensor>& index, const Tensor& shift,
               const std::optional<Tensor>& seeds, double scale, int64_t pad, bool flip, int64_t seed) {
  const CropFlipArguments call(out, pixels, index, shift, seeds, scale, pad, flip, seed);
  const int64_t size = call.channels * call.height * call.width;
  if (call.samples == 0 || size == 0) return;
  // amkd_fast/ops/images/operators.py makes a ValueError of what stands behind the mark.
  for (int64_t i = 0; call.index != nullptr && i < call.samples; ++i) {
    STD_TORCH_CHECK(call.index[i] >= 0 && call.index[i] < call.images, "rows: index holds ", call.index[i],
                    ": must lie in [0, ", call.images, ")");
  }
  const CropFlipKernel kernel = crop_flip_kernels()[static_cast<int>(element_of(call.type, "out"))];
  share(call.samples, size, [&](int64_t first, int64_t last) {
    const std::unique_ptr<uint8_t[]> scratch(new uint8_t[2 * size + call.channels * kVectorBytes]);
    kernel(call, first, last, scratch.get());
  });
}

}  // namespace
}  // namespace amkd::images

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CPU, m) { m.impl("images_crop_flip", TORCH_BOX(&amkd::images::crop_flip)); }
