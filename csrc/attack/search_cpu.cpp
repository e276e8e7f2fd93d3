// The search for boundary samples on CPU tensors, in few calls: between two passes of a network one that judges its
// logits and one that moves whoever goes on and lays down who has finished; and the folding of its BatchNorms.
//
// Tensors of the whole batch are [M, ...]; those of the m samples that are worked on say by rows [m] where they belong.
#include "search_cpu.h"

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "../common/cpu_dispatch.h"
#include "../common/cpu_share.h"
#include "attack_arguments.h"
#include "bounds_cpu.h"

namespace amkd::attack {
namespace {

const StepKernel* step_kernels() { AMKD_AT_LEVEL(step_kernels); }
const ObjectiveKernel* objective_kernels() { AMKD_AT_LEVEL(objective_kernels); }
const TopKernel* top_kernels() { AMKD_AT_LEVEL(top_kernels); }
const MiddleKernel* middle_kernels() { AMKD_AT_LEVEL(middle_kernels); }
const FoldKernel* fold_kernels() { AMKD_AT_LEVEL(fold_kernels); }

// One element of `type` for each of `count` rows.
template <class T>
T* column(const Tensor& tensor, const char* name, int64_t count, ScalarType type) {
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == count && tensor.is_contiguous(), name,
                  ": must be contiguous with one element a row");
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, ": wrong dtype");
  check_storage(tensor, name);
  return static_cast<T*>(tensor.data_ptr());
}

const int64_t* rows_in(const Tensor& tensor, int64_t count, int64_t all) {
  const int64_t* rows = column<const int64_t>(tensor, "rows", count, ScalarType::Long);
  for (int64_t i = 0; i < count; ++i) STD_TORCH_CHECK(rows[i] >= 0 && rows[i] < all, "rows: must lie in the batch");
  return rows;
}

// Images of the whole batch, each of which lies in memory as one of `x` does.
char* images_like(const Tensor& images, const char* name, const Tensor& x) {
  STD_TORCH_CHECK(images.scalar_type() == x.scalar_type(), name, ": wrong dtype");
  STD_TORCH_CHECK(images.dim() == x.dim(), name, ": must hold images of the shape of x");
  for (int64_t i = 0; i < x.dim(); ++i) {
    STD_TORCH_CHECK(i == 0 || images.size(i) == x.size(i), name, ": must hold images of the shape of x");
    STD_TORCH_CHECK(images.size(i) == 1 || x.size(i) == 1 || images.stride(i) == x.stride(i), name,
                    ": must lie in memory as x does");
  }
  channel_run(images);
  check_storage(images, name);
  return static_cast<char*>(images.data_ptr());
}

