// The segments operators on CUDA tensors: checks, outputs, and the tables of the launches.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "../common/cpu_dispatch.h"
#include "../common/cuda_host.h"
#include "segments_arguments.h"
#include "segments_kernels.cuh"

namespace amkd::segments::gpu {
namespace {

int64_t blocks_of(const Tensor& segment) {
  return std::min<int64_t>((segment.numel() + kTile - 1) / kTile, kMostBlocks);
}

Entry entry_of(const Tensor& like, const void* student, const void* teacher, void* grad) {
  Entry entry{};
  entry.segment = {student, teacher, grad, like.numel()};
  entry.element = element_of(like.scalar_type(), "student");
  const auto bits =
      reinterpret_cast<uintptr_t>(student) | reinterpret_cast<uintptr_t>(teacher) | reinterpret_cast<uintptr_t>(grad);
  entry.aligned = bits % 16 == 0;
  return entry;
}

const void* number_in(const Tensor& tensor, const Tensor& like) {
  STD_TORCH_CHECK(tensor.numel() == 1, "grad_loss: must be one number");
  STD_TORCH_CHECK(statistics_type(tensor.scalar_type()) == tensor.scalar_type(),
                  "grad_loss: must be float32 or float64");
  check_device(tensor, "grad_loss", like);
  return tensor.const_data_ptr();
}

// Calls launch(table, first segment) for every group, in their order; set(entry, i) makes the entry of a segment.
template <class Set, class Launch>
void for_each_group(const std::vector<Tensor>& segments, Set set, Launch launch) {
  const auto count = static_cast<int64_t>(segments.size());
  for (int64_t first = 0; first < count; first += kGroup) {
    Table table{};
    table.count = static_cast<int32_t>(std::min<int64_t>(count - first, kGroup));
    for (int32_t k = 0; k < table.count; ++k) {
      table.entries[k] = set(first + k);
      table.entries[k].first_block = table.blocks;
      table.blocks += static_cast<int32_t>(blocks_of(segments[first + k]));
    }
    launch(table, first);
  }
}

// The launches of a call over its pairs. after(table, first) comes behind each.
template <class After>
void sweep(const Arguments& call, const std::vector<Tensor>& grads, const void* grad_loss, bool wide, double* partials,
           cudaStream_t stream, After after) {
  const auto set = [&](int64_t i) {
    const Tensor& student = call.student[i];
    void* grad = grads.empty() ? nullptr : grads[i].mutable_data_ptr();
    Entry entry = entry_of(student, student.const_data_ptr(), call.teacher[i].const_data_ptr(), grad);
    entry.factor = call.weighted ? 1.0 : call.factors[i];
    entry.slope = slope(entry.factor, std::max<int64_t>(student.numel(), 1));
    return entry;
  };
  for_each_group(call.student, set, [&](Table& table, int64_t first) {
    table.partials = partials;
    table.grad_loss = grad_loss;
    table.wide = wide;
    if (call.weighted) {
      table.weights = static_cast<const char*>(call.weights.const_data_ptr()) + first * call.weights.element_size();
    }
    if (table.blocks > 0) {
      sweep_kernel<<<table.blocks, kThreads, 0, stream>>>(table);
      check_launch("segments sweep_kernel");
    }
    after(table, first);
  });
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> forward(std::vector<Tensor> student, std::vector<Tensor> teacher,
                                                        const std::optional<Tensor>& weights,
                                                        std::vector<double> factors, bool with_grads) {
  STD_TORCH_CHECK(!student.empty(), "student: must have a segment");
  const int32_t device = student[0].get_device_index();
  const DeviceGuard guard(device);
  const Arguments call(std::move(student), std::move(teacher), weights, std::move(factors));
  const Tensor& like = call.student[0];
  const Tensor loss = new_empty(like, {}, call.stat), means = new_empty(like, {call.count()}, call.stat);
  std::vector<Tensor> grads = with_grads ? call.new_grads() : std::vector<Tensor>();
  // One after the other, the groups use the same ones; the first is the sum so far.
  const Tensor scratch = new_empty(like, {1 + int64_t{kGroup} * kMostBlocks}, ScalarType::Double);
  double* total = static_cast<double*>(scratch.mutable_data_ptr());
  const cudaStream_t stream = current_stream(device);
  const bool wide = call.stat == ScalarType::Double;
  sweep(call, grads, nullptr, wide, total + 1, stream, [&](const Table& table, int64_t first) {
    const auto sum = [&](auto stat) {
      using Stat = decltype(stat);
      sum_kernel<Stat><<<1, kThreads, 0, stream>>>(table, first == 0, total,
                                                   static_cast<Stat*>(loss.mutable_data_ptr()),
                                                   static_cast<Stat*>(means.mutable_data_ptr()) + first);
      check_launch("segments sum_kernel");
    };
    wide ? sum(double()) : sum(float());
  });
  return {loss, means, grads};
}

std::vector<Tensor> backward(const Tensor& grad_loss, std::vector<Tensor> student, std::vector<Tensor> teacher,
                             const std::optional<Tensor>& weights, std::vector<double> factors) {
  STD_TORCH_CHECK(!student.empty(), "student: must have a segment");
  const int32_t device = student[0].get_device_index();
  const DeviceGuard guard(device);
  const Arguments call(std::move(student), std::move(teacher), weights, std::move(factors));
  STD_TORCH_CHECK(grad_loss.scalar_type() == call.stat, "grad_loss: wrong dtype");
  std::vector<Tensor> grads = call.new_grads();
  sweep(call, grads, number_in(grad_loss, call.student[0]), call.stat == ScalarType::Double, nullptr,
        current_stream(device), [](const Table&, int64_t) {});
  return grads;
}

void scale(std::vector<Tensor> grads, const Tensor& grad_loss) {
  const int32_t device = grad_loss.get_device_index();
  const DeviceGuard guard(device);
  const void* factor = number_in(grad_loss, grad_loss);
  const cudaStream_t stream = current_stream(device);
  const auto set = [&](int64_t i) {
    STD_TORCH_CHECK(is_dense(grads[i]), "grads: must be dense");
    check_device(grads[i], "grads", grad_loss);
    return entry_of(grads[i], nullptr, nullptr, grads[i].mutable_data_ptr());
  };
  for_each_group(grads, set, [&](Table& table, int64_t) {
    table.grad_loss = factor;
    table.wide = grad_loss.scalar_type() == ScalarType::Double;
    if (table.blocks == 0) return;
    scale_kernel<<<table.blocks, kThreads, 0, stream>>>(table);
    check_launch("segments scale_kernel");
  });
}

}  // namespace
}  // namespace amkd::segments::gpu

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CUDA, m) {
  m.impl("segments_forward", TORCH_BOX(&amkd::segments::gpu::forward));
  m.impl("segments_backward", TORCH_BOX(&amkd::segments::gpu::backward));
  m.impl("segments_scale", TORCH_BOX(&amkd::segments::gpu::scale));
}
