// The terms of the selected rows and their gradients: distances from differences in the forward pass, which the
// backward pass finds in the statistics.
#pragma once

#include <cooperative_groups.h>

#include "pairs.cuh"

namespace amkd::triplet::gpu {

// What both passes read.
template <class Scalar>
struct Selected {
  using Stat = StatOf<Scalar>;
  Matrix<Scalar> anchor, positive, reference;  // positive.data null: positive_index tells
  const int64_t* positive_index;               // [N] or null
  const int64_t* negative_index;               // [N, k]
  const Stat* weight;                          // [N] or null
  int64_t anchors;
  int64_t references;
  int k;
  int width;
  Distance distance;
  Reduction reduction;
  Stat margin;
  bool soft_margin, swap;

  __device__ Stat weight_of(int64_t i) const { return weight == nullptr ? Stat(1) : weight[i]; }
  __device__ bool has_positive(int64_t i) const { return positive_index == nullptr || positive_index[i] >= 0; }
  __device__ const Matrix<Scalar>& positives() const { return positive_index == nullptr ? positive : reference; }
  __device__ int64_t positive_at(int64_t i) const { return positive_index == nullptr ? i : positive_index[i]; }
  // Triplets of an anchor: 0 where it is left out. Filled slots come first.
  __device__ int triplets_of(int64_t i) const {
    if (!has_positive(i) || weight_of(i) == 0) return 0;
    int count = 0;
    while (count < k && negative_index[i * k + count] >= 0) ++count;
    return count;
  }
};

// The sums over the anchors.
enum Total : int {
  kWeighted,       // Σ w·term
  kWeights,        // Σ w over the terms
  kActiveWeights,  // Σ w over the terms above 0
  kTermCount,
  kActiveCount,
  kTripletCount,
  kPositiveSum,
  kNegativeSum,
  kMissingCount,
  kTotals,
};

template <class Scalar>
struct Terms {
  using Stat = StatOf<Scalar>;
  Selected<Scalar> in;
  Stat* loss;
  Stat* stats;
  double* block_totals;  // [blocks, kTotals]; null: one block
  int lanes;             // threads that share an anchor
};

template <class Stat>
__device__ void finish_terms(const double (&totals)[kTotals], Reduction reduction, Stat* loss, Stat* tail) {
  double size = 1;
  if (reduction == Reduction::kMean) size = totals[kWeights];
  if (reduction == Reduction::kMeanNonzero) size = totals[kActiveWeights];
  if (size == 0) size = 1;
  const double triplets = totals[kTripletCount] > 0 ? totals[kTripletCount] : 1;
  if (reduction != Reduction::kNone) *loss = static_cast<Stat>(totals[kWeighted] / size);
  tail[kSize] = static_cast<Stat>(size);
  tail[kTerms] = static_cast<Stat>(totals[kTermCount]);
  tail[kActive] = static_cast<Stat>(totals[kActiveCount]);
  tail[kPositive] = static_cast<Stat>(totals[kPositiveSum] / triplets);
  tail[kNegative] = static_cast<Stat>(totals[kNegativeSum] / triplets);
  tail[kMissing] = static_cast<Stat>(totals[kMissingCount]);
}

// A team of lanes an anchor, in turns. Several blocks are launched together and meet at a barrier of the grid.
template <class Scalar>
__global__ void __launch_bounds__(kThreads, 2) terms_kernel(const __grid_constant__ Terms<Scalar> call) {
  using Stat = StatOf<Scalar>;
  __shared__ double scratch[kTotals][kWarp];
  const Selected<Scalar>& in = call.in;
  const Team team{call.lanes};
  const int lane = team.lane(), lanes = team.lanes;
  const int64_t n = in.anchors, k = in.k;
  const Matrix<Scalar>& positives = in.positives();
  const bool cosine = in.distance == Distance::kCosine;
  double totals[kTotals] = {};

  // Whole warps stay together: a team without an anchor, or whose anchor is left out, works on rows of no elements.
  const int64_t step = static_cast<int64_t>(gridDim.x) * team.count();
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * team.count(); base < n; base += step) {
    const int64_t i = base + team.index();
    const int triplets = i < n ? in.triplets_of(i) : 0;
    const int width = triplets > 0 ? in.width : 0;
    const Scalar* const a = triplets > 0 ? in.anchor.row(i) : nullptr;
    const Scalar* const p = triplets > 0 ? positives.row(in.positive_at(i)) : nullptr;
    const bool aligned = in.anchor.aligned && positives.aligned;
    const Stat d_ap =
        distance_from_square(square_between<Stat>(a, p, width, aligned, cosine, lane, lanes), in.distance);
    Stat cost = 0;
    double negative_sum = 0;
    for (int s = 0; s < in.k; ++s) {
      const bool filled = s < triplets;
      const Scalar* const r = filled ? in.reference.row(in.negative_index[i * k + s]) : nullptr;
      const int columns = filled ? in.width : 0;
      const Stat d_an = distance_from_square(
          square_between<Stat>(a, r, columns, in.anchor.aligned && in.reference.aligned, cosine, lane, lanes),
          in.distance);
      Stat d_pn = 0, effective = d_an;
      if (in.swap) {
        d_pn = distance_from_square(
            square_between<Stat>(p, r, columns, positives.aligned && in.reference.aligned, cosine, lane, lanes),
            in.distance);
        if (d_pn < d_an) effective = d_pn;
      }
      if (filled) {
        cost += cost_of(d_ap - effective, in.margin, in.soft_margin);
        negative_sum += d_an;
      }
      if (lane == 0 && i < n) {
        call.stats[n + i * k + s] = filled ? d_an : Stat(0);
        if (in.swap) call.stats[n + n * k + i * k + s] = filled ? d_pn : Stat(0);
      }
    }
    if (lane != 0 || i >= n) continue;
    call.stats[i] = triplets > 0 ? d_ap : Stat(0);
    const Stat weight = in.weight_of(i);
    const Stat term = triplets > 0 ? cost / static_cast<Stat>(triplets) : Stat(0);
    const Stat weighted = triplets > 0 ? weight * term : Stat(0);
    if (in.reduction == Reduction::kNone) call.loss[i] = weighted;
    if (triplets > 0) {
      totals[kWeighted] += weighted;
      totals[kWeights] += weight;
      totals[kTermCount] += 1;
      if (term > 0) {
        totals[kActiveWeights] += weight;
        totals[kActiveCount] += 1;
      }
      totals[kTripletCount] += triplets;
      totals[kPositiveSum] += static_cast<double>(d_ap) * triplets;
      totals[kNegativeSum] += negative_sum;
    } else if (weight != 0) {
      totals[kMissingCount] += 1;
    }
  }

