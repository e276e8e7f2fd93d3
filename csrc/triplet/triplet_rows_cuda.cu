// triplet_rows_forward and triplet_rows_backward on CUDA tensors: checks, outputs, launches.
#include <optional>
#include <tuple>

#include "cuda_arguments.h"
#include "rows_kernels.cuh"

namespace amkd::triplet::gpu {
namespace {

// The arguments that both operators take, checked, with the copies that they needed.
struct Arguments {
  Tensor anchor, reference, anchor_square, reference_square, positive_distance, used;
  bool has_positive_distance, has_used;
  int64_t n, p;
  ScalarType stat;
  LabelTensors classes;
  Distance distance;
  double margin;
  bool semihard, fallback, soft_margin;

  Arguments(const Tensor& product, const Tensor& anchor_in, const Tensor& reference_in, const Tensor& anchor_square_in,
            const Tensor& reference_square_in, const std::optional<Tensor>& positive_distance_in,
            const std::optional<Tensor>& used_in, const std::optional<Tensor>& labels,
            const std::optional<Tensor>& reference_labels, const std::optional<Tensor>& exclude_labels,
            int64_t self_offset, int64_t distance_in, double margin_in, bool semihard_in, bool fallback_in,
            bool soft_margin_in)
      : anchor(rows_like(anchor_in, "anchor", anchor_in)),
        reference(rows_like(reference_in, "reference", anchor)),
        has_positive_distance(positive_distance_in.has_value()),
        has_used(used_in.has_value()),
        n(anchor.size(0)),
        p(reference.size(0)),
        stat(statistics_type(anchor_in.scalar_type())),
        classes(labels, reference_labels, exclude_labels, anchor, p, self_offset),
        distance(distance_from(distance_in)),
        margin(margin_in),
        semihard(semihard_in),
        fallback(fallback_in),
        soft_margin(soft_margin_in) {
    STD_TORCH_CHECK(product.dim() == 2 && product.size(0) == n && product.size(1) == p, "product: must be [n, P]");
    STD_TORCH_CHECK(product.scalar_type() == stat, "product: must be fp32, fp64 for fp64 rows");
    STD_TORCH_CHECK(p < (int64_t{1} << 31) - kThreads, "reference: more than 2^31 rows");
    check_device(product, "product", anchor);
    row_data(anchor_square_in, "anchor_square", anchor, stat, anchor_square);
    row_data(reference_square_in, "reference_square", reference, stat, reference_square);
    row_data(positive_distance_in, "positive_distance", anchor, stat, positive_distance);
    row_data(used_in, "used", anchor, ScalarType::Bool, used);
  }

