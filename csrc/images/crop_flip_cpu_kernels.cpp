// Batches of augmented images on a CPU: a sample's bytes are put in their places first, a quarter of the traffic of its
// numbers or less, and then become numbers in one sweep that knows nothing of windows.
#include "../common/simd.h"
#include "images_cpu.h"

namespace amkd::images::AMKD_SIMD {
namespace {

using namespace amkd::AMKD_SIMD;

template <class T>
struct WorkOf {
  using type = float;
};
template <>
struct WorkOf<double> {
  using type = double;
};

// ---- bytes --------------------------------------------------------------------------------------------------------

typedef uint64_t Sixteen __attribute__((vector_size(16)));

template <class Word>
AMKD_INLINE Word word_at(const uint8_t* p) {
  Word word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}
template <class Word>
AMKD_INLINE void put(uint8_t* p, Word word) {
  std::memcpy(p, &word, sizeof(word));
}

// Rows are short: a call of memcpy takes longer than these. The last word overlaps the one before it.
AMKD_INLINE void copy(const uint8_t* from, int64_t count, uint8_t* to) {
  constexpr int64_t kWord = sizeof(Sixteen);
  if (count < kWord) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
    return;
  }
  for (int64_t i = 0; i + kWord < count; i += kWord) put(to + i, word_at<Sixteen>(from + i));
  put(to + count - kWord, word_at<Sixteen>(from + count - kWord));
}

AMKD_INLINE void copy_mirrored(const uint8_t* from, int64_t count, uint8_t* to) {
  constexpr int64_t kWord = sizeof(uint64_t);
  if (count < kWord) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[count - 1 - i];
    return;
  }
  for (int64_t i = 0; i + kWord < count; i += kWord) {
    put(to + i, __builtin_bswap64(word_at<uint64_t>(from + count - kWord - i)));
  }
  put(to + count - kWord, __builtin_bswap64(word_at<uint64_t>(from)));
}

// The window of an image [channels, height, width]; level 0 around it.
void crop(const CropFlip& p, const uint8_t* image, const Window& window, uint8_t* to) {
  const int64_t first_y = window.dy < 0 ? -window.dy : 0, first_x = window.dx < 0 ? -window.dx : 0;
  const int64_t end_y = window.dy > 0 ? p.height - window.dy : p.height;
  const int64_t columns = p.width - (window.dx < 0 ? -int64_t{window.dx} : window.dx);
  if (window.dy != 0 || window.dx != 0) std::memset(to, 0, p.channels * p.height * p.width);
  if (columns <= 0) return;
  const int64_t first_to = window.mirrored ? p.width - first_x - columns : first_x;
  for (int64_t c = 0; c < p.channels; ++c) {
    for (int64_t y = first_y; y < end_y; ++y) {
      const uint8_t* from = image + (c * p.height + y + window.dy) * p.width + first_x + window.dx;
      uint8_t* row = to + (c * p.height + y) * p.width + first_to;
      window.mirrored ? copy_mirrored(from, columns, row) : copy(from, columns, row);
    }
  }
}

// From [channels, pixels] to [pixels, channels].
void interleave(const uint8_t* __restrict from, int64_t channels, int64_t pixels, uint8_t* __restrict to) {
  if (channels == 3) {  // a number that the compiler knows makes it shuffle vectors
    for (int64_t i = 0; i < pixels; ++i) {
      to[3 * i] = from[i];
      to[3 * i + 1] = from[pixels + i];
      to[3 * i + 2] = from[2 * pixels + i];
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < pixels; ++i) to[i * channels + c] = from[c * pixels + i];
  }
}

// ---- numbers ------------------------------------------------------------------------------------------------------

