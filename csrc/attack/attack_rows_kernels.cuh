// Rows of logits on a GPU: the attack's objective with its gradient, the draw of a target and the choice of the bases.
// amkd_fast/ops/attack/reference.py has the mathematics.
//
// A crew takes a row and goes through it several times, which is in a cache by then: some lanes or a warp a short row,
// a block a long one.
#pragma once

#include "../common/element.cuh"
#include "../common/math.cuh"
#include "../common/philox.h"
#include "attack.h"
#include "block_collectives.cuh"

namespace amkd::attack::gpu {

// Logits with unit column stride.
template <class Scalar>
struct Rows {
  const Scalar* data;
  int64_t stride;  // of a row
  int classes;
  bool wide;  // every row starts at a multiple of 16 bytes

  __device__ const Scalar* at(int64_t row) const { return data + row * stride; }
};

template <class Scalar>
struct Objective {
  using Stat = StatOf<Scalar>;
  Rows<Scalar> logits;
  int64_t rows;
  const int64_t *labels, *target;  // [rows]; target: null for none
  Loss loss;
  bool softmax, targeted;
  int lanes;
  Stat* value;
  Scalar* grad;  // [rows, classes]
  int64_t* prediction;
  bool* active;
};

// Where a draw takes its numbers from.
struct Stream {
  const int64_t* seeds;  // one number, or null
  int64_t seed;

  __device__ double number(int64_t counter) const {
    return philox_uniform(static_cast<uint64_t>(seeds == nullptr ? seed : *seeds), static_cast<uint64_t>(counter));
  }
};

template <class Scalar>
struct Draw {
  Rows<Scalar> logits;
  int64_t rows;
  const int64_t *base, *counters;  // [rows]; counters: null for 0, 1, ...
  Stream stream;
  int64_t* target;
};

template <class Scalar>
struct Bases {
  Rows<Scalar> student, teacher;
  int64_t rows, limit;
  const int64_t* labels;
  Stream stream;
  StatOf<Scalar>* keys;            // [rows] the networks' disagreement, -1 where the row is not eligible
  int64_t *index, *base, *target;  // [limit]
  bool* valid;
};

constexpr int kNoClass = 0x7fffffff;

template <class T>
__device__ bool is_nan(T x) {
  return x != x;
}
template <class T>
__device__ bool is_finite_number(T x) {
  return x - x == T(0);
}

// A class and its logit.
template <class Stat>
struct Candidate {
  Stat z = static_cast<Stat>(-INFINITY);
  int at = kNoClass;
};
// As torch.argmax has it: NaN before all, then the larger, then the lower index.
struct Best {
  template <class Stat>
  __device__ static bool precedes(const Candidate<Stat>& a, const Candidate<Stat>& b) {
    if (is_nan(a.z) != is_nan(b.z)) return is_nan(a.z);
    if (a.z > b.z || a.z < b.z) return a.z > b.z;
    return a.at < b.at;
  }
  template <class Stat>
  __device__ Candidate<Stat> operator()(const Candidate<Stat>& a, const Candidate<Stat>& b) const {
    return precedes(b, a) ? b : a;
  }
};

// Calls body(column, logit) for the lane's share. What a lane takes depends on nothing but the call, so that equal rows
// give equal bits.
template <class Scalar, class Body>
__device__ void each_column(const Rows<Scalar>& rows, const Scalar* row, int lane, int lanes, Body body) {
  constexpr int kWidth = Vector<Scalar>::kWidth;
  const int vectors = rows.wide ? rows.classes / kWidth : 0;
#pragma unroll 2
  for (int v = lane; v < vectors; v += lanes) {
    const Vector<Scalar> z = load_vector(row + v * kWidth);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) body(v * kWidth + k, widen(z.at[k]));
  }
  for (int i = vectors * kWidth + lane; i < rows.classes; i += lanes) body(i, widen(row[i]));
}

