// The arguments of the segments operators on every device, checked, with the copies that they needed.
#pragma once

#include <utility>
#include <vector>

#include "../common/tensors.h"
#include "segments.h"

namespace amkd::segments {

// Whether the elements fill one block of memory, in whatever order.
inline bool is_dense(const Tensor& tensor) {
  if (tensor.is_contiguous()) return true;
  int64_t filled = 1;
  for (int64_t found = 1; found != 0;) {
    found = 0;
    for (int64_t i = 0; i < tensor.dim() && found == 0; ++i) {
      if (tensor.size(i) > 1 && tensor.stride(i) == filled) found = tensor.size(i);
    }
    if (found != 0) filled *= found;
  }
  return filled == tensor.numel();
}

inline bool lie_alike(const Tensor& a, const Tensor& b) {
  for (int64_t i = 0; i < a.dim(); ++i) {
    if (a.size(i) > 1 && a.stride(i) != b.stride(i)) return false;
  }
  return true;
}

// A new tensor of the sizes and strides of `like`, which is dense.
inline Tensor new_like(const Tensor& like) {
  int32_t dtype = 0, device_type = 0;
  int64_t *sizes = nullptr, *strides = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(like.get(), &sizes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(like.get(), &strides));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(like.dim(), sizes, strides, dtype, device_type, like.get_device_index(), &handle));
  return Tensor(handle);
}

struct Arguments {
  std::vector<Tensor> student, teacher;  // pairwise dense and alike
  std::vector<double> factors;           // of every segment, where there is no weight
  Tensor weights;                        // [S] in the dtype of the statistics, if `weighted`
  bool weighted;
  ScalarType stat = ScalarType::Float;  // dtype of sums and loss

  Arguments(std::vector<Tensor> student_in, std::vector<Tensor> teacher_in, const std::optional<Tensor>& weights_in,
            std::vector<double> factors_in)
      : student(std::move(student_in)),
        teacher(std::move(teacher_in)),
        factors(std::move(factors_in)),
        weighted(weights_in.has_value()) {
    STD_TORCH_CHECK(!student.empty() && teacher.size() == student.size(), "teacher: must have as many as student");
    for (size_t i = 0; i < student.size(); ++i) take(i);
    if (!weighted) {
      STD_TORCH_CHECK(factors.size() == student.size(), "factors: must be one for each segment");
      return;
    }
    weights = weights_in->is_contiguous() ? *weights_in : torch::stable::contiguous(*weights_in);
    STD_TORCH_CHECK(weights.dim() == 1 && weights.numel() == count(), "weights: must be one for each segment");
    STD_TORCH_CHECK(weights.scalar_type() == stat, "weights: wrong dtype");
    check_device(weights, "weights", student[0]);
  }

  int64_t count() const { return static_cast<int64_t>(student.size()); }

  std::vector<Tensor> new_grads() const {
    std::vector<Tensor> grads;
    grads.reserve(student.size());
    for (const Tensor& segment : student) grads.push_back(new_like(segment));
    return grads;
  }

 private:
  void take(size_t i) {
    Tensor &s = student[i], &t = teacher[i];
    STD_TORCH_CHECK(t.dim() == s.dim(), "teacher: must have the shapes of student");
    for (int64_t d = 0; d < s.dim(); ++d) {
      STD_TORCH_CHECK(t.size(d) == s.size(d), "teacher: must have the shapes of student");
    }
    STD_TORCH_CHECK(t.scalar_type() == s.scalar_type(), "teacher: must have the dtypes of student");
    check_device(s, "student", student[0]);
    check_device(t, "teacher", student[0]);
    if (s.scalar_type() == ScalarType::Double) stat = ScalarType::Double;
    if (!is_dense(s)) s = torch::stable::contiguous(s);
    if (lie_alike(s, t)) return;
    Tensor moved = new_like(s);
    torch::stable::copy_(moved, t);
    t = moved;
  }
};

}  // namespace amkd::segments
