// Squared differences on a CPU. Memory is the limit: what is read is read once, and a gradient is written while the
// difference that it is made of is in a register.
#include "../common/simd.h"
#include "segments_cpu.h"

namespace amkd::segments::AMKD_SIMD {
namespace {

using namespace amkd::AMKD_SIMD;

constexpr int kSums = 4;     // side by side, as one addition waits for the one before
constexpr int kRounds = 64;  // of such additions, before their sums go to fp64: longer ones would lose digits

template <class T, bool kGrad>
double sweep_as(const Segment& segment, int64_t first, int64_t last, double slope) {
  using V = Vector<T>;
  constexpr int64_t kStep = lanes<V>;
  const T* student = static_cast<const T*>(segment.student);
  const T* teacher = static_cast<const T*>(segment.teacher);
  T* grad = static_cast<T*>(segment.grad);
  const V factor = splat<V>(slope);
  V sums[kSums] = {};
  double total = 0.0;
  int64_t i = first;
  for (int round = 0; i + kSums * kStep <= last; i += kSums * kStep) {
    if (++round == kRounds) {
      total += sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
      for (V& sum : sums) sum = V{};
      round = 0;
    }
    for (int k = 0; k < kSums; ++k) {
      const V difference = load(student + i + k * kStep) - load(teacher + i + k * kStep);
      sums[k] += difference * difference;
      if constexpr (kGrad) store(grad + i + k * kStep, difference * factor);
    }
  }
  for (; i < last; i += kStep) {
    const int64_t count = last - i < kStep ? last - i : kStep;
    const V difference = load_some(student + i, count, T{}) - load_some(teacher + i, count, T{});
    sums[0] += difference * difference;
    if constexpr (kGrad) store_some(grad + i, count, difference * factor);
  }
  return total + sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <class T>
double sweep(const Segment& segment, int64_t first, int64_t last, double slope) {
  return segment.grad == nullptr ? sweep_as<T, false>(segment, first, last, slope)
                                 : sweep_as<T, true>(segment, first, last, slope);
}

template <class T>
void scale(void* data, int64_t first, int64_t last, double factor) {
  using V = Vector<T>;
  constexpr int64_t kStep = lanes<V>;
  T* at = static_cast<T*>(data);
  const V by = splat<V>(factor);
  int64_t i = first;
  for (; i + kStep <= last; i += kStep) store(at + i, load(at + i) * by);
  if (i < last) store_some(at + i, last - i, load_some(at + i, last - i, T{}) * by);
}

template <class T>
constexpr Kernels of() {
  return {sweep<T>, scale<T>};
}

}  // namespace

extern const Kernels kernels[kElements] = {of<float>(), of<double>(), of<Half>(), of<BFloat16>()};

}  // namespace amkd::segments::AMKD_SIMD