// The best of the classes that `counts` admits.
template <class Scalar, class Counts>
__device__ Candidate<StatOf<Scalar>> best_of(Crew& crew, const Rows<Scalar>& rows, const Scalar* row, Counts counts) {
  using Stat = StatOf<Scalar>;
  Candidate<Stat> best;
  each_column(rows, row, crew.lane(), crew.lanes(), [&](int column, Stat z) {
    const Candidate<Stat> other{z, column};
    if (counts(other)) best = Best()(best, other);
  });
  return crew.agree(best, Best());
}

// Σ exp(z - highest) over the classes besides the best, whose own term is 1: next to it a confident row's would be
// lost. NaN where the highest is infinite.
template <class Scalar, class Stat = StatOf<Scalar>>
__device__ Stat others(Crew& crew, const Rows<Scalar>& rows, const Scalar* row, const Candidate<Stat>& best) {
  Stat sum = 0;
  each_column(rows, row, crew.lane(), crew.lanes(), [&](int column, Stat z) {
    const Stat below = z - best.z;
    sum += column == best.at ? below : exp_of(below);
  });
  return crew.agree(sum, Plus());
}

// The gradient of a row: what up to five classes have, and of the others a share of exp(z - highest).
template <class Stat>
struct RowGradient {
  static constexpr int kSteps = 5;
  bool shared = false;  // without it the others have none
  Stat highest = 0, share = 0;
  int at[kSteps] = {kNoClass, kNoClass, kNoClass, kNoClass, kNoClass};
  Stat step[kSteps] = {};  // of a class that is named twice, the sum

  __device__ Stat operator()(int column, Stat z) const {
    Stat steps = 0;
    bool others = shared;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      steps += column == at[i] ? step[i] : Stat(0);
      others = others && column != at[i];
    }
    return others ? share * exp_of(z - highest) : steps;
  }

  // What is no step is finite wherever the value is.
  __device__ bool steps_are_finite() const {
    bool finite = true;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) finite = finite && is_finite_number(step[i]);
    return finite;
  }
};

