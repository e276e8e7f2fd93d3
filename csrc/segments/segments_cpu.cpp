// The segments operators on CPU tensors: checks, outputs, threads, and the sums over the pieces.
#include "segments_cpu.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "../common/cpu_dispatch.h"
#include "../common/cpu_prefault.h"
#include "../common/cpu_share.h"
#include "segments_arguments.h"

namespace amkd::segments {
namespace {

const Kernels* kernels_by_element() { AMKD_AT_LEVEL(kernels); }

const Kernels& kernels_of(const Tensor& tensor) {
  return kernels_by_element()[static_cast<int>(element_of(tensor.scalar_type(), "student"))];
}

// All segments cut into pieces of one size, which threads share and whose sums are added in order.
class Pieces {
 public:
  explicit Pieces(const std::vector<Tensor>& segments) {
    firsts_.reserve(segments.size() + 1);
    for (const Tensor& segment : segments) {
      firsts_.push_back(count_);
      sizes_.push_back(segment.numel());
      elements_ += segment.numel();
      count_ += (segment.numel() + kPieceElements - 1) / kPieceElements;
    }
    firsts_.push_back(count_);
  }

  int64_t count() const { return count_; }
  int64_t first_of(int64_t segment) const { return firsts_[segment]; }

  // Calls body(piece, segment, first, last) with the elements of every piece.
  template <class Body>
  void for_each(Body body) const {
    if (count_ == 0) return;
    share(count_, (elements_ + count_ - 1) / count_, [&](int64_t begin, int64_t end) {
      int64_t segment = std::upper_bound(firsts_.begin(), firsts_.end(), begin) - firsts_.begin() - 1;
      for (int64_t piece = begin; piece < end; ++piece) {
        while (piece >= firsts_[segment + 1]) ++segment;
        const int64_t first = (piece - firsts_[segment]) * kPieceElements;
        body(piece, segment, first, std::min(first + kPieceElements, sizes_[segment]));
      }
    });
  }

 private:
  std::vector<int64_t> firsts_, sizes_;
  int64_t count_ = 0, elements_ = 0;
};

void fill_in(void* data, int64_t first, int64_t last, const Tensor& tensor) {
  const int64_t size = tensor.element_size();
  if (tensor.numel() * size >= kFreshBytes) prefault(static_cast<char*>(data) + first * size, (last - first) * size);
}

std::vector<double> weights_of(const Arguments& call) {
  if (!call.weighted) return call.factors;
  std::vector<double> found(call.count());
  for (int64_t i = 0; i < call.count(); ++i) {
    found[i] = call.stat == ScalarType::Double ? static_cast<const double*>(call.weights.const_data_ptr())[i]
                                               : static_cast<const float*>(call.weights.const_data_ptr())[i];
  }
  return found;
}

// Σ (student − teacher)² of every piece; writes the gradients, for an upstream one, where there are tensors for them.
std::vector<double> sweep(const Arguments& call, const Pieces& pieces, const std::vector<double>& weights,
                          double upstream, const std::vector<Tensor>& grads) {
  struct Work {
    Segment segment;
    const Kernels* kernels;
    double slope;
  };
  std::vector<Work> works;
  works.reserve(call.count());
  for (int64_t i = 0; i < call.count(); ++i) {
    const Tensor& student = call.student[i];
    void* grad = grads.empty() ? nullptr : grads[i].mutable_data_ptr();
    works.push_back({{student.const_data_ptr(), call.teacher[i].const_data_ptr(), grad, student.numel()},
                     &kernels_of(student),
                     upstream * slope(weights[i], student.numel())});
  }
  std::vector<double> sums(pieces.count());
  pieces.for_each([&](int64_t piece, int64_t i, int64_t first, int64_t last) {
    const Work& work = works[i];
    if (!grads.empty()) fill_in(work.segment.grad, first, last, grads[i]);
    if (weights[i] == 0.0) {  // what that hides may be NaN
      const int64_t size = call.student[i].element_size();
      if (!grads.empty()) std::memset(static_cast<char*>(work.segment.grad) + first * size, 0, (last - first) * size);
      return;
    }
    sums[piece] = work.kernels->sweep(work.segment, first, last, work.slope);
  });
  return sums;
}

template <class Stat>
void reduce(const Arguments& call, const Pieces& pieces, const std::vector<double>& weights,
            const std::vector<double>& sums, Stat* loss, Stat* means) {
  double total = 0.0;
  for (int64_t i = 0; i < call.count(); ++i) {
    double sum = 0.0;
    for (int64_t piece = pieces.first_of(i); piece < pieces.first_of(i + 1); ++piece) sum += sums[piece];
    const double mean = sum / static_cast<double>(std::max<int64_t>(call.student[i].numel(), 1));
    means[i] = static_cast<Stat>(mean);
    total += weights[i] * mean;
  }
  *loss = static_cast<Stat>(total);
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> forward(std::vector<Tensor> student, std::vector<Tensor> teacher,
                                                        const std::optional<Tensor>& weights_in,
                                                        std::vector<double> factors, bool with_grads) {
  const Arguments call(std::move(student), std::move(teacher), weights_in, std::move(factors));
  const Pieces pieces(call.student);
  const std::vector<double> weights = weights_of(call);
  Tensor loss = new_empty(call.student[0], {}, call.stat),
         means = new_empty(call.student[0], {call.count()}, call.stat);
  std::vector<Tensor> grads = with_grads ? call.new_grads() : std::vector<Tensor>();
  const std::vector<double> sums = sweep(call, pieces, weights, 1.0, grads);
  if (call.stat == ScalarType::Double) {
    reduce(call, pieces, weights, sums, static_cast<double*>(loss.mutable_data_ptr()),
           static_cast<double*>(means.mutable_data_ptr()));
  } else {
    reduce(call, pieces, weights, sums, static_cast<float*>(loss.mutable_data_ptr()),
           static_cast<float*>(means.mutable_data_ptr()));
  }
  return {loss, means, grads};
}

double number_of(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.numel() == 1, name, ": must be one number");
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return *static_cast<const float*>(tensor.const_data_ptr());
    case ScalarType::Double:
      return *static_cast<const double*>(tensor.const_data_ptr());
    default:
      STD_TORCH_CHECK(false, name, ": must be float32 or float64");
  }
}

std::vector<Tensor> backward(const Tensor& grad_loss, std::vector<Tensor> student, std::vector<Tensor> teacher,
                             const std::optional<Tensor>& weights, std::vector<double> factors) {
  const Arguments call(std::move(student), std::move(teacher), weights, std::move(factors));
  std::vector<Tensor> grads = call.new_grads();
  sweep(call, Pieces(call.student), weights_of(call), number_of(grad_loss, "grad_loss"), grads);
  return grads;
}

void scale(std::vector<Tensor> grads, const Tensor& grad_loss) {
  const double factor = number_of(grad_loss, "grad_loss");
  if (factor == 1.0) return;
  for (const Tensor& grad : grads) STD_TORCH_CHECK(is_dense(grad), "grads: must be dense");
  Pieces(grads).for_each([&](int64_t, int64_t i, int64_t first, int64_t last) {
    kernels_of(grads[i]).scale(grads[i].mutable_data_ptr(), first, last, factor);
  });
}

}  // namespace
}  // namespace amkd::segments

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CPU, m) {
  m.impl("segments_forward", TORCH_BOX(&amkd::segments::forward));
  m.impl("segments_backward", TORCH_BOX(&amkd::segments::backward));
  m.impl("segments_scale", TORCH_BOX(&amkd::segments::scale));
}
