// Tensors as the triplet kernels take them.
#pragma once

#include <torch/csrc/stable/library.h>

#include "../common/cuda_dispatch.cuh"
#include "../common/cuda_host.h"
#include "pairs.cuh"
#include "triplet_arguments.h"

namespace amkd::triplet::gpu {

template <class T>
T* data_of(const Tensor& tensor) {
  return static_cast<T*>(const_cast<void*>(tensor.const_data_ptr()));
}

template <class Scalar>
Matrix<Scalar> matrix_of(const Tensor& rows) {
  const Scalar* data = data_of<Scalar>(rows);
  const int64_t stride = rows.stride(0);
  const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 &&
                       (rows.size(0) <= 1 || stride * static_cast<int64_t>(sizeof(Scalar)) % 16 == 0);
  return {data, stride, aligned};
}

inline int width_of(const Tensor& rows) {
  STD_TORCH_CHECK(rows.size(1) <= (int64_t{1} << 30), "anchor: more than 2^30 columns");
  return static_cast<int>(rows.size(1));
}

// The labels of a call, with the contiguous copies that they needed.
class LabelTensors {
 public:
  Candidates candidates{};

  LabelTensors(const std::optional<Tensor>& labels, const std::optional<Tensor>& reference_labels,
               const std::optional<Tensor>& exclude_labels, const Tensor& anchor, int64_t references,
               int64_t self_offset) {
    const int64_t n = anchor.size(0);
    STD_TORCH_CHECK(self_offset < 0 || self_offset + n <= references,
                    "self_offset: not all anchors lie in the reference");
    candidates.self_offset = self_offset < 0 ? -1 : self_offset;
    if (!labels.has_value()) {
      STD_TORCH_CHECK(!exclude_labels.has_value(), "labels: must be given where exclude_labels are");
      return;
    }
    candidates.labels = read(*labels, "labels", anchor, labels_held_);
    STD_TORCH_CHECK(labels_held_.numel() == n, "labels: must have one label an anchor");
    const Tensor& others = reference_labels.has_value() ? *reference_labels : *labels;
    candidates.reference_labels = read(others, "reference_labels", anchor, reference_labels_held_);
    STD_TORCH_CHECK(reference_labels_held_.numel() == references, "reference_labels: must have one label a row");
    if (!exclude_labels.has_value()) return;
    STD_TORCH_CHECK(
        exclude_labels->dim() == 2 && exclude_labels->size(0) == n && exclude_labels->size(1) <= kMostExcluded,
        "exclude_labels: must be [N, E], E at most 2");
    candidates.excluded = static_cast<int>(exclude_labels->size(1));
    candidates.exclude_labels = read(*exclude_labels, "exclude_labels", anchor, exclude_labels_held_);
  }

 private:
  static Labels read(const Tensor& tensor, const char* name, const Tensor& like, Tensor& hold) {
    const bool is_int64 = tensor.scalar_type() == ScalarType::Long;
    STD_TORCH_CHECK(is_int64 || tensor.scalar_type() == ScalarType::Int, name, ": must be int64 or int32");
    check_device(tensor, name, like);
    hold = contiguous_of(tensor);
    return {hold.const_data_ptr(), is_int64};
  }

  Tensor labels_held_, reference_labels_held_, exclude_labels_held_;
};

inline unsigned grid_of(int64_t blocks) {
  STD_TORCH_CHECK(blocks < (int64_t{1} << 31), "anchor: too many rows for one launch");
  return static_cast<unsigned>(blocks);
}

}  // namespace amkd::triplet::gpu
