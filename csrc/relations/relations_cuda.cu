// relations_loss on CUDA tensors: up to six launches, without a word from the device in between.
#include <torch/csrc/stable/library.h>

#include <limits>
#include <tuple>

#include "../common/cuda_dispatch.cuh"
#include "../common/cuda_host.h"
#include "relations_arguments.h"
#include "relations_kernels.cuh"

namespace amkd::relations::gpu {
namespace {

constexpr int64_t kMostRows = int64_t{1} << 19;  // a grid's second dimension has below 2^16 tiles

// fp64 memory beside the rows, handed out piece by piece.
struct Scratch {
  Tensor memory;
  double* next;

  Scratch(const Tensor& like, int64_t doubles)
      : memory(new_empty(like, {doubles}, ScalarType::Double)), next(static_cast<double*>(memory.mutable_data_ptr())) {}
  template <class T = double>
  T* take(int64_t count) {
    T* found = reinterpret_cast<T*>(next);
    next += count * static_cast<int64_t>(sizeof(T) / sizeof(double));
    return found;
  }
};

template <class Scalar>
void launch(const Arguments& call, const Tensor& loss, const Tensor& grad, bool with_gradient, cudaStream_t stream) {
  using Stat = StatOf<Scalar>;
  const int count = static_cast<int>(call.count);
  const bool has_angles = call.angle_weight != 0.0, has_distances = call.distance_weight != 0.0;
  const unsigned tiles = static_cast<unsigned>((count + kTile - 1) / kTile);
  const dim3 grid(tiles, tiles);
  const int64_t parts = int64_t{tiles} * tiles, pairs = call.count * call.count;
  const double rows = static_cast<double>(count);
  const double distance_factor = call.distance_weight / (rows * rows);
  const double angle_factor = call.angle_weight / (rows * rows * rows);

  Scratch scratch(loss, 5 * pairs + 8 * parts + 3);
  const Side sides[2] = {{scratch.take(pairs), scratch.take(pairs)}, {scratch.take(pairs), scratch.take(pairs)}};
  Part* sums[2] = {scratch.take<Part>(parts), scratch.take<Part>(parts)};
  Part* angle_losses = has_angles ? scratch.take<Part>(parts) : nullptr;
  Part* distance_losses = has_distances ? scratch.take<Part>(parts) : nullptr;
  double* weights = has_angles && with_gradient ? scratch.take(pairs) : nullptr;
  Relative* relative = has_distances ? scratch.take<Relative>(1) : nullptr;

  const Tensor* tensors[2] = {&call.student, &call.teacher};
  for (int i = 0; i < 2; ++i) {
    pairs_kernel<Scalar><<<grid, kThreads, 0, stream>>>(static_cast<const Scalar*>(tensors[i]->const_data_ptr()), count,
                                                        static_cast<int>(tensors[i]->size(1)), tensors[i]->stride(0),
                                                        sides[i], sums[i]);
    check_launch("relations pairs_kernel");
  }
  if (has_angles) {
    const auto kernel = with_gradient ? angles_kernel<true> : angles_kernel<false>;
    kernel<<<grid, kThreads, 0, stream>>>(sides[0], sides[1], count, angle_factor, weights, angle_losses);
    check_launch("relations angles_kernel");
  }
  if (has_distances) {
    distances_kernel<<<grid, kThreads, 0, stream>>>(sides[0], sides[1], count, distance_factor, sums[0], sums[1],
                                                    distance_losses);
    check_launch("relations distances_kernel");
  }
  finish_kernel<Stat><<<1, kThreads, 0, stream>>>(sums[0], sums[1], angle_losses, distance_losses,
                                                  static_cast<int>(parts), static_cast<Stat*>(loss.mutable_data_ptr()),
                                                  relative);
  check_launch("relations finish_kernel");
  if (!with_gradient) return;
  const int width = static_cast<int>(call.student.size(1));
  const dim3 gradient_grid(static_cast<unsigned>((width + kTile - 1) / kTile), tiles);
  gradient_kernel<Scalar><<<gradient_grid, kThreads, 0, stream>>>(
      static_cast<const Scalar*>(call.student.const_data_ptr()), count, width, call.student.stride(0), sides[0],
      sides[1], weights, relative, distance_factor, static_cast<Stat*>(grad.mutable_data_ptr()));
  check_launch("relations gradient_kernel");
}

std::tuple<Tensor, Tensor> loss(const Tensor& student, const Tensor& teacher, double distance_weight,
                                double angle_weight, bool with_gradient) {
  const DeviceGuard guard(student.get_device_index());
  const Arguments call(student, teacher, distance_weight, angle_weight);
  STD_TORCH_CHECK(call.count < kMostRows, "student: must have less than 2^19 rows");
  STD_TORCH_CHECK(std::max(call.student.size(1), call.teacher.size(1)) < std::numeric_limits<int32_t>::max() - kTile,
                  "student, teacher: must have less than 2^31 - 16 columns");
  const Tensor loss = new_empty(student, {}, call.statistics);
  const Tensor grad = new_empty(student, {with_gradient ? call.count : 0, call.student.size(1)}, call.statistics);
  const cudaStream_t stream = current_stream(student.get_device_index());
  if (call.count == 0) {
    const size_t bytes = call.statistics == ScalarType::Double ? sizeof(double) : sizeof(float);
    check(cudaMemsetAsync(loss.mutable_data_ptr(), 0, bytes, stream), "relations_loss");
    return {loss, grad};
  }
  dispatch(call.type, "student",
           [&](auto scalar) { launch<decltype(scalar)>(call, loss, grad, with_gradient, stream); });
  return {loss, grad};
}

}  // namespace
}  // namespace amkd::relations::gpu

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CUDA, m) { m.impl("relations_loss", TORCH_BOX(&amkd::relations::gpu::loss)); }
