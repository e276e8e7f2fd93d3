// Farthest positives and nearest negatives from differences: exact, for any dtype, any D and any k.
//
// A block of eight warps compares eight times `kRows` anchors with 128 reference rows at a time: a warp has its own
// anchors, a lane four of the columns. So an anchor's winners never leave its warp. Every pair is summed in the same
// order: equal rows tie. Where blocks share the references, `merge_kernel` merges what they leave.
#pragma once

#include "pairs.cuh"

namespace amkd::triplet::gpu {

constexpr int kColumns = 4;  // of a lane
constexpr int kNone = 0x7fffffff;

template <class Scalar, bool kCosine>
using ComputeOf = std::conditional_t<kCosine, double, StatOf<Scalar>>;

// Where the winners go. `part_*` are [splits, anchors, count] and [splits, anchors]; null: there is one split.
template <class Compute>
struct Found {
  int64_t* positive;  // [N] or null
  int64_t* negative;  // [N, k]
  int64_t k;
  int64_t first;        // slot of this pass, which finds `count` negatives
  int count;            // at most kListed
  Compute* last_value;  // [N] the last negative of the pass before, then of this one; null: one pass is all
  int* last_index;
  bool is_first_pass;
  Compute* part_near;
  int* part_near_index;
  Compute* part_far;
  int* part_far_index;
  int64_t anchors;
  int splits;
  const int* work;  // the anchors to do, *work_count of them; null: all
  const int* work_count;

  __device__ int64_t todo() const { return work == nullptr ? anchors : *work_count; }
  __device__ int64_t anchor_at(int64_t place) const { return work == nullptr ? place : work[place]; }
};

template <class Scalar, class Compute>
struct Select {
  Matrix<Scalar> anchor, reference;
  Candidates candidates;
  Found<Compute> found;
  int64_t split_columns;
  int references;
  int width;
};

// The nearest so far, one a lane in ascending order. All lanes of the warp call its functions together.
template <class Compute>
struct Listed {
  Compute value = static_cast<Compute>(INFINITY);
  int index = kNone;
  Compute worst = static_cast<Compute>(INFINITY);  // of those that are wanted, the same in all lanes
  int worst_index = kNone;

  __device__ void offer(bool is_candidate, Compute key, int j, int count, int lane) {
    unsigned mask = __ballot_sync(kAllLanes, is_candidate && nearer(key, j, worst, worst_index));
    while (mask != 0) {
      const int source = __ffs(mask) - 1;
      mask &= mask - 1;
      const Compute v = __shfl_sync(kAllLanes, key, source);
      const int i = __shfl_sync(kAllLanes, j, source);
      const Compute value_before = __shfl_up_sync(kAllLanes, value, 1);
      const int index_before = __shfl_up_sync(kAllLanes, index, 1);
      if (nearer(v, i, value, index)) {
        const bool moves = lane > 0 && nearer(v, i, value_before, index_before);
        value = moves ? value_before : v;
        index = moves ? index_before : i;
      }
      worst = __shfl_sync(kAllLanes, value, count - 1);
      worst_index = __shfl_sync(kAllLanes, index, count - 1);
      mask &= __ballot_sync(kAllLanes, nearer(key, j, worst, worst_index));
    }
  }
};

// The results of one anchor, by the lanes of its warp: `near` of lane s is slot s.
template <class Compute>
__device__ void write_found(const Found<Compute>& found, int64_t anchor, Compute near, int near_index, int far_index,
                            int lane) {
  if (lane < found.count) {
    found.negative[anchor * found.k + found.first + lane] = near_index == kNone ? -1 : near_index;
  }
  if (lane == found.count - 1 && found.last_value != nullptr) {
    found.last_value[anchor] = near;
    found.last_index[anchor] = near_index;
  }
  if (lane == 0 && found.positive != nullptr) found.positive[anchor] = far_index == kNone ? -1 : far_index;
}

// A tile of rows in shared memory, [kDepth][kTileRows]: columns of 16 bytes are loaded first and stored a step later.
template <class Scalar, class Compute, int kTileRows, int kDepth>
struct Loader {
  static constexpr int kWidth = Vector<Scalar>::kWidth;
  static constexpr int kVectors = kDepth / kWidth;  // of a row
  static constexpr int kTotal = kTileRows * kVectors;
  static constexpr int kTrips = (kTotal + kThreads - 1) / kThreads;
  static constexpr int kPadded = kTileRows + 4;
  static_assert(kDepth % kWidth == 0);

