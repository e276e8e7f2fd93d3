// attack_step on CUDA tensors: which crews a size gets.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "../common/cuda_dispatch.cuh"
#include "../common/cuda_host.h"
#include "attack_arguments.h"
#include "attack_step_kernels.cuh"

namespace amkd::attack::gpu {
namespace {

// Whether the device has clusters and the code that it runs was compiled for them; a chip with clusters may be running
// what was compiled from the instructions of one without.
bool has_clusters(const void* kernel, int32_t device) {
  int supported = 0;
  cudaFuncAttributes attributes{};
  check(cudaDeviceGetAttribute(&supported, cudaDevAttrClusterLaunch, device), "asking for clusters");
  if (supported != 0) check(cudaFuncGetAttributes(&attributes, kernel), "asking for attack step_kernel");
  return supported != 0 && attributes.ptxVersion >= 90;
}

// Whether a cluster of this launch finds a place: a part of a device (MIG) may not have as many multiprocessors
// together.
template <class Kernel>
bool fit(Kernel kernel, const cudaLaunchConfig_t& config) {
  int clusters = 0;
  const cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
  (void)cudaGetLastError();  // a size that the device does not have is no error
  return error == cudaSuccess && clusters > 0;
}

bool is_aligned(const void* image) { return reinterpret_cast<uintptr_t>(image) % 16 == 0; }

template <class Scalar>
StepCall<Scalar> step_call(const StepArguments& call) {
  using Stat = StatOf<Scalar>;
  StepCall<Scalar> step{};
  step.out = static_cast<Scalar*>(call.out);
  step.x = static_cast<const Scalar*>(call.x);
  step.x0 = static_cast<const Scalar*>(call.x0);
  step.grad = call.grad;
  step.step_sizes = static_cast<const Stat*>(call.step_sizes);
  step.radii = static_cast<const Stat*>(call.radii);
  step.gap = static_cast<const Stat*>(call.gap);
  step.velocity = static_cast<Stat*>(call.velocity);
  step.lowers = static_cast<const Stat*>(call.lowers);
  step.uppers = static_cast<const Stat*>(call.uppers);
  step.active = call.active;
  step.step_size = static_cast<Stat>(call.scalars.step_size);
  step.radius = static_cast<Stat>(call.scalars.radius);
  step.decay = static_cast<Stat>(call.scalars.decay);
  step.lower = static_cast<Stat>(call.scalars.lower);
  step.upper = static_cast<Stat>(call.scalars.upper);
  step.rule = call.scalars.rule;
  step.wide_grad = call.wide_grad;
  step.project = call.scalars.project;
  step.samples = call.samples;
  step.size = static_cast<int>(call.size);
  step.top = static_cast<int>(call.scalars.top);
  step.run = Divider(call.run);
  step.channels = Divider(call.channels);
  step.wide = call.size % Vector<Scalar>::kWidth == 0 && is_aligned(call.out) && is_aligned(call.x) &&
              is_aligned(call.x0) && is_aligned(call.grad) && is_aligned(call.velocity);
  return step;
}

template <class Scalar>
void launch(const StepArguments& call, int32_t device, cudaStream_t stream) {
  StepCall<Scalar> step = step_call<Scalar>(call);
  const bool by_l1 = call.scalars.rule == Rule::kL1;
  const auto streaming = by_l1 ? step_kernel<Scalar, false, true> : step_kernel<Scalar, false, false>;
  const auto holding = by_l1 ? step_kernel<Scalar, true, true> : step_kernel<Scalar, true, false>;
  const int most_threads = by_l1 ? kMostStepThreads<true> : kMostStepThreads<false>;
  const bool large = call.size > int64_t{most_threads} * kValues<Scalar>;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cudaLaunchConfig_t config{};
  config.stream = stream;
  config.attrs = &cluster;
  const auto prepare = [&](bool clusters) {
    const StepPlan plan =
        plan_step(call.samples, call.size, Vector<Scalar>::kWidth, kValues<Scalar>, most_threads, clusters);
    STD_TORCH_CHECK(plan.blocks <= kMostBlocks, "x: too many samples for one launch");
    step.lanes = plan.lanes;
    step.ranks = plan.ranks;
    step.share = plan.share;
    cluster.val.clusterDim.x = static_cast<unsigned>(plan.ranks);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    config.gridDim = dim3(static_cast<unsigned>(plan.blocks));
    config.blockDim = dim3(static_cast<unsigned>(plan.threads));
    config.numAttrs = plan.ranks > 1 ? 1 : 0;
    return plan.held ? holding : streaming;
  };
  auto kernel = prepare(large && has_clusters(reinterpret_cast<const void*>(streaming), device));
  if (step.ranks > 1 && !fit(kernel, config)) kernel = prepare(false);
  check(cudaLaunchKernelEx(&config, kernel, step), "launching attack step_kernel");
}

void step(const Tensor& out, const Tensor& x, const Tensor& grad, const std::optional<Tensor>& x0,
          const std::optional<Tensor>& step_sizes, const std::optional<Tensor>& radii, const std::optional<Tensor>& gap,
          const std::optional<Tensor>& velocity, const std::optional<Tensor>& lowers,
          const std::optional<Tensor>& uppers, const std::optional<Tensor>& active, int64_t rule, double step_size,
          double radius, double lower, double upper, double decay, bool project, int64_t top) {
  const int32_t device = x.get_device_index();
  const DeviceGuard guard(device);
  const StepArguments call(out, x, grad, x0, step_sizes, radii, gap, velocity, lowers, uppers, active,
                           {static_cast<Rule>(rule), step_size, radius, lower, upper, decay, project, top});
  if (call.samples == 0 || call.size == 0) return;
  STD_TORCH_CHECK(call.size <= kMostValues, "x: more than 2^30 values a sample");
  const cudaStream_t stream = current_stream(device);
  dispatch(call.type, "x", [&](auto scalar) { launch<decltype(scalar)>(call, device, stream); });
}

}  // namespace
}  // namespace amkd::attack::gpu

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CUDA, m) { m.impl("attack_step", TORCH_BOX(&amkd::attack::gpu::step)); }
