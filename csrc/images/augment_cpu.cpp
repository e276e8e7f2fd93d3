// images_joint_augment on CPU tensors: checks, and threads.
#include "augment_cpu.h"

#include <torch/csrc/stable/library.h>

#include <memory>

#include "../common/cpu_dispatch.h"
#include "../common/cpu_share.h"
#include "augment_arguments.h"

namespace amkd::images {
namespace {

constexpr int64_t kEffort = 8;         // of a level, against one that is only read and written
constexpr int64_t kWidestVector = 16;  // 32-bit numbers

JointAugmentKernel joint_augment_kernel() { AMKD_AT_LEVEL(joint_augment_kernel); }

Tensor joint_augment(const Tensor& pixels, const std::optional<Tensor>& rows, const std::optional<Tensor>& seeds,
                     int64_t threshold, int64_t operations, int64_t fill, int64_t seed) {
  Tensor out = torch::stable::empty_like(pixels);
  const JointAugmentArguments call(out, pixels, rows, seeds, threshold, operations, fill, seed);
  if (call.empty()) return out;
  const int64_t plane = call.height * call.width;
  const JointAugmentKernel kernel = joint_augment_kernel();
  share(call.images, call.channels * plane * kEffort, [&](int64_t first, int64_t last) {
    const std::unique_ptr<uint32_t[]> packed(new uint32_t[plane + 1]);
    const std::unique_ptr<int32_t[]> places(new int32_t[plane + kWidestVector]);
    const std::unique_ptr<uint16_t[]> columns(new uint16_t[plane]);
    kernel(call, first, last, {packed.get(), places.get(), columns.get()});
  });
  return out;
}

}  // namespace
}  // namespace amkd::images

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CPU, m) {
  m.impl("images_joint_augment", TORCH_BOX(&amkd::images::joint_augment));
}
