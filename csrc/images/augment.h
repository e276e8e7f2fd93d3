// Joint augmentation: what the CPU and the CUDA implementation share. amkd_fast/ops/images/augment_reference.py is the
// specification.
#pragma once

#include <cstdint>

#include "../common/philox.h"

namespace amkd::images {

// In the order in which they are applied. Operations 2 j and 2 j + 1 draw from stream kAugmentStream + j.
enum Operation : int {
  kShearX,
  kShearY,
  kTranslateX,
  kTranslateY,
  kRotate,
  kAutocontrast,
  kInvert,
  kEqualize,
  kSolarize,
  kPosterize,
  kContrast,
  kColor,
  kBrightness,
  kSharpness,
  kOperations,
};
constexpr uint64_t kAugmentStream = uint64_t{0x6A6461} << 8;
constexpr int64_t kMostSide = int64_t{1} << 14;  // positions in 1/65536 fit into 32 bits
constexpr int32_t kWhole = 4096;                 // the factor of a blend that changes nothing
constexpr int kLevels = 256;

struct JointAugment {
  const uint8_t* pixels;  // [images, channels, height, width]
  const int64_t* rows;    // [images], null for 0, 1, ...
  const int64_t* seeds;   // one number that replaces `seed`, or null
  uint8_t* out;
  int64_t images, channels, height, width, threshold, seed;
  int32_t operations, fill;
};

// What one image draws; an operation that is not chosen has the magnitude that changes nothing, where there is one.
struct Augmentation {
  int32_t chosen;                    // bit i: operation i
  int32_t shear_x, shear_y;          // 1/65536
  int32_t translate_x, translate_y;  // positions
  int32_t turn[6];                   // 1/65536: x comes from turn[0] x + turn[1] y + turn[2], y from the others
  int32_t solarize, posterize;       // first level to invert, mask of the bits to keep
  int32_t contrast, color, brightness, sharpness;  // 1/4096

  AMKD_PHILOX_DEVICE bool has(int first, int last) const {
    return (chosen >> first & ((2 << (last - first)) - 1)) != 0;
  }
  AMKD_PHILOX_DEVICE bool has(int operation) const { return has(operation, operation); }
};

// 1/65536, to nearest.
AMKD_PHILOX_DEVICE static inline int32_t fixed(double v) {
  const double scaled = v * 65536.0 + 0.5;
  const int32_t whole = static_cast<int32_t>(scaled);
  return whole - (scaled < whole ? 1 : 0);
}

// Taylor's series to the last bit of an angle below 0.53.
AMKD_PHILOX_DEVICE static inline void sine_cosine(double angle, double& sine, double& cosine) {
  const double square = angle * angle;
  const auto term = [=](double divisor, double rest) { return 1 - square * rest * (1 / divisor); };
  sine = angle * term(6, term(20, term(42, term(72, term(110, term(156, term(210, 1)))))));
  cosine = term(2, term(12, term(30, term(56, term(90, term(132, term(182, term(240, 1))))))));
}

// The rotation round the middle by `angle` degrees / 65536.
AMKD_PHILOX_DEVICE static inline void draw_turn(int64_t angle, double width, double height, int32_t* turn) {
  double sine, cosine;
  sine_cosine(static_cast<double>(angle) * (-3.14159265358979323846 / 180 / 65536), sine, cosine);
  turn[0] = turn[4] = fixed(cosine);
  turn[1] = fixed(sine);
  turn[3] = fixed(-sine);
  turn[2] = fixed((1 - width) / 2 * cosine + (1 - height) / 2 * sine + width / 2);
  turn[5] = fixed((width - 1) / 2 * sine + (1 - height) / 2 * cosine + height / 2);
}

// The words of one image.
struct AugmentationWords {
  uint32_t choice[kOperations], magnitude[kOperations];
};

AMKD_PHILOX_DEVICE static inline void draw_pair(uint64_t seed, uint64_t row, int pair, AugmentationWords& words) {
  const PhiloxWords w = philox_words(seed, row, kAugmentStream + static_cast<uint64_t>(pair));
  words.choice[2 * pair] = w.w0;
  words.magnitude[2 * pair] = w.w1;
  words.choice[2 * pair + 1] = w.w2;
  words.magnitude[2 * pair + 1] = w.w3;
}

AMKD_PHILOX_DEVICE static inline Augmentation augmentation_of(const JointAugment& p, const AugmentationWords& words) {
  Augmentation a{};
  for (int i = 0; i < kOperations; ++i) a.chosen |= (words.choice[i] < p.threshold) << i;
  a.chosen &= p.operations;
  const auto drawn = [&](int operation, int64_t least, int64_t most, int64_t nothing) {
    if (!a.has(operation)) return nothing;
    return least + static_cast<int64_t>(words.magnitude[operation] * static_cast<uint64_t>(most - least + 1) >> 32);
  };
  const auto around = [&](int operation, int64_t most) { return drawn(operation, -most, most, 0); };
  const auto factor = [&](int operation) { return static_cast<int32_t>(drawn(operation, 410, 7782, kWhole)); };
  a.shear_x = static_cast<int32_t>(around(kShearX, 19660));
  a.shear_y = static_cast<int32_t>(around(kShearY, 19660));
  a.translate_x = static_cast<int32_t>((around(kTranslateX, 29699 * p.width) + 32768) >> 16);
  a.translate_y = static_cast<int32_t>((around(kTranslateY, 29699 * p.height) + 32768) >> 16);
  draw_turn(around(kRotate, 30 << 16), static_cast<double>(p.width), static_cast<double>(p.height), a.turn);
  a.solarize = static_cast<int32_t>(drawn(kSolarize, 0, 256, 256));
  a.posterize = (255 << (8 - drawn(kPosterize, 4, 8, 8))) & 255;
  a.contrast = factor(kContrast);
  a.color = factor(kColor);
  a.brightness = factor(kBrightness);
  a.sharpness = factor(kSharpness);
  return a;
}

}  // namespace amkd::images
