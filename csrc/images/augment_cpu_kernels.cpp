// Joint augmentation on a CPU. The geometric operations are maps of positions and so one gather; the operations on
// levels are one table a channel, made from one histogram; what follows are sweeps over an image that lies in the
// cache.
#include "../common/simd.h"
#include "augment_cpu.h"

namespace amkd::images::AMKD_SIMD {
namespace {

using namespace amkd::AMKD_SIMD;

struct Image {
  int64_t channels, height, width;
  int64_t plane() const { return height * width; }
  int64_t size() const { return channels * plane(); }
};

// ---- positions ----------------------------------------------------------------------------------------------------

// places[x] says where position (x, y) comes from; `outside` where from nowhere. Writes whole vectors.
void find_places(const Augmentation& a, const Image& image, int32_t row, int32_t outside, int32_t* places) {
  const int32_t width = static_cast<int32_t>(image.width), height = static_cast<int32_t>(image.height);
  const int32_t start_x = a.turn[1] * row + a.turn[2], start_y = a.turn[4] * row + a.turn[5];
  const int32_t start_shear_x = 32768 + ((a.shear_x + 1) >> 1), start_shear_y = 32768 + ((a.shear_y + 1) >> 1);
  Ints column;
  for (int i = 0; i < kLanes; ++i) column[i] = i;
  for (int32_t first = 0; first < width; first += kLanes, column += kLanes) {
    Ints x = (column * a.turn[0] + start_x) >> 16;
    Ints y = (column * a.turn[3] + start_y) >> 16;
    Ints sign = x | (width - 1 - x) | y | (height - 1 - y);  // negative where it was outside at any step
    y += a.translate_y;
    sign |= y | (height - 1 - y);
    x += a.translate_x;
    sign |= x | (width - 1 - x);
    y += (x * a.shear_y + start_shear_y) >> 16;
    sign |= y | (height - 1 - y);
    x += (y * a.shear_x + start_shear_x) >> 16;
    sign |= x | (width - 1 - x);
    const Ints place = sign < 0 ? Ints{} + outside : y * width + x;
    std::memcpy(places + first, &place, sizeof(place));
  }
}

// Three levels in a word are one access instead of three.
void move_colours(const Augmentation& a, const Image& image, uint32_t fill, const uint8_t* from,
                  const AugmentScratch& scratch, uint8_t* __restrict to) {
  const int64_t plane = image.plane();
  uint32_t* __restrict packed = scratch.packed;
  int32_t* __restrict places = scratch.places;
  for (int64_t i = 0; i < plane; ++i) {
    packed[i] = from[i] | uint32_t{from[plane + i]} << 8 | uint32_t{from[2 * plane + i]} << 16;
  }
  packed[plane] = fill * 0x10101;
  for (int64_t y = 0; y < image.height; ++y) {
    find_places(a, image, static_cast<int32_t>(y), static_cast<int32_t>(plane), places + y * image.width);
  }
  for (int64_t i = 0; i < plane; ++i) places[i] = static_cast<int32_t>(packed[places[i]]);
  for (int64_t i = 0; i < plane; ++i) to[i] = static_cast<uint8_t>(places[i]);
  for (int64_t i = 0; i < plane; ++i) to[plane + i] = static_cast<uint8_t>(places[i] >> 8);
  for (int64_t i = 0; i < plane; ++i) to[2 * plane + i] = static_cast<uint8_t>(places[i] >> 16);
}

void move_grey(const Augmentation& a, const Image& image, uint32_t fill, const uint8_t* from,
               const AugmentScratch& scratch, uint8_t* to) {
  for (int64_t y = 0; y < image.height; ++y) {
    find_places(a, image, static_cast<int32_t>(y), -1, scratch.places);
    uint8_t* row = to + y * image.width;
    for (int64_t x = 0; x < image.width; ++x) {
      const int32_t place = scratch.places[x];
      row[x] = place < 0 ? static_cast<uint8_t>(fill) : from[place];
    }
  }
}

// ---- levels -------------------------------------------------------------------------------------------------------

// Several histograms take turns: the next level is often the same one, and would wait for its count.
void count_levels(const uint8_t* __restrict from, int64_t count, uint32_t* __restrict histogram) {
  uint32_t parts[4][kLevels] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    uint64_t eight;
    std::memcpy(&eight, from + i, sizeof(eight));
    for (int k = 0; k < 8; ++k) ++parts[k % 4][eight >> (8 * k) & 255];
  }
  for (; i < count; ++i) ++parts[0][from[i]];
  for (int v = 0; v < kLevels; ++v) histogram[v] = parts[0][v] + parts[1][v] + parts[2][v] + parts[3][v];
}

struct Range {
  int lowest, highest;
};

Range range_of(const uint8_t* __restrict from, int64_t count) {
  uint8_t lowest = 255, highest = 0;
  for (int64_t i = 0; i < count; ++i) {
    lowest = from[i] < lowest ? from[i] : lowest;
    highest = from[i] > highest ? from[i] : highest;
  }
  return {lowest, highest};
}

Range range_of(const uint32_t* histogram) {
  Range range{0, kLevels - 1};
  while (histogram[range.lowest] == 0) ++range.lowest;
  while (histogram[range.highest] == 0) --range.highest;
  return range;
}

// Product and sum each rounded, also where there is an fma: whole numbers fall on one side or the other of their own.
void autocontrast(Range range, uint8_t* table) {
  if (range.highest <= range.lowest) return;
  const double scale = 255.0 / (range.highest - range.lowest);
  const double offset = -range.lowest * scale;
  double products[kLevels];
  for (int v = 0; v < kLevels; ++v) products[v] = v * scale;
  asm volatile("" : : "r"(products) : "memory");
  for (int v = range.lowest; v <= range.highest; ++v) {
    const int level = static_cast<int>(products[v] + offset);
    table[v] = static_cast<uint8_t>(level < 0 ? 0 : (level > 255 ? 255 : level));
  }
}

// `table` so far has moved the counts of `histogram`.
void equalize(const uint32_t* histogram, int64_t count, uint8_t* table) {
  uint32_t moved[kLevels] = {};
  for (int v = 0; v < kLevels; ++v) moved[table[v]] += histogram[v];
  const int64_t step = (count - moved[range_of(moved).highest]) / 255;
  if (step == 0) return;
  double sums[kLevels];
  int64_t sum = step / 2;
  for (int v = 0; v < kLevels; ++v) {
    sums[v] = static_cast<double>(sum);
    sum += moved[v];
  }
  // A half more keeps what rounding does to the reciprocal away from the next whole number.
  const double reciprocal = 1.0 / static_cast<double>(step);
  uint8_t equal[kLevels];
  for (int v = 0; v < kLevels; ++v) {
    const double quotient = (sums[v] + 0.5) * reciprocal;
    equal[v] = static_cast<uint8_t>(static_cast<int32_t>(quotient < 255.0 ? quotient : 255.0));
  }
  for (int v = 0; v < kLevels; ++v) table[v] = equal[table[v]];
}

void invert(const uint8_t* from, int64_t count, uint8_t* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<uint8_t>(~from[i]);
}

void solarize(const Augmentation& a, const uint8_t* from, int64_t count, uint8_t* to) {
  const uint8_t mask = static_cast<uint8_t>(a.posterize), last = static_cast<uint8_t>(a.solarize - 1);
  if (a.solarize == 0) {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<uint8_t>(~from[i] & mask);
    return;
  }
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<uint8_t>((from[i] <= last ? from[i] : ~from[i]) & mask);
}

void map_levels(const Augmentation& a, const Image& image, const uint8_t* from, uint8_t* to) {
  const int64_t plane = image.plane();
  if (!a.has(kAutocontrast) && !a.has(kEqualize)) {
    if (a.has(kInvert)) {
      invert(from, image.size(), to);
      from = to;
    }
    return solarize(a, from, image.size(), to);
  }
  for (int64_t c = 0; c < image.channels; ++c, from += plane, to += plane) {
    uint8_t table[kLevels];
    uint32_t histogram[kLevels];
    for (int v = 0; v < kLevels; ++v) table[v] = static_cast<uint8_t>(v);
    if (a.has(kEqualize)) count_levels(from, plane, histogram);
    if (a.has(kAutocontrast)) autocontrast(a.has(kEqualize) ? range_of(histogram) : range_of(from, plane), table);
    if (a.has(kInvert)) invert(table, kLevels, table);
    if (a.has(kEqualize)) equalize(histogram, plane, table);
    solarize(a, table, kLevels, table);
    for (int64_t i = 0; i < plane; ++i) to[i] = table[from[i]];
  }
}

// ---- blends -------------------------------------------------------------------------------------------------------

// other + (level - other) · factor / 4096, downwards, in 16 bits: a sixteenth of the difference's multiple is the upper
// half of its product with the factor.
AMKD_INLINE uint8_t blend(int16_t level, int16_t other, int16_t factor) {
  const int16_t difference = static_cast<int16_t>((level - other) * 16);
  const int16_t part = static_cast<int16_t>((int32_t{difference} * int32_t{factor}) >> 16);
  const int16_t sum = static_cast<int16_t>(other + part);
  return static_cast<uint8_t>(sum < 0 ? 0 : (sum > 255 ? 255 : sum));
}

AMKD_INLINE uint32_t grey_of(uint32_t red, uint32_t green, uint32_t blue) {
  return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16;
}

// Of the grey image, to nearest.
int16_t mean_grey(const Image& image, const uint8_t* __restrict from) {
  const int64_t plane = image.plane();
  int64_t total = 0;
  for (int64_t y = 0; y < image.height; ++y, from += image.width) {
    uint32_t sum = 0;
    if (image.channels == 1) {
      for (int64_t x = 0; x < image.width; ++x) sum += from[x];
    } else {
      for (int64_t x = 0; x < image.width; ++x) sum += grey_of(from[x], from[plane + x], from[2 * plane + x]);
    }
    total += sum;
  }
  return static_cast<int16_t>((2 * total + plane) / (2 * plane));
}

void blend_with(int16_t other, int32_t factor, const uint8_t* from, int64_t count, uint8_t* to) {
  const int16_t kept = static_cast<int16_t>(factor);
  for (int64_t i = 0; i < count; ++i) to[i] = blend(from[i], other, kept);
}

void blend_with_grey(int32_t factor, const Image& image, const uint8_t* from, uint8_t* to) {
  const int64_t plane = image.plane();
  const int16_t kept = static_cast<int16_t>(factor);
  constexpr int64_t kTile = 64;
  for (int64_t first = 0; first < plane; first += kTile) {
    const int64_t count = plane - first < kTile ? plane - first : kTile;
    int16_t grey[kTile];
    for (int64_t i = 0; i < count; ++i) {
      const uint8_t* at = from + first + i;
      grey[i] = static_cast<int16_t>(grey_of(at[0], at[plane], at[2 * plane]));
    }
    for (int64_t c = 0; c < 3; ++c) {
      const uint8_t* level = from + c * plane + first;
      uint8_t* result = to + c * plane + first;
      for (int64_t i = 0; i < count; ++i) result[i] = blend(level[i], grey[i], kept);
    }
  }
}

// `to` is another image than `from`. A sweep knows nothing of rows, which are short; then the border is put back.
void blend_with_smooth(int32_t factor, const Image& image, uint16_t* __restrict columns, const uint8_t* __restrict from,
                       uint8_t* __restrict to) {
  const int64_t width = image.width, plane = image.plane(), last = plane - width;
  const int16_t kept = static_cast<int16_t>(factor);
  std::memcpy(to, from, image.size());
  if (width < 3 || image.height < 3) return;
  for (int64_t c = 0; c < image.channels; ++c, from += plane, to += plane) {
    for (int64_t i = width; i < last; ++i) {
      columns[i] = static_cast<uint16_t>(from[i - width] + from[i] + from[i + width]);
    }
    for (int64_t i = width + 1; i < last - 1; ++i) {
      const uint16_t sum = static_cast<uint16_t>(columns[i - 1] + columns[i] + columns[i + 1] + 4 * from[i] + 6);
      const uint16_t smooth = static_cast<uint16_t>((uint32_t{sum} * 5042) >> 16);  // a thirteenth, below 6553
      to[i] = blend(from[i], static_cast<int16_t>(smooth), kept);
    }
    for (int64_t i = 2 * width; i < last; i += width) {
      to[i - 1] = from[i - 1];
      to[i] = from[i];
    }
  }
}

// ---- an image -----------------------------------------------------------------------------------------------------

void augment(const JointAugment& p, const Augmentation& a, const Image& image, const uint8_t* from,
             const AugmentScratch& scratch, uint8_t* to) {
  const int64_t size = image.size();
  if (a.has(kShearX, kRotate)) {
    (image.channels == 1 ? move_grey : move_colours)(a, image, static_cast<uint32_t>(p.fill), from, scratch, to);
    from = to;
  }
  if (a.has(kAutocontrast, kPosterize)) {
    map_levels(a, image, from, to);
    from = to;
  }
  if (a.has(kContrast)) {
    blend_with(mean_grey(image, from), a.contrast, from, size, to);
    from = to;
  }
  if (a.has(kColor) && image.channels == 3) {
    blend_with_grey(a.color, image, from, to);
    from = to;
  }
  if (a.has(kBrightness)) {
    blend_with(0, a.brightness, from, size, to);
    from = to;
  }
  if (a.has(kSharpness)) {
    if (from == to) {
      uint8_t* copy = reinterpret_cast<uint8_t*>(scratch.packed);
      std::memcpy(copy, from, size);
      from = copy;
    }
    blend_with_smooth(a.sharpness, image, scratch.columns, from, to);
    from = to;
  }
  if (from != to) std::memcpy(to, from, size);
}

void joint_augment(const JointAugment& p, int64_t first, int64_t last, const AugmentScratch& scratch) {
  const Image image{p.channels, p.height, p.width};
  const uint64_t seed = static_cast<uint64_t>(p.seeds == nullptr ? p.seed : *p.seeds);
  for (int64_t i = first; i < last; ++i) {
    const uint64_t row = static_cast<uint64_t>(p.rows == nullptr ? i : p.rows[i]);
    AugmentationWords words;
    for (int pair = 0; pair < kOperations / 2; ++pair) draw_pair(seed, row, pair, words);
    const Augmentation a = augmentation_of(p, words);
    augment(p, a, image, p.pixels + i * image.size(), scratch, p.out + i * image.size());
  }
}

}  // namespace

extern const JointAugmentKernel joint_augment_kernel = joint_augment;

}  // namespace amkd::images::AMKD_SIMD