  const Team block{kThreads};
  Stat* const tail = call.stats + n * (1 + k * (in.swap ? 2 : 1));
  reduce_team(block, totals, 0.0, scratch, Plus());
  if (call.block_totals == nullptr) {
    if (threadIdx.x == 0) finish_terms(totals, in.reduction, call.loss, tail);
    return;
  }
  if (threadIdx.x == 0) {
#pragma unroll
    for (int t = 0; t < kTotals; ++t) call.block_totals[blockIdx.x * kTotals + t] = totals[t];
  }
  cooperative_groups::this_grid().sync();
  if (blockIdx.x != 0) return;
  double sums[kTotals] = {};
  for (unsigned b = threadIdx.x; b < gridDim.x; b += kThreads) {
#pragma unroll
    for (int t = 0; t < kTotals; ++t) sums[t] += call.block_totals[b * kTotals + t];
  }
  reduce_team(block, sums, 0.0, scratch, Plus());
  if (threadIdx.x == 0) finish_terms(sums, in.reduction, call.loss, tail);
}

template <class Scalar>
struct Backward {
  using Stat = StatOf<Scalar>;
  Selected<Scalar> in;
  const Stat* stats;
  const Stat* grad_loss;
  int64_t grad_loss_stride;
  Scalar* grad_anchor;     // [N, D]; without a reference it takes the references' part too
  Scalar* grad_positive;   // [N, D] or null
  Scalar* grad_reference;  // [P, D] or null
  Stat* sum_anchor;        // the same for the scattering kernel, in the statistics' type
  Stat* sum_positive;
  Stat* sum_reference;
  bool is_batch;

  __device__ Stat* sum_of_references() const { return is_batch ? sum_anchor : sum_reference; }
  __device__ Scalar* grad_of_references() const { return is_batch ? grad_anchor : grad_reference; }
};

