// What the losses over rows of a student's and a teacher's logits have in common on every device: the checks of their
// arguments, with the copies that these needed, and how the rows are put together.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/tensors.h"

namespace amkd::kl {

enum class Reduction : int64_t { kSum = 0, kMean = 1, kNone = 2 };

inline Reduction reduction_from(int64_t number) {
  STD_TORCH_CHECK(number >= 0 && number <= 2, "reduction: must be 0, 1 or 2");
  return static_cast<Reduction>(number);
}

struct RowLoss {
  Tensor student, teacher;  // [rows, classes], unit column stride
  ScalarType stat;          // dtype of statistics, loss and weights
  int64_t rows, classes;
  Reduction reduction;
  const void* weight;  // [rows] or null

  RowLoss(const Tensor& student_in, const Tensor& teacher_in, const std::optional<Tensor>& weight_in,
          int64_t reduction_in)
      : stat(statistics_type(student_in.scalar_type())), reduction(reduction_from(reduction_in)) {
    STD_TORCH_CHECK(student_in.dim() == 2 && teacher_in.dim() == 2, "student, teacher: must be [B, K]");
    rows = student_in.size(0);
    classes = student_in.size(1);
    STD_TORCH_CHECK(teacher_in.size(0) == rows && teacher_in.size(1) == classes && classes > 0,
                    "teacher: must have the shape of student, with at least one class");
    STD_TORCH_CHECK(teacher_in.scalar_type() == student_in.scalar_type(), "teacher: must have the dtype of student");
    check_storage(student_in, "student");
    check_device(teacher_in, "teacher", student_in);
    student = with_unit_columns(student_in);
    teacher = with_unit_columns(teacher_in);
    weight = row_data(weight_in, "weight", student_in, stat, weight_held);
  }

  bool is_per_row() const { return reduction == Reduction::kNone; }

  // The factor of a sum over the rows; a mean over no rows is 0. The mean is an option and no factor of the caller's,
  // so that the number of rows is no number of the call, which a compiler would bake in.
  double over_rows(double factor) const {
    return reduction == Reduction::kMean ? factor / std::max<int64_t>(rows, 1) : factor;
  }

  // What the backward operator gets besides, with so many statistics.
  void check(const Tensor& grad_loss, const Tensor& stats, int64_t count) const {
    STD_TORCH_CHECK(grad_loss.scalar_type() == stat && stats.scalar_type() == stat, "grad_loss, stats: wrong dtype");
    STD_TORCH_CHECK(is_per_row() ? grad_loss.dim() == 1 && grad_loss.size(0) == rows : grad_loss.numel() == 1,
                    "grad_loss: must have the shape of the loss");
    STD_TORCH_CHECK(stats.numel() == count && stats.is_contiguous(), "stats: wrong size");
    check_device(grad_loss, "grad_loss", student);
    check_device(stats, "stats", student);
  }

 private:
  Tensor weight_held;
};

// The labels [rows] of a loss.
struct RowLabels {
  bool are_int64;    // else int32
  const void* data;  // or null

  RowLabels(const std::optional<Tensor>& labels, const Tensor& like)
      : are_int64(labels.has_value() && labels->scalar_type() == ScalarType::Long) {
    data = row_data(labels, "labels", like, are_int64 ? ScalarType::Long : ScalarType::Int, held);
  }

 private:
  Tensor held;
};

}  // namespace amkd::kl