// One row of attack_objective: its value, and the gradient.
template <class Scalar, class Stat = StatOf<Scalar>>
__device__ Stat evaluate(const Objective<Scalar>& call, Crew& crew, const Scalar* row, const Candidate<Stat>& best,
                         int label, int target, RowGradient<Stat>& gradient) {
  const Rows<Scalar>& rows = call.logits;
  const auto z = [&](int column) { return widen(row[column]); };
  const auto step = [&](int i, int column, Stat by) {
    gradient.at[i] = column;
    gradient.step[i] = by;
  };
  gradient.shared = call.loss != Loss::kBoundary ? call.loss == Loss::kCrossEntropy : call.softmax;
  gradient.highest = best.z;
  const Stat rest = gradient.shared ? others(crew, rows, row, best) : Stat(0), per_sum = Stat(1) / (Stat(1) + rest);
  const auto p = [&](int column) { return rounded_product(exp_of(z(column) - best.z), per_sum); };
  const auto not_p = [&](int column) { return column == best.at ? rest * per_sum : Stat(1) - p(column); };
  if (call.loss == Loss::kCrossEntropy) {
    const int wanted = call.targeted ? target : label;
    const Stat sign = call.targeted ? Stat(-1) : Stat(1);
    gradient.share = sign * per_sum;
    step(0, wanted, -sign * not_p(wanted));
    return sign * (log1p_of(rest) - (z(wanted) - best.z));
  }

  int rival = target;
  if (call.target == nullptr) {
    rival = best_of(crew, rows, row, [&](const Candidate<Stat>& other) { return other.at != label; }).at;
  }
  if (call.loss == Loss::kBoundary) {
    if (!call.softmax) {
      step(0, rival, Stat(1));
      step(1, label, Stat(-1));
      return z(rival) - z(label);
    }
    const Stat up = p(rival), down = p(label), value = up - down;
    gradient.share = -value * per_sum;
    // p · (±1 - value) for the two
    step(0, rival, rival == label ? Stat(0) : up * (not_p(rival) + down));
    step(1, label, rival == label ? Stat(0) : -down * (not_p(label) + up));
    return value;
  }

  // Difference of logits ratio: each place in the order is the best of what comes after the place before.
  Candidate<Stat> places[4];
  places[0] = best_of(crew, rows, row, [](const Candidate<Stat>&) { return true; });
  const int last = call.targeted ? 3 : 2;
#pragma unroll
  for (int i = 1; i < 4; ++i) {
    if (i > last) break;
    places[i] =
        best_of(crew, rows, row, [&](const Candidate<Stat>& other) { return Best::precedes(places[i - 1], other); });
  }
  const Stat below = call.targeted ? (places[2].z + places[3].z) / 2 : places[2].z;
  const Stat width = places[0].z - below + static_cast<Stat>(kDlrFloor);
  const Stat value = (z(rival) - z(label)) / width;
  // (lift - value · spread) / width, once for each of these classes, some of which may be the same.
  const Stat part = call.targeted ? Stat(0.5) : Stat(1);
  const int classes[] = {rival, label, places[0].at, places[2].at, call.targeted ? places[3].at : kNoClass};
  const Stat lifts[] = {1, -1, 0, 0, 0}, spreads[] = {0, 0, 1, -part, -part};
#pragma unroll
  for (int i = 0; i < RowGradient<Stat>::kSteps; ++i) {
    Stat lift = 0, spread = 0;
    bool first = true;
#pragma unroll
    for (int j = 0; j < RowGradient<Stat>::kSteps; ++j) {
      if (classes[j] != classes[i]) continue;
      lift += lifts[j];
      spread += spreads[j];
      first = first && j >= i;
    }
    if (first) step(i, classes[i], (lift - value * spread) / width);
  }
  return value;
}

template <class Scalar>
__global__ void __launch_bounds__(kRowThreads, 3) objective_kernel(const __grid_constant__ Objective<Scalar> call) {
  using Stat = StatOf<Scalar>;
  constexpr int kWidth = Vector<Scalar>::kWidth;
  __shared__ Desk desk;
  Crew crew(call.lanes, 1, desk);
  const bool inside = crew.index() < call.rows;
  const int64_t i = inside ? crew.index() : call.rows - 1;  // whole warps stay together
  const Scalar* const row = call.logits.at(i);
  const int64_t label = call.labels[i], target = call.target == nullptr ? 0 : call.target[i];
  const auto is_class = [&](int64_t c) { return c >= 0 && c < call.logits.classes; };
  const bool in_range = is_class(label) && is_class(target);

  const Candidate<Stat> best = best_of(crew, call.logits, row, [](const Candidate<Stat>&) { return true; });
  RowGradient<Stat> gradient;
  const Stat value = evaluate(call, crew, row, best, in_range ? static_cast<int>(label) : 0,
                              in_range ? static_cast<int>(target) : 0, gradient);
  if (!inside) return;
  const bool known = in_range && !is_nan(best.z);
  const bool usable = known && is_finite_number(value) && gradient.steps_are_finite();
  if (crew.lane() == 0) {
    call.value[i] = known ? value : static_cast<Stat>(NAN);
    call.prediction[i] = best.at;
    call.active[i] = usable && (call.targeted ? best.at != target : best.at == label);
  }

  Scalar* const out = call.grad + i * call.logits.classes;
  const auto at = [&](int column, Scalar z) { return narrow<Scalar>(usable ? gradient(column, widen(z)) : Stat(0)); };
  const int vectors = call.logits.wide ? call.logits.classes / kWidth : 0;
  for (int v = crew.lane(); v < vectors; v += crew.lanes()) {
    const Vector<Scalar> z = load_vector(row + v * kWidth);
    Vector<Scalar> result;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) result.at[k] = at(v * kWidth + k, z.at[k]);
    store_vector(out + v * kWidth, result);
  }
  for (int column = vectors * kWidth + crew.lane(); column < call.logits.classes; column += crew.lanes()) {
    out[column] = at(column, row[column]);
  }
}