// How the loss depends on the distances of one anchor.
template <class Scalar>
struct Pulls {
  using Stat = StatOf<Scalar>;
  const Backward<Scalar>& call;
  int64_t i;
  int triplets;
  Stat each;  // upstream gradient · weight / (size · triplets)
  Stat d_ap;

  __device__ Pulls(const Backward<Scalar>& call_in, int64_t anchor)
      : call(call_in), i(anchor), triplets(call_in.in.triplets_of(anchor)), each(0), d_ap(call_in.stats[anchor]) {
    const Selected<Scalar>& in = call.in;
    if (triplets == 0) return;
    const Stat size = call.stats[in.anchors * (1 + static_cast<int64_t>(in.k) * (in.swap ? 2 : 1)) + kSize];
    each = call.grad_loss[i * call.grad_loss_stride] * in.weight_of(i) / size / static_cast<Stat>(triplets);
  }
  __device__ Stat d_an(int s) const { return call.stats[call.in.anchors + i * call.in.k + s]; }
  __device__ Stat d_pn(int s) const {
    return call.stats[call.in.anchors + (call.in.anchors + i) * static_cast<int64_t>(call.in.k) + s];
  }
  __device__ bool swapped(int s) const { return call.in.swap && d_pn(s) < d_an(s); }
  // d loss / d D_ap through slot s; with the other sign, through the distance to its negative.
  __device__ Stat of(int s) const {
    const Stat nearer = swapped(s) ? d_pn(s) : d_an(s);
    return each * slope_of(d_ap - nearer, call.in.margin, call.in.soft_margin);
  }
  __device__ Stat all() const {
    Stat sum = 0;
    for (int s = 0; s < triplets; ++s) sum += of(s);
    return sum;
  }
};

// Some columns of a row, `kWidth` a lane of a warp, and what pulls at them.
template <class Scalar>
struct Columns16 {
  using Stat = StatOf<Scalar>;
  static constexpr int kWidth = Vector<Scalar>::kWidth;
  Stat sum[kWidth] = {};
  int first;  // of the lane's columns
  int width;

  __device__ Columns16(int first_in, int width_in) : first(first_in), width(width_in) {}

  __device__ void load(const Matrix<Scalar>& rows, int64_t row, Stat (&out)[kWidth]) const {
    const Scalar* const from = rows.row(row);
    if (rows.aligned && first + kWidth <= width) {
      const Vector<Scalar> vector = load_vector(from + first);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) out[e] = widen(vector.at[e]);
    } else {
#pragma unroll
      for (int e = 0; e < kWidth; ++e) out[e] = first + e < width ? widen(from[first + e]) : Stat(0);
    }
  }

  // Adds what `pull` = d loss / d D(x, y) does to x. The whole warp calls it together.
  __device__ void add(const Selected<Scalar>& in, const Matrix<Scalar>& x_rows, int64_t x_row,
                      const Matrix<Scalar>& y_rows, int64_t y_row, Stat distance, Stat pull) {
    if (pull == 0) return;  // a NaN pull is none
    Stat x[kWidth], y[kWidth];
    load(x_rows, x_row, x);
    load(y_rows, y_row, y);
    if (in.distance == Distance::kCosine) {
      const int lane = threadIdx.x % kWarp;
      const double x_scale = scale_of(x_rows.row(x_row), width, x_rows.aligned, lane, kWarp);
      const double y_scale = scale_of(y_rows.row(y_row), width, y_rows.aligned, lane, kWarp);
      if (x_scale < 0 || y_scale < 0) return;
      // Of u - v what does not point along u: u·(u - v) is the distance.
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        const double u = x[e] * x_scale, v = y[e] * y_scale;
        sum[e] += static_cast<Stat>(pull * x_scale * (u - v - distance * u));
      }
      return;
    }
    const Stat factor = in.distance == Distance::kSquared ? 2 * pull : distance == 0 ? Stat(0) : pull / distance;
#pragma unroll
    for (int e = 0; e < kWidth; ++e) sum[e] += factor * (x[e] - y[e]);
  }
};

