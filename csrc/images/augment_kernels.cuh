// Joint augmentation on a GPU: a block an image, which lies in shared memory where it fits and else in scratch of the
// block's own. amkd_fast/ops/images/augment_reference.py has the mathematics.
#pragma once

#include "../common/math.cuh"
#include "../common/reduce.cuh"
#include "augment.h"

namespace amkd::images::gpu {

constexpr int kAugmentThreads = kLevels;  // a thread a level

struct AugmentCall {
  JointAugment job;
  uint8_t* scratch;  // [images, channels, height, width], null where images lie in shared memory
  int32_t width, height, plane, size;
};

__device__ inline bool inside(const AugmentCall& call, int x, int y) {
  return x >= 0 && x < call.width && y >= 0 && y < call.height;
}

// Where position (x, y) comes from; -1 from outside.
__device__ inline int place_of(const AugmentCall& call, const Augmentation& a, int column, int row) {
  int x = (a.turn[0] * column + a.turn[1] * row + a.turn[2]) >> 16;
  int y = (a.turn[3] * column + a.turn[4] * row + a.turn[5]) >> 16;
  bool there = inside(call, x, y);
  y += a.translate_y;
  there &= inside(call, x, y);
  x += a.translate_x;
  there &= inside(call, x, y);
  y += (a.shear_y * x + 32768 + ((a.shear_y + 1) >> 1)) >> 16;
  there &= inside(call, x, y);
  x += (a.shear_x * y + 32768 + ((a.shear_x + 1) >> 1)) >> 16;
  there &= inside(call, x, y);
  return there ? y * call.width + x : -1;
}

__device__ inline int blend(int level, int other, int factor) {
  const int sum = other + (((level - other) * factor) >> 12);
  return sum < 0 ? 0 : (sum > 255 ? 255 : sum);
}

__device__ inline int grey_at(const AugmentCall& call, const uint8_t* image, int i) {
  if (call.plane == call.size) return image[i];
  return (19595 * image[i] + 38470 * image[call.plane + i] + 7471 * image[2 * call.plane + i] + 32768) >> 16;
}

// Product and sum each rounded.
__device__ inline int autocontrast(int level, int lowest, int highest) {
  if (highest <= lowest) return level;
  const double scale = 255.0 / (highest - lowest);
  const int spread = static_cast<int>(rounded_product(level, scale) + rounded_product(-lowest, scale));
  return spread < 0 ? 0 : (spread > 255 ? 255 : spread);
}

struct LevelScratch {
  uint32_t counts[kLevels], moved[kLevels];
  uint8_t table[kLevels], equal[kLevels];
  uint32_t sums[kLevels / kWarp];
  int lowest, highest;
};

// The sum of the counts of all levels below this thread's.
__device__ inline uint32_t sum_below(uint32_t count, uint32_t* sums) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  uint32_t sum = count;
  for (int step = 1; step < kWarp; step *= 2) {
    const uint32_t other = __shfl_up_sync(kAllLanes, sum, step);
    if (lane >= step) sum += other;
  }
  if (lane == kWarp - 1) sums[warp] = sum;
  __syncthreads();
  for (int w = 0; w < warp; ++w) sum += sums[w];
  return sum - count;
}

// The table of a channel for all operations on levels: a thread makes the entry of its own level.
__device__ inline void make_table(const AugmentCall& call, const Augmentation& a, const uint8_t* plane,
                                  LevelScratch& scratch) {
  const int own = static_cast<int>(threadIdx.x);
  int level = own;
  if (a.has(kAutocontrast) || a.has(kEqualize)) {
    scratch.counts[own] = scratch.moved[own] = 0;
    if (own == 0) scratch.lowest = kLevels, scratch.highest = -1;
    __syncthreads();
    for (int i = own; i < call.plane; i += kAugmentThreads) atomicAdd(&scratch.counts[plane[i]], 1u);
    __syncthreads();
  }
  if (a.has(kAutocontrast)) {
    if (scratch.counts[own] > 0) {
      atomicMin(&scratch.lowest, own);
      atomicMax(&scratch.highest, own);
    }
    __syncthreads();
    level = autocontrast(own, scratch.lowest, scratch.highest);
    __syncthreads();
    if (own == 0) scratch.highest = -1;
  }
  if (a.has(kInvert)) level = 255 - level;
  if (a.has(kEqualize)) {
    atomicAdd(&scratch.moved[level], scratch.counts[own]);
    __syncthreads();
    const uint32_t count = scratch.moved[own];
    if (count > 0) atomicMax(&scratch.highest, own);
    const uint32_t below = sum_below(count, scratch.sums);  // has a barrier
    const uint32_t step = (static_cast<uint32_t>(call.plane) - scratch.moved[scratch.highest]) / 255;
    const uint32_t equal = step == 0 ? static_cast<uint32_t>(own) : (step / 2 + below) / step;
    scratch.equal[own] = static_cast<uint8_t>(equal < 255 ? equal : 255);
    __syncthreads();
    level = scratch.equal[level];
  }
  level = (level < a.solarize ? level : 255 - level) & a.posterize;
  scratch.table[own] = static_cast<uint8_t>(level);
  __syncthreads();
}

