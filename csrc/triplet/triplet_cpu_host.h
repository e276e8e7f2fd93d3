// What the triplet operators on CPU tensors share: kernels of the machine's SIMD level, memory, labels.
#pragma once

#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#include "../common/cpu_dispatch.h"
#include "../common/cpu_share.h"
#include "triplet_arguments.h"
#include "triplet_cpu.h"

namespace amkd::triplet {

template <class T>
const SelectKernels<T>& select_kernels() {
  if constexpr (std::is_same_v<T, float>) {
    AMKD_AT_LEVEL(select_floats);
  } else {
    AMKD_AT_LEVEL(select_doubles);
  }
}
template <class T>
const PairKernels<T>& pair_kernels() {
  if constexpr (std::is_same_v<T, float>) {
    AMKD_AT_LEVEL(pair_floats);
  } else {
    AMKD_AT_LEVEL(pair_doubles);
  }
}
template <class T>
const RowKernels<T>& row_kernels() {
  if constexpr (std::is_same_v<T, float>) {
    AMKD_AT_LEVEL(row_floats);
  } else {
    AMKD_AT_LEVEL(row_doubles);
  }
}

template <class T>
const ProductKernels<T>& product_kernels() {
  if constexpr (std::is_same_v<T, float>) {
    AMKD_AT_LEVEL(product_floats);
  } else {
    AMKD_AT_LEVEL(product_doubles);
  }
}

template <class Body>
auto dispatch(const Tensor& anchor, Body body) {
  if (anchor.scalar_type() == ScalarType::Double) return body(double{});
  STD_TORCH_CHECK(anchor.scalar_type() == ScalarType::Float, "anchor: must be float32 or float64 on a CPU");
  return body(float{});
}

template <class T>
T* data_of(const Tensor& tensor) {
  return static_cast<T*>(const_cast<void*>(tensor.const_data_ptr()));
}

template <class T>
Rows<T> rows_of(const Tensor& tensor) {
  return {data_of<T>(tensor), tensor.stride(0), tensor.size(0), tensor.size(1), nullptr};
}

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Memory that nobody clears, in cache lines of its own.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count = 0)
      : memory_(count == 0 ? nullptr : ::operator new(sizeof(T) * count, std::align_val_t{64})) {}
  T* get() const { return static_cast<T*>(memory_.get()); }

 private:
  struct Delete {
    void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{64}); }
  };
  std::unique_ptr<void, Delete> memory_;
};

// ---- labels -------------------------------------------------------------------------------------------------------

inline std::vector<int64_t> read_labels(const std::optional<Tensor>& tensor, const char* name) {
  if (!tensor.has_value()) return {};
  const bool is_long = tensor->scalar_type() == ScalarType::Long;
  STD_TORCH_CHECK(is_long || tensor->scalar_type() == ScalarType::Int, name, ": must be int64 or int32");
  const Tensor flat = contiguous_of(*tensor);
  const int64_t count = flat.numel();
  if (is_long) return {data_of<int64_t>(flat), data_of<int64_t>(flat) + count};
  return {data_of<int32_t>(flat), data_of<int32_t>(flat) + count};
}

// Labels for the kernels, in the width that they compare. Where fp32 rows have labels that int32 does not hold, each
// label becomes its rank among those of the reference rows.
template <class T>
class Labels {
 public:
  Labels(const std::optional<Tensor>& anchor, const std::optional<Tensor>& reference,
         const std::optional<Tensor>& excluded, int64_t anchors, int64_t references, int64_t padded) {
    std::vector<int64_t> own = read_labels(anchor, "labels");
    // In the anchors' own set the reference labels are the same tensor; without any labels nobody shares one.
    std::vector<int64_t> other = read_labels(reference.has_value() ? reference : anchor, "reference_labels");
    std::vector<int64_t> outside = read_labels(excluded, "exclude_labels");
    if (!anchor.has_value()) {
      own.assign(anchors, 1);
      other.assign(references, 0);
    }
    STD_TORCH_CHECK(static_cast<int64_t>(own.size()) == anchors && static_cast<int64_t>(other.size()) == references,
                    "labels, reference_labels: must have one label a row");
    excluded_count_ = excluded.has_value() && excluded->dim() == 2 ? static_cast<int>(excluded->size(1)) : 0;
    STD_TORCH_CHECK(
        excluded_count_ <= kMostExcluded && static_cast<int64_t>(outside.size()) == anchors * excluded_count_,
        "exclude_labels: must be [N, E], E at most 2");
    if (!fit(own) || !fit(other) || !fit(outside)) rank(own, other, outside);
    own.resize(std::max(padded, anchors), 0);
    anchor_.assign(own.begin(), own.end());
    other.resize(padded, 0);
    reference_.assign(other.begin(), other.end());
    excluded_.assign(outside.begin(), outside.end());
  }

  Classes<T> classes(int64_t self_offset) const {
    return {anchor_.data(), reference_.data(), excluded_.data(), excluded_count_, self_offset};
  }

 private:
  static bool fit(const std::vector<int64_t>& labels) {
    return std::all_of(labels.begin(), labels.end(), [](int64_t x) { return static_cast<Label<T>>(x) == x; });
  }

  static void rank(std::vector<int64_t>& own, std::vector<int64_t>& other, std::vector<int64_t>& outside) {
    std::vector<int64_t> known = other;
    std::sort(known.begin(), known.end());
    known.erase(std::unique(known.begin(), known.end()), known.end());
    for (std::vector<int64_t>* labels : {&own, &other, &outside}) {
      for (int64_t& label : *labels) {
        const auto at = std::lower_bound(known.begin(), known.end(), label);
        label = at != known.end() && *at == label ? at - known.begin() : -1;  // -1: no reference row has it
      }
    }
  }

  std::vector<Label<T>> anchor_, reference_, excluded_;
  int excluded_count_;
};

template <class T>
Buffer<double> scales_of(Rows<T>& rows, Distance distance) {
  if (distance != Distance::kCosine) return Buffer<double>();
  Buffer<double> scales(std::max<int64_t>(rows.count, 1));
  share(rows.count, rows.depth,
        [&](int64_t first, int64_t last) { select_kernels<T>().scale_rows(rows, scales.get(), first, last); });
  rows.scale = scales.get();
  return scales;
}

}  // namespace amkd::triplet
