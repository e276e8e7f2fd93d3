// The operators of decoupled distillation on CPU tensors: checks, outputs, threads, and the sum over the rows.
#include "decoupled_cpu.h"

#include <torch/csrc/stable/library.h>

#include <utility>

#include "../common/cpu_dispatch.h"
#include "../common/cpu_prefault.h"
#include "../common/cpu_share.h"
#include "decoupled_arguments.h"

namespace amkd::kl::decoupled {
namespace {

const Kernels* kernels_by_element() { AMKD_AT_LEVEL(kernels); }

// A problem with everything that its pointers point to.
template <class Direction>
struct Call : Arguments {
  Direction problem{};
  const Kernels& kernels;

  explicit Call(Arguments arguments)
      : Arguments(std::move(arguments)),
        kernels(kernels_by_element()[static_cast<int>(element_of(student.scalar_type(), "student"))]) {
    Problem& p = problem;
    p.scalars = scalars;
    p.per_t = 1.0 / scalars.temperature;
    p.rows = rows;
    p.classes = classes;
    p.student = student.const_data_ptr();
    p.teacher = teacher.const_data_ptr();
    p.student_stride = student.stride(0);
    p.teacher_stride = teacher.stride(0);
    p.labels = labels.data;
    p.labels_are_int64 = labels.are_int64;
    p.weight = weight;
  }
};

// Takes the rows in their order, so that the result does not depend on the threads.
template <class Stat>
void reduce(const Forward& p, Stat* loss) {
  const Stat* values = static_cast<const Stat*>(p.stats) + kValue * p.rows;
  const auto* weight = static_cast<const Stat*>(p.weight);
  double sum = 0.0;
  for (int64_t row = 0; row < p.rows; ++row) {
    const double w = p.scalars.factor == 0.0 ? 0.0 : weight ? weight[row] : 1.0;
    const double value = w == 0.0 ? 0.0 : values[row] * w;  // what has weight 0 may be NaN
    sum += value;
    if (p.scalars.per_row) loss[row] = p.scalars.factor * value;
  }
  if (!p.scalars.per_row) *loss = p.scalars.factor * sum;
}

std::tuple<Tensor, Tensor> forward(const Tensor& student, const Tensor& teacher, const Tensor& labels,
                                   const std::optional<Tensor>& weight, double temperature, double target_factor,
                                   double other_factor, double factor, int64_t reduction) {
  Call<Forward> call(Arguments(student, teacher, labels, weight,
                               {temperature, target_factor, other_factor, factor, false}, reduction));
  Forward& p = call.problem;
  Tensor loss = call.scalars.per_row ? new_empty(student, {p.rows}, call.stat) : new_empty(student, {}, call.stat);
  Tensor stats = new_empty(student, {kFields * p.rows}, call.stat);
  p.stats = stats.mutable_data_ptr();
  p.bad_row = -1;
  share(p.rows, p.classes, [&](int64_t first, int64_t last) { call.kernels.forward(p, first, last); });
  // ops/kl/decoupled/ makes a ValueError of what follows the first colon.
  STD_TORCH_CHECK(p.bad_row < 0, "class out of range: labels[", p.bad_row, "]=", label_of(p, p.bad_row),
                  ": must be from 0 to ", p.classes - 1);
  if (call.stat == ScalarType::Double) {
    reduce(p, static_cast<double*>(loss.mutable_data_ptr()));
  } else {
    reduce(p, static_cast<float*>(loss.mutable_data_ptr()));
  }
  return {loss, stats};
}

Tensor backward(const Tensor& grad_loss, const Tensor& student, const Tensor& teacher, const Tensor& labels,
                const std::optional<Tensor>& weight, const Tensor& stats, double temperature, double target_factor,
                double other_factor, double factor, int64_t reduction) {
  Call<Backward> call(Arguments(student, teacher, labels, weight,
                                {temperature, target_factor, other_factor, factor, false}, reduction));
  Backward& p = call.problem;
  call.check(grad_loss, stats);
  const Tensor upstream = grad_loss.is_contiguous() ? grad_loss : torch::stable::contiguous(grad_loss);
  Tensor grad = new_empty(student, {p.rows, p.classes}, student.scalar_type());
  p.grad_loss = upstream.const_data_ptr();
  p.stats = stats.data_ptr();
  p.grad_student = grad.mutable_data_ptr();
  const int64_t row_bytes = p.classes * grad.element_size();
  const bool is_fresh = p.rows * row_bytes >= kFreshBytes;
  share(p.rows, p.classes, [&](int64_t first, int64_t last) {
    if (is_fresh) prefault(static_cast<char*>(p.grad_student) + first * row_bytes, (last - first) * row_bytes);
    call.kernels.backward(p, first, last);
  });
  return grad;
}

}  // namespace
}  // namespace amkd::kl::decoupled

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CPU, m) {
  m.impl("kl_decoupled_forward", TORCH_BOX(&amkd::kl::decoupled::forward));
  m.impl("kl_decoupled_backward", TORCH_BOX(&amkd::kl::decoupled::backward));
}
