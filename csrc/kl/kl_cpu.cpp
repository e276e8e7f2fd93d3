// The KL operators on CPU tensors: checks, outputs, threads, and the sums over the rows.
#include "kl_cpu.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "../common/cpu_dispatch.h"
#include "../common/cpu_prefault.h"
#include "../common/cpu_share.h"
#include "kl_arguments.h"

namespace amkd::kl {
namespace {

constexpr int64_t kSplit = 16384;  // classes above which threads share a row, where there are fewer rows than threads

const Kernels* kernels_by_element() { AMKD_AT_LEVEL(kernels); }

const Kernels& kernels_of(ScalarType type) {
  return kernels_by_element()[static_cast<int>(element_of(type, "student"))];
}

// A problem with everything that its pointers point to.
template <class Direction>
struct Call : Arguments {
  Direction problem{};
  const Kernels& kernels;

  explicit Call(Arguments arguments) : Arguments(std::move(arguments)), kernels(kernels_of(student.scalar_type())) {
    Problem& p = problem;
    p.scalars = scalars;
    p.per_t = 1.0 / scalars.temperature;
    p.log_beta = std::log(scalars.beta);
    p.log_rest = std::log1p(-scalars.beta);
    p.rows = rows;
    p.classes = classes;
    p.student = student.const_data_ptr();
    p.teacher = teacher.const_data_ptr();
    p.student_stride = student.stride(0);
    p.teacher_stride = teacher.stride(0);
    p.labels = labels.data;
    p.labels_are_int64 = labels.are_int64;
    p.weight = weight;
    p.ce_weight = ce_weight;
  }

  // Into how many ranges a row is split for the threads to share: the blocks in which one thread takes it too, so that
  // the sums are the same for any number of threads.
  int64_t ranges_a_row() const {
    const int64_t threads = torch::stable::get_num_threads();
    return rows < threads && classes > kSplit ? (classes + kBlock - 1) / kBlock : 1;
  }

  template <class Body>
  void for_each_range(int64_t ranges, Body body) const {
    share(rows * ranges, kBlock, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t begin = i % ranges * kBlock;
        body(i / ranges, i % ranges, begin, std::min(begin + kBlock, classes));
      }
    });
  }
};

void forward_shared_rows(Call<Forward>& call, int64_t ranges) {
  Forward& p = call.problem;
  std::vector<Partial> partials(p.rows * ranges);
  call.for_each_range(ranges, [&](int64_t row, int64_t range, int64_t begin, int64_t end) {
    partials[row * ranges + range] = call.kernels.sweep(p, row, begin, end);
  });
  for (int64_t row = 0; row < p.rows; ++row) {
    Partial sums = partials[row * ranges];
    for (int64_t i = 1; i < ranges; ++i) sums = call.kernels.merge(p, sums, partials[row * ranges + i]);
    call.kernels.finish(p, row, sums);
  }
  if (p.scalars.divergence != Divergence::kJs) return;
  std::vector<Kernels::Mixture> mixtures(p.rows * ranges);
  call.for_each_range(ranges, [&](int64_t row, int64_t range, int64_t begin, int64_t end) {
    mixtures[row * ranges + range] = call.kernels.sweep_mixture(p, row, begin, end);
  });
  for (int64_t row = 0; row < p.rows; ++row) {
    Kernels::Mixture sums{};
    for (int64_t i = 0; i < ranges; ++i) {
      sums.teacher += mixtures[row * ranges + i].teacher;
      sums.student += mixtures[row * ranges + i].student;
    }
    call.kernels.finish_mixture(p, row, sums);
  }
}

double product_or_zero(double factor, double value) { return factor == 0.0 ? 0.0 : factor * value; }

// Reduces the rows in their order, so that the result does not depend on the threads. What has weight 0 is not there.
template <class Stat>
void reduce(const Forward& p, Stat* loss) {
  const auto* weight = static_cast<const Stat*>(p.weight);
  const auto* ce_weight = static_cast<const Stat*>(p.ce_weight);
  double weighted = 0.0, divergence = 0.0, weighted_ce = 0.0, ce = 0.0;
  int64_t labelled = 0;
  for (int64_t row = 0; row < p.rows; ++row) {
    const double w = weight ? weight[row] : 1.0, value = w == 0.0 ? 0.0 : p.divergence[row];
    divergence += value;
    weighted += value * w;
    if (p.scalars.per_row) loss[row] = product_or_zero(p.scalars.kl_factor, value * w);
    if (p.labels == nullptr) continue;
    if (label_of(p, row) == p.scalars.ignore_index) continue;
    ++labelled;
    const double ce_w = ce_weight ? ce_weight[row] : 1.0, ce_value = ce_w == 0.0 ? 0.0 : p.cross_entropy[row];
    ce += ce_value;
    weighted_ce += ce_value * ce_w;
  }
  const double per_label = 1.0 / std::max<int64_t>(labelled, 1);
  if (!p.scalars.per_row) {
    *loss =
        product_or_zero(p.scalars.kl_factor, weighted) + product_or_zero(p.scalars.ce_factor, weighted_ce * per_label);
  }
  Stat* tail = static_cast<Stat*>(p.stats) + kFields * p.rows;
  tail[kLabelled] = labelled;
  tail[kCrossEntropy] = ce * per_label;
  tail[kDivergence] = divergence / std::max<int64_t>(p.rows, 1);
}

