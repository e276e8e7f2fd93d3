// Selection among many two-byte rows by products on the tensor cores of sm_90a.
//
// A key orders the reference rows of an anchor as their distances do: |r|² - 2 a·r, for cosine -a·r/|r|. The products
// of two-byte numbers are exact and their sums are not, so the keys only choose: every thread keeps the best few of
// its columns in each direction, `rerank_kernel` takes the distances of those within the keys' error from differences,
// and hands anchors of which one more might matter, or whose keys are no numbers, to the difference kernel.
#pragma once

#include "select_kernels.cuh"
#include "warpgroup.cuh"

namespace amkd::triplet::gpu {

constexpr int kKeptNear = 3;
constexpr int kKeptFar = 2;                                  // there are fewer positives to be in doubt about
constexpr int kPartRows = 64;                                // anchors of one product
constexpr int kStep = 64;                                    // elements of a row in a tile
constexpr int kReferenceBytes = kTileColumns * kSwizzleRow;  // of a tile
constexpr int kGroups = kThreads / 128;
constexpr int kAlignment = 1024;

// Shared memory of a block with all of its anchors and two tiles of references for each of its warpgroups.
constexpr int product_bytes(int parts, int64_t width) {
  return static_cast<int>(ceil_div(width, kStep)) * parts * kPartRows * kSwizzleRow + kGroups * 2 * kReferenceBytes +
         kAlignment;
}

// The best of some columns, ascending.
template <int kKept>
struct Kept {
  float key[kKept];
  int index[kKept];

