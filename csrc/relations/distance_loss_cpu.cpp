// Memory and threads of the distances' loss in fp32. The bits do not depend on the number of threads: every row has
// sums of its own, which are taken in their order.
#include "distance_loss_cpu.h"

#include <atomic>
#include <vector>

#include "../common/cpu_dispatch.h"
#include "../common/cpu_scratch.h"
#include "../common/cpu_share.h"
#include "distances_cpu.h"

namespace amkd::relations {
namespace {

const DistanceKernels& kernels_here() { AMKD_AT_LEVEL(distance_kernels); }

int64_t blocks_of(int64_t count) { return (count + kBlock - 1) / kBlock; }

float* floats(const Scratch& scratch) { return reinterpret_cast<float*>(scratch.get()); }

// One side's rows, and the distances among them.
struct Space {
  Tensor tensor;
  Points points;
  Scratch rows, packed, distances;
  std::vector<DistanceSums> sums;

  explicit Space(const Tensor& tensor) : tensor(tensor), sums(tensor.size(0)) {
    const int64_t count = tensor.size(0), width = tensor.size(1), room = blocks_of(count) * kBlock;
    const int64_t stride = room + kBlock / 2;  // so that a column's rows are in different places of a cache
    rows = Scratch(count * width / 2 + 1);
    packed = Scratch(room * packed_width(width) / 2);
    distances = Scratch(count * stride);
    points = {floats(rows), floats(packed), distances.get(), count, width, stride};
  }

  void read(const DistanceKernels& kernels, int64_t block) {
    const Element element = element_of(tensor.scalar_type(), "rows");
    const int64_t bytes = element == Element::kFloat ? 4 : 2;
    const char* data = static_cast<const char*>(tensor.const_data_ptr());
    const int64_t last = std::min((block + 1) * kBlock, points.count);
    for (int64_t i = block * kBlock; i < last; ++i) {
      kernels.read[static_cast<int>(element)](data + i * tensor.stride(0) * bytes, points.width,
                                              points.rows + i * points.width);
    }
    kernels.pack(points, block);
  }

  DistanceSums total() const {
    DistanceSums all{0.0, 0.0};
    for (const DistanceSums& row : sums) {
      all.total += row.total;
      all.apart += row.apart;
    }
    return all;
  }
};

double over_mean(const DistanceSums& sums) { return sums.apart > 0.0 ? sums.apart / sums.total : 1.0; }

}  // namespace

std::optional<double> distance_loss(const Tensor& student_in, const Tensor& teacher_in, double weight, float* grad) {
  const DistanceKernels& kernels = kernels_here();
  Space student(student_in), teacher(teacher_in);
  Space* sides[2] = {&student, &teacher};
  const int64_t count = student.points.count, width = std::max(student.points.width, teacher.points.width);
  const int64_t blocks = blocks_of(count), tiles = (count + kTileRows - 1) / kTileRows;

  share(2 * blocks, kBlock * width, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) sides[i % 2]->read(kernels, i / 2);
  });
  std::atomic<bool> served{true};
  share(2 * tiles, kTileRows * count * width / 4, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      Space& side = *sides[i % 2];
      const int64_t row = i / 2 * kTileRows;
      const int64_t end = std::min(row + kTileRows, count);
      if (!kernels.measure(side.points, row, end, side.sums.data())) served = false;
    }
  });
  if (!served) return std::nullopt;

  const DistanceSums own = student.total();
  Relative relative{over_mean(own), over_mean(teacher.total()), 0.0};
  std::vector<double> losses(count), products(count);
  share(count, count, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      kernels.compare(student.points, teacher.points, relative, row, &losses[row], &products[row]);
    }
  });
  double loss = 0.0, product = 0.0;
  for (int64_t row = 0; row < count; ++row) {
    loss += losses[row];
    product += products[row];
  }
  const double rows = static_cast<double>(count), factor = 2.0 * weight / (rows * rows);  // both orders of a pair
  if (grad == nullptr) return factor * loss;

  const double inverse = relative.student_factor;
  relative.through_mean = own.apart > 0.0 ? product * inverse * inverse / own.apart : 0.0;
  const Scratch weights(count * student.points.stride / 2);
  share(count, 2 * count, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      kernels.weigh(student.points, teacher.points, relative, factor, row, floats(weights));
    }
  });
  const int64_t pieces = (count + kGatherRows - 1) / kGatherRows;
  share(pieces, kGatherRows * count * width / 4, [&](int64_t first, int64_t last) {
    kernels.gather(student.points, floats(weights), first * kGatherRows, std::min(last * kGatherRows, count), grad);
  });
  return factor * loss;
}

}  // namespace amkd::relations
