// The arguments of the triplet operators on every device, checked, with the copies that they needed.
#pragma once

#include "../common/tensors.h"
#include "triplet.h"

namespace amkd::triplet {

inline void check_index(const Tensor& index, const char* name, const Tensor& like) {
  STD_TORCH_CHECK(index.scalar_type() == ScalarType::Long && index.dim() >= 1 && index.size(0) == like.size(0), name,
                  ": must be int64 with one row an anchor");
  check_device(index, name, like);
}

// Rows [n, D] in the dtype of the anchors with unit column stride.
inline Tensor rows_like(const Tensor& tensor, const char* name, const Tensor& anchor) {
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(1) == anchor.size(1), name, ": must be [n, D], D as in anchor");
  STD_TORCH_CHECK(tensor.scalar_type() == anchor.scalar_type(), name, ": must have the dtype of anchor");
  check_device(tensor, name, anchor);
  return with_unit_columns(tensor);
}

inline Distance distance_from(int64_t number) {
  STD_TORCH_CHECK(number >= 0 && number <= 2, "distance: must be 0, 1 or 2");
  return static_cast<Distance>(number);
}

inline Tensor contiguous_of(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

}  // namespace amkd::triplet
