// triplet_terms and triplet_backward on CUDA tensors: checks, outputs, and which kernels a size gets.
#include <optional>
#include <tuple>

#include "cuda_arguments.h"
#include "terms_kernels.cuh"

namespace amkd::triplet::gpu {
namespace {

// The arguments that both operators take, checked, with the copies that they needed.
struct Arguments {
  Tensor anchor, positive, reference, positive_index, negative_index, weight;
  bool has_positive, has_weight, is_batch;
  Distance distance;
  Reduction reduction;
  ScalarType stat;
  int64_t k;
  double margin;
  bool soft_margin, swap;

  Arguments(const Tensor& anchor_in, const std::optional<Tensor>& positive_in,
            const std::optional<Tensor>& reference_in, const std::optional<Tensor>& positive_index_in,
            const Tensor& negative_index_in, const std::optional<Tensor>& weight_in, int64_t distance_in,
            double margin_in, bool soft_margin_in, bool swap_in, int64_t reduction_in)
      : anchor(rows_like(anchor_in, "anchor", anchor_in)),
        has_positive(positive_in.has_value()),
        has_weight(weight_in.has_value()),
        is_batch(!reference_in.has_value()),
        distance(distance_from(distance_in)),
        reduction(static_cast<Reduction>(reduction_in)),
        stat(statistics_type(anchor_in.scalar_type())),
        margin(margin_in),
        soft_margin(soft_margin_in),
        swap(swap_in) {
    STD_TORCH_CHECK(has_positive != positive_index_in.has_value(), "positive: or positive_index, not both");
    STD_TORCH_CHECK(reduction_in >= 0 && reduction_in <= 3, "reduction: must be from 0 to 3");
    reference = is_batch ? anchor : rows_like(*reference_in, "reference", anchor);
    if (has_positive) {
      positive = rows_like(*positive_in, "positive", anchor);
      STD_TORCH_CHECK(positive.size(0) == anchor.size(0), "positive: must have one row an anchor");
    } else {
      check_index(*positive_index_in, "positive_index", anchor);
      STD_TORCH_CHECK(positive_index_in->dim() == 1, "positive_index: must be [N]");
      positive_index = contiguous_of(*positive_index_in);
    }
    check_index(negative_index_in, "negative_index", anchor);
    STD_TORCH_CHECK(negative_index_in.dim() == 2, "negative_index: must be [N, k]");
    negative_index = contiguous_of(negative_index_in);
    k = negative_index.size(1);
    STD_TORCH_CHECK(k >= 1 && anchor.size(0) * (k + 1) < (int64_t{1} << 31) - kThreads,
                    "negative_index: more than 2^31 triplets, or none");
    row_data(weight_in, "weight", anchor, stat, weight);
  }