template <class Scalar>
__device__ void add_anchor(Columns16<Scalar>& columns, const Pulls<Scalar>& pulls) {
  const Selected<Scalar>& in = pulls.call.in;
  const int64_t i = pulls.i;
  if (pulls.triplets == 0) return;
  columns.add(in, in.anchor, i, in.positives(), in.positive_at(i), pulls.d_ap, pulls.all());
  for (int s = 0; s < pulls.triplets; ++s) {
    if (pulls.swapped(s)) continue;
    columns.add(in, in.anchor, i, in.reference, in.negative_index[i * in.k + s], pulls.d_an(s), -pulls.of(s));
  }
}
template <class Scalar>
__device__ void add_positive(Columns16<Scalar>& columns, const Pulls<Scalar>& pulls) {
  const Selected<Scalar>& in = pulls.call.in;
  const int64_t i = pulls.i;
  if (pulls.triplets == 0) return;
  columns.add(in, in.positives(), in.positive_at(i), in.anchor, i, pulls.d_ap, pulls.all());
  for (int s = 0; s < pulls.triplets; ++s) {
    if (!pulls.swapped(s)) continue;
    columns.add(in, in.positives(), in.positive_at(i), in.reference, in.negative_index[i * in.k + s], pulls.d_pn(s),
                -pulls.of(s));
  }
}
template <class Scalar>
__device__ void add_negative(Columns16<Scalar>& columns, const Pulls<Scalar>& pulls, int s) {
  const Selected<Scalar>& in = pulls.call.in;
  const int64_t i = pulls.i;
  if (s >= pulls.triplets) return;
  const bool swapped = pulls.swapped(s);
  columns.add(in, in.reference, in.negative_index[i * in.k + s], swapped ? in.positives() : in.anchor,
              swapped ? in.positive_at(i) : i, swapped ? pulls.d_pn(s) : pulls.d_an(s), -pulls.of(s));
}

// A warp an output row: anchors, then explicit positives, then reference rows, eight of a kind a block. The block looks
// through the indices for its rows; contributions add up in the order of the anchors, so the bits are always the same.
template <class Scalar>
__global__ void __launch_bounds__(kThreads, 2) gather_kernel(const __grid_constant__ Backward<Scalar> call) {
  constexpr int kRoom = 1024;
  constexpr int kWidth = Vector<Scalar>::kWidth;
  __shared__ int entries[kRoom];
  __shared__ unsigned char entry_rows[kRoom];
  __shared__ int warp_counts[kWarps];
  const Selected<Scalar>& in = call.in;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t anchor_blocks = (in.anchors + kWarps - 1) / kWarps;
  const int64_t positive_blocks = call.grad_positive == nullptr ? 0 : anchor_blocks;
  int64_t block = blockIdx.x;
  const bool of_anchor = block < anchor_blocks;
  if (!of_anchor) block -= anchor_blocks;
  const bool of_positive = !of_anchor && block < positive_blocks;
  if (!of_anchor && !of_positive) block -= positive_blocks;
  const bool of_reference = !of_anchor && !of_positive;

  const int64_t first_row = block * kWarps, row = first_row + warp;
  const int64_t rows = of_reference ? in.references : in.anchors;
  Columns16<Scalar> columns((blockIdx.y * kWarp + lane) * kWidth, in.width);
  if (of_anchor && row < rows) add_anchor(columns, Pulls<Scalar>(call, row));
  if (of_positive && row < rows) add_positive(columns, Pulls<Scalar>(call, row));

  if (of_reference || (of_anchor && call.is_batch)) {
    const int roles = 1 + in.k;  // 0: the positive, 1 + s: negative s
    const int total = static_cast<int>(in.anchors * roles);
    int count = 0;
    const auto apply = [&] {
      __syncthreads();  // the list is complete
      for (int e = 0; e < count; ++e) {
        if (entry_rows[e] != warp) continue;
        const Pulls<Scalar> pulls(call, entries[e] / roles);
        const int role = entries[e] % roles;
        if (role == 0) {
          add_positive(columns, pulls);
        } else {
          add_negative(columns, pulls, role - 1);
        }
      }
      __syncthreads();  // and has been used
      count = 0;
    };
    for (int base = 0; base < total; base += kThreads) {
      const int entry = base + threadIdx.x;
      int64_t target = -1;
      if (entry < total) {
        const int64_t i = entry / roles;
        const int role = entry % roles;
        if (role > 0) {
          target = in.negative_index[i * in.k + role - 1];
        } else if (in.positive_index != nullptr) {
          target = in.positive_index[i];
        }
      }
      const bool hit = target >= first_row && target < first_row + kWarps;
      if (!__syncthreads_or(hit)) continue;
      const unsigned mask = __ballot_sync(kAllLanes, hit);
      if (lane == 0) warp_counts[warp] = __popc(mask);
      __syncthreads();
      int place = count, found = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        if (w < warp) place += warp_counts[w];
        found += warp_counts[w];
      }
      if (hit) {
        place += __popc(mask & ((1u << lane) - 1));
        entries[place] = entry;
        entry_rows[place] = static_cast<unsigned char>(target - first_row);
      }
      count += found;
      if (count > kRoom - kThreads) apply();
    }
    apply();
  }

  if (row >= rows) return;
  Scalar* const out = of_anchor ? call.grad_anchor : of_positive ? call.grad_positive : call.grad_reference;
