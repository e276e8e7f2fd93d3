// The arguments that both operators of cosine-confidence distillation take on every device, checked, with the copies
// that they needed.
#pragma once

#include "../common/tensors.h"
#include "consistency.h"

namespace amkd::kl::consistency {

struct Arguments {
  Tensor student[kViews], teacher[kViews];  // [rows, classes], unit column stride
  double temperature, row_scale;
  ScalarType stat;  // dtype of statistics and loss
  int64_t rows, classes;

  Arguments(const Tensor& student_in, const Tensor& teacher_in, const Tensor& augmented_student_in,
            const Tensor& augmented_teacher_in, double temperature_in, double row_scale_in)
      : temperature(temperature_in), row_scale(row_scale_in), stat(statistics_type(student_in.scalar_type())) {
    STD_TORCH_CHECK(student_in.dim() == 2 && student_in.size(1) > 0, "student: must be [B, K] with at least one class");
    rows = student_in.size(0);
    classes = student_in.size(1);
    check_storage(student_in, "student");
    student[0] = with_unit_columns(student_in);
    teacher[0] = checked(teacher_in, "teacher", student_in);
    student[1] = checked(augmented_student_in, "augmented_student", student_in);
    teacher[1] = checked(augmented_teacher_in, "augmented_teacher", student_in);
  }

  // What the backward operator gets besides.
  void check(const Tensor& grad_total, const Tensor& stats) const {
    STD_TORCH_CHECK(grad_total.scalar_type() == stat && stats.scalar_type() == stat, "grad_total, stats: wrong dtype");
    STD_TORCH_CHECK(grad_total.numel() == 1, "grad_total: must be a scalar");
    STD_TORCH_CHECK(stats.numel() == kFields * rows + kTail && stats.is_contiguous(), "stats: wrong size");
    check_device(grad_total, "grad_total", student[0]);
    check_device(stats, "stats", student[0]);
  }

 private:
  static Tensor checked(const Tensor& logits, const char* name, const Tensor& like) {
    STD_TORCH_CHECK(logits.dim() == 2 && logits.size(0) == like.size(0) && logits.size(1) == like.size(1), name,
                    ": must have the shape of student");
    STD_TORCH_CHECK(logits.scalar_type() == like.scalar_type(), name, ": must have the dtype of student");
    check_device(logits, name, like);
    return with_unit_columns(logits);
  }
};

}  // namespace amkd::kl::consistency
