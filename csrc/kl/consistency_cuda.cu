// The operators of cosine-confidence distillation on CUDA tensors: checks, outputs, and which launches a size gets.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/cuda_dispatch.cuh"
#include "../common/cuda_host.h"
#include "consistency_arguments.h"
#include "consistency_kernels.cuh"
#include "kl_plan.h"

namespace amkd::kl::consistency {
namespace {

template <class Scalar>
Inputs<Scalar> inputs(const Arguments& call, int lanes) {
  using Stat = StatOf<Scalar>;
  Inputs<Scalar> in{};
  for (int v = 0; v < kViews; ++v) {
    in.student[v] = static_cast<const Scalar*>(call.student[v].const_data_ptr());
    in.teacher[v] = static_cast<const Scalar*>(call.teacher[v].const_data_ptr());
    in.student_stride[v] = call.student[v].stride(0);
    in.teacher_stride[v] = call.teacher[v].stride(0);
  }
  in.rows = call.rows;
  in.classes = static_cast<int>(call.classes);
  in.use_vectors = call.classes >= kVectorClasses;
  in.lanes = lanes;
  in.numbers.exponent = static_cast<Stat>(kLog2E / call.temperature);
  in.numbers.inverse_temperature = static_cast<Stat>(1.0 / call.temperature);
  in.numbers.keep_teacher = 1;
  in.factor = call.row_scale / static_cast<double>(call.rows);
  return in;
}

template <class Scalar>
void launch_forward(const Arguments& call, const Tensor& total, const Tensor& stats, cudaStream_t stream) {
  using Stat = StatOf<Scalar>;
  const ForwardPlan plan =
      plan_forward(call.rows, call.classes, kBatch<Scalar>, kEdgeBatch, kMaxThreads<Scalar, Form::kTeacherWeighted>, 0);
  Forward<Scalar> forward{};
  forward.in = inputs<Scalar>(call, plan.lanes);
  forward.stats = static_cast<Stat*>(stats.mutable_data_ptr());
  forward.total = static_cast<Stat*>(total.mutable_data_ptr());
  forward.rows_per_block = plan.rows_per_block;
  const bool alone = plan.blocks == 1;
  const Tensor totals = alone ? total : new_empty(total, {int64_t{kViews} * plan.blocks}, ScalarType::Double);
  forward.block_totals = alone ? nullptr : static_cast<double*>(totals.mutable_data_ptr());
  consistency_forward_kernel<Scalar><<<plan.blocks, plan.threads, 0, stream>>>(forward);
  check_launch("kl consistency_forward_kernel");
  if (alone) return;
  consistency_total_kernel<Stat><<<1, plan.reduce_threads, 0, stream>>>(
      forward.block_totals, static_cast<int>(plan.blocks), forward.total, forward.stats, call.rows);
  check_launch("kl consistency_total_kernel");
}

std::tuple<Tensor, Tensor> forward(const Tensor& student, const Tensor& teacher, const Tensor& augmented_student,
                                   const Tensor& augmented_teacher, double temperature, double row_scale) {
  const int32_t device = student.get_device_index();
  const DeviceGuard guard(device);
  const Arguments call(student, teacher, augmented_student, augmented_teacher, temperature, row_scale);
  STD_TORCH_CHECK(call.classes <= kMaxClasses, "student: more than 2^30 classes");
  if (call.rows == 0) {  // every mean over no rows is 0
    const int64_t tail = kTail;
    return {torch::stable::new_zeros(student, {&tail, size_t{0}}, call.stat),
            torch::stable::new_zeros(student, {&tail, 1}, call.stat)};
  }
  const Tensor total = new_empty(student, {}, call.stat);
  const Tensor stats = new_empty(student, {kFields * call.rows + kTail}, call.stat);
  dispatch(student.scalar_type(), "student",
           [&](auto scalar) { launch_forward<decltype(scalar)>(call, total, stats, current_stream(device)); });
  return {total, stats};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_total, const Tensor& student, const Tensor& teacher,
                                    const Tensor& augmented_student, const Tensor& augmented_teacher,
                                    const Tensor& stats, double temperature, double row_scale) {
  const int32_t device = student.get_device_index();
  const DeviceGuard guard(device);
  const Arguments call(student, teacher, augmented_student, augmented_teacher, temperature, row_scale);
  STD_TORCH_CHECK(call.classes <= kMaxClasses, "student: more than 2^30 classes");
  call.check(grad_total, stats);
  const Tensor grads[kViews] = {new_empty(student, {call.rows, call.classes}, student.scalar_type()),
                                new_empty(student, {call.rows, call.classes}, student.scalar_type())};
  if (call.rows == 0) return {grads[0], grads[1]};
  dispatch(student.scalar_type(), "student", [&](auto scalar) {
    using Scalar = decltype(scalar);
    using Stat = StatOf<Scalar>;
    const BackwardPlan plan = plan_backward(call.rows, call.classes, kBatch<Scalar>, kEdgeBatch);
    Backward<Scalar> backward{};
    backward.in = inputs<Scalar>(call, plan.lanes);
    backward.stats = static_cast<const Stat*>(stats.const_data_ptr());
    backward.grad_total = static_cast<const Stat*>(grad_total.const_data_ptr());
    for (int v = 0; v < kViews; ++v) backward.grad[v] = static_cast<Scalar*>(grads[v].mutable_data_ptr());
    backward.splits = plan.splits;
    STD_TORCH_CHECK(plan.blocks <= kMaxBlocks, "student: too many rows for one launch");
    const dim3 grid(static_cast<unsigned>(plan.blocks), kViews);
    consistency_backward_kernel<Scalar><<<grid, plan.threads, 0, current_stream(device)>>>(backward);
    check_launch("kl consistency_backward_kernel");
  });
  return {grads[0], grads[1]};
}

}  // namespace
}  // namespace amkd::kl::consistency

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CUDA, m) {
  m.impl("kl_consistency_forward", TORCH_BOX(&amkd::kl::consistency::forward));
  m.impl("kl_consistency_backward", TORCH_BOX(&amkd::kl::consistency::backward));
}