// Room for `count` images that lie as those of `x` do.
Tensor images_beside(const Tensor& x, int64_t count) {
  std::vector<int64_t> sizes(x.dim()), strides(x.dim());
  for (int64_t i = 0; i < x.dim(); ++i) {
    sizes[i] = i == 0 ? count : x.size(i);
    strides[i] = x.stride(i);
  }
  const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(x.scalar_type()));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(x.dim(), sizes.data(), strides.data(), dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

void check_classes(const std::vector<int64_t>& classes, const char* name, int64_t count) {
  for (const int64_t k : classes) {
    STD_TORCH_CHECK(k >= 0 && k < count, "classes: ", name, " holds ", k, ": must lie in [0, ", count, ")");
  }
}

// The boundary objective of some rows of logits, for any base and target.
struct Gaps {
  explicit Gaps(const Tensor& logits_in, bool softmax_in) : logits(with_unit_columns(logits_in)), softmax(softmax_in) {
    check_logits(logits, "logits", 2);
    rows = logits.size(0);
    classes = logits.size(1);
    type = logits.scalar_type();
    gradient = new_empty(logits, {rows, classes}, type);
    value.reset(new char[rows * sizeof(double)]);
    prediction.reset(new int64_t[rows]);
    open.reset(new bool[rows]);
  }

  void evaluate(const std::vector<int64_t>& base, const std::vector<int64_t>& target) {
    check_classes(base, "labels", classes);
    check_classes(target, "target", classes);
    const Objective o{{rows, classes, logits.const_data_ptr(), logits.stride(0)},
                      base.data(),
                      target.data(),
                      Loss::kBoundary,
                      softmax,
                      false,
                      value.get(),
                      gradient.mutable_data_ptr(),
                      prediction.get(),
                      open.get()};
    const ObjectiveKernel kernel = objective_kernels()[static_cast<int>(element_of(type, "logits"))];
    share(rows, classes, [&](int64_t first, int64_t last) { kernel(o, first, last); });
  }

  // -value of a row, which is a float unless the logits are of fp64.
  double gap(int64_t i) const {
    const void* values = value.get();
    return type == ScalarType::Double ? -static_cast<const double*>(values)[i] : -static_cast<const float*>(values)[i];
  }

  Tensor logits, gradient;
  bool softmax;
  int64_t rows, classes;
  ScalarType type;
  std::unique_ptr<char[]> value;
  std::unique_ptr<int64_t[]> prediction;
  std::unique_ptr<bool[]> open;
};

void put_gap(void* gaps, ScalarType type, int64_t i, double gap) {
  if (type == ScalarType::Double) {
    static_cast<double*>(gaps)[i] = gap;
  } else {
    static_cast<float*>(gaps)[i] = static_cast<float>(gap);
  }
}

// ---- the halves of a step -----------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor, int64_t> judge(const Tensor& logits, const Tensor& rows_in_batch, const Tensor& base,
                                          const Tensor& target, const Tensor& found, const Tensor& gap,
                                          const Tensor& steps, bool softmax, bool moves) {
  Gaps gaps(logits, softmax);
  const int64_t m = gaps.rows, all = base.size(0);
  const int64_t* rows = rows_in(rows_in_batch, m, all);
  const auto* base_at = column<const int64_t>(base, "base", all, ScalarType::Long);
  const auto* target_at = column<const int64_t>(target, "target", all, ScalarType::Long);
  auto* steps_at = column<int64_t>(steps, "steps", all, ScalarType::Long);
  const ScalarType statistics = statistics_type(gaps.type);
  void* gap_at = column<void>(gap, "gap", all, statistics);
  STD_TORCH_CHECK(found.dim() == 2 && found.size(0) == all && found.size(1) == gaps.classes &&
                      found.scalar_type() == gaps.type && found.is_contiguous(),
                  "found: must be room for the logits of the batch");
  check_storage(found, "found");
  std::vector<int64_t> bases(m), targets(m);
  for (int64_t i = 0; i < m; ++i) {
    bases[i] = base_at[rows[i]];
    targets[i] = target_at[rows[i]];
  }
  gaps.evaluate(bases, targets);
  Tensor active = new_empty(logits, {m}, ScalarType::Bool);
  auto* active_at = static_cast<bool*>(active.mutable_data_ptr());
  const int64_t bytes = gaps.classes * static_cast<int64_t>(logits.element_size());
  const int64_t stride = gaps.logits.stride(0) * static_cast<int64_t>(logits.element_size());
  const char* from = static_cast<const char*>(gaps.logits.const_data_ptr());
  char* to = static_cast<char*>(found.data_ptr());
  int64_t left = 0;
  for (int64_t i = 0; i < m; ++i) {
    active_at[i] = gaps.open[i];
    left += gaps.open[i];
    put_gap(gap_at, statistics, rows[i], gaps.gap(i));
    steps_at[rows[i]] += gaps.open[i] && moves;
    std::memcpy(to + rows[i] * bytes, from + i * stride, bytes);
  }
  return {gaps.gradient, active, left};
}

template <class W>
void advance_all(const StepArguments& arguments, const std::vector<int64_t>& place, const int64_t* rows,
                 const void* gap, const void* step_sizes, int64_t bytes, char* images, char* inside) {
  StepWork p{arguments, largest_of(arguments.type), nullptr, nullptr};
  const std::unique_ptr<W[]> table = spread_bounds<W>(p);
  // As the kernel wants them, sample by sample.
  const std::unique_ptr<W[]> numbers(new W[2 * p.samples]);
  for (int64_t i = 0; i < p.samples; ++i) {
    numbers[i] = static_cast<const W*>(gap)[rows[i]];
    if (step_sizes != nullptr) numbers[p.samples + i] = static_cast<const W*>(step_sizes)[rows[i]];
  }
  p.gap = numbers.get();
  if (step_sizes != nullptr) p.step_sizes = numbers.get() + p.samples;
  p.place = place.data();
  const StepKernel kernel = step_kernels()[static_cast<int>(element_of(arguments.type, "x"))];
  const char* x = static_cast<const char*>(p.x);
  share(p.samples, p.size, [&](int64_t first, int64_t last) {
    const std::unique_ptr<W[]> scratch(new W[2 * p.size]);
    for (int64_t i = first; i < last; ++i) {
      char* to = place[i] < 0 ? images : inside;  // while the sample is in the cache
      if (to != nullptr && to + rows[i] * bytes != x + i * bytes) {
        std::memcpy(to + rows[i] * bytes, x + i * bytes, bytes);
      }
      if (place[i] >= 0) kernel(p, arguments.wide_grad, i, i + 1, scratch.get());
    }
  });
}

