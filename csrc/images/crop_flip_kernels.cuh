// Batches of augmented images on a GPU. amkd_fast/ops/images/reference.py has the mathematics.
//
// A few blocks take a sample, a thread 16 bytes of it at a time. Every thread draws the sample's window itself: that
// takes fewer cycles than waiting for another one that did.
#pragma once

#include "../common/divider.cuh"
#include "../common/element.cuh"
#include "../common/math.cuh"
#include "images.h"

namespace amkd::images::gpu {

constexpr int kThreads = 256;
constexpr int kPieces = 4;  // that a thread writes, where a sample has as many

template <class Scalar>
struct CropFlipCall {
  const uint8_t* pixels;  // [images, channels, height, width]
  const int64_t *index, *seeds;
  const StatOf<Scalar>* shift;
  Scalar* out;
  int64_t images, pad, seed;
  StatOf<Scalar> scale;
  Divider channels, width, plane;
  int32_t height, size, blocks;  // of a sample
  bool flip, draws, last;
};

// kWide: a piece is a 16-byte vector, which neither straddles the end of a sample nor misses its alignment; else it is
// one number, so that neighbours still write side by side.
template <class Scalar, bool kWide>
__global__ void __launch_bounds__(kThreads) crop_flip_kernel(const CropFlipCall<Scalar> call) {
  constexpr int kWidth = kWide ? Vector<Scalar>::kWidth : 1;
  const int64_t sample = blockIdx.x / call.blocks;
  const int block = blockIdx.x % call.blocks;
  int64_t row = sample;
  if (call.index != nullptr) {
    row = call.index[sample];
    row = row < 0 ? 0 : (row < call.images ? row : call.images - 1);  // a GPU cannot raise
  }
  Window window{0, 0, false};
  if (call.draws) {
    const int64_t seed = call.seeds == nullptr ? call.seed : *call.seeds;
    window = draw_window(static_cast<uint64_t>(seed), static_cast<uint64_t>(row), call.pad, call.flip);
  }
  const int width = static_cast<int>(call.width.divisor);
  const uint8_t* image = call.pixels + row * call.size;
  Scalar* out = call.out + sample * call.size;

  for (int first = (block * kThreads + static_cast<int>(threadIdx.x)) * kWidth; first < call.size;
       first += call.blocks * kThreads * kWidth) {
    Vector<Scalar> values;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const uint32_t e = first + k;
      const uint32_t group = (call.last ? call.channels : call.plane).quotient(e);
      const uint32_t rest = e - group * (call.last ? call.channels : call.plane).divisor;
      const uint32_t c = call.last ? rest : group, position = call.last ? group : rest;
      const uint32_t line = call.width.quotient(position);
      const int column = position - line * width;
      const int y = static_cast<int>(line) + window.dy;
      const int x = (window.mirrored ? width - 1 - column : column) + window.dx;
      const bool inside = y >= 0 && y < call.height && x >= 0 && x < width;
      const uint8_t level = inside ? image[c * call.plane.divisor + y * width + x] : 0;
      const StatOf<Scalar> product = rounded_product(static_cast<StatOf<Scalar>>(level), call.scale);
      values.at[k] = narrow<Scalar>(product + call.shift[c]);
    }
    if constexpr (kWide) {
      store_vector(out + first, values);
    } else {
      out[first] = values.at[0];
    }
  }
}

}  // namespace amkd::images::gpu
