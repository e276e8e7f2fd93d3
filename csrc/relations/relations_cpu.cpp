// relations_loss on CPU tensors: checks, memory and threads. The bits do not depend on the number of threads: sums over
// rows are taken in their order, and the angles are shared in chunks of vertices whose number the batch decides.
#include "relations_cpu.h"

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <memory>
#include <tuple>

#include "../common/cpu_dispatch.h"
#include "../common/cpu_scratch.h"
#include "../common/cpu_share.h"
#include "distance_loss_cpu.h"
#include "relations_arguments.h"

namespace amkd::relations {
namespace {

constexpr int64_t kMostChunks = 8;  // each has a matrix of its own
constexpr int64_t kTile = 4;        // rows whose distances are computed together

const Kernels& kernels_here() { AMKD_AT_LEVEL(kernels); }

int64_t lanes_of(int64_t count) { return (count + kMostLanes - 1) / kMostLanes * kMostLanes; }

// An odd number of cache lines, so that the rows of a column do not fall into the same few places of a cache.
int64_t stride_of(int64_t count) { return lanes_of(count) | kMostLanes; }

// One side's rows and its pairs.
struct Space {
  Side side;
  Scratch rows, squared, inverse;

  Space(const Kernels& kernels, const Tensor& tensor, int64_t stride, const char* name) {
    const int64_t count = tensor.size(0), width = tensor.size(1), step = tensor.stride(0);
    const int64_t element = static_cast<int64_t>(element_of(tensor.scalar_type(), name));
    const int64_t bytes = element == static_cast<int64_t>(Element::kDouble)  ? 8
                          : element == static_cast<int64_t>(Element::kFloat) ? 4
                                                                             : 2;
    side.width = lanes_of(width);
    rows = Scratch(count * side.width);
    squared = Scratch(count * stride);
    inverse = Scratch(count * stride);
    side.rows = rows.get();
    side.squared = squared.get();
    side.inverse = inverse.get();
    const char* data = static_cast<const char*>(tensor.const_data_ptr());
    for (int64_t i = 0; i < count; ++i) {
      kernels.widen[element](data + i * step * bytes, width, side.width, rows.get() + i * side.width);
    }
    // Whole tiles of rows, whoever takes them: the bits do not depend on it.
    share((count + kTile - 1) / kTile, kTile * count * side.width / 4, [&](int64_t first, int64_t last) {
      kernels.distances(side, count, stride, first * kTile, std::min(last * kTile, count));
    });
  }
};

struct AngleTerms {
  double loss = 0.0;
  int64_t chunks = 0;
  Scratch stretch, turn, across;
  Legs legs{nullptr, nullptr};
};

AngleTerms visit_angles(const Kernels& kernels, const Pairs& pairs, bool with_gradient) {
  const int64_t count = pairs.count, stride = pairs.stride, lanes = lanes_of(count);
  AngleTerms terms;
  const int64_t wanted = std::min((lanes + kPack - 1) / kPack, kMostChunks);
  const int64_t chunk = lanes_of((lanes + wanted - 1) / wanted);
  terms.chunks = (lanes + chunk - 1) / chunk;
  if (with_gradient) {
    terms.stretch = Scratch(count * stride);
    terms.turn = Scratch(count * stride);
    terms.across = Scratch(terms.chunks * count * stride);
    terms.legs = {terms.stretch.get(), terms.turn.get()};
  }
  const Scratch losses = Scratch(terms.chunks);
  share(terms.chunks, chunk * count * count / 2, [&](int64_t first, int64_t last) {
    const Scratch scratch = Scratch(count * kPackBytes / sizeof(double));
    for (int64_t c = first; c < last; ++c) {
      double* across = with_gradient ? terms.across.get() + c * count * stride : nullptr;
      losses[c] = kernels.angles(pairs, terms.legs, across, c * chunk, std::min((c + 1) * chunk, lanes), scratch.get());
    }
  });
  double pairs_apart = 0.0, straight = 0.0;
  for (int64_t c = 0; c < terms.chunks; ++c) pairs_apart += losses[c];
  for (int64_t i = 0; i < count; ++i) straight += kernels.straight(pairs, i);
  terms.loss = 2.0 * pairs_apart + straight;
  return terms;
}

DistanceSums sum_distances(const Kernels& kernels, const Side& side, int64_t count, int64_t stride) {
  const std::unique_ptr<DistanceSums[]> rows(new DistanceSums[count]);
  share(count, count, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) rows[i] = kernels.sum(side, count, stride, i);
  });
  DistanceSums sums{0.0, 0.0};
  for (int64_t i = 0; i < count; ++i) {
    sums.total += rows[i].total;
    sums.apart += rows[i].apart;
  }
  return sums;
}

