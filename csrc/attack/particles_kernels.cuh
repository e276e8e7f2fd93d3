// Stein variational steps on a GPU. amkd_fast/ops/attack/particles_reference.py has the mathematics.
//
// A block finds the distances of an image's particles and what they weigh for each other. Another one for every few
// particles takes their steps: each thread writes what it finds, and takes back what it has written of a particle that
// turns out to stay.
#pragma once

#include "../common/math.cuh"
#include "../common/reduce.cuh"
#include "attack_step_kernels.cuh"
#include "particles.h"

namespace amkd::attack::gpu {

constexpr int kParticleThreads = 256;
constexpr int kParticleRows = 4;   // particles whose steps a block takes
constexpr int kParticlePairs = 4;  // distances that a warp finds at a time

template <class Scalar>
struct ParticleCall {
  using Stat = StatOf<Scalar>;
  Scalar* out;
  const Scalar *x, *x0;            // [images, count, size], [images, size]
  const void* grad;                // Scalar, or Stat where wide_grad
  Stat* weights;                   // [images, 2, count, count]: of the gradients, and of the positions
  const Stat *step_sizes, *radii;  // [images] or null
  const Stat *lowers, *uppers;     // [channels] or null
  Stat step_size, radius, lower, upper, bandwidth;
  bool median, wide_grad, wide;  // wide: every particle starts at a multiple of 16 bytes
  int64_t images;
  int count, size;
  Divider run, channels;
};

// Calls body(values, first, how many) for the numbers from `first` on of rows that a thread takes: 16 bytes of Scalar
// at a time where rows are aligned, else one.
template <class Scalar, class Body>
__device__ void each_part(int size, bool wide, int lane, int lanes, Body body) {
  constexpr int kWidth = Vector<Scalar>::kWidth;
  if (wide) {
    for (int k = lane * kWidth; k < size; k += lanes * kWidth) body(k, std::integral_constant<int, kWidth>{});
  } else {
    for (int k = lane; k < size; k += lanes) body(k, std::integral_constant<int, 1>{});
  }
}

// kCount numbers of a row, widened.
template <int kCount, class From, class Stat>
__device__ void read(const From* row, Stat (&values)[kCount]) {
  if constexpr (kCount == 1) {
    values[0] = widen(*row);
  } else {
    constexpr int kWidth = Vector<From>::kWidth < kCount ? Vector<From>::kWidth : kCount;
#pragma unroll
    for (int first = 0; first < kCount; first += kWidth) {
      const Vector<From> part = load_vector(row + first);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) values[first + i] = widen(part.at[i]);
    }
  }
}

template <int kCount, class Scalar, class Stat>
__device__ void read_grad(const ParticleCall<Scalar>& call, int64_t at, Stat (&values)[kCount]) {
  if (call.wide_grad) {
    read(static_cast<const Stat*>(call.grad) + at, values);
  } else {
    read(static_cast<const Scalar*>(call.grad) + at, values);
  }
}

// The lower median of the squares of pairs of members, by their ranks; `count` is the row length of `square`.
template <class Stat>
__device__ void find_median(const Stat* square, const int* members, int found, int count, Stat* median) {
  const int pairs = found * (found - 1) / 2, wanted = (pairs - 1) / 2;
  for (int p = threadIdx.x; p < found * found; p += blockDim.x) {
    const int i = p / found, j = p % found;
    if (i >= j) continue;
    const Stat own = square[members[i] * count + members[j]];
    int rank = 0;
    for (int a = 0; a < found && rank <= wanted; ++a) {
      for (int b = a + 1; b < found; ++b) {
        const Stat other = square[members[a] * count + members[b]];
        rank += other < own || (other == own && (a < i || (a == i && b < j)));
      }
    }
    if (rank == wanted) *median = own;
  }
}

