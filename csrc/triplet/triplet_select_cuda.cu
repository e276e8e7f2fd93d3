// triplet_select on CUDA tensors: checks, outputs, and which kernels a size gets.
#include <optional>
#include <tuple>

#include "cuda_arguments.h"
#include "select_kernels.cuh"
#include "select_products.cuh"

namespace amkd::triplet::gpu {
namespace {

constexpr int kListRows = 4;  // anchors of a warp that keeps lists
// Anchors of a warp in the large tiles, by the registers that their sums need.
template <class Compute>
constexpr int kLargeRows = sizeof(Compute) == 8 ? 4 : 8;

struct Call {
  Tensor anchor, reference;
  Candidates candidates;
  Distance distance;
  int64_t k;
  Tensor positive, negative;
  bool find_positive;
  int32_t device;
  cudaStream_t stream;
};

template <class Scalar, bool kCosine>
void launch_differences(const Call& call, SelectPlan plan, const int* work, const int* work_count) {
  using Compute = ComputeOf<Scalar, kCosine>;
  const int64_t n = call.anchor.size(0), p = call.reference.size(0);
  const ScalarType type = sizeof(Compute) == 8 ? ScalarType::Double : ScalarType::Float;
  Select<Scalar, Compute> select{};
  select.anchor = matrix_of<Scalar>(call.anchor);
  select.reference = matrix_of<Scalar>(call.reference);
  select.candidates = call.candidates;
  select.split_columns = plan.split_columns;
  select.references = static_cast<int>(p);
  select.width = width_of(call.anchor);

  Found<Compute>& found = select.found;
  found.negative = data_of<int64_t>(call.negative);
  found.k = call.k;
  found.anchors = n;
  found.splits = plan.splits;
  found.work = work;
  found.work_count = work_count;
  const int64_t most = std::min<int64_t>(call.k, kListed);
  Tensor last_value, last_index, near, near_index, far, far_index;
  if (call.k > kListed) {
    last_value = new_empty(call.anchor, {n}, type);
    last_index = new_empty(call.anchor, {n}, ScalarType::Int);
    found.last_value = data_of<Compute>(last_value);
    found.last_index = data_of<int>(last_index);
  }
  if (plan.splits > 1) {
    near = new_empty(call.anchor, {plan.splits * n * most}, type);
    near_index = new_empty(call.anchor, {plan.splits * n * most}, ScalarType::Int);
    far = new_empty(call.anchor, {plan.splits * n}, type);
    far_index = new_empty(call.anchor, {plan.splits * n}, ScalarType::Int);
    found.part_near = data_of<Compute>(near);
    found.part_near_index = data_of<int>(near_index);
    found.part_far = data_of<Compute>(far);
    found.part_far_index = data_of<int>(far_index);
  }

  const dim3 grid(grid_of(plan.blocks), plan.splits);
  for (int64_t first = 0; first < call.k; first += kListed) {
    found.first = first;
    found.count = static_cast<int>(std::min<int64_t>(call.k - first, kListed));
    found.is_first_pass = first == 0;
    found.positive = call.find_positive && first == 0 ? data_of<int64_t>(call.positive) : nullptr;
    if (call.k > 1) {
      select_kernel<Scalar, kCosine, kListRows, true><<<grid, kThreads, 0, call.stream>>>(select);
    } else if (plan.warp_rows == 1) {
      select_kernel<Scalar, kCosine, 1, false><<<grid, kThreads, 0, call.stream>>>(select);
    } else {
      select_kernel<Scalar, kCosine, kLargeRows<Compute>, false><<<grid, kThreads, 0, call.stream>>>(select);
    }
    check_launch("triplet select_kernel");
    if (plan.splits == 1) continue;
    merge_kernel<Compute><<<grid_of(ceil_div(n, kWarps)), kThreads, 0, call.stream>>>(found);
    check_launch("triplet merge_kernel");
  }
}

// Whether this binary has products_kernel for the device, and the kernel may use its shared memory. Only where it has a
// body it has shared memory of its own.
template <class Scalar, int kParts>
bool has_products(int32_t device) {
  constexpr size_t kLeastShared = 4096;  // the system's own kilobyte may be counted in
  static Answers answers;
  return answers.of(device, []() -> std::optional<bool> {
    const auto kernel = products_kernel<Scalar, kParts>;
    cudaFuncAttributes attributes{};
    cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error == cudaSuccess && attributes.sharedSizeBytes < kLeastShared) return false;
    if (error == cudaSuccess) {
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   product_bytes(kParts, kTensorRowsBytes / (2 * 64 * kParts)));
    }
    if (error == cudaSuccess) return true;
    const bool lasting = error == cudaErrorInvalidValue || error == cudaErrorInvalidDeviceFunction ||
                         error == cudaErrorNoKernelImageForDevice;
    return lasting ? std::optional<bool>(false) : std::nullopt;
  });
}

