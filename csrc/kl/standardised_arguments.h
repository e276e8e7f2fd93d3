// The arguments that both operators of the standardised KL divergence take on every device, checked.
#pragma once

#include "row_loss.h"
#include "standardised.h"

namespace amkd::kl::standardised {

struct Arguments : RowLoss {
  Scalars scalars;

  Arguments(const Tensor& student_in, const Tensor& teacher_in, const std::optional<Tensor>& weight_in,
            const Scalars& scalars_in, int64_t reduction_in)
      : RowLoss(student_in, teacher_in, weight_in, reduction_in), scalars(scalars_in) {
    scalars.factor = over_rows(scalars.factor);
    scalars.per_row = is_per_row();
  }

  void check(const Tensor& grad_loss, const Tensor& stats) const { RowLoss::check(grad_loss, stats, kFields * rows); }
};

}  // namespace amkd::kl::standardised
