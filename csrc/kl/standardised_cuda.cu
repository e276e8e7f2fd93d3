// The operators of the standardised KL divergence on CUDA tensors: checks, outputs, and which launches a size gets.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "../common/cuda_dispatch.cuh"
#include "../common/cuda_host.h"
#include "kl_plan.h"
#include "standardised_arguments.h"
#include "standardised_kernels.cuh"

namespace amkd::kl::standardised {
namespace {

template <class Scalar>
Inputs<Scalar> inputs(const Arguments& call, int lanes, double factor) {
  using Stat = StatOf<Scalar>;
  Inputs<Scalar> in{};
  in.student = static_cast<const Scalar*>(call.student.const_data_ptr());
  in.teacher = static_cast<const Scalar*>(call.teacher.const_data_ptr());
  in.student_stride = call.student.stride(0);
  in.teacher_stride = call.teacher.stride(0);
  in.rows = call.rows;
  in.classes = static_cast<int>(call.classes);
  in.use_vectors = call.classes >= kVectorClasses;
  in.per_row = call.scalars.per_row;
  in.lanes = lanes;
  in.weight = static_cast<const Stat*>(call.weight);
  in.exponent = static_cast<Stat>(kLog2E / call.scalars.temperature);
  in.factor = static_cast<Stat>(factor);
  return in;
}

template <class Scalar>
void launch_forward(const Arguments& call, const Tensor& loss, const Tensor& stats, cudaStream_t stream) {
  using Stat = StatOf<Scalar>;
  const ForwardPlan plan =
      plan_forward(call.rows, call.classes, kBatch<Scalar>, kEdgeBatch, kMaxThreads<Scalar, Form::kMixture>, 0);
  Forward<Scalar> forward{};
  forward.in = inputs<Scalar>(call, plan.lanes, call.scalars.factor);
  forward.stats = static_cast<Stat*>(stats.mutable_data_ptr());
  forward.loss = static_cast<Stat*>(loss.mutable_data_ptr());
  forward.rows_per_block = plan.rows_per_block;
  const bool alone = plan.blocks == 1 || call.scalars.per_row;
  const Tensor totals = alone ? loss : new_empty(loss, {int64_t{plan.blocks}}, ScalarType::Double);
  forward.block_totals = alone ? nullptr : static_cast<double*>(totals.mutable_data_ptr());
  standardised_forward_kernel<Scalar><<<plan.blocks, plan.threads, 0, stream>>>(forward);
  check_launch("kl standardised_forward_kernel");
  if (alone) return;
  standardised_total_kernel<Stat>
      <<<1, plan.reduce_threads, 0, stream>>>(forward.block_totals, static_cast<int>(plan.blocks), forward.loss);
  check_launch("kl standardised_total_kernel");
}

std::tuple<Tensor, Tensor> forward(const Tensor& student, const Tensor& teacher, const std::optional<Tensor>& weight,
                                   double temperature, double factor, int64_t reduction) {
  const int32_t device = student.get_device_index();
  const DeviceGuard guard(device);
  const Arguments call(student, teacher, weight, {temperature, factor, false}, reduction);
  STD_TORCH_CHECK(call.classes <= kMaxClasses, "student: more than 2^30 classes");
  if (call.rows == 0) {  // every sum over no rows is 0
    const int64_t no_rows = 0;
    return {torch::stable::new_zeros(student, {&no_rows, call.scalars.per_row ? size_t{1} : size_t{0}}, call.stat),
            torch::stable::new_zeros(student, {&no_rows, 1}, call.stat)};
  }
  const Tensor loss =
      call.scalars.per_row ? new_empty(student, {call.rows}, call.stat) : new_empty(student, {}, call.stat);
  const Tensor stats = new_empty(student, {kFields * call.rows}, call.stat);
  dispatch(student.scalar_type(), "student",
           [&](auto scalar) { launch_forward<decltype(scalar)>(call, loss, stats, current_stream(device)); });
  return {loss, stats};
}

Tensor backward(const Tensor& grad_loss, const Tensor& student, const Tensor& teacher,
                const std::optional<Tensor>& weight, const Tensor& stats, double temperature, double factor,
                int64_t reduction) {
  const int32_t device = student.get_device_index();
  const DeviceGuard guard(device);
  const Arguments call(student, teacher, weight, {temperature, factor, false}, reduction);
  STD_TORCH_CHECK(call.classes <= kMaxClasses, "student: more than 2^30 classes");
  call.check(grad_loss, stats);
  const Tensor grad = new_empty(student, {call.rows, call.classes}, student.scalar_type());
  if (call.rows == 0) return grad;
  dispatch(student.scalar_type(), "student", [&](auto scalar) {
    using Scalar = decltype(scalar);
    using Stat = StatOf<Scalar>;
    const BackwardPlan plan = plan_backward(call.rows, call.classes, kBatch<Scalar>, kEdgeBatch);
    Backward<Scalar> backward{};
    backward.in = inputs<Scalar>(call, plan.lanes, call.scalars.factor / temperature);
    backward.stats = static_cast<const Stat*>(stats.const_data_ptr());
    backward.grad_loss = static_cast<const Stat*>(grad_loss.const_data_ptr());
    backward.grad_loss_stride = call.scalars.per_row ? grad_loss.stride(0) : 0;
    backward.grad = static_cast<Scalar*>(grad.mutable_data_ptr());
    backward.splits = plan.splits;
    STD_TORCH_CHECK(plan.blocks <= kMaxBlocks, "student: too many rows for one launch");
    standardised_backward_kernel<Scalar>
        <<<static_cast<unsigned>(plan.blocks), plan.threads, 0, current_stream(device)>>>(backward);
    check_launch("kl standardised_backward_kernel");
  });
  return grad;
}

}  // namespace
}  // namespace amkd::kl::standardised

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CUDA, m) {
  m.impl("kl_standardised_forward", TORCH_BOX(&amkd::kl::standardised::forward));
  m.impl("kl_standardised_backward", TORCH_BOX(&amkd::kl::standardised::backward));
}