template <class Scalar, int kParts>
bool launch_products(const Call& call, const ProductsPlan& plan, int sms) {
  if (!has_products<Scalar, kParts>(call.device)) return false;
  const int64_t n = call.anchor.size(0), p = call.reference.size(0);
  const int64_t counters_size[] = {2};
  const Tensor counters = torch::stable::new_zeros(call.anchor, {counters_size, 1}, ScalarType::Int);
  const Tensor columns = new_empty(call.anchor, {2 * p}, ScalarType::Float);
  const Tensor work = new_empty(call.anchor, {n}, ScalarType::Int);
  const Tensor leftovers = new_empty(
      call.anchor, {plan.grid.splits * n * kSharers * static_cast<int64_t>(sizeof(Leftover) / 4)}, ScalarType::Int);
  Products<Scalar> products{};
  products.anchor = matrix_of<Scalar>(call.anchor);
  products.reference = matrix_of<Scalar>(call.reference);
  products.candidates = call.candidates;
  products.columns = data_of<float2>(columns);
  products.largest = data_of<unsigned>(counters);
  products.work_count = data_of<int>(counters) + 1;
  products.work = data_of<int>(work);
  products.leftovers = data_of<Leftover>(leftovers);
  products.positive = call.find_positive ? data_of<int64_t>(call.positive) : nullptr;
  products.negative = data_of<int64_t>(call.negative);
  products.anchors = n;
  products.split_columns = plan.grid.split_columns;
  products.splits = plan.grid.splits;
  products.references = static_cast<int>(p);
  products.width = width_of(call.anchor);
  products.cosine = call.distance == Distance::kCosine;

  columns_kernel<Scalar><<<grid_of(ceil_div(p, kWarps)), kThreads, 0, call.stream>>>(products);
  check_launch("triplet columns_kernel");
  const dim3 grid(grid_of(plan.grid.blocks), plan.grid.splits);
  const int bytes = product_bytes(kParts, products.width);
  products_kernel<Scalar, kParts><<<grid, kThreads, bytes, call.stream>>>(products);
  check_launch("triplet products_kernel");
  rerank_kernel<Scalar><<<grid_of(ceil_div(n, kWarps)), kThreads, 0, call.stream>>>(products);
  check_launch("triplet rerank_kernel");

  // Anchors that are not decided, usually none: a block that has none to do ends at once.
  SelectPlan rest = plan_select(n, p, 1, products.cosine ? kLargeRows<double> : kLargeRows<float>, kListRows, sms);
  split_columns(rest, p, kRescanSplits);
  if (products.cosine) {
    launch_differences<Scalar, true>(call, rest, products.work, products.work_count);
  } else {
    launch_differences<Scalar, false>(call, rest, products.work, products.work_count);
  }
  return true;
}

std::tuple<Tensor, Tensor> select(const Tensor& anchor, const std::optional<Tensor>& reference,
                                  const std::optional<Tensor>& labels, const std::optional<Tensor>& reference_labels,
                                  const std::optional<Tensor>& exclude_labels, int64_t self_offset, int64_t distance,
                                  int64_t k, bool find_positive) {
  Call call{};
  call.device = anchor.get_device_index();
  const DeviceGuard guard(call.device);
  call.anchor = rows_like(anchor, "anchor", anchor);
  call.reference = reference.has_value() ? rows_like(*reference, "reference", anchor) : call.anchor;
  const int64_t n = anchor.size(0), p = call.reference.size(0), width = anchor.size(1);
  STD_TORCH_CHECK(k >= 1, "k: must be at least 1");
  STD_TORCH_CHECK(p < (int64_t{1} << 31) - kTileColumns && n < (int64_t{1} << 31), "reference: more than 2^31 rows");
  const LabelTensors classes(labels, reference_labels, exclude_labels, call.anchor, p, self_offset);
  call.candidates = classes.candidates;
  call.distance = distance_from(distance);
  call.k = k;
  call.find_positive = find_positive;
  call.positive = new_empty(anchor, {find_positive ? n : 0}, ScalarType::Long);
  call.negative = new_empty(anchor, {n, k}, ScalarType::Long);
  if (n == 0) return {call.positive, call.negative};
  call.stream = current_stream(call.device);
  const int sms = multiprocessors(call.device);

  dispatch(anchor.scalar_type(), "anchor", [&](auto scalar) {
    using Scalar = decltype(scalar);
    if constexpr (sizeof(Scalar) == 2) {
      const bool aligned = matrix_of<Scalar>(call.anchor).aligned && matrix_of<Scalar>(call.reference).aligned;
      if (aligned && products_select(n, p, width, k)) {
        const ProductsPlan plan = plan_products(n, p, width, sms);
        if (plan.parts == 2 ? launch_products<Scalar, 2>(call, plan, sms) : launch_products<Scalar, 1>(call, plan, sms))
          return;
      }
    }
    if (call.distance == Distance::kCosine) {
      const SelectPlan plan = plan_select(n, p, k, kLargeRows<double>, kListRows, sms);
      launch_differences<Scalar, true>(call, plan, nullptr, nullptr);
    } else {
      const SelectPlan plan = plan_select(n, p, k, kLargeRows<StatOf<Scalar>>, kListRows, sms);
      launch_differences<Scalar, false>(call, plan, nullptr, nullptr);
    }
  });
  return {call.positive, call.negative};
}

}  // namespace
}  // namespace amkd::triplet::gpu

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CUDA, m) { m.impl("triplet_select", TORCH_BOX(&amkd::triplet::gpu::select)); }