// Sum over the lanes before this one, and it.
__device__ inline double sum_up_to(double value, int lane) {
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const double other = __shfl_up_sync(kAllLanes, value, step);
    if (lane >= step) value += other;
  }
  return value;
}

// A class other than `base` by inversion of `uniform` in fp64; the best of them where none has a weight. A warp does
// it: every lane sums neighbouring classes, then all look through those of the lane in whose sum the number falls.
template <class Scalar>
__device__ int draw_class(Crew& crew, const Rows<Scalar>& rows, const Scalar* row, int64_t base, double uniform) {
  using Stat = StatOf<Scalar>;
  const int lane = crew.lane(), share = (rows.classes + kWarp - 1) / kWarp;
  const Candidate<Stat> best = best_of(crew, rows, row, [&](const Candidate<Stat>& other) { return other.at != base; });
  const auto weight = [&](int column) {
    return column == base ? 0.0 : exp(static_cast<double>(widen(row[column])) - static_cast<double>(best.z));
  };
  const auto ends = [&](int of) {
    return static_cast<int>(min(static_cast<int64_t>(of + 1) * share, static_cast<int64_t>(rows.classes)));
  };
  double own = 0;
  for (int column = lane * share; column < ends(lane); ++column) own += weight(column);
  const double up_to = sum_up_to(own, lane);
  const double total = __shfl_sync(kAllLanes, up_to, kWarp - 1);
  if (!(total > 0)) return best.at;  // NaN: no other class has a weight, or one has an infinite one

  // Sums that are rounded in another order may all stay below a number next to 1: then it is the last that has a
  // weight.
  const double threshold = uniform * total;
  const unsigned weighty = __ballot_sync(kAllLanes, own > 0);
  const unsigned above = __ballot_sync(kAllLanes, own > 0 && up_to > threshold);
  const int owner = above != 0 ? __ffs(above) - 1 : kWarp - 1 - __clz(weighty);
  double before = __shfl_sync(kAllLanes, up_to, owner) - __shfl_sync(kAllLanes, own, owner);
  int drawn = best.at;
  for (int first = owner * share; first < ends(owner); first += kWarp) {
    const double w = first + lane < ends(owner) ? weight(first + lane) : 0.0;
    const double reached = sum_up_to(w, lane);
    const unsigned candidates = __ballot_sync(kAllLanes, w > 0);
    const unsigned hits = __ballot_sync(kAllLanes, w > 0 && before + reached > threshold);
    if (hits != 0) return first + __ffs(hits) - 1;
    if (candidates != 0) drawn = first + kWarp - 1 - __clz(candidates);
    before += __shfl_sync(kAllLanes, reached, kWarp - 1);
  }
  return drawn;
}

template <class Scalar>
__global__ void __launch_bounds__(kSmallThreads, 8) draw_kernel(const __grid_constant__ Draw<Scalar> call) {
  __shared__ Desk desk;
  Crew crew(kWarp, 1, desk);
  const int64_t i = crew.index();
  if (i >= call.rows) return;  // the whole warp
  const double uniform = call.stream.number(call.counters == nullptr ? i : call.counters[i]);
  const int drawn = draw_class(crew, call.logits, call.logits.at(i), call.base[i], uniform);
  if (crew.lane() == 0) call.target[i] = drawn;
}

