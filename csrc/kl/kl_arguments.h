// The arguments that both KL operators take on every device, checked, with the copies that they needed.
#pragma once

#include "../common/tensors.h"
#include "kl.h"
#include "reduction.h"

namespace amkd::kl {

struct Arguments {
  Tensor student, teacher;  // [rows, classes], unit column stride
  Scalars scalars;
  ScalarType stat;  // dtype of statistics, loss and weights
  int64_t rows, classes;
  bool labels_are_int64;  // else int32
  const void* labels;     // [rows] or null
  const void* weight;
  const void* ce_weight;

  Arguments(const Tensor& student_in, const Tensor& teacher_in, const std::optional<Tensor>& weight_in,
            const std::optional<Tensor>& labels_in, const std::optional<Tensor>& ce_weight_in,
            const Scalars& scalars_in, int64_t reduction)
      : scalars(scalars_in), stat(statistics_type(student_in.scalar_type())) {
    STD_TORCH_CHECK(scalars.divergence >= Divergence::kForward && scalars.divergence <= Divergence::kSoftCrossEntropy,
                    "divergence: must be from 0 to 3");
    STD_TORCH_CHECK(student_in.dim() == 2 && teacher_in.dim() == 2, "student, teacher: must be [B, K]");
    rows = student_in.size(0);
    classes = student_in.size(1);
    STD_TORCH_CHECK(teacher_in.size(0) == rows && teacher_in.size(1) == classes && classes > 0,
                    "teacher: must have the shape of student, with at least one class");
    STD_TORCH_CHECK(teacher_in.scalar_type() == student_in.scalar_type(), "teacher: must have the dtype of student");
    check_storage(student_in, "student");
    check_device(teacher_in, "teacher", student_in);
    scalars.kl_factor = over_rows(scalars.kl_factor, reduction, rows);
    scalars.per_row = is_per_row(reduction);
    student = with_unit_columns(student_in);
    teacher = with_unit_columns(teacher_in);
    labels_are_int64 = labels_in.has_value() && labels_in->scalar_type() == ScalarType::Long;
    const ScalarType label = labels_are_int64 ? ScalarType::Long : ScalarType::Int;
    labels = row_data(labels_in, "labels", student_in, label, labels_held);
    weight = row_data(weight_in, "weight", student_in, stat, weight_held);
    ce_weight = row_data(ce_weight_in, "ce_weight", student_in, stat, ce_weight_held);
  }

  // What the backward operator gets besides.
  void check(const Tensor& grad_loss, const Tensor& stats) const {
    STD_TORCH_CHECK(grad_loss.scalar_type() == stat && stats.scalar_type() == stat, "grad_loss, stats: wrong dtype");
    STD_TORCH_CHECK(scalars.per_row ? grad_loss.dim() == 1 && grad_loss.size(0) == rows : grad_loss.numel() == 1,
                    "grad_loss: must have the shape of the loss");
    STD_TORCH_CHECK(stats.numel() == kFields * rows + kTail && stats.is_contiguous(), "stats: wrong size");
    check_device(grad_loss, "grad_loss", student);
    check_device(stats, "stats", student);
  }

 private:
  Tensor labels_held, weight_held, ce_weight_held;
};

}  // namespace amkd::kl
