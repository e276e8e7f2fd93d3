// images_joint_augment on CUDA tensors.
#include <torch/csrc/stable/library.h>

#include <limits>
#include <optional>

#include "../common/cuda_host.h"
#include "augment_arguments.h"
#include "augment_kernels.cuh"

namespace amkd::images::gpu {
namespace {

constexpr int64_t kMostShared = int64_t{40} << 10;  // of an image; with the tables what every GPU gives a block unasked

Tensor joint_augment(const Tensor& pixels, const std::optional<Tensor>& rows, const std::optional<Tensor>& seeds,
                     int64_t threshold, int64_t operations, int64_t fill, int64_t seed) {
  const int32_t device = pixels.get_device_index();
  const DeviceGuard guard(device);
  Tensor out = torch::stable::empty_like(pixels);
  const JointAugmentArguments arguments(out, pixels, rows, seeds, threshold, operations, fill, seed);
  if (arguments.empty()) return out;
  STD_TORCH_CHECK(arguments.images <= std::numeric_limits<int32_t>::max(), "pixels: too many images for one launch");
  const int64_t plane = arguments.height * arguments.width, size = arguments.channels * plane;
  const bool fits = size <= kMostShared;
  std::optional<Tensor> scratch;
  if (!fits) scratch = torch::stable::empty_like(pixels);

  AugmentCall call{};
  call.job = arguments;
  call.scratch = fits ? nullptr : static_cast<uint8_t*>(scratch->mutable_data_ptr());
  call.width = static_cast<int32_t>(arguments.width);
  call.height = static_cast<int32_t>(arguments.height);
  call.plane = static_cast<int32_t>(plane);
  call.size = static_cast<int32_t>(size);
  joint_augment_kernel<<<static_cast<unsigned>(arguments.images), kAugmentThreads, fits ? size : 0,
                         current_stream(device)>>>(call);
  check_launch("images joint_augment_kernel");
  return out;
}

}  // namespace
}  // namespace amkd::images::gpu

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CUDA, m) {
  m.impl("images_joint_augment", TORCH_BOX(&amkd::images::gpu::joint_augment));
}