std::tuple<Tensor, Tensor> advance(const Tensor& x, const Tensor& grad, const Tensor& rows_in_batch,
                                   const Tensor& active, int64_t left, const Tensor& gap,
                                   const std::optional<Tensor>& step_sizes, const std::optional<Tensor>& lowers,
                                   const std::optional<Tensor>& uppers, const Tensor& images,
                                   const std::optional<Tensor>& inside, int64_t rule, double step_size, double lower,
                                   double upper, bool project) {
  const int64_t m = x.size(0), all = images.size(0);
  const int64_t* rows = rows_in(rows_in_batch, m, all);
  const auto* active_at = column<const bool>(active, "active", m, ScalarType::Bool);
  const ScalarType work = statistics_type(x.scalar_type());
  STD_TORCH_CHECK(rule == static_cast<int64_t>(Rule::kUnit) || rule == static_cast<int64_t>(Rule::kNewton),
                  "rule: must be one of a boundary step");
  char* images_at = images_like(images, "images", x);
  char* inside_at = inside.has_value() ? images_like(*inside, "inside", x) : nullptr;
  Tensor next = new_empty(x, {left}, ScalarType::Long), moved = images_beside(x, left);
  auto* next_at = static_cast<int64_t*>(next.mutable_data_ptr());
  std::vector<int64_t> place(m);
  int64_t count = 0;
  for (int64_t i = 0; i < m; ++i) {
    place[i] = active_at[i] ? count : -1;
    if (active_at[i] && count < left) next_at[count] = rows[i];
    count += active_at[i];
  }
  STD_TORCH_CHECK(count == left, "left: must be the number of active samples");
  const StepScalars scalars{static_cast<Rule>(rule), step_size, 0.0, lower, upper, 1.0, project, 1};
  // The gap of every sample is looked up in advance_all: here one of as many numbers stands for it.
  const Tensor like = new_empty(x, {m}, work);
  StepArguments arguments(x, x, grad, std::nullopt, std::nullopt, std::nullopt, like, std::nullopt, lowers, uppers,
                          std::nullopt, scalars);
  arguments.out = moved.data_ptr();
  const void* gap_at = column<const void>(gap, "gap", all, work);
  const void* sizes_at = step_sizes.has_value() ? column<const void>(*step_sizes, "step_sizes", all, work) : nullptr;
  if (m > 0 && arguments.size > 0) {
    const auto all_of = work == ScalarType::Double ? advance_all<double> : advance_all<float>;
    const int64_t bytes = arguments.size * static_cast<int64_t>(x.element_size());
    all_of(arguments, place, rows, gap_at, sizes_at, bytes, images_at, inside_at);
  }
  return {moved, next};
}

// ---- what follows the steps ---------------------------------------------------------------------------------------

void halve(const Tensor& middle, const std::optional<Tensor>& logits_in, const Tensor& rows_in_batch,
           const Tensor& base, const Tensor& inside, const Tensor& outside, const Tensor& found, bool again) {
  const int64_t m = middle.size(0), all = outside.size(0);
  const int64_t* rows = rows_in(rows_in_batch, m, all);
  const auto* base_at = column<const int64_t>(base, "base", all, ScalarType::Long);
  char *inside_at = images_like(inside, "inside", middle), *outside_at = images_like(outside, "outside", middle);
  char* middle_at = images_like(middle, "middle", middle);
  std::vector<int64_t> prediction(m, -1);
  const std::unique_ptr<bool[]> poisoned(new bool[m]);
  if (logits_in.has_value()) {
    check_logits(*logits_in, "logits", 2);
    const Tensor logits = with_unit_columns(*logits_in);
    STD_TORCH_CHECK(logits.size(0) == m && found.dim() == 2 && found.size(0) == all &&
                        found.size(1) == logits.size(1) && found.scalar_type() == logits.scalar_type() &&
                        found.is_contiguous(),
                    "found: must be room for the logits of the batch");
    check_storage(found, "found");
    const Rows r{m, logits.size(1), logits.const_data_ptr(), logits.stride(0)};
    top_kernels()[static_cast<int>(element_of(logits.scalar_type(), "logits"))](r, prediction.data(), poisoned.get());
    const int64_t each = static_cast<int64_t>(logits.element_size()), bytes = r.classes * each;
    for (int64_t i = 0; i < m; ++i) {
      if (prediction[i] == base_at[rows[i]] || poisoned[i]) continue;
      std::memcpy(static_cast<char*>(found.data_ptr()) + rows[i] * bytes,
                  static_cast<const char*>(r.logits) + i * r.stride * each, bytes);
    }
  }
  const int64_t size = m == 0 ? 0 : middle.numel() / m, bytes = size * static_cast<int64_t>(middle.element_size());
  const MiddleKernel kernel = middle_kernels()[static_cast<int>(element_of(middle.scalar_type(), "middle"))];
  if (size == 0) return;
  share(m, size, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      char *here = middle_at + i * bytes, *in = inside_at + rows[i] * bytes, *out = outside_at + rows[i] * bytes;
      if (logits_in.has_value() && prediction[i] == base_at[rows[i]]) {
        std::memcpy(in, here, bytes);
      } else if (logits_in.has_value() && !poisoned[i]) {
        std::memcpy(out, here, bytes);
      }
      if (again) kernel(in, out, size, here);
    }
  });
}

