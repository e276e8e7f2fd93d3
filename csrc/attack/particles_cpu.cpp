// attack_svgd on CPU tensors: threads, the bandwidth of every image, and what its particles weigh for each other.
#include "particles_cpu.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "../common/cpu_dispatch.h"
#include "../common/cpu_share.h"
#include "bounds_cpu.h"
#include "particles_arguments.h"

namespace amkd::attack {
namespace {

const DistanceKernel* distance_kernels() { AMKD_AT_LEVEL(distance_kernels); }
const EnsembleKernel* ensemble_kernels() { AMKD_AT_LEVEL(ensemble_kernels); }

// Room for the work on an image.
template <class W>
struct Desk {
  explicit Desk(int64_t count)
      : square(count * count),
        pairs(count * count),
        usable(new bool[count]),
        pull(count * count),
        push(count * count),
        scratch(new W[3 * count * kPanel]) {}
  std::vector<double> square, pairs;
  std::unique_ptr<bool[]> usable;
  std::vector<int64_t> members;
  std::vector<W> pull, push;
  std::unique_ptr<W[]> scratch;
};

// h: the lower median of the members' squared distances over the logarithm of their number; 0 for one of them.
template <class W>
double bandwidth_of(Desk<W>& desk, int64_t count) {
  const int64_t n = static_cast<int64_t>(desk.members.size());
  if (n < 2) return 0.0;
  int64_t found = 0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = i + 1; j < n; ++j) desk.pairs[found++] = desk.square[desk.members[i] * count + desk.members[j]];
  }
  const auto median = desk.pairs.begin() + (found - 1) / 2;
  std::nth_element(desk.pairs.begin(), median, desk.pairs.begin() + found);
  return *median / std::log(static_cast<double>(n));
}

template <class W>
Ensemble weigh(Desk<W>& desk, int64_t count, double bandwidth) {
  desk.members.clear();
  for (int64_t i = 0; i < count; ++i) {
    if (desk.usable[i]) desk.members.push_back(i);
  }
  const int64_t n = static_cast<int64_t>(desk.members.size());
  const double h = bandwidth > 0.0 ? bandwidth : bandwidth_of(desk, count);
  const double most = std::numeric_limits<W>::max();
  for (int64_t i = 0; i < n; ++i) {
    desk.pull[i * n + i] = static_cast<W>(1.0 / n);
    desk.push[i * n + i] = 0;
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = i + 1; j < n; ++j) {
      const double square = desk.square[desk.members[i] * count + desk.members[j]];
      double near = square == 0.0 ? 1.0 : 0.0;
      if (square > 0.0 && h > 0.0 && std::isfinite(square)) near = std::exp(-square / h);
      const W pull = static_cast<W>(near / n);
      const W push = static_cast<W>(h > 0.0 ? std::min(2.0 * near / h, most) / n : 0.0);
      desk.pull[i * n + j] = desk.pull[j * n + i] = pull;
      desk.push[i * n + j] = desk.push[j * n + i] = -push;
      desk.push[i * n + i] += push;
      desk.push[j * n + j] += push;
    }
  }
  return {n, desk.members.data(), desk.pull.data(), desk.push.data()};
}

template <class W>
void step_all(const ParticleArguments& arguments) {
  ParticleWork p{{arguments, largest_of(arguments.type), nullptr, nullptr}, arguments.count};
  const std::unique_ptr<W[]> table = spread_bounds<W>(p);
  const int kind = static_cast<int>(element_of(arguments.type, "particles"));
  const DistanceKernel measure = distance_kernels()[kind];
  const EnsembleKernel move = ensemble_kernels()[kind];
  share(p.samples, p.size * p.count * p.count, [&](int64_t first, int64_t last) {
    Desk<W> desk(p.count);
    for (int64_t i = first; i < last; ++i) {
      measure(p, arguments.wide_grad, i, desk.square.data(), desk.usable.get());
      move(p, arguments.wide_grad, i, weigh(desk, p.count, arguments.bandwidth), desk.scratch.get());
    }
  });
}

void svgd(const Tensor& out, const Tensor& particles, const Tensor& grad, const Tensor& x0,
          const std::optional<Tensor>& step_sizes, const std::optional<Tensor>& radii,
          const std::optional<Tensor>& lowers, const std::optional<Tensor>& uppers, double step_size, double radius,
          double lower, double upper, double bandwidth) {
  const ParticleArguments arguments(out, particles, grad, x0, step_sizes, radii, lowers, uppers, step_size, radius,
                                    lower, upper, bandwidth);
  if (arguments.samples == 0 || arguments.size == 0) return;
  arguments.work == ScalarType::Double ? step_all<double>(arguments) : step_all<float>(arguments);
}

}  // namespace
}  // namespace amkd::attack

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CPU, m) { m.impl("attack_svgd", TORCH_BOX(&amkd::attack::svgd)); }
