// The arguments that both operators of decoupled distillation take on every device, checked.
#pragma once

#include "decoupled.h"
#include "row_loss.h"

namespace amkd::kl::decoupled {

struct Arguments : RowLoss {
  Scalars scalars;
  RowLabels labels;

  Arguments(const Tensor& student_in, const Tensor& teacher_in, const Tensor& labels_in,
            const std::optional<Tensor>& weight_in, const Scalars& scalars_in, int64_t reduction_in)
      : RowLoss(student_in, teacher_in, weight_in, reduction_in), scalars(scalars_in), labels(labels_in, student_in) {
    STD_TORCH_CHECK(classes <= int64_t{1} << 30, "student: more than 2^30 classes");
    scalars.factor = over_rows(scalars.factor);
    scalars.per_row = is_per_row();
  }

  void check(const Tensor& grad_loss, const Tensor& stats) const { RowLoss::check(grad_loss, stats, kFields * rows); }
};

}  // namespace amkd::kl::decoupled
