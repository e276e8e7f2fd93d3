// The operators of cosine-confidence distillation on CPU tensors: checks, outputs, threads, and the sums over the rows.
#include "consistency_cpu.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <memory>
#include <tuple>

#include "../common/cpu_dispatch.h"
#include "../common/cpu_share.h"
#include "consistency_arguments.h"

namespace amkd::kl {
namespace {

const consistency::Kernels* kernels_by_element() { AMKD_AT_LEVEL(consistency_kernels); }

}  // namespace

namespace consistency {
namespace {

const Kernels& kernels_of(const Arguments& call) {
  return kernels_by_element()[static_cast<int>(element_of(call.student[0].scalar_type(), "student"))];
}

void fill(Problem& p, const Arguments& call) {
  p.per_t = 1.0 / call.temperature;
  p.rows = call.rows;
  p.classes = call.classes;
  for (int v = 0; v < kViews; ++v) {
    p.student[v] = call.student[v].const_data_ptr();
    p.teacher[v] = call.teacher[v].const_data_ptr();
    p.student_stride[v] = call.student[v].stride(0);
    p.teacher_stride[v] = call.teacher[v].stride(0);
  }
}

// The means of both views and half their sum; the rows in their order, so that threads do not matter.
template <class Stat>
void reduce(const Forward& p, double row_scale, Stat* total) {
  Stat* tail = static_cast<Stat*>(p.stats) + kFields * p.rows;
  double both = 0.0;
  for (int v = 0; v < kViews; ++v) {
    double sum = 0.0;
    for (int64_t row = 0; row < p.rows; ++row) sum += p.terms[v][row];
    const double mean = row_scale * sum / std::max<int64_t>(p.rows, 1);
    tail[v] = mean;
    both += mean;
  }
  *total = 0.5 * both;
}

std::tuple<Tensor, Tensor> forward(const Tensor& student, const Tensor& teacher, const Tensor& augmented_student,
                                   const Tensor& augmented_teacher, double temperature, double row_scale) {
  const Arguments call(student, teacher, augmented_student, augmented_teacher, temperature, row_scale);
  const Kernels& kernels = kernels_of(call);
  Forward p{};
  fill(p, call);
  Tensor total = new_empty(student, {}, call.stat);
  Tensor stats = new_empty(student, {kFields * p.rows + kTail}, call.stat);
  p.stats = stats.mutable_data_ptr();
  const std::unique_ptr<double[]> terms(new double[kViews * p.rows]);
  for (int v = 0; v < kViews; ++v) p.terms[v] = terms.get() + v * p.rows;
  share(p.rows, kViews * p.classes, [&](int64_t first, int64_t last) { kernels.forward(p, first, last); });
  if (call.stat == ScalarType::Double) {
    reduce(p, row_scale, static_cast<double*>(total.mutable_data_ptr()));
  } else {
    reduce(p, row_scale, static_cast<float*>(total.mutable_data_ptr()));
  }
  return {total, stats};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_total, const Tensor& student, const Tensor& teacher,
                                    const Tensor& augmented_student, const Tensor& augmented_teacher,
                                    const Tensor& stats, double temperature, double row_scale) {
  const Arguments call(student, teacher, augmented_student, augmented_teacher, temperature, row_scale);
  call.check(grad_total, stats);
  const Kernels& kernels = kernels_of(call);
  Backward p{};
  fill(p, call);
  p.stats = stats.data_ptr();
  const void* upstream = grad_total.const_data_ptr();
  const double grad = call.stat == ScalarType::Double ? *static_cast<const double*>(upstream)
                                                      : static_cast<double>(*static_cast<const float*>(upstream));
  p.factor = 0.5 * grad * row_scale / std::max<int64_t>(p.rows, 1);
  Tensor grads[kViews];
  for (int v = 0; v < kViews; ++v) {
    grads[v] = new_empty(student, {p.rows, p.classes}, student.scalar_type());
    p.grad_student[v] = grads[v].mutable_data_ptr();
  }
  share(p.rows, kViews * p.classes, [&](int64_t first, int64_t last) { kernels.backward(p, first, last); });
  return {grads[0], grads[1]};
}

}  // namespace
}  // namespace consistency
}  // namespace amkd::kl

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CPU, m) {
  m.impl("kl_consistency_forward", TORCH_BOX(&amkd::kl::consistency::forward));
  m.impl("kl_consistency_backward", TORCH_BOX(&amkd::kl::consistency::backward));
}