// The numbers of attacks.Status.
enum Ended : int64_t { kUncrossed = 0, kCrossed, kThird, kOutside, kFailed, kPadded };

std::tuple<Tensor, Tensor, Tensor, Tensor> outcome(const Tensor& logits, const Tensor& base, const Tensor& target,
                                                   const Tensor& steps, const std::optional<Tensor>& valid,
                                                   bool softmax, bool accept_all, bool retarget) {
  Gaps gaps(logits, softmax);
  const int64_t rows = gaps.rows;
  const auto* base_at = column<const int64_t>(base, "base", rows, ScalarType::Long);
  const auto* target_at = column<const int64_t>(target, "target", rows, ScalarType::Long);
  const auto* steps_at = column<const int64_t>(steps, "steps", rows, ScalarType::Long);
  const auto* valid_at = valid.has_value() ? column<const bool>(*valid, "valid", rows, ScalarType::Bool) : nullptr;
  const ScalarType statistics = statistics_type(gaps.type);
  Tensor landed = new_empty(logits, {rows}, ScalarType::Long), status = new_empty(logits, {rows}, ScalarType::Long);
  Tensor gap = new_empty(logits, {rows}, statistics), accepted = new_empty(logits, {rows}, ScalarType::Bool);
  auto* landed_at = static_cast<int64_t*>(landed.mutable_data_ptr());
  auto* status_at = static_cast<int64_t*>(status.mutable_data_ptr());
  auto* accepted_at = static_cast<bool*>(accepted.mutable_data_ptr());
  const std::vector<int64_t> bases(base_at, base_at + rows);
  std::vector<int64_t> targets(target_at, target_at + rows);
  gaps.evaluate(bases, targets);
  bool again = false;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t prediction = gaps.prediction[i];
    int64_t end = prediction == bases[i]     ? kUncrossed
                  : steps_at[i] == 0         ? kOutside
                  : prediction == targets[i] ? kCrossed
                                             : kThird;
    if (!std::isfinite(gaps.gap(i))) end = kFailed;
    if (valid_at != nullptr && !valid_at[i]) end = kPadded;
    status_at[i] = end;
    accepted_at[i] = accept_all ? end <= kOutside : end == kCrossed || (retarget && end == kThird);
    if (retarget && end == kThird) {
      targets[i] = prediction;
      again = true;
    }
  }
  if (again) gaps.evaluate(bases, targets);
  for (int64_t i = 0; i < rows; ++i) {
    landed_at[i] = targets[i];
    put_gap(gap.mutable_data_ptr(), statistics, i, status_at[i] == kPadded ? 0.0 : gaps.gap(i));
  }
  return {landed, status, gap, accepted};
}

// ---- the folding of BatchNorms ------------------------------------------------------------------------------------

// A channel's number in a tensor [O] of any strides.
template <class T>
struct Channels {
  Channels(const Tensor& tensor, const char* name, int64_t count)
      : held(tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor)),
        at(column<const T>(held, name, count, sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float)) {}
  double operator[](int64_t o) const { return at[o]; }
  Tensor held;
  const T* at;
};

template <class T>
void scale_of(const Tensor& mean, const Tensor& variance, const Tensor& gain, const Tensor& shift, const Tensor& bias,
              double eps, int64_t count, double* scale, T* folded) {
  const Channels<T> m(mean, "means", count), v(variance, "variances", count), g(gain, "gains", count);
  const Channels<T> s(shift, "shifts", count), b(bias, "biases", count);
  for (int64_t o = 0; o < count; ++o) {
    scale[o] = 1.0 / std::sqrt(v[o] + eps) * g[o];
    folded[o] = static_cast<T>(s[o] + (b[o] - m[o]) * scale[o]);
  }
}

