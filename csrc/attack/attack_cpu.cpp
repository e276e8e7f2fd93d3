// The attack operators on CPU tensors: outputs, threads, the ranks of the bases and the draws of their targets.
#include "attack_cpu.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <vector>

#include "../common/cpu_dispatch.h"
#include "../common/cpu_scratch.h"
#include "../common/cpu_share.h"
#include "attack_arguments.h"
#include "bounds_cpu.h"

namespace amkd::attack {
namespace {

const StepKernel* step_kernels() { AMKD_AT_LEVEL(step_kernels); }
const ObjectiveKernel* objective_kernels() { AMKD_AT_LEVEL(objective_kernels); }
const DisagreementKernel* disagreement_kernels() { AMKD_AT_LEVEL(disagreement_kernels); }
const DrawKernel* draw_kernels() { AMKD_AT_LEVEL(draw_kernels); }

// ---- the step -----------------------------------------------------------------------------------------------------

constexpr uintptr_t kLine = 64;  // bytes: a vector that begins elsewhere takes two accesses

template <class W>
void step_all(const StepArguments& arguments) {
  StepWork p{arguments, largest_of(arguments.type), nullptr, nullptr};
  const std::unique_ptr<W[]> table = spread_bounds<W>(p);
  const StepKernel kernel = step_kernels()[static_cast<int>(element_of(arguments.type, "x"))];
  share(p.samples, p.size, [&](int64_t first, int64_t last) {
    const Scratch scratch((2 * p.size * sizeof(W) + kLine) / sizeof(double));
    const auto at = reinterpret_cast<uintptr_t>(scratch.get());
    kernel(p, arguments.wide_grad, first, last, reinterpret_cast<void*>((at + kLine - 1) / kLine * kLine));
  });
}

// What the public functions refuse before it comes here.
[[noreturn]] void refuse(const char* rule) { STD_TORCH_CHECK(false, "arguments: ", rule); }

template <class W>
void check_order(const StepArguments& arguments) {
  const W *lowers = static_cast<const W*>(arguments.lowers), *uppers = static_cast<const W*>(arguments.uppers);
  for (int64_t c = 0; c < arguments.channels && (lowers != nullptr || uppers != nullptr); ++c) {
    const double lower = lowers == nullptr ? arguments.scalars.lower : lowers[c];
    const double upper = uppers == nullptr ? arguments.scalars.upper : uppers[c];
    if (lower > upper) refuse("lower is above upper");
  }
}

// The result may be `x` itself; where it lies otherwise over what is read, that would change before it is read.
void check_apart(const StepArguments& arguments, int64_t bytes) {
  const char* out = static_cast<const char*>(arguments.out);
  for (const void* input : {arguments.x, arguments.grad, arguments.x0, static_cast<const void*>(arguments.velocity)}) {
    const char* other = static_cast<const char*>(input);
    const bool itself = input == arguments.x && out == other;
    if (other != nullptr && !itself && std::less<>()(out, other + bytes) && std::less<>()(other, out + bytes)) {
      refuse("out shares memory with what is read");
    }
  }
}

template <class Make>
StepArguments checked(const Tensor& out, const Make& make) {
  try {
    const StepArguments arguments = make();
    element_of(arguments.type, "x");
    arguments.work == ScalarType::Double ? check_order<double>(arguments) : check_order<float>(arguments);
    check_apart(arguments, out.numel() * static_cast<int64_t>(out.element_size()));
    return arguments;
  } catch (const std::exception& error) {
    refuse(error.what());
  }
}

void step(const Tensor& out, const Tensor& x, const Tensor& grad, const std::optional<Tensor>& x0,
          const std::optional<Tensor>& step_sizes, const std::optional<Tensor>& radii, const std::optional<Tensor>& gap,
          const std::optional<Tensor>& velocity, const std::optional<Tensor>& lowers,
          const std::optional<Tensor>& uppers, const std::optional<Tensor>& active, int64_t rule, double step_size,
          double radius, double lower, double upper, double decay, bool project, int64_t top) {
  const StepScalars scalars{static_cast<Rule>(rule), step_size, radius, lower, upper, decay, project, top};
  const StepArguments arguments = checked(out, [&] {
    return StepArguments(out, x, grad, x0, step_sizes, radii, gap, velocity, lowers, uppers, active, scalars);
  });
  if (arguments.samples == 0 || arguments.size == 0) return;
  arguments.work == ScalarType::Double ? step_all<double>(arguments) : step_all<float>(arguments);
}

// ---- the objective ------------------------------------------------------------------------------------------------

Rows rows_of(const Tensor& logits) {
  return {logits.size(0), logits.size(1), logits.const_data_ptr(), logits.stride(0)};
}

// ops/attack/objective.py and bases.py make a ValueError of the part of the message that begins with the name.
void check_classes(const int64_t* classes, const char* name, int64_t rows, int64_t count) {
  for (int64_t i = 0; classes != nullptr && i < rows; ++i) {
    STD_TORCH_CHECK(classes[i] >= 0 && classes[i] < count, "classes: ", name, " holds ", classes[i],
                    ": must lie in [0, ", count, ")");
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> objective(const Tensor& logits_in, const Tensor& labels,
                                                     const std::optional<Tensor>& target, int64_t loss, bool softmax,
                                                     bool targeted) {
  const Loss kind = static_cast<Loss>(loss);
  STD_TORCH_CHECK(loss >= 0 && loss <= 2, "loss: must be from 0 to 2");
  STD_TORCH_CHECK(!targeted || target.has_value(), "target: must be there for a targeted loss");
  check_logits(logits_in, "logits", kind == Loss::kDlr ? (targeted ? 4 : 3) : kind == Loss::kBoundary ? 2 : 1);
  const Tensor logits = with_unit_columns(logits_in);
  const int64_t rows = logits.size(0), classes = logits.size(1);
  const ScalarType type = logits.scalar_type();
  Tensor value = new_empty(logits, {rows}, statistics_type(type)), gradient = new_empty(logits, {rows, classes}, type);
  Tensor prediction = new_empty(logits, {rows}, ScalarType::Long), active = new_empty(logits, {rows}, ScalarType::Bool);

  Tensor labels_held, target_held;
  const Objective o{rows_of(logits),
                    classes_of(labels, "labels", logits, labels_held),
                    classes_of(target, "target", logits, target_held),
                    kind,
                    softmax,
                    targeted,
                    value.mutable_data_ptr(),
                    gradient.mutable_data_ptr(),
                    static_cast<int64_t*>(prediction.mutable_data_ptr()),
                    static_cast<bool*>(active.mutable_data_ptr())};
  check_classes(o.labels, "labels", rows, classes);
  check_classes(o.target, "target", rows, classes);
  const ObjectiveKernel kernel = objective_kernels()[static_cast<int>(element_of(type, "logits"))];
  share(rows, classes, [&](int64_t first, int64_t last) { kernel(o, first, last); });
  return {value, gradient, prediction, active};
}

// ---- bases and their targets --------------------------------------------------------------------------------------

constexpr int64_t kExponential = 8;  // what an exponential in fp64 costs, in elements of a vector loop

void draw_all(const Draw& d, int64_t count, ScalarType type) {
  const DrawKernel kernel = draw_kernels()[static_cast<int>(element_of(type, "logits"))];
  share(count, d.classes * kExponential, [&](int64_t first, int64_t last) { kernel(d, first, last); });
}

Tensor draw(const Tensor& logits_in, const Tensor& base, const std::optional<Tensor>& rows,
            const std::optional<Tensor>& seeds, int64_t seed) {
  check_logits(logits_in, "logits", 2);
  const Tensor logits = with_unit_columns(logits_in);
  Tensor target = new_empty(logits, {logits.size(0)}, ScalarType::Long), base_held, rows_held;
  const int64_t* seed_at = seed_of(seeds, logits);
  Draw d{rows_of(logits),
         nullptr,
         classes_of(base, "base", logits, base_held),
         classes_of(rows, "rows", logits, rows_held),
         static_cast<uint64_t>(seed_at == nullptr ? seed : *seed_at),
         static_cast<int64_t*>(target.mutable_data_ptr())};
  check_classes(d.base, "base", d.rows, d.classes);
  draw_all(d, d.rows, logits.scalar_type());
  return target;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> bases(const Tensor& student_in, const Tensor& teacher_in,
                                                 const Tensor& labels, int64_t limit,
                                                 const std::optional<Tensor>& seeds, int64_t seed) {
  check_logits(student_in, "student", 2);
  check_logits(teacher_in, "teacher", 2);
  STD_TORCH_CHECK(student_in.size(0) == teacher_in.size(0) && student_in.size(1) == teacher_in.size(1) &&
                      student_in.scalar_type() == teacher_in.scalar_type(),
                  "student: must have the shape and the dtype of teacher");
  STD_TORCH_CHECK(limit >= 0, "limit: must be at least 0");
  const Tensor student = with_unit_columns(student_in), teacher = with_unit_columns(teacher_in);
  const ScalarType type = teacher.scalar_type();
  const int64_t rows = teacher.size(0), classes = teacher.size(1);
  Tensor index = new_empty(teacher, {limit}, ScalarType::Long), base = new_empty(teacher, {limit}, ScalarType::Long);
  Tensor target = new_empty(teacher, {limit}, ScalarType::Long), valid = new_empty(teacher, {limit}, ScalarType::Bool);

  Tensor labels_held;
  const std::unique_ptr<double[]> key(new double[rows]);
  const Disagreement d{rows_of(student), rows_of(teacher), classes_of(labels, "labels", teacher, labels_held),
                       key.get()};
  const DisagreementKernel kernel = disagreement_kernels()[static_cast<int>(element_of(type, "logits"))];
  share(rows, 4 * classes, [&](int64_t first, int64_t last) { kernel(d, first, last); });

  std::vector<int64_t> order;
  for (int64_t i = 0; i < rows; ++i) {
    if (key[i] >= 0.0) order.push_back(i);
  }
  const int64_t count = std::min<int64_t>(limit, order.size());
  std::partial_sort(order.begin(), order.begin() + count, order.end(),
                    [&](int64_t i, int64_t j) { return key[i] > key[j] || (key[i] == key[j] && i < j); });

  auto* index_at = static_cast<int64_t*>(index.mutable_data_ptr());
  auto* base_at = static_cast<int64_t*>(base.mutable_data_ptr());
  auto* target_at = static_cast<int64_t*>(target.mutable_data_ptr());
  auto* valid_at = static_cast<bool*>(valid.mutable_data_ptr());
  for (int64_t i = 0; i < limit; ++i) {
    valid_at[i] = i < count;
    index_at[i] = i < count ? order[i] : 0;
    base_at[i] = i < count ? d.labels[order[i]] : 0;
    target_at[i] = 0;
  }
  const int64_t* seed_at = seed_of(seeds, teacher);
  draw_all({rows_of(teacher), index_at, base_at, index_at, static_cast<uint64_t>(seed_at == nullptr ? seed : *seed_at),
            target_at},
           count, type);
  return {index, base, target, valid};
}

}  // namespace
}  // namespace amkd::attack

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CPU, m) {
  m.impl("attack_step", TORCH_BOX(&amkd::attack::step));
  m.impl("attack_objective", TORCH_BOX(&amkd::attack::objective));
  m.impl("attack_bases", TORCH_BOX(&amkd::attack::bases));
  m.impl("attack_draw", TORCH_BOX(&amkd::attack::draw));
}
