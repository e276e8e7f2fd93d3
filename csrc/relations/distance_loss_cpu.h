// The distances' loss on CPU tensors whose statistics are in fp32.
#pragma once

#include <optional>

#include "../common/tensors.h"

namespace amkd::relations {

// `weight` times the loss of rows [count, width] with unit column stride, and its gradient into `grad` [count, width]
// unless that is null. Nothing where fp32 does not serve: distances so small or so large need fp64.
std::optional<double> distance_loss(const Tensor& student, const Tensor& teacher, double weight, float* grad);

}  // namespace amkd::relations