std::vector<Tensor> fold(std::vector<Tensor> weights, std::vector<Tensor> means, std::vector<Tensor> variances,
                         std::vector<Tensor> gains, std::vector<Tensor> shifts, std::vector<Tensor> biases,
                         std::vector<double> eps, bool channels_last) {
  const size_t count = weights.size();
  for (const std::vector<Tensor>* each : {&means, &variances, &gains, &shifts, &biases}) {
    STD_TORCH_CHECK(each->size() == count && eps.size() == count, "fold: must have as many of each as weights");
  }
  std::vector<Tensor> made;
  made.reserve(2 * count);
  std::vector<Filters> filters;
  std::vector<int64_t> ends;  // of the filters of all convolutions before and of this one
  std::vector<std::unique_ptr<double[]>> scales;
  int64_t elements = 0;
  bool wide = false;
  for (size_t i = 0; i < count; ++i) {
    Tensor& weight = weights[i];
    const ScalarType type = weight.scalar_type();
    wide = type == ScalarType::Double;
    STD_TORCH_CHECK((wide || type == ScalarType::Float) && type == weights[0].scalar_type() && weight.dim() >= 2,
                    "weights: must be [O, I, ...] of float32 or float64");
    check_storage(weight, "weights");
    const int64_t outputs = weight.size(0), inputs = weight.size(1);
    const int64_t pixels = weight.numel() == 0 ? 0 : weight.numel() / (outputs * inputs);
    const bool last = channels_last && weight.dim() == 4;
    // Weights that lie so already are read as [O, S, I], and written as they are.
    const bool as_it_is = last && !weight.is_contiguous() && channel_run(weight) == 1;
    if (!as_it_is && !weight.is_contiguous()) weight = torch::stable::contiguous(weight);
    std::vector<int64_t> sizes(weight.dim()), strides(weight.dim());
    int64_t stride = last ? inputs : 1;
    for (int64_t d = weight.dim() - 1; d >= 0; --d) {
      sizes[d] = weight.size(d);
      strides[d] = last && d == 1 ? 1 : stride;
      if (!(last && d == 1)) stride *= sizes[d];
    }
    const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
    AtenTensorHandle handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(weight.dim(), sizes.data(), strides.data(), dtype,
                                                    aoti_torch_device_type_cpu(), 0, &handle));
    made.emplace_back(handle);
    made.push_back(new_empty(weight, {outputs}, type));
    scales.emplace_back(new double[outputs]);
    if (wide) {
      scale_of(means[i], variances[i], gains[i], shifts[i], biases[i], eps[i], outputs, scales[i].get(),
               static_cast<double*>(made[2 * i + 1].mutable_data_ptr()));
    } else {
      scale_of(means[i], variances[i], gains[i], shifts[i], biases[i], eps[i], outputs, scales[i].get(),
               static_cast<float*>(made[2 * i + 1].mutable_data_ptr()));
    }
    filters.push_back(
        {weight.const_data_ptr(), scales[i].get(), inputs, pixels, last && !as_it_is, made[2 * i].mutable_data_ptr()});
    ends.push_back((ends.empty() ? 0 : ends.back()) + outputs);
    elements += weight.numel();
  }
  if (elements == 0) return made;
  const FoldKernel kernel = fold_kernels()[wide ? 1 : 0];
  share(ends.back(), (elements + ends.back() - 1) / ends.back(), [&](int64_t first, int64_t last) {
    size_t i = std::upper_bound(ends.begin(), ends.end(), first) - ends.begin();
    for (; first < last; ++i) {
      const int64_t begin = i == 0 ? 0 : ends[i - 1], end = std::min(last, ends[i]);
      kernel(filters[i], first - begin, end - begin);
      first = end;
    }
  });
  return made;
}

}  // namespace
}  // namespace amkd::attack

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CPU, m) {
  m.impl("attack_judge", TORCH_BOX(&amkd::attack::judge));
  m.impl("attack_advance", TORCH_BOX(&amkd::attack::advance));
  m.impl("attack_halve", TORCH_BOX(&amkd::attack::halve));
  m.impl("attack_outcome", TORCH_BOX(&amkd::attack::outcome));
  m.impl("attack_fold", TORCH_BOX(&amkd::attack::fold));
}
