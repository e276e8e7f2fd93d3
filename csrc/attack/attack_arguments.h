// The arguments of the attack operators on every device, checked, with the copies that they needed.
#pragma once

#include "../common/tensors.h"
#include "attack.h"

namespace amkd::attack {

// How many neighbours in memory belong to one channel: all of a channel's pixels in a contiguous batch, one in a
// channels_last one.
inline int64_t channel_run(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() >= 2, "x: must be [B, C, ...]");
  int64_t pixels = 1;
  for (int64_t i = 2; i < x.dim(); ++i) pixels *= x.size(i);
  if (x.is_contiguous()) return pixels;
  int64_t stride = x.size(1);  // a batch whose channels vary fastest
  bool channels_last = x.size(1) == 1 || x.stride(1) == 1;
  for (int64_t i = x.dim() - 1; i >= 2; --i) {
    channels_last = channels_last && (x.size(i) == 1 || x.stride(i) == stride);
    stride *= x.size(i);
  }
  channels_last = channels_last && (x.size(0) == 1 || x.stride(0) == stride);
  STD_TORCH_CHECK(channels_last, "x: must be contiguous or channels_last");
  return 1;
}

// The data of an optional tensor with one number a sample or channel, checked, or null.
inline const void* number_data(const std::optional<Tensor>& tensor, const char* name, const Tensor& x, int64_t count,
                               ScalarType type) {
  if (!tensor.has_value()) return nullptr;
  STD_TORCH_CHECK(tensor->dim() == 1 && tensor->size(0) == count && tensor->is_contiguous(), name,
                  ": must be contiguous with one number a sample or channel");
  STD_TORCH_CHECK(tensor->scalar_type() == type, name, ": wrong dtype");
  check_device(*tensor, name, x);
  return tensor->data_ptr();
}

struct StepArguments : StepProblem {
  ScalarType type, work;
  bool wide_grad;  // grad is in `work`, not in `type`

  StepArguments(const Tensor& out_in, const Tensor& x_in, const Tensor& grad_in, const std::optional<Tensor>& x0_in,
                const std::optional<Tensor>& step_sizes_in, const std::optional<Tensor>& radii_in,
                const std::optional<Tensor>& gap_in, const std::optional<Tensor>& velocity_in,
                const std::optional<Tensor>& lowers_in, const std::optional<Tensor>& uppers_in,
                const std::optional<Tensor>& active_in, const StepScalars& scalars_in)
      : type(x_in.scalar_type()), work(statistics_type(x_in.scalar_type())) {
    scalars = scalars_in;
    run = channel_run(x_in);
    samples = x_in.size(0);
    channels = x_in.size(1);
    size = samples == 0 ? 0 : x_in.numel() / samples;
    wide_grad = grad_in.scalar_type() != type;
    const bool boundary = scalars.rule == Rule::kUnit || scalars.rule == Rule::kNewton;
    STD_TORCH_CHECK(scalars.rule >= Rule::kLinf && scalars.rule <= Rule::kNewton, "rule: must be from 0 to 4");
    STD_TORCH_CHECK(boundary == gap_in.has_value(), "gap: must go with the boundary rules");
    STD_TORCH_CHECK(scalars.top >= 1 && (size == 0 || scalars.top <= size), "top: must be from 1 to a sample's size");
    x = image(x_in, "x", x_in, type);
    out = const_cast<void*>(image(out_in, "out", x_in, type));
    grad = image(grad_in, "grad", x_in, wide_grad ? work : type);
    x0 = x0_in.has_value() ? image(*x0_in, "x0", x_in, type) : nullptr;
    velocity = velocity_in.has_value() ? const_cast<void*>(image(*velocity_in, "velocity", x_in, work)) : nullptr;
    step_sizes = number_data(step_sizes_in, "step_sizes", x_in, samples, work);
    radii = number_data(radii_in, "radii", x_in, samples, work);
    gap = number_data(gap_in, "gap", x_in, samples, work);
    lowers = number_data(lowers_in, "lowers", x_in, channels, work);
    uppers = number_data(uppers_in, "uppers", x_in, channels, work);
    active = static_cast<const bool*>(number_data(active_in, "active", x_in, samples, ScalarType::Bool));
  }

 private:
  static const void* image(const Tensor& tensor, const char* name, const Tensor& x, ScalarType type) {
    STD_TORCH_CHECK(tensor.scalar_type() == type, name, ": wrong dtype");
    STD_TORCH_CHECK(tensor.dim() == x.dim(), name, ": must have the shape of x");
    for (int64_t i = 0; i < x.dim(); ++i) {
      STD_TORCH_CHECK(tensor.size(i) == x.size(i), name, ": must have the shape of x");
      STD_TORCH_CHECK(x.size(i) == 1 || tensor.stride(i) == x.stride(i), name, ": must lie in memory as x does");
    }
    check_device(tensor, name, x);
    return tensor.data_ptr();
  }
};

// int64 [rows], contiguous, or null.
inline const int64_t* classes_of(const std::optional<Tensor>& tensor, const char* name, const Tensor& logits,
                                 Tensor& hold) {
  return static_cast<const int64_t*>(row_data(tensor, name, logits, ScalarType::Long, hold));
}

// The tensor that replaces a seed, or null.
inline const int64_t* seed_of(const std::optional<Tensor>& seeds, const Tensor& logits) {
  if (!seeds.has_value()) return nullptr;
  STD_TORCH_CHECK(seeds->numel() == 1 && seeds->scalar_type() == ScalarType::Long, "seeds: must be one int64 number");
  check_device(*seeds, "seeds", logits);
  return static_cast<const int64_t*>(seeds->const_data_ptr());
}

inline void check_logits(const Tensor& logits, const char* name, int64_t least) {
  STD_TORCH_CHECK(logits.dim() == 2 && logits.size(1) >= least, name, ": must be [B, K] with enough classes");
  check_storage(logits, name);
}

}  // namespace amkd::attack