  Vector<Scalar> kept[kTrips];

  // row_of(r): the row's elements, or null where there is none: zeros.
  template <class RowOf>
  __device__ void load(RowOf row_of, int column, int width, bool aligned) {
#pragma unroll
    for (int t = 0; t < kTrips; ++t) {
      const int v = threadIdx.x + t * kThreads;
      if (kTotal % kThreads != 0 && v >= kTotal) break;
      const Scalar* row = row_of(v / kVectors);
      const int first = column + v % kVectors * kWidth;
      if (row != nullptr && aligned && first + kWidth <= width) {
        kept[t] = load_vector(row + first);
      } else {
#pragma unroll
        for (int e = 0; e < kWidth; ++e) {
          kept[t].at[e] = row != nullptr && first + e < width ? row[first + e] : narrow<Scalar>(0);
        }
      }
    }
  }

  // scales: of the unit vectors, null where rows stay as they are.
  __device__ void store(Compute (&tile)[kDepth][kPadded], const double* scales) const {
#pragma unroll
    for (int t = 0; t < kTrips; ++t) {
      const int v = threadIdx.x + t * kThreads;
      if (kTotal % kThreads != 0 && v >= kTotal) break;
      const int row = v / kVectors, depth = v % kVectors * kWidth;
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        Compute x = finite_or_nan(static_cast<Compute>(widen(kept[t].at[e])));
        if constexpr (std::is_same_v<Compute, double>) {
          if (scales != nullptr) x = scales[row] < 0 ? 0.0 : x * scales[row];
        }
        tile[depth + e][row] = x;
      }
    }
  }
};

// `count` neighbours in shared memory.
template <int kCount, class Compute>
__device__ void read(Compute (&out)[kCount], const Compute* at) {
  constexpr int kWidth = Vector<Compute>::kWidth;
  if constexpr (kCount % kWidth == 0) {
#pragma unroll
    for (int v = 0; v < kCount / kWidth; ++v) {
      const Vector<Compute> vector = load_vector(at + v * kWidth);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) out[v * kWidth + e] = vector.at[e];
    }
  } else {
#pragma unroll
    for (int e = 0; e < kCount; ++e) out[e] = at[e];
  }
}