  __device__ void clear() {
#pragma unroll
    for (int s = 0; s < kKept; ++s) {
      key[s] = INFINITY;
      index[s] = kNone;
    }
  }
  // Returns what the next one has to be below. A NaN stays in the first place.
  __device__ float insert(float k, int j) {
    if (is_nan(k)) key[0] = k;
#pragma unroll
    for (int s = kKept - 1; s >= 0; --s) {
      const bool here = k < key[s], before = s > 0 && k < key[s > 0 ? s - 1 : 0];
      if (here) {
        key[s] = before ? key[s > 0 ? s - 1 : 0] : k;
        index[s] = before ? index[s > 0 ? s - 1 : 0] : j;
      }
    }
    return key[kKept - 1];
  }
};

// What one of the eight threads that share an anchor leaves: four in each warpgroup. A NaN key: only differences will
// do.
constexpr int kSharers = 4 * kGroups;
struct Leftover {
  Kept<kKeptNear> near;
  Kept<kKeptFar> far;  // the negated keys
};

// key = column.x · (a·r) + column.y; NaN where only differences will do.
template <class Scalar>
struct Products {
  Matrix<Scalar> anchor, reference;
  Candidates candidates;
  float2* columns;      // [P]
  unsigned* largest;    // bits of the largest |r|² that is a number
  Leftover* leftovers;  // [splits, N, kSharers]
  int* work;            // [N] anchors that are not decided
  int* work_count;
  int64_t* positive;  // [N] or null
  int64_t* negative;  // [N]
  int64_t anchors;
  int64_t split_columns;
  int splits;
  int references;
  int width;
  bool cosine;
};

// A warp a reference row.
template <class Scalar>
__global__ void __launch_bounds__(kThreads) columns_kernel(const __grid_constant__ Products<Scalar> call) {
  const int lane = threadIdx.x % kWarp;
  const int64_t j = blockIdx.x * static_cast<int64_t>(kWarps) + threadIdx.x / kWarp;
  if (j >= call.references) return;  // the whole warp
  const Scalar* row = call.reference.row(j);
  float2 column;
  if (call.cosine) {
    const double scale = scale_of(row, call.width, call.reference.aligned, lane, kWarp);
    column = {scale < 0 ? 0.0f : static_cast<float>(-scale), 0.0f};
    if (!(scale < 0) && !(scale > 0)) column.y = NAN;  // an infinite or a NaN length
  } else {
    float square = 0;
    each_pair(row, row, call.width, call.reference.aligned, lane, kWarp, [&](float a, float b) { square += a * b; });
    square = sum_of_lanes(square, kWarp);
    column = {-2.0f, square};
    if (!(square <= FLT_MAX)) column.y = NAN;
  }
  if (lane != 0) return;
  call.columns[j] = column;
  if (!call.cosine && !is_nan(column.y)) atomicMax(call.largest, __float_as_uint(column.y));
}

// 64 `kParts` anchors stay in shared memory. The two warpgroups of the block take turns with the tiles of 128 columns
// and know nothing of each other: while one looks at its products, the other multiplies.
template <class Scalar, int kParts>
__global__ void __launch_bounds__(kThreads, 1) products_kernel(const __grid_constant__ Products<Scalar> call) {
#if AMKD_HAS_WARPGROUPS
  constexpr int kAnchorBytes = kParts * kPartRows * kSwizzleRow;
  __shared__ __align__(16) float2 columns[kGroups][2][kTileColumns];
  __shared__ __align__(16) longlong2 labels[kGroups][2][kTileColumns / 2];
  __shared__ Viewer viewers[kParts * kPartRows];

  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, group = warp / 4, member = threadIdx.x % 128;
  const int64_t first_anchor = blockIdx.x * static_cast<int64_t>(kParts * kPartRows);
  const int begin = static_cast<int>(blockIdx.y * call.split_columns);
  const int end = static_cast<int>(min(begin + call.split_columns, static_cast<int64_t>(call.references)));
  const int chunks = (call.width + kStep - 1) / kStep;
  const int tiles = (end - begin + kTileColumns - 1) / kTileColumns;
  const int steps = (tiles - group + kGroups - 1) / kGroups * chunks;
  const uint32_t anchor_tiles = (shared_address(dynamic_shared()) + kAlignment - 1) / kAlignment * kAlignment;
  const uint32_t reference_tiles = anchor_tiles + chunks * kAnchorBytes + group * 2 * kReferenceBytes;

  // A thread copies 16 bytes, always the same place in a row.
  const int copy_byte = threadIdx.x % 8 * 16;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const int column = chunk * kStep + copy_byte / 2;
    for (int row = threadIdx.x / 8; row < kParts * kPartRows; row += kThreads / 8) {
      const int64_t i = first_anchor + row;
      const bool exists = i < call.anchors && column < call.width;
      copy_async(anchor_tiles + chunk * kAnchorBytes + swizzled(row, copy_byte),
                 exists ? call.anchor.row(i) + column : call.anchor.data, exists);
    }
  }
  const auto tile_of = [&](int step) { return begin + (step / chunks * kGroups + group) * kTileColumns; };
  const auto issue = [&](int step) {
    const int tile = tile_of(step), column = step % chunks * kStep + copy_byte / 2;
    const uint32_t target = reference_tiles + step % 2 * kReferenceBytes;
#pragma unroll
    for (int row = member / 8; row < kTileColumns; row += 16) {
      const bool exists = tile + row < end && column < call.width;
      copy_async(target + swizzled(row, copy_byte),
                 exists ? call.reference.row(tile + row) + column : call.reference.data, exists);
    }
  };
  if (steps > 0) issue(0);

  if (threadIdx.x < kParts * kPartRows && first_anchor + threadIdx.x < call.anchors) {
    viewers[threadIdx.x] = call.candidates.viewer(first_anchor + threadIdx.x);
  }

  // Rows of this thread's products in the block: `mine` + 64 part + 8 h, number 2 part + h. What it finds for them is
  // seldom touched and stays in global memory; here are the keys that something new has to be below.
  const int mine = warp % 4 * 16 + lane / 4, rows = static_cast<int>(min(call.anchors - first_anchor, int64_t{128}));
  const auto row_of = [&](int r) { return mine + r / 2 * kPartRows + r % 2 * 8; };
  const auto leftover_of = [&](int r) {
    return call.leftovers + (blockIdx.y * call.anchors + first_anchor + row_of(r)) * kSharers + group * 4 + lane % 4;
  };
  float near_bound[2 * kParts], far_bound[2 * kParts];
#pragma unroll
  for (int r = 0; r < 2 * kParts; ++r) {
    near_bound[r] = row_of(r) < rows ? INFINITY : -INFINITY;
    far_bound[r] = call.positive != nullptr ? near_bound[r] : -INFINITY;
    if (row_of(r) >= rows) continue;
    leftover_of(r)->near.clear();
    leftover_of(r)->far.clear();
  }
  wait_for_copies();
  __syncthreads();

