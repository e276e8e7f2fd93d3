// attack_svgd on CUDA tensors.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "../common/cuda_dispatch.cuh"
#include "../common/cuda_host.h"
#include "particles_arguments.h"
#include "particles_kernels.cuh"

namespace amkd::attack::gpu {
namespace {

bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

template <class Scalar>
void launch(const ParticleArguments& given, const Tensor& weights, cudaStream_t stream) {
  using Stat = StatOf<Scalar>;
  ParticleCall<Scalar> call{};
  call.out = static_cast<Scalar*>(given.out);
  call.x = static_cast<const Scalar*>(given.x);
  call.x0 = static_cast<const Scalar*>(given.x0);
  call.grad = given.grad;
  call.weights = static_cast<Stat*>(weights.mutable_data_ptr());
  call.step_sizes = static_cast<const Stat*>(given.step_sizes);
  call.radii = static_cast<const Stat*>(given.radii);
  call.lowers = static_cast<const Stat*>(given.lowers);
  call.uppers = static_cast<const Stat*>(given.uppers);
  call.step_size = static_cast<Stat>(given.scalars.step_size);
  call.radius = static_cast<Stat>(given.scalars.radius);
  call.lower = static_cast<Stat>(given.scalars.lower);
  call.upper = static_cast<Stat>(given.scalars.upper);
  call.bandwidth = static_cast<Stat>(given.bandwidth);
  call.median = given.bandwidth == 0.0;
  call.wide_grad = given.wide_grad;
  call.wide = given.size % Vector<Scalar>::kWidth == 0 && is_aligned(given.out) && is_aligned(given.x) &&
              is_aligned(given.x0) && is_aligned(given.grad);
  call.images = given.samples;
  call.count = static_cast<int>(given.count);
  call.size = static_cast<int>(given.size);
  call.run = Divider(given.run);
  call.channels = Divider(given.channels);

  const int64_t groups = ceil_div(given.count, kParticleRows);
  STD_TORCH_CHECK(given.samples <= kMostBlocks / groups, "particles: too many for one launch");
  const auto images = static_cast<unsigned>(given.samples), blocks = static_cast<unsigned>(given.samples * groups);
  const size_t shared = given.count * given.count * sizeof(Stat);  // at most 32 KiB
  weights_kernel<Scalar><<<images, kParticleThreads, shared, stream>>>(call);
  check_launch("attack weights_kernel");
  particles_kernel<Scalar><<<blocks, kParticleThreads, 0, stream>>>(call);
  check_launch("attack particles_kernel");
}

void svgd(const Tensor& out, const Tensor& particles, const Tensor& grad, const Tensor& x0,
          const std::optional<Tensor>& step_sizes, const std::optional<Tensor>& radii,
          const std::optional<Tensor>& lowers, const std::optional<Tensor>& uppers, double step_size, double radius,
          double lower, double upper, double bandwidth) {
  const int32_t device = particles.get_device_index();
  const DeviceGuard guard(device);
  const ParticleArguments given(out, particles, grad, x0, step_sizes, radii, lowers, uppers, step_size, radius, lower,
                                upper, bandwidth);
  if (given.samples == 0 || given.size == 0) return;
  STD_TORCH_CHECK(given.size <= kMostValues, "x0: more than 2^30 values an image");
  const Tensor weights = new_empty(particles, {2 * given.samples * given.count, given.count}, given.work);
  const cudaStream_t stream = current_stream(device);
  dispatch(given.type, "particles", [&](auto scalar) { launch<decltype(scalar)>(given, weights, stream); });
}

}  // namespace
}  // namespace amkd::attack::gpu

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CUDA, m) { m.impl("attack_svgd", TORCH_BOX(&amkd::attack::gpu::svgd)); }
