// Bounds of every coordinate, for kernels that know no channels, and the largest number of a dtype.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>

#include "../common/tensors.h"
#include "attack_cpu.h"

namespace amkd::attack {

constexpr int64_t kShortRun = 32;  // neighbours of one channel below which bounds come from a table

// The bound of every coordinate of a sample, channel by channel.
template <class W>
void spread(const StepWork& p, const void* channels, double scalar, double none, W* out) {
  const W* bounds = static_cast<const W*>(channels);
  for (int64_t k = 0, channel = 0; k < p.size; k += p.run, channel = channel + 1 < p.channels ? channel + 1 : 0) {
    const double bound = bounds == nullptr ? scalar : bounds[channel];
    std::fill_n(out + k, p.run, static_cast<W>(saturated(bound, none, p.largest)));
  }
}

inline double largest_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return std::numeric_limits<double>::max();
    case ScalarType::Half:
      return 65504.0;
    case ScalarType::BFloat16:
      return 0x1.fep127;
    default:
      return std::numeric_limits<float>::max();
  }
}

// The table of a step that needs one, entered there; it has to outlive the step.
template <class W>
std::unique_ptr<W[]> spread_bounds(StepWork& p) {
  std::unique_ptr<W[]> table;
  if ((p.lowers != nullptr || p.uppers != nullptr) && p.run < kShortRun) {
    table.reset(new W[2 * p.size]);
    spread(p, p.lowers, p.scalars.lower, -p.largest, table.get());
    spread(p, p.uppers, p.scalars.upper, p.largest, table.get() + p.size);
    p.lower_at = table.get();
    p.upper_at = table.get() + p.size;
  }
  return table;
}

}  // namespace amkd::attack