  int64_t own_label[2 * kParts];  // without labels 1, which no column has then
#pragma unroll
  for (int r = 0; r < 2 * kParts; ++r) {
    const int row = row_of(r);
    own_label[r] = call.candidates.labels.data == nullptr ? 1 : row < rows ? viewers[row].label : 0;
  }

  float product[kParts][64];
  for (int step = 0; step < steps; ++step) {
    const int turn = step / chunks % 2, chunk = step % chunks, tile = tile_of(step);
    if (chunk == 0) {
      const int j = tile + member;
      columns[group][turn][member] = j < end ? call.columns[j] : float2{0.0f, INFINITY};
      reinterpret_cast<long long*>(labels[group][turn])[member] = j < end ? call.candidates.reference_label(j) : 0;
    }
    wait_for_copies();
    meet(group);  // the copies of all are here, and nobody multiplies the other tile any more
    if (step + 1 < steps) issue(step + 1);

    const uint64_t a = describe(anchor_tiles + chunk * kAnchorBytes);
    const uint64_t b = describe(reference_tiles + step % 2 * kReferenceBytes);
    open_products();
#pragma unroll
    for (int piece = 0; piece < kStep / 16; ++piece) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {  // descriptors count in 16 bytes; 16 elements are 32
        multiply(product[part], a + part * (kPartRows * kSwizzleRow / 16) + 2 * piece, b + 2 * piece,
                 chunk > 0 || piece > 0, Scalar());
      }
    }
    close_products();
    wait_for_products();
#pragma unroll
    for (int part = 0; part < kParts; ++part) settle(product[part]);
    if (chunk + 1 < chunks) continue;

    // Element 4q + 2h + e of a part's products is its row h, column 8q + 2 (lane % 4) + e.
#pragma unroll
    for (int q = 0; q < kTileColumns / 8; ++q) {
      const int at = 8 * q + 2 * (lane % 4);
      const float4 two = *reinterpret_cast<const float4*>(&columns[group][turn][at]);
      const longlong2 label = labels[group][turn][at / 2];
      float keys[4 * kParts];
      bool worth = false;
#pragma unroll
      for (int r = 0; r < 2 * kParts; ++r) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float key =
              fmaf(e == 0 ? two.x : two.z, product[r / 2][4 * q + 2 * (r % 2) + e], e == 0 ? two.y : two.w);
          const bool same = own_label[r] == (e == 0 ? label.x : label.y);
          keys[2 * r + e] = key;
          worth |= same ? !(-key >= far_bound[r]) : !(key >= near_bound[r]);  // also where the key is NaN
        }
      }
      if (!worth) continue;
#pragma unroll 1  // seldom run: it must not fill the instruction cache
      for (int x = 0; x < 4 * kParts; ++x) {
        float key = keys[0];
#pragma unroll
        for (int y = 1; y < 4 * kParts; ++y) key = x == y ? keys[y] : key;
        const int r = x / 2, row = row_of(r), j = tile + at + x % 2;
        if (row >= rows || j >= end) continue;
        const Viewer& viewer = viewers[row];
        const int64_t other = x % 2 == 0 ? label.x : label.y;
        Leftover* const leftover = leftover_of(r);
        if (viewer.is_negative(j, other)) {
          const float bound = leftover->near.insert(key, j);
#pragma unroll
          for (int y = 0; y < 2 * kParts; ++y) near_bound[y] = y == r ? bound : near_bound[y];
        } else if (call.positive != nullptr && viewer.is_positive(j, other)) {
          const float bound = leftover->far.insert(-key, j);
#pragma unroll
          for (int y = 0; y < 2 * kParts; ++y) far_bound[y] = y == r ? bound : far_bound[y];
        }
      }
    }
  }
#endif
}

