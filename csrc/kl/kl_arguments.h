// The arguments that both KL operators take on every device, checked.
#pragma once

#include "kl.h"
#include "row_loss.h"

namespace amkd::kl {

struct Arguments : RowLoss {
  Scalars scalars;
  RowLabels labels;
  const void* ce_weight;

  Arguments(const Tensor& student_in, const Tensor& teacher_in, const std::optional<Tensor>& weight_in,
            const std::optional<Tensor>& labels_in, const std::optional<Tensor>& ce_weight_in,
            const Scalars& scalars_in, int64_t reduction_in)
      : RowLoss(student_in, teacher_in, weight_in, reduction_in), scalars(scalars_in), labels(labels_in, student_in) {
    STD_TORCH_CHECK(scalars.divergence >= Divergence::kForward && scalars.divergence <= Divergence::kSoftCrossEntropy,
                    "divergence: must be from 0 to 3");
    scalars.kl_factor = over_rows(scalars.kl_factor);
    scalars.per_row = is_per_row();
    ce_weight = row_data(ce_weight_in, "ce_weight", student_in, stat, ce_weight_held);
  }

  void check(const Tensor& grad_loss, const Tensor& stats) const {
    RowLoss::check(grad_loss, stats, kFields * rows + kTail);
  }

 private:
  Tensor ce_weight_held;
};

}  // namespace amkd::kl
