// Mining `all` and `semihard`: every pair of some anchors with the reference rows, a block an anchor.
//
// The block first turns its products into distances, +inf for a row that is no candidate and with the sign bit set for
// a positive, so that later sweeps need one number a row. Positives come into shared memory kChunk at a time, in their
// order, and meet all negatives there. Nothing is summed in an order that could change.
#pragma once

#include "pairs.cuh"

namespace amkd::triplet::gpu {

template <class Scalar>
struct EveryPair {
  using Stat = StatOf<Scalar>;
  const Stat* product;  // [n, P]
  Stat* distances;      // [n, P]; in the backward pass the product itself, and in the end U
  Stat* weights;        // [n, P] Σ of the negatives over the chunks, or null: one chunk is all
  Matrix<Scalar> anchor, reference;
  const Stat* anchor_square;      // [n]
  const Stat* reference_square;   // [P]
  const Stat* positive_distance;  // [n] or null
  const bool* used;               // [n] or null
  Candidates candidates;
  int64_t references;
  int width;
  Distance distance;
  Stat margin;
  bool semihard, fallback, soft_margin;
  bool exact;       // take every distance from differences
  Stat* total;      // [n]
  int64_t* counts;  // [n, 3]
  Stat* sums;       // [n, 2]
  const Stat* grad_total;
  int64_t grad_total_stride;
  Stat* grad_positive;  // [n] or null
};

// The positives of a chunk.
template <class Stat>
struct Chunk {
  Stat distance[kChunk];     // of the positive; for the hinge over all pairs its threshold D_ap + margin, ascending
  int row[kChunk];           // among the references; -1 for an explicit positive
  int chosen[kChunk];        // semihard: its negative, or -1. all: how many negatives have just this rank
  Stat pull[kChunk];         // d total / d D_ap
  double above[kChunk + 1];  // all: sums of the thresholds from one on
  int count;
  int next;  // where the next chunk starts to look
  int warp_counts[kWarps];
};

// What the block knows of its row.
template <class Stat>
struct Row {
  Stat* distance;  // [P], encoded
  int64_t positives, negatives;
  double positive_sum, negative_sum;
  int first_nan;          // the first negative at a NaN distance, or kNoRow
  int nearest, farthest;  // negatives, NaN first, or kNoRow
};
constexpr int kNoRow = 0x7fffffff;

__device__ inline bool is_marked(float x) { return __float_as_int(x) < 0; }
__device__ inline bool is_marked(double x) { return __double_as_longlong(x) < 0; }
__device__ inline float marked(float x) { return __int_as_float(__float_as_int(x) | static_cast<int>(0x80000000u)); }
__device__ inline double marked(double x) {
  return __longlong_as_double(__double_as_longlong(x) | static_cast<long long>(0x8000000000000000ull));
}
__device__ inline float unmarked(float x) { return __int_as_float(__float_as_int(x) & 0x7fffffff); }
__device__ inline double unmarked(double x) {
  return __longlong_as_double(__double_as_longlong(x) & 0x7fffffffffffffffll);
}
template <class Stat>
__device__ bool is_negative_row(Stat code) {
  return !is_marked(code) && code != static_cast<Stat>(INFINITY);  // a NaN distance is one
}

// Sums and extremes over the block; every thread gets them.
template <class T, class Combine>
__device__ T reduce_block(T value, T identity, Combine combine) {
  __shared__ T scratch[1][kWarp];
  T values[1] = {value};
  __syncthreads();
  reduce_team(Team{kThreads}, values, identity, scratch, combine);
  return values[0];
}
struct Least {
  __device__ int operator()(int a, int b) const { return min(a, b); }
};

// Distance number j by value, ties to the lowest index, NaN before all.
template <bool kFarthest, class Stat>
__device__ int best_of_block(Stat key, int index) {
  const auto better = [](Stat a, int at_a, Stat b, int at_b) {
    return kFarthest ? farther(a, at_a, b, at_b) : nearer(a, at_a, b, at_b);
  };
  __shared__ Stat keys[kWarps];
  __shared__ int indices[kWarps];
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const Stat other = __shfl_xor_sync(kAllLanes, key, step);
    const int other_index = __shfl_xor_sync(kAllLanes, index, step);
    if (better(other, other_index, key, index)) {
      key = other;
      index = other_index;
    }
  }
  __syncthreads();
  if (threadIdx.x % kWarp == 0) {
    keys[threadIdx.x / kWarp] = key;
    indices[threadIdx.x / kWarp] = index;
  }
  __syncthreads();
  key = keys[0];
  index = indices[0];
  for (int w = 1; w < kWarps; ++w) {
    if (better(keys[w], indices[w], key, index)) {
      key = keys[w];
      index = indices[w];
    }
  }
  return index;
}