template <class Scalar, bool kCosine, int kRows, bool kList>
__global__ void __launch_bounds__(kThreads, kList && sizeof(ComputeOf<Scalar, kCosine>) == 8 ? 1 : 2)
    select_kernel(const __grid_constant__ Select<Scalar, ComputeOf<Scalar, kCosine>> call) {
  using Compute = ComputeOf<Scalar, kCosine>;
  constexpr int kDepth = sizeof(Compute) == 8 ? 8 : 16;
  constexpr int kAnchors = kWarps * kRows;
  using AnchorLoader = Loader<Scalar, Compute, kAnchors, kDepth>;
  using ReferenceLoader = Loader<Scalar, Compute, kTileColumns, kDepth>;
  __shared__ __align__(16) Compute anchor_tile[2][kDepth][AnchorLoader::kPadded];
  __shared__ __align__(16) Compute reference_tile[2][kDepth][ReferenceLoader::kPadded];
  __shared__ Viewer viewers[kAnchors];
  __shared__ int64_t anchor_rows[kAnchors];  // -1: none
  __shared__ int64_t labels[kTileColumns];
  __shared__ double anchor_scales[kCosine ? kAnchors : 1];
  __shared__ double reference_scales[kCosine ? kTileColumns : 1];

  const Found<Compute>& found = call.found;
  const int64_t first_place = blockIdx.x * static_cast<int64_t>(kAnchors), todo = found.todo();
  if (first_place >= todo) return;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  if (threadIdx.x < kAnchors) {
    const int64_t place = first_place + threadIdx.x;
    const int64_t anchor = place < todo ? found.anchor_at(place) : -1;
    anchor_rows[threadIdx.x] = anchor;
    if (anchor >= 0) viewers[threadIdx.x] = call.candidates.viewer(anchor);
  }
  __syncthreads();

  const auto anchor_row = [&](int r) -> const Scalar* {
    return anchor_rows[r] < 0 ? nullptr : call.anchor.row(anchor_rows[r]);
  };
  if constexpr (kCosine) {
    for (int r = warp * kRows; r < (warp + 1) * kRows; ++r) {
      const bool exists = anchor_rows[r] >= 0;  // the same for the whole warp
      const double scale = exists ? scale_of(anchor_row(r), call.width, call.anchor.aligned, lane, kWarp) : 0.0;
      if (lane == 0) anchor_scales[r] = scale;
    }
    __syncthreads();
  }

  // The pass before left off at these; only what comes behind them counts.
  Compute after[kRows];
  int after_index[kRows];
  Listed<Compute> listed[kRows];
  Compute near[kRows], far[kRows];
  int near_index[kRows], far_index[kRows];
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    after[m] = static_cast<Compute>(-INFINITY);
    after_index[m] = -1;
    if (kList && !found.is_first_pass) {
      const int64_t anchor = anchor_rows[warp * kRows + m];
      if (anchor >= 0) {
        after[m] = found.last_value[anchor];
        after_index[m] = found.last_index[anchor];
      }
    }
    near[m] = static_cast<Compute>(INFINITY);
    far[m] = Compute(-1);
    near_index[m] = far_index[m] = kNone;
  }

  const int begin = static_cast<int>(blockIdx.y * call.split_columns);
  const int end = static_cast<int>(min(begin + call.split_columns, static_cast<int64_t>(call.references)));
  for (int tile = begin; tile < end; tile += kTileColumns) {
    const auto reference_row = [&](int r) -> const Scalar* {
      return tile + r < end ? call.reference.row(tile + r) : nullptr;
    };
    __syncthreads();  // the tile before has been used
    if (threadIdx.x < kTileColumns && tile + static_cast<int>(threadIdx.x) < end) {
      labels[threadIdx.x] = call.candidates.reference_label(tile + threadIdx.x);
    }
    if constexpr (kCosine) {
      for (int r = warp; r < kTileColumns; r += kWarps) {
        const bool exists = tile + r < end;  // the same for the whole warp
        const double scale = exists ? scale_of(reference_row(r), call.width, call.reference.aligned, lane, kWarp) : 0.0;
        if (lane == 0) reference_scales[r] = scale;
      }
      __syncthreads();
    }

    Compute square[kRows][kColumns] = {};
    AnchorLoader anchors;
    ReferenceLoader references;
    const double* const scales_a = kCosine ? anchor_scales : nullptr;
    const double* const scales_r = kCosine ? reference_scales : nullptr;
    anchors.load(anchor_row, 0, call.width, call.anchor.aligned);
    references.load(reference_row, 0, call.width, call.reference.aligned);
    int buffer = 0;
    for (int column = 0; column < call.width; column += kDepth) {
      anchors.store(anchor_tile[buffer], scales_a);
      references.store(reference_tile[buffer], scales_r);
      __syncthreads();
      if (column + kDepth < call.width) {
        anchors.load(anchor_row, column + kDepth, call.width, call.anchor.aligned);
        references.load(reference_row, column + kDepth, call.width, call.reference.aligned);
      }
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        Compute a[kRows], r[kColumns];
        read(a, &anchor_tile[buffer][d][warp * kRows]);
        read(r, &reference_tile[buffer][d][lane * kColumns]);
#pragma unroll
        for (int m = 0; m < kRows; ++m) {
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            const Compute step = a[m] - r[c];
            square[m][c] += step * step;
          }
        }
      }
      buffer ^= 1;  // the other buffer was last read before the barrier above
    }

    if (call.width == 0) __syncthreads();  // else a barrier has made the labels known
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      const int r = warp * kRows + m;
      if (anchor_rows[r] < 0) continue;  // the whole warp
      const Viewer& viewer = viewers[r];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int at = lane * kColumns + c, j = tile + at;
        const bool inside = j < end;
        const int64_t label = inside ? labels[at] : 0;
        Compute d = square[m][c];
        if constexpr (kCosine) {
          if (inside && (anchor_scales[r] < 0 || reference_scales[at] < 0)) d = 2;
        }
        const bool is_negative = inside && viewer.is_negative(j, label);
        if constexpr (kList) {
          const Compute key = near_key(d);
          listed[m].offer(is_negative && nearer(after[m], after_index[m], key, j), key, j, found.count, lane);
        } else if (is_negative) {  // columns come in ascending order: the first of equals stays
          const Compute key = near_key(d);
          if (key < near[m]) {
            near[m] = key;
            near_index[m] = j;
          }
        }
        if (found.positive != nullptr && inside && viewer.is_positive(j, label)) {
          const Compute key = far_key(d);
          if (key > far[m]) {
            far[m] = key;
            far_index[m] = j;
          }
        }
      }
    }
  }