// Two blocks a multiprocessor leave registers enough; left alone ptxas spills to make room for one more.
template <class Scalar>
__global__ void __launch_bounds__(kParticleThreads, 2) weights_kernel(ParticleCall<Scalar> call) {
  using Stat = StatOf<Scalar>;
  constexpr int kWarps = kParticleThreads / kWarp;
  extern __shared__ __align__(16) unsigned char shared[];
  Stat* const square = reinterpret_cast<Stat*>(shared);  // [count, count]
  __shared__ int usable[kMostParticles], members[kMostParticles];
  __shared__ int found;
  __shared__ Stat median;
  const int n = call.count, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t start = static_cast<int64_t>(blockIdx.x) * n * call.size;
  const Scalar* const x = call.x + start;

  for (int j = warp; j < n; j += kWarps) {
    Stat fault = 0;  // stays 0 unless a number is not finite
    each_part<Scalar>(call.size, call.wide, lane, kWarp, [&](int k, auto width) {
      Stat own[width.value], g[width.value];
      const int64_t at = static_cast<int64_t>(j) * call.size + k;
      read(x + at, own);
      read_grad(call, start + at, g);
#pragma unroll
      for (int i = 0; i < width.value; ++i) fault += own[i] * Stat(0) + g[i] * Stat(0);
    });
    const bool faultless = __all_sync(kAllLanes, fault == 0);
    if (lane == 0) usable[j] = faultless;
  }
  // A warp has one particle and a few that come after it.
  const int groups = (n - 1 + kParticlePairs - 1) / kParticlePairs;
  for (int task = warp; task < n * groups; task += kWarps) {
    const int i = task / groups, first = i + 1 + task % groups * kParticlePairs;
    if (first >= n) continue;
    Stat sums[kParticlePairs] = {};
    each_part<Scalar>(call.size, call.wide, lane, kWarp, [&](int k, auto width) {
      Stat own[width.value];
      read(x + static_cast<int64_t>(i) * call.size + k, own);
#pragma unroll
      for (int p = 0; p < kParticlePairs; ++p) {
        Stat other[width.value];
        read(x + static_cast<int64_t>(min(first + p, n - 1)) * call.size + k, other);
#pragma unroll
        for (int e = 0; e < width.value; ++e) {
          const Stat apart = own[e] - other[e];
          sums[p] += apart * apart;
        }
      }
    });
    reduce_lanes(sums, kWarp, Plus());
    if (lane == 0) {
      for (int p = 0; p < kParticlePairs && first + p < n; ++p) {
        square[i * n + first + p] = square[(first + p) * n + i] = sums[p];
      }
    }
  }
  for (int j = threadIdx.x; j < n; j += kParticleThreads) square[j * n + j] = 0;
  __syncthreads();
  if (threadIdx.x == 0) {
    found = 0;
    median = 0;
    for (int j = 0; j < n; ++j) {
      if (usable[j]) members[found++] = j;
    }
  }
  __syncthreads();
  Stat h = call.bandwidth;
  if (call.median && found > 1) {
    find_median(square, members, found, n, &median);
    __syncthreads();
    h = median / log_of(static_cast<Stat>(found));
  }
  const Stat share = Stat(1) / static_cast<Stat>(max(found, 1)), infinity = static_cast<Stat>(INFINITY);
  Stat* const pull = call.weights + static_cast<int64_t>(blockIdx.x) * 2 * n * n;
  Stat* const push = pull + n * n;
  for (int i = threadIdx.x; i < n; i += kParticleThreads) {
    Stat total = 0;
    for (int j = 0; j < n; ++j) {
      const Stat apart = square[i * n + j];
      const bool both = usable[i] && usable[j];
      Stat near = apart == 0 ? Stat(1) : h > 0 && apart < infinity ? exp_of(-(apart / h)) : Stat(0);
      near = both ? near : Stat(0);
      const Stat away = h > 0 && i != j ? min(Stat(2) * near / h, largest_of(Stat(0))) * share : Stat(0);
      pull[i * n + j] = near * share;
      if (i != j) push[i * n + j] = -away;
      total += away;
    }
    push[i * n + i] = total;
  }
}