template <class Scalar, class Stat = StatOf<Scalar>>
__device__ Row<Stat> measure(const EveryPair<Scalar>& call, int64_t i) {
  Row<Stat> row{};
  row.distance = call.distances + i * call.references;
  const int lane = threadIdx.x % kWarp;
  const Stat* const product = call.product + i * call.references;
  const Viewer viewer = call.candidates.viewer(i);
  const bool has_explicit = call.positive_distance != nullptr, cosine = call.distance == Distance::kCosine;
  const bool aligned = call.anchor.aligned && call.reference.aligned;
  const Stat anchor_square = call.anchor_square[i], infinite = static_cast<Stat>(INFINITY);
  int positives = 0, negatives = 0, first_nan = kNoRow, nearest = kNoRow, farthest = kNoRow;
  Stat near = infinite, far = Stat(-1);
  double positive_sum = 0, negative_sum = 0;

  for (int64_t base = threadIdx.x - lane; base < call.references; base += kThreads) {  // the same for a warp
    const int64_t j = base + lane;
    const int64_t label = j < call.references ? call.candidates.reference_label(j) : 0;
    const bool is_negative = j < call.references && viewer.is_negative(j, label);
    const bool is_positive = j < call.references && !has_explicit && viewer.is_positive(j, label);
    const bool takes_part = is_negative || is_positive;
    Stat square = 0;
    bool differences = false;
    if (takes_part) {
      const Stat lengths = anchor_square + call.reference_square[j];
      square = lengths - 2 * product[j];
      // Too close for the product to tell; a NaN has to go the long way, too.
      differences = call.exact || !(square >= lengths * Stat(0.015625));
    }
    unsigned mask = __ballot_sync(kAllLanes, differences);
    while (mask != 0) {
      const int source = __ffs(mask) - 1;
      mask &= mask - 1;
      const Stat found = square_between<Stat>(call.anchor.row(i), call.reference.row(base + source), call.width,
                                              aligned, cosine, lane, kWarp);
      if (lane == source) square = found;
    }
    if (j >= call.references) continue;
    const Stat d = takes_part ? held(distance_from_square(square, call.distance)) : infinite;
    // A NaN comes with any sign.
    row.distance[j] = is_positive ? marked(d) : unmarked(d);
    if (is_positive) {
      ++positives;
      positive_sum += d;
    }
    if (!is_negative) continue;
    ++negatives;
    negative_sum += d;
    const int at = static_cast<int>(j);
    if (is_nan(d)) first_nan = min(first_nan, at);
    if (nearer(near_key(d), at, near, nearest)) {
      near = near_key(d);
      nearest = at;
    }
    if (farther(far_key(d), at, far, farthest)) {
      far = far_key(d);
      farthest = at;
    }
  }

  row.positives = has_explicit ? 1 : reduce_block(positives, 0, Plus());
  row.negatives = reduce_block(negatives, 0, Plus());
  row.positive_sum = has_explicit ? call.positive_distance[i] : reduce_block(positive_sum, 0.0, Plus());
  row.negative_sum = reduce_block(negative_sum, 0.0, Plus());
  row.first_nan = reduce_block(first_nan, kNoRow, Least());
  row.nearest = best_of_block<false>(near, nearest);
  row.farthest = best_of_block<true>(far, farthest);
  __syncthreads();  // all of the row is there
  return row;
}

