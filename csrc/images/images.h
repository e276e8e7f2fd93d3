// The images family: what the CPU and the CUDA implementation share. amkd_fast/ops/images/reference.py is the
// specification.
#pragma once

#include <cstdint>

#include "../common/philox.h"

namespace amkd::images {

constexpr uint64_t kStream = 0x6372;  // reference.STREAM
// Of a sample, and padding: a position in the padded image is less than 2^31 from the image.
constexpr int64_t kMostValues = int64_t{1} << 30;

// `out` [samples, channels, height, width] lies contiguous or, where `last`, with its channels varying fastest.
struct CropFlip {
  const uint8_t* pixels;  // [images, channels, height, width]
  const int64_t* index;   // [samples], null for 0, 1, ...
  const void* shift;      // [channels] in the dtype of the arithmetic
  const int64_t* seeds;   // one number that replaces `seed`, or null
  void* out;
  int64_t images, samples, channels, height, width;
  double scale;
  int64_t pad, seed;
  bool flip, last;

  bool draws() const { return pad > 0 || flip; }
};

// Where a sample's window lies against its image, and whether it is mirrored.
struct Window {
  int32_t dy, dx;
  bool mirrored;
};

// What image `row` draws. The offsets are below 2 pad + 1.
AMKD_PHILOX_DEVICE static inline Window draw_window(uint64_t seed, uint64_t row, int64_t pad, bool flip) {
  const PhiloxWords words = philox_words(seed, row, kStream);
  const uint64_t offsets = 2 * static_cast<uint64_t>(pad) + 1;
  return {static_cast<int32_t>(static_cast<int64_t>(words.w0 * offsets >> 32) - pad),
          static_cast<int32_t>(static_cast<int64_t>(words.w1 * offsets >> 32) - pad), flip && words.w2 >> 31 != 0};
}

}  // namespace amkd::images