  template <class Scalar>
  Selected<Scalar> selected() const {
    using Stat = StatOf<Scalar>;
    Selected<Scalar> in{};
    in.anchor = matrix_of<Scalar>(anchor);
    in.reference = matrix_of<Scalar>(reference);
    if (has_positive) {
      in.positive = matrix_of<Scalar>(positive);
    } else {
      in.positive_index = data_of<int64_t>(positive_index);
    }
    in.negative_index = data_of<int64_t>(negative_index);
    in.weight = has_weight ? data_of<Stat>(weight) : nullptr;
    in.anchors = anchor.size(0);
    in.references = reference.size(0);
    in.k = static_cast<int>(k);
    in.width = width_of(anchor);
    in.distance = distance;
    in.reduction = reduction;
    in.margin = static_cast<Stat>(soft_margin ? 0.0 : margin);
    in.soft_margin = soft_margin;
    in.swap = swap;
    return in;
  }
};

std::tuple<Tensor, Tensor> terms(const Tensor& anchor, const std::optional<Tensor>& positive,
                                 const std::optional<Tensor>& reference, const std::optional<Tensor>& positive_index,
                                 const Tensor& negative_index, const std::optional<Tensor>& weight, int64_t distance,
                                 double margin, bool soft_margin, bool swap, int64_t reduction) {
  const int32_t device = anchor.get_device_index();
  const DeviceGuard guard(device);
  const Arguments call(anchor, positive, reference, positive_index, negative_index, weight, distance, margin,
                       soft_margin, swap, reduction);
  const int64_t n = anchor.size(0);
  const Tensor loss =
      call.reduction == Reduction::kNone ? new_empty(anchor, {n}, call.stat) : new_empty(anchor, {}, call.stat);
  const Tensor stats = new_empty(anchor, {statistics_size(n, call.k, swap)}, call.stat);
  const cudaStream_t stream = current_stream(device);
  const int sms = multiprocessors(device);
  dispatch(anchor.scalar_type(), "anchor", [&](auto scalar) {
    using Scalar = decltype(scalar);
    Terms<Scalar> terms{};
    terms.in = call.selected<Scalar>();
    terms.loss = data_of<StatOf<Scalar>>(loss);
    terms.stats = data_of<StatOf<Scalar>>(stats);
    const TermsPlan plan = plan_terms(n, terms.in.width, Vector<Scalar>::kWidth, sms);
    terms.lanes = plan.lanes;
    if (plan.blocks > 1) {
      const Tensor totals = new_empty(anchor, {int64_t{kTotals} * plan.blocks}, ScalarType::Double);
      terms.block_totals = data_of<double>(totals);
      void* arguments[] = {&terms};
      const cudaError_t error =
          cudaLaunchCooperativeKernel(terms_kernel<Scalar>, dim3(plan.blocks), dim3(kThreads), arguments, 0, stream);
      // A process may have a part of the device alone, by MPS or a green context: one block meets nobody.
      if (error != cudaErrorCooperativeLaunchTooLarge) return check(error, "launching triplet terms_kernel");
      (void)cudaGetLastError();
      terms.block_totals = nullptr;
    }
    terms_kernel<Scalar><<<1, kThreads, 0, stream>>>(terms);
    check_launch("triplet terms_kernel");
  });
  return {loss, stats};
}

// Rounds what was summed in the statistics' type, where that is another.
template <class Scalar>
void round_sums(const Tensor& sums, const Tensor& grad, int sms, cudaStream_t stream) {
  const int64_t count = grad.numel();
  if (std::is_same_v<Scalar, StatOf<Scalar>> || count == 0) return;
  const unsigned blocks = static_cast<unsigned>(std::min<int64_t>(ceil_div(count, kThreads), int64_t{16} * sms));
  round_kernel<Scalar><<<blocks, kThreads, 0, stream>>>(data_of<StatOf<Scalar>>(sums), data_of<Scalar>(grad), count);
  check_launch("triplet round_kernel");
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_loss, const Tensor& anchor,
                                            const std::optional<Tensor>& positive,
                                            const std::optional<Tensor>& reference,
                                            const std::optional<Tensor>& positive_index, const Tensor& negative_index,
                                            const std::optional<Tensor>& weight, const Tensor& stats, int64_t distance,
                                            double margin, bool soft_margin, bool swap, int64_t reduction,
                                            bool deterministic) {
  const int32_t device = anchor.get_device_index();
  const DeviceGuard guard(device);
  const Arguments call(anchor, positive, reference, positive_index, negative_index, weight, distance, margin,
                       soft_margin, swap, reduction);
  const int64_t n = anchor.size(0), p = call.reference.size(0), width = anchor.size(1);
  const bool per_anchor = call.reduction == Reduction::kNone;
  STD_TORCH_CHECK(grad_loss.scalar_type() == call.stat && stats.scalar_type() == call.stat,
                  "grad_loss, stats: wrong dtype");
  STD_TORCH_CHECK(per_anchor ? grad_loss.dim() == 1 && grad_loss.size(0) == n : grad_loss.numel() == 1,
                  "grad_loss: must have the shape of the loss");
  STD_TORCH_CHECK(stats.numel() == statistics_size(n, call.k, swap) && stats.is_contiguous(), "stats: wrong size");
  check_device(grad_loss, "grad_loss", anchor);
  check_device(stats, "stats", anchor);

  const bool gathers = backward_gathers(n, call.k, deterministic);
  const ScalarType type = anchor.scalar_type();
  const int64_t positive_rows = call.has_positive ? n : 0, reference_rows = call.is_batch ? 0 : p;
  // What several anchors add to starts from zeros, in the statistics' type.
  const auto sums_of = [&](int64_t rows, bool shared) {
    const int64_t sizes[] = {rows, width};
    return shared ? torch::stable::new_zeros(anchor, {sizes, 2}, call.stat)
                  : new_empty(anchor, {rows, width}, call.stat);
  };
  const bool rounds = !gathers && type != call.stat;
  Tensor sum_anchor, sum_positive, sum_reference, grad_anchor, grad_positive, grad_reference;
  if (!gathers) {
    sum_anchor = sums_of(n, call.is_batch);
    sum_positive = sums_of(positive_rows, false);
    sum_reference = sums_of(reference_rows, true);
  }
  if (gathers || rounds) {
    grad_anchor = new_empty(anchor, {n, width}, type);
    grad_positive = new_empty(anchor, {positive_rows, width}, type);
    grad_reference = new_empty(anchor, {reference_rows, width}, type);
  } else {
    grad_anchor = sum_anchor;
    grad_positive = sum_positive;
    grad_reference = sum_reference;
  }
  if (width == 0 || (n == 0 && reference_rows == 0)) return {grad_anchor, grad_positive, grad_reference};

  const cudaStream_t stream = current_stream(device);
  dispatch(type, "anchor", [&](auto scalar) {
    using Scalar = decltype(scalar);
    using Stat = StatOf<Scalar>;
    Backward<Scalar> backward{};
    backward.in = call.selected<Scalar>();
    backward.stats = data_of<Stat>(stats);
    backward.grad_loss = data_of<Stat>(grad_loss);
    backward.grad_loss_stride = per_anchor ? grad_loss.stride(0) : 0;
    backward.is_batch = call.is_batch;
    if (gathers) {
      backward.grad_anchor = data_of<Scalar>(grad_anchor);
      backward.grad_positive = call.has_positive ? data_of<Scalar>(grad_positive) : nullptr;
      backward.grad_reference = data_of<Scalar>(grad_reference);
      const int64_t blocks = ceil_div(n, kWarps) * (call.has_positive ? 2 : 1) + ceil_div(reference_rows, kWarps);
      const int64_t parts = ceil_div(width, int64_t{kWarp} * Vector<Scalar>::kWidth);
      STD_TORCH_CHECK(parts < 65536, "anchor: too many columns for one launch");
      const dim3 grid(grid_of(blocks), static_cast<unsigned>(parts));
      gather_kernel<Scalar><<<grid, kThreads, 0, stream>>>(backward);
      check_launch("triplet gather_kernel");
      return;
    }
    backward.sum_anchor = data_of<Stat>(sum_anchor);
    backward.sum_positive = data_of<Stat>(sum_positive);
    backward.sum_reference = data_of<Stat>(sum_reference);
    scatter_kernel<Scalar><<<grid_of(ceil_div(n, kWarps)), kThreads, 0, stream>>>(backward);
    check_launch("triplet scatter_kernel");
    const int sms = multiprocessors(device);
    round_sums<Scalar>(sum_anchor, grad_anchor, sms, stream);
    round_sums<Scalar>(sum_positive, grad_positive, sms, stream);
    round_sums<Scalar>(sum_reference, grad_reference, sms, stream);
  });
  return {grad_anchor, grad_positive, grad_reference};
}

}  // namespace
}  // namespace amkd::triplet::gpu

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CUDA, m) {
  m.impl("triplet_terms", TORCH_BOX(&amkd::triplet::gpu::terms));
  m.impl("triplet_backward", TORCH_BOX(&amkd::triplet::gpu::backward));
}