// The next positives, in ascending order of their rows. False where there are none left.
template <class Scalar, class Stat = StatOf<Scalar>>
__device__ bool next_chunk(const EveryPair<Scalar>& call, int64_t i, const Row<Stat>& row, Chunk<Stat>& chunk) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  __syncthreads();  // the chunk before has been used
  int count = 0;
  int64_t next = chunk.next;
  __syncthreads();  // all have read where it starts
  if (call.positive_distance != nullptr) {
    count = next == 0 ? 1 : 0;
    next = call.references;
    if (count == 1 && threadIdx.x == 0) {
      chunk.distance[0] = call.positive_distance[i];
      chunk.row[0] = -1;
    }
  }
  while (next < call.references && count <= kChunk - kThreads) {
    const int64_t j = next + threadIdx.x;
    const Stat code = j < call.references ? row.distance[j] : Stat(0);
    const bool hit = is_marked(code);
    const unsigned mask = __ballot_sync(kAllLanes, hit);
    if (lane == 0) chunk.warp_counts[warp] = __popc(mask);
    __syncthreads();
    int place = count + __popc(mask & ((1u << lane) - 1));
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) place += chunk.warp_counts[w];
      count += chunk.warp_counts[w];
    }
    if (hit) {
      chunk.distance[place] = unmarked(code);
      chunk.row[place] = static_cast<int>(j);
    }
    next += kThreads;
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    chunk.count = count;
    chunk.next = static_cast<int>(min(next, call.references));
  }
  __syncthreads();
  return count > 0;
}

// By one thread: only few distances leave the question open.
template <class Scalar>
__device__ bool is_short(const Scalar* row, int width) {
  double square = 0;
  for (int e = 0; e < width; ++e) square += static_cast<double>(widen(row[e])) * static_cast<double>(widen(row[e]));
  return sqrt(square) <= short_length(StatOf<Scalar>());
}

// dU / d pull: what multiplies the difference of the two rows.
template <class Scalar, class Stat = StatOf<Scalar>>
__device__ Stat factor_of(const EveryPair<Scalar>& call, int64_t i, int64_t j, Stat d) {
  if (is_nan(d)) return d;
  if (d >= largest_of(d)) return 0;  // held there
  if (call.distance == Distance::kSquared) return 2;
  if (call.distance == Distance::kEuclidean) return d == 0 ? Stat(0) : 1 / d;
  // A row without direction stands at distance 1 wherever the other goes.
  const bool fixed = d == 1 && is_nan(call.anchor_square[i] + call.reference_square[j]) &&
                     (is_short(call.anchor.row(i), call.width) || is_short(call.reference.row(j), call.width));
  return fixed ? Stat(0) : Stat(1);
}

// Sorts the chunk by threshold; NaN ones to the end. The rows go along.
template <class Stat>
__device__ void sort_chunk(Chunk<Stat>& chunk) {
  int size = 2;
  while (size < chunk.count) size *= 2;
  for (int q = threadIdx.x; q < size; q += kThreads) {
    if (q >= chunk.count) {
      chunk.distance[q] = static_cast<Stat>(INFINITY);
      chunk.row[q] = kNoRow;
    }
  }
  const auto above = [&](int a, int b) {  // NaN above all, the padding above NaN, ties by row
    const Stat x = chunk.distance[a], y = chunk.distance[b];
    const bool last_x = chunk.row[a] == kNoRow, last_y = chunk.row[b] == kNoRow;
    if (last_x || last_y) return last_x && !last_y;
    if (is_nan(x) || is_nan(y)) return is_nan(x) && (!is_nan(y) || chunk.row[a] > chunk.row[b]);
    return x > y || (x == y && chunk.row[a] > chunk.row[b]);
  };
  for (int run = 2; run <= size; run *= 2) {
    for (int step = run / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int pair = threadIdx.x; pair < size / 2; pair += kThreads) {
        const int low = pair / step * 2 * step + pair % step, high = low + step;
        const bool ascending = (low & run) == 0;
        if (ascending ? above(low, high) : above(high, low)) {
          const Stat x = chunk.distance[low];
          const int r = chunk.row[low];
          chunk.distance[low] = chunk.distance[high];
          chunk.row[low] = chunk.row[high];
          chunk.distance[high] = x;
          chunk.row[high] = r;
        }
      }
    }
  }
  __syncthreads();
}

