// How the losses over rows of logits put their rows together: the operators' number `reduction`. The mean is an option
// and no factor of the caller's, so that the number of rows is no number of the call, which a compiler would bake in.
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

// The factor of a sum over the rows; a mean over no rows is 0.
inline double over_rows(double factor, int64_t reduction, int64_t rows) {
  return reduction_from(reduction) == Reduction::kMean ? factor / std::max<int64_t>(rows, 1) : factor;
}

inline bool is_per_row(int64_t reduction) { return reduction_from(reduction) == Reduction::kNone; }

}  // namespace amkd::kl