AMKD_INLINE Floats levels(const uint8_t* p, float) {
#if defined(__AVX512F__)
  const Ints wide = bits<Ints>(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  const Ints wide = bits<Ints>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
  Bytes narrow;
  std::memcpy(&narrow, p, sizeof(narrow));
  const Ints wide = __builtin_convertvector(narrow, Ints);
#endif
  return __builtin_convertvector(wide, Floats);
}
AMKD_INLINE double levels(const uint8_t* p, double) { return *p; }

// v · scale + shift with two roundings at every level: the compiler may not make one of them where there is an fma.
template <class V>
AMKD_INLINE V scaled(V v, V scale, V shift) {
  V product = v * scale;
#if defined(__x86_64__)
  asm("" : "+x"(product));
#elif defined(__aarch64__)
  asm("" : "+w"(product));
#else
  asm("" : "+m"(product));
#endif
  return product + shift;
}

// `shifts` [cycle, lanes] holds those of as many vectors, after which they come again.
template <class T, class W>
void convert(const uint8_t* bytes, int64_t count, W scale, const W* shifts, int64_t cycle, T* out) {
  using V = Vector<W>;
  constexpr int64_t kStep = lanes<V>;
  const V factor = splat<V>(scale);
  int64_t i = 0, phase = 0;
  for (; i + kStep <= count; i += kStep) {
    store(out + i, scaled(levels(bytes + i, W{}), factor, load(shifts + phase * kStep)));
    phase = phase + 1 == cycle ? 0 : phase + 1;
  }
  if (i == count) return;
  uint8_t rest[kStep] = {};
  for (int64_t k = 0; k < count - i; ++k) rest[k] = bytes[i + k];
  store_some(out + i, count - i, scaled(levels(rest, W{}), factor, load(shifts + phase * kStep)));
}

constexpr int64_t kLine = 64, kAhead = 4096;  // of a cache; from there on the machine sees for itself where reads go

// Rows of a data set are drawn at random: without a word nothing of the next image would be there in time.
AMKD_INLINE void fetch(const uint8_t* image, int64_t size) {
  for (int64_t i = 0; i < size && i < kAhead; i += kLine) __builtin_prefetch(image + i);
}

template <class T>
void crop_flip(const CropFlip& p, int64_t first, int64_t last, uint8_t* scratch) {
  using W = typename WorkOf<T>::type;
  constexpr int64_t kStep = lanes<Vector<W>>;
  static_assert(kStep * sizeof(W) <= kVectorBytes);
  const int64_t pixels = p.height * p.width, size = p.channels * pixels;
  const W scale = static_cast<W>(p.scale);
  W* shifts = reinterpret_cast<W*>(scratch);  // [channels, lanes]
  uint8_t* cropped = scratch + p.channels * kVectorBytes;
  uint8_t* interleaved = cropped + size;
  for (int64_t k = 0; k < p.channels * kStep; ++k) {
    shifts[k] = static_cast<const W*>(p.shift)[p.last ? k % p.channels : k / kStep];
  }

  const uint64_t seed = static_cast<uint64_t>(p.seeds == nullptr ? p.seed : *p.seeds);
  for (int64_t i = first; i < last; ++i) {
    const int64_t row = p.index == nullptr ? i : p.index[i];
    if (p.index != nullptr && i + 1 < p.samples) fetch(p.pixels + p.index[i + 1] * size, size);
    const uint8_t* bytes = p.pixels + row * size;
    T* out = static_cast<T*>(p.out) + i * size;
    const Window window = p.draws() ? draw_window(seed, row, p.pad, p.flip) : Window{0, 0, false};
    if (window.dy != 0 || window.dx != 0 || window.mirrored) {
      crop(p, bytes, window, cropped);
      bytes = cropped;
    }
    if (p.last) {
      interleave(bytes, p.channels, pixels, interleaved);
      convert(interleaved, size, scale, shifts, p.channels, out);
      continue;
    }
    for (int64_t c = 0; c < p.channels; ++c) {
      convert(bytes + c * pixels, pixels, scale, shifts + c * kStep, 1, out + c * pixels);
    }
  }
}

}  // namespace

extern const CropFlipKernel crop_flip_kernels[kElements] = {crop_flip<float>, crop_flip<double>, crop_flip<Half>,
                                                            crop_flip<BFloat16>};

}  // namespace amkd::images::AMKD_SIMD
