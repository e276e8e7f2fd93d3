// The KL operators on CUDA tensors: checks, outputs, and which launches a size gets.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>

#include "../common/cuda_host.h"
#include "../common/tensors.h"
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

// The operators' arguments, checked, with the copies that they needed.
struct Call {
  Tensor student, teacher, labels_held, weight_held, ce_weight_held;
  int64_t rows, classes;
  Scalars scalars;
  bool labels_are_int64;
  const void* labels;
  const void* weight;
  const void* ce_weight;

  Call(const Tensor& student_in, const Tensor& teacher_in, const std::optional<Tensor>& weight_in,
       const std::optional<Tensor>& labels_in, const std::optional<Tensor>& ce_weight_in, const Scalars& scalars_in)
      : scalars(scalars_in) {
    STD_TORCH_CHECK(student_in.dim() == 2 && teacher_in.dim() == 2, "student, teacher: must be [B, K]");
    rows = student_in.size(0);
    classes = student_in.size(1);
    STD_TORCH_CHECK(teacher_in.size(0) == rows && teacher_in.size(1) == classes && classes > 0,
                    "teacher: must have the shape of student, with at least one class");
    STD_TORCH_CHECK(classes <= kMaxClasses, "student: more than 2^30 classes");
    STD_TORCH_CHECK(student_in.scalar_type() == teacher_in.scalar_type(), "teacher: must have the dtype of student");
    same_device(teacher_in, "teacher", student_in);
    for (const auto& [tensor, name] :
         {std::pair(&weight_in, "weight"), std::pair(&labels_in, "labels"), std::pair(&ce_weight_in, "ce_weight")}) {
      if (tensor->has_value()) same_device(**tensor, name, student_in);
    }
    student = with_unit_columns(student_in);
    teacher = with_unit_columns(teacher_in);
    labels_are_int64 = labels_in.has_value() && labels_in->scalar_type() == ScalarType::Long;
    labels = row_data(labels_in, "labels", rows, labels_are_int64 ? ScalarType::Long : ScalarType::Int, labels_held);
    const ScalarType stat = statistics_type(student.scalar_type());
    weight = row_data(weight_in, "weight", rows, stat, weight_held);
    ce_weight = row_data(ce_weight_in, "ce_weight", rows, stat, ce_weight_held);
  }

  static void same_device(const Tensor& tensor, const char* name, const Tensor& student) {
    STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == student.get_device_index(), name,
                    ": must be on the device of student");
  }

  int32_t stat_dtype() const {
    return student.scalar_type() == ScalarType::Double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
  }

  template <class Scalar>
  Inputs<Scalar> inputs() const {
    using Stat = StatOf<Scalar>;
    Inputs<Scalar> in{};
    in.student = static_cast<const Scalar*>(student.const_data_ptr());
    in.teacher = static_cast<const Scalar*>(teacher.const_data_ptr());
    in.student_stride = student.stride(0);
    in.teacher_stride = teacher.stride(0);
    in.rows = rows;
    in.classes = static_cast<int>(classes);
    in.use_vectors = classes >= kVectorClasses;
    in.labels_are_int64 = labels_are_int64;
    in.labels = labels;
    in.weight = static_cast<const Stat*>(weight);
    in.ce_weight = static_cast<const Stat*>(ce_weight);
    in.numbers = numbers<Stat>(scalars);
    return in;
  }
};