std::tuple<Tensor, Tensor> forward(const Tensor& student, const Tensor& teacher, const std::optional<Tensor>& weight,
                                   const std::optional<Tensor>& labels, const std::optional<Tensor>& ce_weight,
                                   double temperature, int64_t divergence, double beta, double row_scale,
                                   double kl_factor, double ce_factor, int64_t ignore_index, int64_t reduction) {
  Call<Forward> call(Arguments(
      student, teacher, weight, labels, ce_weight,
      {temperature, static_cast<Divergence>(divergence), beta, row_scale, kl_factor, ce_factor, ignore_index, false},
      reduction));
  Forward& p = call.problem;
  Tensor loss = call.scalars.per_row ? new_empty(student, {p.rows}, call.stat) : new_empty(student, {}, call.stat);
  Tensor stats = new_empty(student, {kFields * p.rows + kTail}, call.stat);
  p.stats = stats.mutable_data_ptr();
  const std::unique_ptr<double[]> values(new double[(p.labels ? 2 : 1) * p.rows]);
  p.divergence = values.get();
  p.cross_entropy = p.labels ? values.get() + p.rows : nullptr;
  p.bad_row = -1;

  const int64_t ranges = call.ranges_a_row();
  if (ranges > 1) {
    forward_shared_rows(call, ranges);
  } else {
    share(p.rows, p.classes, [&](int64_t first, int64_t last) { call.kernels.forward_rows(p, first, last); });
  }
  // ops/kl/op.py makes a ValueError of the part of this message that begins with its name.
  STD_TORCH_CHECK(p.bad_row < 0, "labels[", p.bad_row, "]=", label_of(p, p.bad_row), ": must be from 0 to ",
                  p.classes - 1, " or ignore_index=", ignore_index);
  if (call.stat == ScalarType::Double) {
    reduce(p, static_cast<double*>(loss.mutable_data_ptr()));
  } else {
    reduce(p, static_cast<float*>(loss.mutable_data_ptr()));
  }
  return {loss, stats};
}

// Writes the gradient into `grad` [rows, classes], contiguous: a new tensor, or the student's.
void write_gradient(const Arguments& arguments, const Tensor& grad_loss, const Tensor& stats, void* grad,
                    bool is_fresh) {
  Call<Backward> call(arguments);
  Backward& p = call.problem;
  call.check(grad_loss, stats);
  const Tensor upstream = grad_loss.is_contiguous() ? grad_loss : torch::stable::contiguous(grad_loss);
  p.grad_loss = upstream.const_data_ptr();
  p.stats = stats.data_ptr();
  p.grad_student = grad;
  const int64_t size = call.student.element_size();
  const bool has_new_pages = is_fresh && p.rows * p.classes * size >= kFreshBytes;
  const auto write = [&](int64_t first, int64_t last, int64_t begin, int64_t end) {
    char* from = static_cast<char*>(grad) + (first * p.classes + begin) * size;
    if (has_new_pages) prefault(from, ((last - 1 - first) * p.classes + end - begin) * size);
    call.kernels.backward(p, first, last, begin, end);
  };
  const int64_t ranges = call.ranges_a_row();
  if (ranges > 1) {
    call.for_each_range(ranges,
                        [&](int64_t row, int64_t, int64_t begin, int64_t end) { write(row, row + 1, begin, end); });
  } else {
    share(p.rows, p.classes, [&](int64_t first, int64_t last) { write(first, last, 0, p.classes); });
  }
}

Tensor backward(const Tensor& grad_loss, const Tensor& student, const Tensor& teacher,
                const std::optional<Tensor>& weight, const std::optional<Tensor>& labels,
                const std::optional<Tensor>& ce_weight, const Tensor& stats, double temperature, int64_t divergence,
                double beta, double row_scale, double kl_factor, double ce_factor, int64_t ignore_index,
                int64_t reduction) {
  const Arguments arguments(
      student, teacher, weight, labels, ce_weight,
      {temperature, static_cast<Divergence>(divergence), beta, row_scale, kl_factor, ce_factor, ignore_index, false},
      reduction);
  Tensor grad = new_empty(student, {student.size(0), student.size(1)}, student.scalar_type());
  write_gradient(arguments, grad_loss, stats, grad.mutable_data_ptr(), true);
  return grad;
}

void overwrite(const Tensor& grad_loss, Tensor student, const Tensor& teacher, const std::optional<Tensor>& weight,
               const std::optional<Tensor>& labels, const std::optional<Tensor>& ce_weight, const Tensor& stats,
               double temperature, int64_t divergence, double beta, double row_scale, double kl_factor,
               double ce_factor, int64_t ignore_index, int64_t reduction) {
  const Arguments arguments(
      student, teacher, weight, labels, ce_weight,
      {temperature, static_cast<Divergence>(divergence), beta, row_scale, kl_factor, ce_factor, ignore_index, false},
      reduction);
  STD_TORCH_CHECK(student.is_contiguous(), "student: must be contiguous to be written over");
  write_gradient(arguments, grad_loss, stats, student.mutable_data_ptr(), false);
}

}  // namespace
}  // namespace amkd::kl

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CPU, m) {
  m.impl("kl_forward", TORCH_BOX(&amkd::kl::forward));
  m.impl("kl_backward", TORCH_BOX(&amkd::kl::backward));
  m.impl("kl_overwrite", TORCH_BOX(&amkd::kl::overwrite));
}