#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    const int64_t anchor = anchor_rows[warp * kRows + m];
    if (anchor < 0) continue;  // the whole warp
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const Compute other_far = __shfl_xor_sync(kAllLanes, far[m], step);
      const int other_far_index = __shfl_xor_sync(kAllLanes, far_index[m], step);
      if (farther(other_far, other_far_index, far[m], far_index[m])) {
        far[m] = other_far;
        far_index[m] = other_far_index;
      }
      if constexpr (!kList) {
        const Compute other = __shfl_xor_sync(kAllLanes, near[m], step);
        const int other_index = __shfl_xor_sync(kAllLanes, near_index[m], step);
        if (nearer(other, other_index, near[m], near_index[m])) {
          near[m] = other;
          near_index[m] = other_index;
        }
      }
    }
    if constexpr (kList) {
      near[m] = listed[m].value;
      near_index[m] = listed[m].index;
    }
    if (found.part_near == nullptr) {
      write_found(found, anchor, near[m], near_index[m], far_index[m], lane);
      continue;
    }
    const int64_t place = static_cast<int64_t>(blockIdx.y) * found.anchors + first_place + warp * kRows + m;
    if (lane < found.count) {
      found.part_near[place * found.count + lane] = near[m];
      found.part_near_index[place * found.count + lane] = near_index[m];
    }
    if (lane == 0 && found.positive != nullptr) {
      found.part_far[place] = far[m];
      found.part_far_index[place] = far_index[m];
    }
  }
}

// A warp an anchor merges what the splits have left.
template <class Compute>
__global__ void __launch_bounds__(kThreads) merge_kernel(const __grid_constant__ Found<Compute> found) {
  const int lane = threadIdx.x % kWarp;
  const int64_t place = blockIdx.x * static_cast<int64_t>(kWarps) + threadIdx.x / kWarp;
  if (place >= found.todo()) return;  // the whole warp
  const int64_t anchor = found.anchor_at(place);
  Listed<Compute> listed;
  Compute far = Compute(-1);
  int far_index = kNone;
  for (int s = 0; s < found.splits; ++s) {
    const int64_t from = (s * found.anchors + place) * found.count;
    const bool has = lane < found.count;
    const Compute key = has ? found.part_near[from + lane] : static_cast<Compute>(INFINITY);
    const int j = has ? found.part_near_index[from + lane] : kNone;
    listed.offer(has, key, j, found.count, lane);
    if (found.positive != nullptr) {
      const Compute other = found.part_far[s * found.anchors + place];
      const int other_index = found.part_far_index[s * found.anchors + place];
      if (farther(other, other_index, far, far_index)) {
        far = other;
        far_index = other_index;
      }
    }
  }
  write_found(found, anchor, listed.value, listed.index, far_index, lane);
}

}  // namespace amkd::triplet::gpu