// Calls run(Scalar{}, form) with the element type and the kernels' form as compile-time values.
template <class Run>
void dispatch(const Call& call, Run run) {
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
void launch_forward(const Call& call, const Tensor& loss, const Tensor& stats, int32_t device, cudaStream_t stream) {
  using Stat = StatOf<Scalar>;
  Forward<Scalar> forward{};
  forward.in = call.inputs<Scalar>();
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
    const Tensor partials = empty_on(call.student, {kPartials * call.rows * plan.splits}, call.stat_dtype());
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
  const Tensor totals = empty_on(call.student, {int64_t{kTotals} * plan.blocks}, call.stat_dtype());
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
                                   double kl_factor, double ce_factor, int64_t ignore_index, bool per_row) {
  const int32_t device = student.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Call call(
      student, teacher, weight, labels, ce_weight,
      {temperature, static_cast<Divergence>(divergence), beta, row_scale, kl_factor, ce_factor, ignore_index, per_row});
  if (call.rows == 0) {  // every mean over no rows is 0
    const ScalarType stat = statistics_type(student.scalar_type());
    const int64_t no_rows = 0, tail = kTail;
    return {torch::stable::new_zeros(student, {&no_rows, per_row ? size_t{1} : size_t{0}}, stat),
            torch::stable::new_zeros(student, {&tail, 1}, stat)};
  }
  const Tensor loss =
      per_row ? empty_on(student, {call.rows}, call.stat_dtype()) : empty_on(student, {}, call.stat_dtype());
  const Tensor stats = empty_on(student, {kFields * call.rows + kTail}, call.stat_dtype());
  const cudaStream_t stream = current_stream(device);
  dispatch(call, [&](auto scalar, auto form) {
    launch_forward<decltype(scalar), decltype(form)::value>(call, loss, stats, device, stream);
  });
  return {loss, stats};
}

Tensor backward(const Tensor& grad_loss, const Tensor& student, const Tensor& teacher,
                const std::optional<Tensor>& weight, const std::optional<Tensor>& labels,
                const std::optional<Tensor>& ce_weight, const Tensor& stats, double temperature, int64_t divergence,
                double beta, double row_scale, double kl_factor, double ce_factor, int64_t ignore_index, bool per_row) {
  const int32_t device = student.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Call call(
      student, teacher, weight, labels, ce_weight,
      {temperature, static_cast<Divergence>(divergence), beta, row_scale, kl_factor, ce_factor, ignore_index, per_row});
  const ScalarType stat = statistics_type(student.scalar_type());
  STD_TORCH_CHECK(grad_loss.scalar_type() == stat && stats.scalar_type() == stat, "grad_loss, stats: wrong dtype");
  STD_TORCH_CHECK(per_row ? grad_loss.dim() == 1 && grad_loss.size(0) == call.rows : grad_loss.numel() == 1,
                  "grad_loss: must have the shape of the loss");
  STD_TORCH_CHECK(stats.numel() == kFields * call.rows + kTail && stats.is_contiguous(), "stats: wrong size");
  Call::same_device(grad_loss, "grad_loss", student);
  Call::same_device(stats, "stats", student);
  int32_t dtype;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(student.get(), &dtype));
  const Tensor grad = empty_on(student, {call.rows, call.classes}, dtype);
  if (call.rows == 0) return grad;

  const cudaStream_t stream = current_stream(device);
  dispatch(call, [&](auto scalar, auto form) {
    using Scalar = decltype(scalar);
    using Stat = StatOf<Scalar>;
    const BackwardPlan plan = plan_backward(call.rows, call.classes, kBatch<Scalar>, kEdgeBatch);
    Backward<Scalar> backward{};
    backward.in = call.inputs<Scalar>();
    backward.stats = static_cast<const Stat*>(stats.const_data_ptr());
    backward.grad_loss = static_cast<const Stat*>(grad_loss.const_data_ptr());
    backward.grad_loss_stride = per_row ? grad_loss.stride(0) : 0;
    backward.grad = static_cast<Scalar*>(grad.mutable_data_ptr());
    backward.lanes = plan.lanes;
    backward.splits = plan.splits;
    STD_TORCH_CHECK(plan.blocks <= kMaxBlocks, "student: too many rows for one launch");
    backward_kernel<Scalar, decltype(form)::value>
        <<<static_cast<unsigned>(plan.blocks), plan.threads, 0, stream>>>(backward);
    check_launch("kl backward_kernel");
  });
  return grad;
}

}  // namespace
}  // namespace amkd::kl

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CUDA, m) {
  m.impl("kl_forward", TORCH_BOX(&amkd::kl::forward));
  m.impl("kl_backward", TORCH_BOX(&amkd::kl::backward));
}
