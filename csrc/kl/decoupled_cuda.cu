// The operators of decoupled distillation on CUDA tensors: checks, outputs, and which launches a size gets.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "../common/cuda_dispatch.cuh"
#include "../common/cuda_host.h"
#include "decoupled_arguments.h"
#include "decoupled_kernels.cuh"
#include "kl_plan.h"

namespace amkd::kl::decoupled {
namespace {

template <class Scalar>
Inputs<Scalar> inputs(const Arguments& call) {
  using Stat = StatOf<Scalar>;
  Inputs<Scalar> in{};
  in.student = static_cast<const Scalar*>(call.student.const_data_ptr());
  in.teacher = static_cast<const Scalar*>(call.teacher.const_data_ptr());
  in.student_stride = call.student.stride(0);
  in.teacher_stride = call.teacher.stride(0);
  in.rows = call.rows;
  in.classes = static_cast<int>(call.classes);
  in.use_vectors = call.classes >= kVectorClasses;
  in.labels_are_int64 = call.labels.are_int64;
  in.labels = call.labels.data;
  in.weight = static_cast<const Stat*>(call.weight);
  in.numbers.exponent = static_cast<Stat>(kLog2E / call.scalars.temperature);
  in.numbers.inverse_temperature = static_cast<Stat>(1.0 / call.scalars.temperature);
  in.numbers.keep_teacher = 1;
  in.numbers.kl_factor = static_cast<Stat>(call.scalars.factor);
  in.numbers.per_row = call.scalars.per_row;
  return in;
}

template <class Scalar>
void launch_forward(const Arguments& call, const Tensor& loss, const Tensor& stats, cudaStream_t stream) {
  using Stat = StatOf<Scalar>;
  const ForwardPlan plan =
      plan_forward(call.rows, call.classes, kBatch<Scalar>, kEdgeBatch, kForwardThreads<Scalar>, 0);
  Forward<Scalar> forward{};
  forward.in = inputs<Scalar>(call);
  forward.target_factor = static_cast<Stat>(call.scalars.target_factor);
  forward.other_factor = static_cast<Stat>(call.scalars.other_factor);
  forward.factor = call.scalars.factor;
  forward.stats = static_cast<Stat*>(stats.mutable_data_ptr());
  forward.loss = static_cast<Stat*>(loss.mutable_data_ptr());
  forward.rows_per_block = plan.rows_per_block;
  forward.lanes = plan.lanes;
  const bool one_launch = plan.blocks == 1 || call.scalars.per_row;
  const Tensor totals = new_empty(call.student, {one_launch ? 0 : int64_t{plan.blocks}}, ScalarType::Double);
  if (!one_launch) forward.block_totals = static_cast<double*>(totals.mutable_data_ptr());
  decoupled_forward_kernel<Scalar><<<plan.blocks, plan.threads, 0, stream>>>(forward);
  check_launch("kl decoupled_forward_kernel");
  if (one_launch) return;
  decoupled_total_kernel<Stat>
      <<<1, plan.reduce_threads, 0, stream>>>(forward.block_totals, plan.blocks, forward.loss, forward.factor);
  check_launch("kl decoupled_total_kernel");
}

std::tuple<Tensor, Tensor> forward(const Tensor& student, const Tensor& teacher, const Tensor& labels,
                                   const std::optional<Tensor>& weight, double temperature, double target_factor,
                                   double other_factor, double factor, int64_t reduction) {
  const int32_t device = student.get_device_index();
  const DeviceGuard guard(device);
  const Arguments call(student, teacher, labels, weight, {temperature, target_factor, other_factor, factor, false},
                       reduction);
  const Tensor stats = new_empty(student, {kFields * call.rows}, call.stat);
  if (call.rows == 0) {  // every mean over no rows is 0
    const int64_t no_rows = 0;
    return {torch::stable::new_zeros(student, {&no_rows, call.scalars.per_row ? size_t{1} : size_t{0}}, call.stat),
            stats};
  }
  const Tensor loss =
      call.scalars.per_row ? new_empty(student, {call.rows}, call.stat) : new_empty(student, {}, call.stat);
  const cudaStream_t stream = current_stream(device);
  dispatch(student.scalar_type(), "student",
           [&](auto scalar) { launch_forward<decltype(scalar)>(call, loss, stats, stream); });
  return {loss, stats};
}

Tensor backward(const Tensor& grad_loss, const Tensor& student, const Tensor& teacher, const Tensor& labels,
                const std::optional<Tensor>& weight, const Tensor& stats, double temperature, double target_factor,
                double other_factor, double factor, int64_t reduction) {
  const int32_t device = student.get_device_index();
  const DeviceGuard guard(device);
  const Arguments call(student, teacher, labels, weight, {temperature, target_factor, other_factor, factor, false},
                       reduction);
  call.check(grad_loss, stats);
  const Tensor grad = new_empty(student, {call.rows, call.classes}, student.scalar_type());
  if (call.rows == 0) return grad;
  const cudaStream_t stream = current_stream(device);
  dispatch(student.scalar_type(), "student", [&](auto scalar) {
    using Scalar = decltype(scalar);
    using Stat = StatOf<Scalar>;
    const BackwardPlan plan = plan_backward(call.rows, call.classes, kBatch<Scalar>, kEdgeBatch);
    Backward<Scalar> backward{};
    backward.in = inputs<Scalar>(call);
    backward.target_factor = static_cast<Stat>(call.scalars.factor * target_factor / temperature);
    backward.other_factor = static_cast<Stat>(call.scalars.factor * other_factor / temperature);
    backward.stats = static_cast<const Stat*>(stats.const_data_ptr());
    backward.grad_loss = static_cast<const Stat*>(grad_loss.const_data_ptr());
    backward.grad_loss_stride = call.scalars.per_row ? grad_loss.stride(0) : 0;
    backward.grad = static_cast<Scalar*>(grad.mutable_data_ptr());
    backward.lanes = plan.lanes;
    backward.splits = plan.splits;
    STD_TORCH_CHECK(plan.blocks <= kMaxBlocks, "student: too many rows for one launch");
    decoupled_backward_kernel<Scalar><<<static_cast<unsigned>(plan.blocks), plan.threads, 0, stream>>>(backward);
    check_launch("kl decoupled_backward_kernel");
  });
  return grad;
}

}  // namespace
}  // namespace amkd::kl::decoupled

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CUDA, m) {
  m.impl("kl_decoupled_forward", TORCH_BOX(&amkd::kl::decoupled::forward));
  m.impl("kl_decoupled_backward", TORCH_BOX(&amkd::kl::decoupled::backward));
}
