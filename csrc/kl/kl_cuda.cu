// The KL operators on CUDA tensors: checks, outputs, and which launches a size gets.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>

#include "../common/cuda_host.h"
#include "kl_arguments.h"
#include "kl_kernels.cuh"
#include "kl_plan.h"

namespace amkd::kl {
namespace {

template <class Stat>
Numbers<Stat> numbers(const Scalars& s) {
  Numbers<Stat> n{};
  n.exponent = static_cast<Stat>(kLog2E / s.temperature);
  n.inverse_temperature = static_cast<Stat>(1.0 / s.temperature);
  n.keep_teacher = s.divergence == Divergence::kSoftCrossEntropy ? 0 : 1;
  n.row_scale = static_cast<Stat>(s.row_scale);
  n.kl_factor = static_cast<Stat>(s.kl_factor);
  n.ce_factor = static_cast<Stat>(s.ce_factor);
  n.beta = static_cast<Stat>(s.beta);
  n.one_minus_beta = static_cast<Stat>(1.0 - s.beta);
  n.ignore_index = s.ignore_index;
  n.per_row = s.per_row;
  return n;
}

template <class Scalar>
Inputs<Scalar> inputs(const Arguments& call) {
  using Stat = StatOf<Scalar>;
  STD_TORCH_CHECK(call.classes <= kMaxClasses, "student: more than 2^30 classes");
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
  in.ce_weight = static_cast<const Stat*>(call.ce_weight);
  in.numbers = numbers<Stat>(call.scalars);
  return in;
}

// Calls run(Scalar{}, form) with the element type and the kernels' form as compile-time values.
template <class Run>
void dispatch(const Arguments& call, Run run) {
  const auto with_form = [&](auto scalar) {
    switch (call.scalars.divergence) {
      case Divergence::kForward:
      case Divergence::kSoftCrossEntropy:
        return run(scalar, std::integral_constant<Form, Form::kTeacherWeighted>());
      case Divergence::kReverse:
        return run(scalar, std::integral_constant<Form, Form::kStudentWeighted>());
      case Divergence::kJs:
        return run(scalar, std::integral_constant<Form, Form::kMixture>());
    }
    STD_TORCH_CHECK(false, "divergence: must be from 0 to 3");
  };
  switch (call.student.scalar_type()) {
    case ScalarType::Float:
      return with_form(float());
    case ScalarType::Double:
      return with_form(double());
    case ScalarType::Half:
      return with_form(__half());
    case ScalarType::BFloat16:
      return with_form(__nv_bfloat16());
    default:
      STD_TORCH_CHECK(false, "student: must be float32, float64, float16 or bfloat16");
  }
}

template <class Scalar, Form kForm>
void launch_forward(const Arguments& call, const Tensor& loss, const Tensor& stats, int32_t device,
                    cudaStream_t stream) {
  using Stat = StatOf<Scalar>;
  Forward<Scalar> forward{};
  forward.in = inputs<Scalar>(call);
  forward.stats = static_cast<Stat*>(stats.mutable_data_ptr());
  forward.loss = static_cast<Stat*>(loss.mutable_data_ptr());
  const bool long_rows = call.classes > kSplitClasses;
  const ForwardPlan plan = plan_forward(call.rows, call.classes, kBatch<Scalar>, kEdgeBatch, kMaxThreads<Scalar, kForm>,
                                        long_rows ? multiprocessors(device) : 0);
  forward.lanes = plan.lanes;
  forward.rows_per_block = plan.rows_per_block;
  forward.splits = plan.splits;
  forward.split_width = plan.split_width;
  const dim3 grid(plan.blocks, plan.splits);

  if (plan.splits > 1) {
    const Tensor partials = new_empty(call.student, {kPartials * call.rows * plan.splits}, call.stat);
    forward.partials = static_cast<Stat*>(partials.mutable_data_ptr());
    forward_kernel<Scalar, kForm><<<grid, plan.threads, 0, stream>>>(forward);
    check_launch("kl forward_kernel");
    Forward<Scalar> combine = forward;
    combine.lanes = plan.combine_lanes;
    if constexpr (kForm == Form::kMixture) {
      combine_kernel<Scalar, kForm><<<1, plan.combine_threads, 0, stream>>>(combine, false);
      check_launch("kl combine_kernel");
      mixture_kernel<Scalar><<<grid, plan.threads, 0, stream>>>(forward);
      check_launch("kl mixture_kernel");
    }
    combine_kernel<Scalar, kForm><<<1, plan.combine_threads, 0, stream>>>(combine, true);
    check_launch("kl combine_kernel");
    return;
  }
  if (plan.blocks == 1) {
    forward_kernel<Scalar, kForm><<<grid, plan.threads, 0, stream>>>(forward);
    check_launch("kl forward_kernel");
    return;
  }
  const Tensor totals = new_empty(call.student, {int64_t{kTotals} * plan.blocks}, call.stat);
  forward.block_totals = static_cast<Stat*>(totals.mutable_data_ptr());
  forward_kernel<Scalar, kForm><<<grid, plan.threads, 0, stream>>>(forward);
  check_launch("kl forward_kernel");
  reduce_kernel<Stat><<<1, plan.reduce_threads, 0, stream>>>(forward.block_totals, plan.blocks, forward.loss,
                                                             forward.stats, call.rows, forward.in.numbers);
  check_launch("kl reduce_kernel");
}

std::tuple<Tensor, Tensor> forward(const Tensor& student, const Tensor& teacher, const std::optional<Tensor>& weight,
                                   const std::optional<Tensor>& labels, const std::optional<Tensor>& ce_weight,
                                   double temperature, int64_t divergence, double beta, double row_scale,
                                   double kl_factor, double ce_factor, int64_t ignore_index, int64_t reduction) {
  const int32_t device = student.get_device_index();
  const DeviceGuard guard(device);
  const Arguments call(
      student, teacher, weight, labels, ce_weight,
      {temperature, static_cast<Divergence>(divergence), beta, row_scale, kl_factor, ce_factor, ignore_index, false},
      reduction);
  if (call.rows == 0) {  // every mean over no rows is 0
    const int64_t no_rows = 0, tail = kTail;
    return {torch::stable::new_zeros(student, {&no_rows, call.scalars.per_row ? size_t{1} : size_t{0}}, call.stat),
            torch::stable::new_zeros(student, {&tail, 1}, call.stat)};
  }
  const Tensor loss =
      call.scalars.per_row ? new_empty(student, {call.rows}, call.stat) : new_empty(student, {}, call.stat);
  const Tensor stats = new_empty(student, {kFields * call.rows + kTail}, call.stat);
  const cudaStream_t stream = current_stream(device);
  dispatch(call, [&](auto scalar, auto form) {
    launch_forward<decltype(scalar), decltype(form)::value>(call, loss, stats, device, stream);
  });
  return {loss, stats};
}

// Writes the gradient into `grad` [rows, classes], contiguous: a new tensor, or the student's.
void write_gradient(const Arguments& call, const Tensor& grad_loss, const Tensor& stats, void* grad) {
  call.check(grad_loss, stats);
  if (call.rows == 0) return;
  const cudaStream_t stream = current_stream(call.student.get_device_index());
  dispatch(call, [&](auto scalar, auto form) {
    using Scalar = decltype(scalar);
    using Stat = StatOf<Scalar>;
    const BackwardPlan plan = plan_backward(call.rows, call.classes, kBatch<Scalar>, kEdgeBatch);
    Backward<Scalar> backward{};
    backward.in = inputs<Scalar>(call);
    backward.stats = static_cast<const Stat*>(stats.const_data_ptr());
    backward.grad_loss = static_cast<const Stat*>(grad_loss.const_data_ptr());
    backward.grad_loss_stride = call.scalars.per_row ? grad_loss.stride(0) : 0;
    backward.grad = static_cast<Scalar*>(grad);
    backward.lanes = plan.lanes;
    backward.splits = plan.splits;
    STD_TORCH_CHECK(plan.blocks <= kMaxBlocks, "student: too many rows for one launch");
    backward_kernel<Scalar, decltype(form)::value>
        <<<static_cast<unsigned>(plan.blocks), plan.threads, 0, stream>>>(backward);
    check_launch("kl backward_kernel");
  });
}

Tensor backward(const Tensor& grad_loss, const Tensor& student, const Tensor& teacher,
                const std::optional<Tensor>& weight, const std::optional<Tensor>& labels,
                const std::optional<Tensor>& ce_weight, const Tensor& stats, double temperature, int64_t divergence,
                double beta, double row_scale, double kl_factor, double ce_factor, int64_t ignore_index,
                int64_t reduction) {
  const DeviceGuard guard(student.get_device_index());
  const Arguments call(
      student, teacher, weight, labels, ce_weight,
      {temperature, static_cast<Divergence>(divergence), beta, row_scale, kl_factor, ce_factor, ignore_index, false},
      reduction);
  Tensor grad = new_empty(student, {call.rows, call.classes}, student.scalar_type());
  write_gradient(call, grad_loss, stats, grad.mutable_data_ptr());
  return grad;
}

void overwrite(const Tensor& grad_loss, Tensor student, const Tensor& teacher, const std::optional<Tensor>& weight,
               const std::optional<Tensor>& labels, const std::optional<Tensor>& ce_weight, const Tensor& stats,
               double temperature, int64_t divergence, double beta, double row_scale, double kl_factor,
               double ce_factor, int64_t ignore_index, int64_t reduction) {
  const DeviceGuard guard(student.get_device_index());
  const Arguments call(
      student, teacher, weight, labels, ce_weight,
      {temperature, static_cast<Divergence>(divergence), beta, row_scale, kl_factor, ce_factor, ignore_index, false},
      reduction);
  STD_TORCH_CHECK(student.is_contiguous(), "student: must be contiguous to be written over");
  write_gradient(call, grad_loss, stats, student.mutable_data_ptr());
}

}  // namespace
}  // namespace amkd::kl

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CUDA, m) {
  m.impl("kl_forward", TORCH_BOX(&amkd::kl::forward));
  m.impl("kl_backward", TORCH_BOX(&amkd::kl::backward));
  m.impl("kl_overwrite", TORCH_BOX(&amkd::kl::overwrite));
}