// The best of an anchor's candidates in one direction by differences; `certain` is false where others might be better.
template <class Scalar, bool kFar>
__device__ int decide(const Products<Scalar>& call, int64_t i, float slack, int lane, bool& certain) {
  using Compute = double;
  const int count = call.splits * kSharers;
  constexpr int kKept = kFar ? kKeptFar : kKeptNear;
  const auto kept = [&](int e) -> const Kept<kKept>& {
    const Leftover& leftover = call.leftovers[(e / kSharers * call.anchors + i) * kSharers + e % kSharers];
    if constexpr (kFar) {
      return leftover.far;
    } else {
      return leftover.near;
    }
  };
  float least = INFINITY;
  bool odd = false;
  for (int e = lane; e < count; e += kWarp) {
    const float key = kept(e).key[0];
    odd |= is_nan(key);
    least = fminf(least, key);
  }
  for (int step = kWarp / 2; step > 0; step /= 2) least = fminf(least, __shfl_xor_sync(kAllLanes, least, step));
  if (__any_sync(kAllLanes, odd)) {
    certain = false;
    return kNone;
  }
  if (least == INFINITY) return kNone;  // no candidate: keys that are not finite are NaN
  const float limit = least + slack;
  bool unseen = false;
  for (int e = lane; e < count; e += kWarp) unseen |= !(kept(e).key[kKept - 1] > limit);
  if (__any_sync(kAllLanes, unseen)) {
    certain = false;
    return kNone;
  }

  Compute best = kFar ? Compute(-1) : static_cast<Compute>(INFINITY);
  int best_index = kNone;
  for (int first = 0; first < count; first += kWarp) {
    const int e = first + lane;
#pragma unroll
    for (int s = 0; s < kKept - 1; ++s) {  // the last is above the limit
      unsigned mask = __ballot_sync(kAllLanes, e < count && kept(e < count ? e : 0).key[s] <= limit);
      const int index = e < count ? kept(e).index[s] : kNone;
      while (mask != 0) {
        const int j = __shfl_sync(kAllLanes, index, __ffs(mask) - 1);
        mask &= mask - 1;
        const bool aligned = call.anchor.aligned && call.reference.aligned;
        const Compute d = square_between<Compute>(call.anchor.row(i), call.reference.row(j), call.width, aligned,
                                                  call.cosine, lane, kWarp);
        if (is_nan(d)) certain = false;
        if (kFar ? farther(far_key(d), j, best, best_index) : nearer(near_key(d), j, best, best_index)) {
          best = kFar ? far_key(d) : near_key(d);
          best_index = j;
        }
      }
    }
  }
  return best_index;
}

// A warp an anchor.
template <class Scalar>
__global__ void __launch_bounds__(kThreads) rerank_kernel(const __grid_constant__ Products<Scalar> call) {
  const int lane = threadIdx.x % kWarp;
  const int64_t i = blockIdx.x * static_cast<int64_t>(kWarps) + threadIdx.x / kWarp;
  if (i >= call.anchors) return;  // the whole warp
  const Scalar* row = call.anchor.row(i);
  float square = 0;
  each_pair(row, row, call.width, call.anchor.aligned, lane, kWarp, [&](float a, float b) { square += a * b; });
  const float length = sqrtf(sum_of_lanes(square, kWarp));

  // Each of width / 16 additions of 16 products may lose some units in the last place of what it adds to, which is at
  // most |a||r|. Two keys may err, and the distances that decide in the end may, too.
  const float unit = (call.width / 16 + 16) * 2.4e-7f;
  const float reach = call.cosine ? length : (length + sqrtf(__uint_as_float(*call.largest)));
  const float slack = 2 * unit * (call.cosine ? reach : reach * reach);
  bool certain = slack <= FLT_MAX && !(call.cosine && length <= static_cast<float>(short_length(float())));
  int negative = kNone, positive = kNone;
  if (certain) negative = decide<Scalar, false>(call, i, slack, lane, certain);
  if (certain && call.positive != nullptr) positive = decide<Scalar, true>(call, i, slack, lane, certain);
  if (lane != 0) return;
  if (!certain) {
    call.work[atomicAdd(call.work_count, 1)] = static_cast<int>(i);
    return;
  }
  call.negative[i] = negative == kNone ? -1 : negative;
  if (call.positive != nullptr) call.positive[i] = positive == kNone ? -1 : positive;
}

}  // namespace amkd::triplet::gpu
