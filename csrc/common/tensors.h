// Checks and shapes that the operators of every device share. They guard the raw operators; the public Python
// functions check first and say it more kindly.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <optional>

namespace amkd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline ScalarType statistics_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// `tensor` with unit column stride: itself where it has that already.
inline Tensor with_unit_columns(const Tensor& tensor) {
  return tensor.size(1) <= 1 || tensor.stride(1) == 1 ? tensor : torch::stable::contiguous(tensor);
}

// A new contiguous tensor beside `like`. The C call costs a tenth of what `new_empty` through the dispatcher does.
inline Tensor new_empty(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType type) {
  int64_t strides[2] = {1, 1};
  if (sizes.size() == 2) strides[0] = std::max<int64_t>(sizes.begin()[1], 1);
  int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.begin(), strides, dtype, device_type,
                                                  like.get_device_index(), &handle));
  return Tensor(handle);
}

// A tensor whose storage was freed (`untyped_storage().resize_(0)`) still has its shape, and no memory.
inline void check_storage(const Tensor& tensor, const char* name) {
  int64_t bytes = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &bytes));
  STD_TORCH_CHECK(bytes > 0 || tensor.numel() == 0, name, ": its storage was freed");
}

// Where a tensor lies: on the device of the first one, and somewhere.
inline void check_device(const Tensor& tensor, const char* name, const Tensor& like) {
  STD_TORCH_CHECK(
      tensor.is_cuda() == like.is_cuda() && (!like.is_cuda() || tensor.get_device_index() == like.get_device_index()),
      name, ": must be on the device of the first tensor");
  check_storage(tensor, name);
}

// The data of an optional tensor with one element for each row of `like`, checked, or null. `hold` keeps a contiguous
// copy alive where one is needed.
inline const void* row_data(const std::optional<Tensor>& tensor, const char* name, const Tensor& like, ScalarType type,
                            Tensor& hold) {
  if (!tensor.has_value()) return nullptr;
  STD_TORCH_CHECK(tensor->dim() == 1 && tensor->size(0) == like.size(0), name, ": must have one element a row");
  STD_TORCH_CHECK(tensor->scalar_type() == type, name, ": wrong dtype");
  check_device(*tensor, name, like);
  hold = tensor->is_contiguous() ? *tensor : torch::stable::contiguous(*tensor);
  return hold.const_data_ptr();
}

}  // namespace amkd