__global__ void __launch_bounds__(kAugmentThreads) joint_augment_kernel(const AugmentCall call) {
  extern __shared__ uint8_t shared_image[];
  __shared__ AugmentationWords words;
  __shared__ Augmentation shared_augmentation;
  __shared__ LevelScratch levels;
  __shared__ unsigned long long total;
  const int own = static_cast<int>(threadIdx.x);
  const int64_t offset = static_cast<int64_t>(blockIdx.x) * call.size;
  const uint8_t* from = call.job.pixels + offset;
  uint8_t* image = call.scratch == nullptr ? shared_image : call.scratch + offset;
  uint8_t* out = call.job.out + offset;
  if (own < kOperations / 2) {
    const int64_t seed = call.job.seeds == nullptr ? call.job.seed : *call.job.seeds;
    const int64_t row = call.job.rows == nullptr ? static_cast<int64_t>(blockIdx.x) : call.job.rows[blockIdx.x];
    draw_pair(static_cast<uint64_t>(seed), static_cast<uint64_t>(row), own, words);
  }
  __syncthreads();
  if (own == 0) {
    shared_augmentation = augmentation_of(call.job, words);
    total = 0;
  }
  __syncthreads();
  const Augmentation& a = shared_augmentation;

  for (int i = own; i < call.plane; i += kAugmentThreads) {
    const int place = place_of(call, a, i % call.width, i / call.width);
    for (int c = 0; c < call.size; c += call.plane) {
      image[c + i] = place < 0 ? static_cast<uint8_t>(call.job.fill) : from[c + place];
    }
  }
  __syncthreads();

  if (a.has(kAutocontrast, kPosterize)) {
    for (int c = 0; c < call.size; c += call.plane) {
      make_table(call, a, image + c, levels);
      for (int i = own; i < call.plane; i += kAugmentThreads) image[c + i] = levels.table[image[c + i]];
      __syncthreads();
    }
  }

  int mean = 0;
  if (a.has(kContrast)) {
    unsigned long long sum = 0;
    for (int i = own; i < call.plane; i += kAugmentThreads) sum += grey_at(call, image, i);
    atomicAdd(&total, sum);
    __syncthreads();
    const auto count = static_cast<unsigned long long>(call.plane);
    mean = static_cast<int>((2 * total + count) / (2 * count));
  }
  for (int i = own; i < call.plane; i += kAugmentThreads) {
    for (int c = i; c < call.size; c += call.plane) image[c] = static_cast<uint8_t>(blend(image[c], mean, a.contrast));
    const int grey = grey_at(call, image, i);
    for (int c = i; c < call.size; c += call.plane) {
      image[c] = static_cast<uint8_t>(blend(blend(image[c], grey, a.color), 0, a.brightness));
    }
  }
  __syncthreads();

  for (int i = own; i < call.size; i += kAugmentThreads) {
    const int rest = i % call.plane, x = rest % call.width, y = rest / call.width;
    int level = image[i];
    if (a.sharpness != kWhole && x > 0 && x + 1 < call.width && y > 0 && y + 1 < call.height) {
      int near = 4 * level + 6;
      for (int dy = -1; dy <= 1; ++dy) {
        for (int dx = -1; dx <= 1; ++dx) near += image[i + dy * call.width + dx];
      }
      level = blend(level, near / 13, a.sharpness);
    }
    out[i] = static_cast<uint8_t>(level);
  }
}

}  // namespace amkd::images::gpu