// How much the networks disagree on a row that both predict right; -1 of the others.
template <class Scalar>
__device__ void find_key(const Bases<Scalar>& call, Crew& crew, int64_t i) {
  using Stat = StatOf<Scalar>;
  const auto all = [](const Candidate<Stat>&) { return true; };
  const Scalar *const student = call.student.at(i), *const teacher = call.teacher.at(i);
  const Candidate<Stat> of_student = best_of(crew, call.student, student, all);
  const Candidate<Stat> of_teacher = best_of(crew, call.teacher, teacher, all);
  const int64_t label = call.labels[i];
  Stat key = -1;
  if (of_student.at == label && of_teacher.at == label) {
    const Stat per_student = Stat(1) / (Stat(1) + others(crew, call.student, student, of_student));
    const Stat per_teacher = Stat(1) / (Stat(1) + others(crew, call.teacher, teacher, of_teacher));
    Stat sum = 0;
    for (int column = crew.lane(); column < call.teacher.classes; column += crew.lanes()) {
      const Stat difference = rounded_product(exp_of(widen(teacher[column]) - of_teacher.z), per_teacher) -
                              rounded_product(exp_of(widen(student[column]) - of_student.z), per_student);
      sum += column == label ? Stat(0) : difference * difference;
    }
    sum = crew.agree(sum, Plus());
    if (is_finite_number(sum)) key = sum;
  }
  if (crew.lane() == 0) call.keys[i] = key;
}

// Counts the rows that come before an eligible one, which is its place in the result, and writes it there.
template <class Scalar>
__device__ void place_row(const Bases<Scalar>& call, Crew& crew, int64_t i) {
  const StatOf<Scalar> key = call.keys[i];
  if (key < 0) return;
  int before = 0;
  for (int64_t j = crew.lane(); j < call.rows; j += crew.lanes()) {
    const StatOf<Scalar> other = call.keys[j];
    before += other > key || (other == key && j < i) ? 1 : 0;
  }
  before = crew.agree(before, Plus());
  if (before >= call.limit) return;
  const int64_t label = call.labels[i];
  const int target = draw_class(crew, call.teacher, call.teacher.at(i), label, call.stream.number(i));
  if (crew.lane() != 0) return;
  call.index[before] = i;
  call.base[before] = label;
  call.target[before] = target;
  call.valid[before] = true;
}

// Zeros behind the eligible rows. A block does it.
template <class Scalar>
__device__ void pad(const Bases<Scalar>& call, Crew& crew) {
  int eligible = 0;
  for (int64_t j = crew.lane(); j < call.rows; j += crew.lanes()) eligible += call.keys[j] >= 0 ? 1 : 0;
  eligible = crew.agree(eligible, Plus());
  for (int64_t slot = eligible + threadIdx.x; slot < call.limit; slot += blockDim.x) {
    call.index[slot] = call.base[slot] = call.target[slot] = 0;
    call.valid[slot] = false;
  }
}

// All in one block, a warp a row.
template <class Scalar>
__global__ void __launch_bounds__(kBasesThreads, 1) bases_kernel(const __grid_constant__ Bases<Scalar> call) {
  __shared__ Desk desk;
  Crew crew(kWarp, 1, desk);
  for (int64_t i = crew.index(); i < call.rows; i += kBasesThreads / kWarp) find_key(call, crew, i);
  __syncthreads();
  for (int64_t i = crew.index(); i < call.rows; i += kBasesThreads / kWarp) place_row(call, crew, i);
  pad(call, crew);
}

template <class Scalar>
__global__ void __launch_bounds__(kSmallThreads, 8) keys_kernel(const __grid_constant__ Bases<Scalar> call) {
  __shared__ Desk desk;
  Crew crew(kWarp, 1, desk);
  if (crew.index() < call.rows) find_key(call, crew, crew.index());
}

template <class Scalar>
__global__ void __launch_bounds__(kSmallThreads, 8) ranks_kernel(const __grid_constant__ Bases<Scalar> call) {
  __shared__ Desk desk;
  Crew crew(kWarp, 1, desk);
  if (crew.index() < call.rows) place_row(call, crew, crew.index());
  if (blockIdx.x == 0) pad(call, crew);
}

}  // namespace amkd::attack::gpu
