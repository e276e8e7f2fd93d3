// images_crop_flip on CUDA tensors.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "../common/cuda_dispatch.cuh"
#include "../common/cuda_host.h"
#include "crop_flip_kernels.cuh"
#include "images_arguments.h"

namespace amkd::images::gpu {
namespace {

template <class Scalar>
void launch(const CropFlipArguments& arguments, cudaStream_t stream) {
  using Stat = StatOf<Scalar>;
  const int64_t plane = arguments.height * arguments.width, size = arguments.channels * plane;
  const bool wide =
      size % Vector<Scalar>::kWidth == 0 && reinterpret_cast<uintptr_t>(arguments.out) % sizeof(Vector<Scalar>) == 0;
  const int64_t of_block = int64_t{kThreads} * kPieces * (wide ? Vector<Scalar>::kWidth : 1);
  const int64_t blocks = (size + of_block - 1) / of_block;
  STD_TORCH_CHECK(arguments.samples <= std::numeric_limits<int32_t>::max() / blocks,
                  "pixels: too many numbers for one launch");

  CropFlipCall<Scalar> call{};
  call.pixels = arguments.pixels;
  call.index = arguments.index;
  call.seeds = arguments.seeds;
  call.shift = static_cast<const Stat*>(arguments.shift);
  call.out = static_cast<Scalar*>(arguments.out);
  call.images = arguments.images;
  call.pad = arguments.pad;
  call.seed = arguments.seed;
  call.scale = static_cast<Stat>(arguments.scale);
  call.channels = Divider(arguments.channels);
  call.width = Divider(arguments.width);
  call.plane = Divider(plane);
  call.height = static_cast<int32_t>(arguments.height);
  call.size = static_cast<int32_t>(size);
  call.blocks = static_cast<int32_t>(blocks);
  call.flip = arguments.flip;
  call.draws = arguments.draws();
  call.last = arguments.last;
  const auto grid = static_cast<unsigned>(arguments.samples * blocks);
  if (wide) {
    crop_flip_kernel<Scalar, true><<<grid, kThreads, 0, stream>>>(call);
  } else {
    crop_flip_kernel<Scalar, false><<<grid, kThreads, 0, stream>>>(call);
  }
  check_launch("images crop_flip_kernel");
}

void crop_flip(const Tensor& out, const Tensor& pixels, const std::optional<Tensor>& index, const Tensor& shift,
               const std::optional<Tensor>& seeds, double scale, int64_t pad, bool flip, int64_t seed) {
  const int32_t device = out.get_device_index();
  const DeviceGuard guard(device);
  const CropFlipArguments call(out, pixels, index, shift, seeds, scale, pad, flip, seed);
  if (call.samples == 0 || call.channels * call.height * call.width == 0) return;
  const cudaStream_t stream = current_stream(device);
  dispatch(call.type, "out", [&](auto scalar) { launch<decltype(scalar)>(call, stream); });
}

}  // namespace
}  // namespace amkd::images::gpu

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CUDA, m) { m.impl("images_crop_flip", TORCH_BOX(&amkd::images::gpu::crop_flip)); }
