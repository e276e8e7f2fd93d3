// The operators of the standardised KL divergence on CPU tensors: checks, outputs, threads, and the sum over the rows.
#include "standardised_cpu.h"

#include <torch/csrc/stable/library.h>

#include <memory>
#include <tuple>

#include "../common/cpu_dispatch.h"
#include "../common/cpu_share.h"
#include "standardised_arguments.h"

namespace amkd::kl {
namespace {

const standardised::Kernels* kernels_by_element() { AMKD_AT_LEVEL(standardised_kernels); }

}  // namespace

namespace standardised {
namespace {

const Kernels& kernels_of(const Arguments& call) {
  return kernels_by_element()[static_cast<int>(element_of(call.student.scalar_type(), "student"))];
}

void fill(Problem& p, const Arguments& call) {
  p.scalars = call.scalars;
  p.rows = call.rows;
  p.classes = call.classes;
  p.student = call.student.const_data_ptr();
  p.teacher = call.teacher.const_data_ptr();
  p.student_stride = call.student.stride(0);
  p.teacher_stride = call.teacher.stride(0);
  p.weight = call.weight;
}

// The rows in their order, so that the result does not depend on the threads.
template <class Stat>
void reduce(const Forward& p, Stat* loss) {
  double sum = 0.0;
  for (int64_t row = 0; row < p.rows; ++row) {
    sum += p.divergence[row];
    if (p.scalars.per_row) loss[row] = p.divergence[row];
  }
  if (!p.scalars.per_row) *loss = sum;
}

std::tuple<Tensor, Tensor> forward(const Tensor& student, const Tensor& teacher, const std::optional<Tensor>& weight,
                                   double temperature, double factor, int64_t reduction) {
  const Arguments call(student, teacher, weight, {temperature, factor, false}, reduction);
  const Kernels& kernels = kernels_of(call);
  Forward p{};
  fill(p, call);
  Tensor loss = call.scalars.per_row ? new_empty(student, {p.rows}, call.stat) : new_empty(student, {}, call.stat);
  Tensor stats = new_empty(student, {kFields * p.rows}, call.stat);
  p.stats = stats.mutable_data_ptr();
  const std::unique_ptr<double[]> divergence(new double[p.rows]);
  p.divergence = divergence.get();
  share(p.rows, p.classes, [&](int64_t first, int64_t last) { kernels.forward(p, first, last); });
  if (call.stat == ScalarType::Double) {
    reduce(p, static_cast<double*>(loss.mutable_data_ptr()));
  } else {
    reduce(p, static_cast<float*>(loss.mutable_data_ptr()));
  }
  return {loss, stats};
}

Tensor backward(const Tensor& grad_loss, const Tensor& student, const Tensor& teacher,
                const std::optional<Tensor>& weight, const Tensor& stats, double temperature, double factor,
                int64_t reduction) {
  const Arguments call(student, teacher, weight, {temperature, factor, false}, reduction);
  call.check(grad_loss, stats);
  const Kernels& kernels = kernels_of(call);
  Backward p{};
  fill(p, call);
  p.stats = stats.data_ptr();
  const Tensor upstream = grad_loss.is_contiguous() ? grad_loss : torch::stable::contiguous(grad_loss);
  p.grad_loss = upstream.const_data_ptr();
  Tensor grad = new_empty(student, {p.rows, p.classes}, student.scalar_type());
  p.grad_student = grad.mutable_data_ptr();
  share(p.rows, p.classes, [&](int64_t first, int64_t last) { kernels.backward(p, first, last); });
  return grad;
}

}  // namespace
}  // namespace standardised
}  // namespace amkd::kl

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CPU, m) {
  m.impl("kl_standardised_forward", TORCH_BOX(&amkd::kl::standardised::forward));
  m.impl("kl_standardised_backward", TORCH_BOX(&amkd::kl::standardised::backward));
}