  template <class Scalar>
  EveryPair<Scalar> pairs() const {
    using Stat = StatOf<Scalar>;
    EveryPair<Scalar> call{};
    call.anchor = matrix_of<Scalar>(anchor);
    call.reference = matrix_of<Scalar>(reference);
    call.anchor_square = data_of<Stat>(anchor_square);
    call.reference_square = data_of<Stat>(reference_square);
    call.positive_distance = has_positive_distance ? data_of<Stat>(positive_distance) : nullptr;
    call.used = has_used ? data_of<bool>(used) : nullptr;
    call.candidates = classes.candidates;
    call.references = p;
    call.width = width_of(anchor);
    call.distance = distance;
    call.margin = static_cast<Stat>(margin);
    call.semihard = semihard;
    call.fallback = fallback;
    call.soft_margin = soft_margin;
    call.exact = exact_pairs(n, p, call.width);
    return call;
  }
};

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& product_in, const Tensor& anchor, const Tensor& reference,
                                           const Tensor& anchor_square, const Tensor& reference_square,
                                           const std::optional<Tensor>& positive_distance,
                                           const std::optional<Tensor>& used, const std::optional<Tensor>& labels,
                                           const std::optional<Tensor>& reference_labels,
                                           const std::optional<Tensor>& exclude_labels, int64_t self_offset,
                                           int64_t distance, double margin, bool semihard, bool fallback,
                                           bool soft_margin) {
  const int32_t device = anchor.get_device_index();
  const DeviceGuard guard(device);
  const Arguments call(product_in, anchor, reference, anchor_square, reference_square, positive_distance, used, labels,
                       reference_labels, exclude_labels, self_offset, distance, margin, semihard, fallback,
                       soft_margin);
  const Tensor product = contiguous_of(product_in);
  const Tensor total = new_empty(anchor, {call.n}, call.stat);
  const Tensor counts = new_empty(anchor, {call.n, 3}, ScalarType::Long);
  const Tensor sums = new_empty(anchor, {call.n, 2}, call.stat);
  if (call.n == 0) return {total, counts, sums};
  const Tensor distances = new_empty(anchor, {call.n, call.p}, call.stat);
  const cudaStream_t stream = current_stream(device);
  dispatch(anchor.scalar_type(), "anchor", [&](auto scalar) {
    using Scalar = decltype(scalar);
    using Stat = StatOf<Scalar>;
    EveryPair<Scalar> pairs = call.pairs<Scalar>();
    pairs.product = data_of<Stat>(product);
    pairs.distances = data_of<Stat>(distances);
    pairs.total = data_of<Stat>(total);
    pairs.counts = data_of<int64_t>(counts);
    pairs.sums = data_of<Stat>(sums);
    rows_forward_kernel<Scalar><<<grid_of(call.n), kThreads, 0, stream>>>(pairs);
    check_launch("triplet rows_forward_kernel");
  });
  return {total, counts, sums};
}

// All pairs stay in U: on a GPU the products with it are taken in fp64, which needs no exceptions.
Tensor backward(const Tensor& product, const Tensor& /*grad_anchor*/, const Tensor& /*grad_reference*/,
                const Tensor& grad_total, const Tensor& anchor, const Tensor& reference, const Tensor& anchor_square,
                const Tensor& reference_square, const std::optional<Tensor>& positive_distance,
                const std::optional<Tensor>& used, const std::optional<Tensor>& labels,
                const std::optional<Tensor>& reference_labels, const std::optional<Tensor>& exclude_labels,
                int64_t self_offset, int64_t distance, double margin, bool semihard, bool fallback, bool soft_margin) {
  const int32_t device = anchor.get_device_index();
  const DeviceGuard guard(device);
  const Arguments call(product, anchor, reference, anchor_square, reference_square, positive_distance, used, labels,
                       reference_labels, exclude_labels, self_offset, distance, margin, semihard, fallback,
                       soft_margin);
  STD_TORCH_CHECK(product.is_contiguous(), "product: must be contiguous, U takes its place");
  STD_TORCH_CHECK(grad_total.scalar_type() == call.stat && grad_total.dim() == 1 && grad_total.size(0) == call.n,
                  "grad_total: must have the shape and dtype of total");
  check_device(grad_total, "grad_total", anchor);
  const Tensor grad_positive = new_empty(anchor, {call.has_positive_distance ? call.n : 0}, call.stat);
  if (call.n == 0) return grad_positive;
  const bool several_chunks = !call.has_positive_distance && call.p > kChunk;
  const Tensor weights = new_empty(anchor, {several_chunks ? call.n : 0, call.p}, call.stat);
  const cudaStream_t stream = current_stream(device);
  dispatch(anchor.scalar_type(), "anchor", [&](auto scalar) {
    using Scalar = decltype(scalar);
    using Stat = StatOf<Scalar>;
    EveryPair<Scalar> pairs = call.pairs<Scalar>();
    pairs.product = pairs.distances = data_of<Stat>(product);
    pairs.weights = several_chunks ? data_of<Stat>(weights) : nullptr;
    pairs.grad_total = data_of<Stat>(grad_total);
    pairs.grad_total_stride = grad_total.stride(0);
    pairs.grad_positive = call.has_positive_distance ? data_of<Stat>(grad_positive) : nullptr;
    rows_backward_kernel<Scalar><<<grid_of(call.n), kThreads, 0, stream>>>(pairs);
    check_launch("triplet rows_backward_kernel");
  });
  return grad_positive;
}

}  // namespace
}  // namespace amkd::triplet::gpu

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CUDA, m) {
  m.impl("triplet_rows_forward", TORCH_BOX(&amkd::triplet::gpu::forward));
  m.impl("triplet_rows_backward", TORCH_BOX(&amkd::triplet::gpu::backward));
}