// Thresholds above d among the first `count`, which ascend.
template <class Stat>
__device__ int rank_of(const Chunk<Stat>& chunk, int count, Stat d) {
  int low = 0, high = count;  // the first above d lies in [low, high]
  while (low < high) {
    const int middle = (low + high) / 2;
    if (chunk.distance[middle] > d) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return count - low;
}

// Thresholds that are numbers, behind a sort; and for each the sum from there on.
template <class Stat>
__device__ int sum_thresholds(Chunk<Stat>& chunk) {
  int numbers = 0;
  for (int q = threadIdx.x; q < chunk.count; q += kThreads) numbers += !is_nan(chunk.distance[q]);
  numbers = reduce_block(numbers, 0, Plus());
  for (int q = threadIdx.x; q < chunk.count; q += kThreads) chunk.chosen[q] = 0;
  if (threadIdx.x < kWarp) {  // a warp goes down the list, 32 at a time
    double sum = 0;
    const int lane = threadIdx.x;
    if (lane == 0) chunk.above[numbers] = 0;
    for (int top = numbers; top > 0; top -= kWarp) {
      const int q = top - 1 - lane;
      double part = q >= 0 ? static_cast<double>(chunk.distance[q]) : 0.0;
      for (int step = 1; step < kWarp; step *= 2) {
        const double other = __shfl_up_sync(kAllLanes, part, step);
        if (lane >= step) part += other;
      }
      if (q >= 0) chunk.above[q] = sum + part;
      sum += __shfl_sync(kAllLanes, part, kWarp - 1);
    }
  }
  __syncthreads();
  return numbers;
}

// For each positive of the chunk its negative, into chunk.chosen; a warp a positive.
template <class Scalar, class Stat = StatOf<Scalar>>
__device__ void choose(const EveryPair<Scalar>& call, const Row<Stat>& row, Chunk<Stat>& chunk) {
  const int lane = threadIdx.x % kWarp;
  for (int q = threadIdx.x / kWarp; q < chunk.count; q += kWarps) {
    const Stat d = chunk.distance[q];
    int chosen = -1;
    if (row.first_nan != kNoRow || is_nan(d)) {
      chosen = row.nearest;  // NaN first
    } else {
      Stat best = d + call.margin;
      int index = kNoRow;
      for (int64_t j = lane; j < call.references; j += kWarp) {
        const Stat other = row.distance[j];  // a marked one is not above d
        if (other > d && other < best) {
          best = other;
          index = static_cast<int>(j);
        }
      }
      for (int step = kWarp / 2; step > 0; step /= 2) {
        const Stat other = __shfl_xor_sync(kAllLanes, best, step);
        const int other_index = __shfl_xor_sync(kAllLanes, index, step);
        if (nearer(other, other_index, best, index)) {
          best = other;
          index = other_index;
        }
      }
      chosen = index != kNoRow ? index : call.fallback ? row.farthest : -1;
    }
    if (lane == 0) chunk.chosen[q] = chosen;
  }
  __syncthreads();
}

template <class Scalar>
__global__ void __launch_bounds__(kThreads, 2) rows_forward_kernel(const __grid_constant__ EveryPair<Scalar> call) {
  using Stat = StatOf<Scalar>;
  __shared__ Chunk<Stat> chunk;
  const int64_t i = blockIdx.x;
  double total = 0, positive_sum = 0, negative_sum = 0;
  int64_t active = 0, pairs = 0;
  Row<Stat> row{};
  if (call.used == nullptr || call.used[i]) row = measure(call, i);
  const bool has_triplets = row.positives > 0 && row.negatives > 0;
  if (threadIdx.x == 0) chunk.next = 0;

  while (has_triplets && next_chunk(call, i, row, chunk)) {
    if (call.semihard) {
      choose(call, row, chunk);
      for (int q = threadIdx.x; q < chunk.count; q += kThreads) {
        if (chunk.chosen[q] < 0) continue;
        const Stat d_ap = chunk.distance[q], d_an = row.distance[chunk.chosen[q]];
        total += cost_of(d_ap - d_an, call.margin, call.soft_margin);
        ++pairs;
        positive_sum += d_ap;
        negative_sum += d_an;
      }
    } else if (call.soft_margin) {
      for (int64_t j = threadIdx.x; j < call.references; j += kThreads) {
        const Stat d_an = row.distance[j];
        if (!is_negative_row(d_an)) continue;
        for (int q = 0; q < chunk.count; ++q) {
          const Stat cost = cost_of(chunk.distance[q] - d_an, Stat(0), true);
          total += cost;
          active += cost > 0;
        }
      }
    } else {
      for (int q = threadIdx.x; q < chunk.count; q += kThreads) chunk.distance[q] += call.margin;
      __syncthreads();
      sort_chunk(chunk);
      const int numbers = sum_thresholds(chunk);
      for (int64_t j = threadIdx.x; j < call.references; j += kThreads) {
        const Stat d_an = row.distance[j];
        if (!is_negative_row(d_an)) continue;
        const int rank = rank_of(chunk, numbers, d_an);
        active += rank;
        // A NaN on either side is in a triplet that counts.
        total +=
            is_nan(d_an) ? static_cast<double>(d_an) : chunk.above[numbers - rank] - rank * static_cast<double>(d_an);
        if (numbers < chunk.count) total = NAN;
      }
    }
  }

  total = reduce_block(total, 0.0, Plus());
  active = reduce_block(active, int64_t{0}, Plus());
  pairs = reduce_block(pairs, int64_t{0}, Plus());
  positive_sum = reduce_block(positive_sum, 0.0, Plus());
  negative_sum = reduce_block(negative_sum, 0.0, Plus());
  if (threadIdx.x != 0) return;
  int64_t terms = 0, triplets = pairs;
  if (call.semihard) {
    if (pairs > 0) total /= static_cast<double>(pairs);
    terms = pairs > 0;
    active = total > 0;
  } else if (has_triplets) {
    terms = triplets = row.positives * row.negatives;
    positive_sum = row.positive_sum * static_cast<double>(row.negatives);
    negative_sum = row.negative_sum * static_cast<double>(row.positives);
  }
  call.total[i] = static_cast<Stat>(total);
  call.counts[3 * i] = terms;
  call.counts[3 * i + 1] = active;
  call.counts[3 * i + 2] = triplets;
  call.sums[2 * i] = static_cast<Stat>(positive_sum);
  call.sums[2 * i + 1] = static_cast<Stat>(negative_sum);
}

// d total / d D_ap of the chunk's positives, into chunk.pull, for all pairs with the hinge: how many negatives lie
// below each threshold. Leaves the chunk sorted.
template <class Scalar, class Stat = StatOf<Scalar>>
__device__ int pull_hinge(const EveryPair<Scalar>& call, const Row<Stat>& row, Chunk<Stat>& chunk) {
  for (int q = threadIdx.x; q < chunk.count; q += kThreads) chunk.distance[q] += call.margin;
  __syncthreads();
  sort_chunk(chunk);
  const int numbers = sum_thresholds(chunk);
  for (int64_t j = threadIdx.x; j < call.references; j += kThreads) {
    const Stat d_an = row.distance[j];
    const int rank = is_negative_row(d_an) ? rank_of(chunk, numbers, d_an) : 0;
    if (rank > 0) atomicAdd(&chunk.chosen[numbers - rank], 1);  // below that threshold and all that follow
  }
  __syncthreads();
  if (threadIdx.x < kWarp) {
    const int lane = threadIdx.x;
    int below = 0;
    for (int first = 0; first < chunk.count; first += kWarp) {
      const int q = first + lane;
      int part = q < numbers ? chunk.chosen[q] : 0;
      for (int step = 1; step < kWarp; step *= 2) {
        const int other = __shfl_up_sync(kAllLanes, part, step);
        if (lane >= step) part += other;
      }
      if (q < chunk.count) chunk.pull[q] = q < numbers ? static_cast<Stat>(below + part) : static_cast<Stat>(NAN);
      below += __shfl_sync(kAllLanes, part, kWarp - 1);
    }
  }
  __syncthreads();
  return numbers;
}

template <class Scalar>
__global__ void __launch_bounds__(kThreads, 2) rows_backward_kernel(const __grid_constant__ EveryPair<Scalar> call) {
  using Stat = StatOf<Scalar>;
  __shared__ Chunk<Stat> chunk;
  const int64_t i = blockIdx.x;
  Stat* const u = call.distances + i * call.references;
  Row<Stat> row{};
  if (call.used == nullptr || call.used[i]) row = measure(call, i);
  if (row.positives == 0 || row.negatives == 0) {
    for (int64_t j = threadIdx.x; j < call.references; j += kThreads) u[j] = 0;
    if (call.grad_positive != nullptr && threadIdx.x == 0) call.grad_positive[i] = 0;
    return;
  }
  Stat upstream = call.grad_total[i * call.grad_total_stride];

  if (call.semihard) {  // a mean over the pairs: their number comes first
    int64_t pairs = 0;
    if (threadIdx.x == 0) chunk.next = 0;
    while (next_chunk(call, i, row, chunk)) {
      choose(call, row, chunk);
      for (int q = threadIdx.x; q < chunk.count; q += kThreads) pairs += chunk.chosen[q] >= 0;
    }
    pairs = reduce_block(pairs, int64_t{0}, Plus());
    upstream /= static_cast<Stat>(pairs > 0 ? pairs : 1);
  }

  Stat grad_positive = 0;
  Stat* const weights = call.weights == nullptr ? nullptr : call.weights + i * call.references;
  if (threadIdx.x == 0) chunk.next = 0;
  int64_t done = 0, start = 0;
  // |U| of a positive takes the place of its distance, which no later chunk reads; marked, so that it is left alone.
  // The last chunk gives it the sign of the upstream gradient.
  while (next_chunk(call, i, row, chunk)) {
    const bool first = done == 0;
    done += chunk.count;
    const bool last = done == row.positives;
    int numbers = 0;
    if (call.semihard) {
      choose(call, row, chunk);
      for (int q = threadIdx.x; q < chunk.count; q += kThreads) {
        const int chosen = chunk.chosen[q];
        chunk.pull[q] =
            chosen < 0 ? Stat(0) : slope_of(chunk.distance[q] - row.distance[chosen], call.margin, call.soft_margin);
      }
    } else if (call.soft_margin) {
      const int lane = threadIdx.x % kWarp;
      for (int q = threadIdx.x / kWarp; q < chunk.count; q += kWarps) {
        Stat sum = 0;
        for (int64_t j = lane; j < call.references; j += kWarp) {
          const Stat d_an = row.distance[j];
          if (is_negative_row(d_an)) sum += slope_of(chunk.distance[q] - d_an, Stat(0), true);
        }
        sum = sum_of_lanes(sum, kWarp);
        if (lane == 0) chunk.pull[q] = sum;
      }
    } else {
      numbers = pull_hinge(call, row, chunk);
    }
    __syncthreads();

    for (int64_t j = threadIdx.x; j < call.references; j += kThreads) {
      const Stat d_an = row.distance[j];
      if (!is_negative_row(d_an)) {
        if (!last) continue;
        if (!is_marked(d_an)) {
          u[j] = 0;
        } else if (j < start) {
          u[j] = upstream < 0 ? d_an : unmarked(d_an);
        }
        continue;
      }
      Stat pull = 0;
      if (call.semihard) {
        for (int q = 0; q < chunk.count; ++q) pull += chunk.chosen[q] == j ? chunk.pull[q] : Stat(0);
      } else if (call.soft_margin) {
        for (int q = 0; q < chunk.count; ++q) pull += slope_of(chunk.distance[q] - d_an, Stat(0), true);
      } else {
        pull = static_cast<Stat>(rank_of(chunk, numbers, d_an));
      }
      if (!first) pull += weights[j];
      if (last) {
        const bool untouched = call.semihard && pull == 0;  // not chosen: its NaN takes no part
        u[j] = untouched ? Stat(0) : -upstream * pull * factor_of(call, i, j, d_an);
      } else {
        weights[j] = pull;
      }
    }
    __syncthreads();  // semihard reads the distances of chosen negatives no more
    for (int q = threadIdx.x; q < chunk.count; q += kThreads) {
      const Stat pull = upstream * chunk.pull[q];
      const int j = chunk.row[q];
      if (j < 0) {
        grad_positive = pull;
        continue;
      }
      // The threshold has replaced the distance in the chunk, not in the row.
      const Stat d_ap = unmarked(row.distance[j]);
      const bool untouched = call.semihard && chunk.chosen[q] < 0;
      const Stat value = untouched ? Stat(0) : pull * factor_of(call, i, j, d_ap);
      u[j] = last ? value : marked(value);
    }
    start = chunk.next;
  }
  if (call.grad_positive != nullptr && threadIdx.x == 0) call.grad_positive[i] = grad_positive;
}

}  // namespace amkd::triplet::gpu
