// attack_objective, attack_bases and attack_draw on CUDA tensors.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "../common/cuda_dispatch.cuh"
#include "../common/cuda_host.h"
#include "attack_arguments.h"
#include "attack_rows_kernels.cuh"

namespace amkd::attack::gpu {
namespace {

template <class T>
T* data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <class Scalar>
Rows<Scalar> rows_of(const Tensor& logits) {
  const Scalar* const data = static_cast<const Scalar*>(logits.const_data_ptr());
  const int64_t stride = logits.stride(0), bytes = stride * static_cast<int64_t>(sizeof(Scalar));
  const bool wide = reinterpret_cast<uintptr_t>(data) % 16 == 0 && (logits.size(0) == 1 || bytes % 16 == 0);
  return {data, stride, static_cast<int>(logits.size(1)), wide};
}

unsigned grid_of(int64_t blocks) {
  STD_TORCH_CHECK(blocks <= kMostBlocks, "logits: too many rows for one launch");
  return static_cast<unsigned>(blocks);
}

void check_classes(const Tensor& logits) {
  STD_TORCH_CHECK(logits.size(1) <= kMostValues, "logits: more than 2^30 classes");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> objective(const Tensor& logits_in, const Tensor& labels_in,
                                                     const std::optional<Tensor>& target_in, int64_t loss_in,
                                                     bool softmax, bool targeted) {
  const int32_t device = logits_in.get_device_index();
  const DeviceGuard guard(device);
  const Loss loss = static_cast<Loss>(loss_in);
  STD_TORCH_CHECK(loss_in >= 0 && loss_in <= 2, "loss: must be from 0 to 2");
  STD_TORCH_CHECK(!targeted || target_in.has_value(), "target: must be given where targeted");
  check_logits(logits_in, "logits", loss == Loss::kCrossEntropy ? 1 : loss == Loss::kBoundary ? 2 : targeted ? 4 : 3);
  check_classes(logits_in);
  const Tensor logits = with_unit_columns(logits_in);
  const int64_t rows = logits.size(0), classes = logits.size(1);
  Tensor labels, target;
  const int64_t* const label_data = classes_of(labels_in, "labels", logits, labels);
  const int64_t* const target_data = classes_of(target_in, "target", logits, target);
  const Tensor value = new_empty(logits, {rows}, statistics_type(logits.scalar_type()));
  const Tensor grad = new_empty(logits, {rows, classes}, logits.scalar_type());
  const Tensor prediction = new_empty(logits, {rows}, ScalarType::Long);
  const Tensor active = new_empty(logits, {rows}, ScalarType::Bool);
  if (rows == 0) return {value, grad, prediction, active};

  const cudaStream_t stream = current_stream(device);
  dispatch(logits.scalar_type(), "logits", [&](auto scalar) {
    using Scalar = decltype(scalar);
    const RowsPlan plan = plan_objective(rows, classes);
    Objective<Scalar> call{};
    call.logits = rows_of<Scalar>(logits);
    call.logits.wide = call.logits.wide && classes % Vector<Scalar>::kWidth == 0;  // also the gradient's rows
    call.rows = rows;
    call.labels = label_data;
    call.target = target_data;
    call.loss = loss;
    call.softmax = softmax;
    call.targeted = targeted;
    call.lanes = plan.lanes;
    call.value = data_of<StatOf<Scalar>>(value);
    call.grad = data_of<Scalar>(grad);
    call.prediction = data_of<int64_t>(prediction);
    call.active = data_of<bool>(active);
    objective_kernel<Scalar><<<grid_of(plan.blocks), plan.threads, 0, stream>>>(call);
    check_launch("attack objective_kernel");
  });
  return {value, grad, prediction, active};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> bases(const Tensor& student_in, const Tensor& teacher_in,
                                                 const Tensor& labels_in, int64_t limit,
                                                 const std::optional<Tensor>& seeds, int64_t seed) {
  const int32_t device = teacher_in.get_device_index();
  const DeviceGuard guard(device);
  check_logits(student_in, "student", 2);
  check_logits(teacher_in, "teacher", 2);
  check_classes(teacher_in);
  check_device(student_in, "student", teacher_in);
  STD_TORCH_CHECK(student_in.size(0) == teacher_in.size(0) && student_in.size(1) == teacher_in.size(1) &&
                      student_in.scalar_type() == teacher_in.scalar_type(),
                  "student: must have the shape and dtype of teacher");
  STD_TORCH_CHECK(limit >= 0, "limit: must be at least 0");
  const Tensor student = with_unit_columns(student_in), teacher = with_unit_columns(teacher_in);
  const int64_t rows = teacher.size(0);
  STD_TORCH_CHECK(rows < kMostValues, "teacher: more than 2^30 rows");
  Tensor labels;
  const int64_t* const label_data = classes_of(labels_in, "labels", teacher, labels);
  const int64_t* const seed_data = seed_of(seeds, teacher);
  const Tensor index = new_empty(teacher, {limit}, ScalarType::Long),
               base = new_empty(teacher, {limit}, ScalarType::Long);
  const Tensor target = new_empty(teacher, {limit}, ScalarType::Long);
  const Tensor valid = new_empty(teacher, {limit}, ScalarType::Bool);
  if (limit == 0) return {index, base, target, valid};

  const Tensor keys = new_empty(teacher, {rows}, statistics_type(teacher.scalar_type()));
  const cudaStream_t stream = current_stream(device);
  dispatch(teacher.scalar_type(), "teacher", [&](auto scalar) {
    using Scalar = decltype(scalar);
    Bases<Scalar> call{};
    call.student = rows_of<Scalar>(student);
    call.teacher = rows_of<Scalar>(teacher);
    call.rows = rows;
    call.limit = limit;
    call.labels = label_data;
    call.stream = {seed_data, seed};
    call.keys = data_of<StatOf<Scalar>>(keys);
    call.index = data_of<int64_t>(index);
    call.base = data_of<int64_t>(base);
    call.target = data_of<int64_t>(target);
    call.valid = data_of<bool>(valid);
    if (one_block_selects(rows, teacher.size(1))) {
      bases_kernel<Scalar><<<1, kBasesThreads, 0, stream>>>(call);
      check_launch("attack bases_kernel");
      return;
    }
    const RowsPlan plan = plan_warps(rows);
    keys_kernel<Scalar><<<grid_of(plan.blocks), plan.threads, 0, stream>>>(call);
    check_launch("attack keys_kernel");
    ranks_kernel<Scalar><<<grid_of(plan.blocks), plan.threads, 0, stream>>>(call);
    check_launch("attack ranks_kernel");
  });
  return {index, base, target, valid};
}

Tensor draw(const Tensor& logits_in, const Tensor& base_in, const std::optional<Tensor>& rows_in,
            const std::optional<Tensor>& seeds, int64_t seed) {
  const int32_t device = logits_in.get_device_index();
  const DeviceGuard guard(device);
  check_logits(logits_in, "logits", 2);
  check_classes(logits_in);
  const Tensor logits = with_unit_columns(logits_in);
  const int64_t rows = logits.size(0);
  Tensor base, counters;
  const int64_t* const base_data = classes_of(base_in, "base", logits, base);
  const int64_t* const counter_data = classes_of(rows_in, "rows", logits, counters);
  const int64_t* const seed_data = seed_of(seeds, logits);
  const Tensor target = new_empty(logits, {rows}, ScalarType::Long);
  if (rows == 0) return target;

  const cudaStream_t stream = current_stream(device);
  dispatch(logits.scalar_type(), "logits", [&](auto scalar) {
    using Scalar = decltype(scalar);
    const RowsPlan plan = plan_warps(rows);
    Draw<Scalar> call{};
    call.logits = rows_of<Scalar>(logits);
    call.rows = rows;
    call.base = base_data;
    call.counters = counter_data;
    call.stream = {seed_data, seed};
    call.target = data_of<int64_t>(target);
    draw_kernel<Scalar><<<grid_of(plan.blocks), plan.threads, 0, stream>>>(call);
    check_launch("attack draw_kernel");
  });
  return target;
}

}  // namespace
}  // namespace amkd::attack::gpu

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CUDA, m) {
  m.impl("attack_objective", TORCH_BOX(&amkd::attack::gpu::objective));
  m.impl("attack_bases", TORCH_BOX(&amkd::attack::gpu::bases));
  m.impl("attack_draw", TORCH_BOX(&amkd::attack::gpu::draw));
}
