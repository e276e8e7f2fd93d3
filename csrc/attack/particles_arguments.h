// The arguments of attack_svgd on every device, checked.
#pragma once

#include "attack_arguments.h"
#include "particles.h"

namespace amkd::attack {

struct ParticleArguments : ParticleProblem {
  ScalarType type, work;
  bool wide_grad;  // grad is in `work`, not in `type`

  ParticleArguments(const Tensor& out_in, const Tensor& particles_in, const Tensor& grad_in, const Tensor& x0_in,
                    const std::optional<Tensor>& step_sizes_in, const std::optional<Tensor>& radii_in,
                    const std::optional<Tensor>& lowers_in, const std::optional<Tensor>& uppers_in, double step_size,
                    double radius, double lower, double upper, double bandwidth_in)
      : ParticleProblem{}, type(x0_in.scalar_type()), work(statistics_type(x0_in.scalar_type())) {
    scalars = {Rule::kLinf, step_size, radius, lower, upper, 1.0, false, 1};
    run = channel_run(x0_in);
    samples = x0_in.size(0);
    channels = x0_in.size(1);
    size = samples == 0 ? 0 : x0_in.numel() / samples;
    STD_TORCH_CHECK(particles_in.dim() == x0_in.dim() + 1, "particles: must be [B, n, ...] with x0 [B, ...]");
    count = particles_in.size(1);
    STD_TORCH_CHECK(count >= 1 && count <= kMostParticles, "particles: must be from 1 to ", kMostParticles);
    STD_TORCH_CHECK(bandwidth_in >= 0.0, "bandwidth: must be at least 0");
    bandwidth = bandwidth_in;
    wide_grad = grad_in.scalar_type() != type;
    check_device(x0_in, "x0", particles_in);
    x0 = x0_in.data_ptr();
    x = ensemble(particles_in, "particles", x0_in, type);
    out = const_cast<void*>(ensemble(out_in, "out", x0_in, type));
    grad = ensemble(grad_in, "grad", x0_in, wide_grad ? work : type);
    STD_TORCH_CHECK(samples == 0 || size == 0 || out != x, "out: must not be particles");
    step_sizes = number_data(step_sizes_in, "step_sizes", x0_in, samples, work);
    radii = number_data(radii_in, "radii", x0_in, samples, work);
    lowers = number_data(lowers_in, "lowers", x0_in, channels, work);
    uppers = number_data(uppers_in, "uppers", x0_in, channels, work);
  }

 private:
  // One particle behind the other, each lying as x0's images do.
  const void* ensemble(const Tensor& tensor, const char* name, const Tensor& like, ScalarType of) const {
    STD_TORCH_CHECK(tensor.scalar_type() == of, name, ": wrong dtype");
    STD_TORCH_CHECK(tensor.dim() == like.dim() + 1 && tensor.size(0) == samples && tensor.size(1) == count, name,
                    ": must be [B, n, ...]");
    const auto lies = [&](int64_t dimension, int64_t stride) {
      return tensor.size(dimension) == 1 || tensor.stride(dimension) == stride;
    };
    bool alike = samples == 0 || size == 0 || (lies(0, count * size) && lies(1, size));
    for (int64_t i = 1; i < like.dim(); ++i) {
      STD_TORCH_CHECK(tensor.size(i + 1) == like.size(i), name, ": must hold images of the shape of x0's");
      alike = alike && lies(i + 1, like.stride(i));
    }
    STD_TORCH_CHECK(alike, name, ": must lie in memory as x0's images do");
    check_device(tensor, name, like);
    return tensor.data_ptr();
  }
};

}  // namespace amkd::attack