// Returns the loss of the distances.
double compare_distances(const Kernels& kernels, const Pairs& pairs, Relative& relative) {
  const int64_t count = pairs.count, stride = pairs.stride;
  const DistanceSums student = sum_distances(kernels, pairs.student, count, stride);
  const DistanceSums teacher = sum_distances(kernels, pairs.teacher, count, stride);
  relative.student_factor = student.apart > 0.0 ? student.apart / student.total : 1.0;
  relative.teacher_factor = teacher.apart > 0.0 ? teacher.apart / teacher.total : 1.0;
  const Scratch losses = Scratch(count), products = Scratch(count);
  share(count, 2 * count, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) kernels.compare(pairs, relative, i, &losses[i], &products[i]);
  });
  double loss = 0.0, product = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    loss += losses[i];
    product += products[i];
  }
  const double factor = relative.student_factor;
  relative.through_mean = student.apart > 0.0 ? product * factor * factor / student.apart : 0.0;
  return loss;
}

void write(const Tensor& tensor, const double* from, int64_t rows, int64_t columns, int64_t width) {
  if (tensor.scalar_type() == ScalarType::Double) {
    double* to = static_cast<double*>(tensor.mutable_data_ptr());
    for (int64_t i = 0; i < rows; ++i) std::memcpy(to + i * columns, from + i * width, columns * sizeof(double));
    return;
  }
  float* to = static_cast<float*>(tensor.mutable_data_ptr());
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t d = 0; d < columns; ++d) to[i * columns + d] = static_cast<float>(from[i * width + d]);
  }
}

std::tuple<Tensor, Tensor> loss(const Tensor& student, const Tensor& teacher, double distance_weight,
                                double angle_weight, bool with_gradient) {
  const Arguments call(student, teacher, distance_weight, angle_weight);
  const Kernels& kernels = kernels_here();
  const int64_t count = call.count, width = call.student.size(1), stride = stride_of(count);
  const Tensor loss = new_empty(student, {}, call.statistics);
  const Tensor grad = new_empty(student, {with_gradient ? count : 0, width}, call.statistics);

  double total = 0.0;
  if (count == 0) {
    write(loss, &total, 1, 1, 1);
    return {loss, grad};
  }
  if (call.statistics == ScalarType::Float && angle_weight == 0.0 && distance_weight != 0.0) {
    float* to = with_gradient ? static_cast<float*>(grad.mutable_data_ptr()) : nullptr;
    if (const auto found = distance_loss(call.student, call.teacher, distance_weight, to); found.has_value()) {
      write(loss, &*found, 1, 1, 1);
      return {loss, grad};
    }
  }
  const Space student_space(kernels, call.student, stride, "student");
  const Space teacher_space(kernels, call.teacher, stride, "teacher");
  const Pairs pairs{count, stride, student_space.side, teacher_space.side};
  const double rows = static_cast<double>(count);
  const double distance_factor = distance_weight / (rows * rows), angle_factor = angle_weight / (rows * rows * rows);
  Relative relative{1.0, 1.0, 0.0};
  if (distance_weight != 0.0) total += distance_factor * compare_distances(kernels, pairs, relative);
  AngleTerms angles;
  if (angle_weight != 0.0) {
    angles = visit_angles(kernels, pairs, with_gradient);
    total += angle_factor * angles.loss;
  }
  write(loss, &total, 1, 1, 1);
  if (!with_gradient) return {loss, grad};

  Scratch own = angles.across.get() == nullptr ? Scratch(count * stride) : Scratch();
  double* weights = angles.across.get() == nullptr ? own.get() : angles.across.get();
  share(count, count * 4, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      kernels.weigh(pairs, angles.legs, angles.across.get(), angles.chunks, 4.0 * angle_factor, relative,
                    2.0 * distance_factor, row, weights);
    }
  });
  const Scratch wide = Scratch(count * pairs.student.width);
  share(count, count * pairs.student.width / 4, [&](int64_t first, int64_t last) {
    kernels.gather(pairs.student, count, stride, weights, first, last, wide.get());
  });
  write(grad, wide.get(), count, width, pairs.student.width);
  return {loss, grad};
}

}  // namespace
}  // namespace amkd::relations

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CPU, m) { m.impl("relations_loss", TORCH_BOX(&amkd::relations::loss)); }