template <class Scalar>
__global__ void __launch_bounds__(kParticleThreads) particles_kernel(ParticleCall<Scalar> call) {
  using Stat = StatOf<Scalar>;
  using Magnitude = MagnitudeOf<Stat>;
  constexpr int kRows = kParticleRows;
  __shared__ Stat pull[kMostParticles][kRows], push[kMostParticles][kRows];
  __shared__ int members[kMostParticles];
  __shared__ int found;
  __shared__ Magnitude peaks[kRows][kParticleThreads / kWarp];
  const int n = call.count, groups = (n + kRows - 1) / kRows;
  const int64_t image = blockIdx.x / groups;
  const int first = static_cast<int>(blockIdx.x % groups) * kRows;
  const int64_t start = image * n * call.size;
  const Stat* const weights = call.weights + image * 2 * n * n;
  if (threadIdx.x == 0) {
    found = 0;
    for (int j = 0; j < n; ++j) {
      if (weights[j * n + j] > 0) members[found++] = j;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < found * kRows; i += kParticleThreads) {
    const int j = members[i / kRows], row = first + i % kRows;
    pull[i / kRows][i % kRows] = row < n ? weights[j * n + row] : Stat(0);
    push[i / kRows][i % kRows] = row < n ? weights[n * n + j * n + row] : Stat(0);
  }
  __syncthreads();

  const Stat reach = call.step_sizes == nullptr ? call.step_size : call.step_sizes[image];
  const Stat radius = call.radii == nullptr ? call.radius : call.radii[image];
  const Stat largest = largest_of(Scalar());
  Magnitude peak[kRows] = {};
  each_part<Scalar>(call.size, call.wide, threadIdx.x, kParticleThreads, [&](int k, auto width) {
    constexpr int kWidth = width.value;
    Stat phi[kRows][kWidth] = {}, origin[kWidth] = {}, x0[kWidth];
    if (found > 0) read(call.x + start + static_cast<int64_t>(members[0]) * call.size + k, origin);
    for (int m = 0; m < found; ++m) {
      const int64_t at = start + static_cast<int64_t>(members[m]) * call.size + k;
      Stat g[kWidth], x[kWidth];
      read_grad(call, at, g);
      read(call.x + at, x);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int e = 0; e < kWidth; ++e) phi[r][e] += pull[m][r] * g[e] + push[m][r] * (x[e] - origin[e]);
      }
    }
    read(call.x0 + image * call.size + k, x0);
    Stat low[kWidth], high[kWidth];
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      const bool each = call.lowers != nullptr || call.uppers != nullptr;
      const uint32_t channel = each ? call.channels.remainder(call.run.quotient(static_cast<uint32_t>(k + e))) : 0;
      low[e] = call.lowers == nullptr ? call.lower : call.lowers[channel];
      high[e] = call.uppers == nullptr ? call.upper : call.uppers[channel];
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (first + r >= n) continue;
      const int64_t at = start + static_cast<int64_t>(first + r) * call.size + k;
      Stat x[kWidth];
      read(call.x + at, x);
      Vector<Scalar> written;
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        peak[r] = max(peak[r], magnitude(phi[r][e]));
        Stat moved = x[e] + (phi[r][e] > 0 ? reach : phi[r][e] < 0 ? -reach : Stat(0));
        moved = within(moved, x0[e] - radius, x0[e] + radius);
        moved = clamped(within(moved, low[e], high[e]), largest);
        written.at[e] = narrow<Scalar>(radius == 0 ? x0[e] : moved);
      }
      if constexpr (kWidth == 1) {
        call.out[at] = written.at[0];
      } else {
        store_vector(call.out + at, written);
      }
    }
  });

#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    for (int step = kWarp / 2; step > 0; step /= 2) peak[r] = max(peak[r], __shfl_xor_sync(kAllLanes, peak[r], step));
    if (threadIdx.x % kWarp == 0) peaks[r][threadIdx.x / kWarp] = peak[r];
  }
  __syncthreads();
  const bool usable = is_finite(reach) && radius >= 0;
  for (int r = 0; r < kRows && first + r < n; ++r) {
    Magnitude most = 0;
    for (int w = 0; w < kParticleThreads / kWarp; ++w) most = max(most, peaks[r][w]);
    if (usable && most > 0 && most < magnitude(static_cast<Stat>(INFINITY))) continue;
    const int64_t at = start + static_cast<int64_t>(first + r) * call.size;
    each_part<Scalar>(call.size, call.wide, threadIdx.x, kParticleThreads, [&](int k, auto width) {
      for (int e = 0; e < width.value; ++e) call.out[at + k + e] = call.x[at + k + e];
    });
  }
}

}  // namespace amkd::attack::gpu