#pragma unroll
  for (int e = 0; e < kWidth; ++e) {
    if (columns.first + e < in.width) {
      out[row * in.width + columns.first + e] = narrow<Scalar>(columns.sum[e]);
    }
  }
}

__device__ inline void add_atomically(double* at, const double (&values)[2], int count) {
  for (int e = 0; e < 2; ++e) {
    if (e < count) atomicAdd(at + e, values[e]);
  }
}
template <int kCount>
__device__ void add_atomically(float* at, const float (&values)[kCount], int count) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (count >= kCount && reinterpret_cast<uintptr_t>(at) % 16 == 0) {
#pragma unroll
    for (int e = 0; e < kCount; e += 4) {
      atomicAdd(reinterpret_cast<float4*>(at + e), make_float4(values[e], values[e + 1], values[e + 2], values[e + 3]));
    }
    return;
  }
#endif
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    if (e < count) atomicAdd(at + e, values[e]);
  }
}

// A warp an anchor adds to the rows that it has selected. sum_* of rows that several anchors may add to hold zeros.
template <class Scalar>
__global__ void __launch_bounds__(kThreads, 2) scatter_kernel(const __grid_constant__ Backward<Scalar> call) {
  using Stat = StatOf<Scalar>;
  constexpr int kWidth = Vector<Scalar>::kWidth;
  const Selected<Scalar>& in = call.in;
  const int lane = threadIdx.x % kWarp;
  const int64_t i = blockIdx.x * static_cast<int64_t>(kWarps) + threadIdx.x / kWarp;
  if (i >= in.anchors) return;  // the whole warp
  const Pulls<Scalar> pulls(call, i);
  Stat* const references = call.sum_of_references();
  for (int first = 0; first < in.width; first += kWarp * kWidth) {
    const int column = first + lane * kWidth, count = in.width - column;
    const auto put = [&](const Columns16<Scalar>& columns, Stat* sums, int64_t row, bool shared) {
      Stat* const at = sums + row * in.width + column;
      if (shared) {
        add_atomically(at, columns.sum, count);
        return;
      }
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        if (e < count) at[e] = columns.sum[e];
      }
    };
    Columns16<Scalar> anchor(column, in.width);
    add_anchor(anchor, pulls);
    if (pulls.triplets > 0 || !call.is_batch) put(anchor, call.sum_anchor, i, call.is_batch);
    Columns16<Scalar> positive(column, in.width);
    add_positive(positive, pulls);
    if (in.positive_index == nullptr) {
      put(positive, call.sum_positive, i, false);
    } else if (pulls.triplets > 0) {
      put(positive, references, in.positive_index[i], true);
    }
    for (int s = 0; s < pulls.triplets; ++s) {
      Columns16<Scalar> negative(column, in.width);
      add_negative(negative, pulls, s);
      put(negative, references, in.negative_index[i * in.k + s], true);
    }
  }
}

template <class Scalar>
__global__ void __launch_bounds__(kThreads) round_kernel(const StatOf<Scalar>* sums, Scalar* out, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; e < count; e += step) {
    out[e] = narrow<Scalar>(sums[e]);
  }
}

}  // namespace amkd::triplet::gpu
