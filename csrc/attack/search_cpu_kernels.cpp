// What a search for boundary samples on a CPU does to images between its steps, and to weights before them.
#include "sample_cpu.h"
#include "search_cpu.h"

namespace amkd::attack::AMKD_SIMD {
namespace {

template <class T>
void middle(const void* a, const void* b, int64_t size, void* out) {
  using W = typename WorkOf<T>::type;
  using V = Vector<W>;
  const T *from = static_cast<const T*>(a), *to = static_cast<const T*>(b);
  T* at = static_cast<T*>(out);
  const V half = splat<V>(0.5);
  sweep<W>(0, size, [=](int64_t k, auto part) {
    const V start = get(from + k, part), end = get(to + k, part);
    put(at + k, part, end - (end - start) * half);  // as torch.lerp
  });
}

template <class T>
void fold(const Filters& f, int64_t first, int64_t last) {
  const int64_t size = f.inputs * f.pixels;
  for (int64_t o = first; o < last; ++o) {
    const T* from = static_cast<const T*>(f.weight) + o * size;
    T* to = static_cast<T*>(f.out) + o * size;
    const double scale = f.scale[o];
    if (!f.last || f.pixels == 1) {
      for (int64_t k = 0; k < size; ++k) to[k] = static_cast<T>(from[k] * scale);
      continue;
    }
    for (int64_t i = 0; i < f.inputs; ++i) {
      for (int64_t s = 0; s < f.pixels; ++s) {
        to[s * f.inputs + i] = static_cast<T>(from[i * f.pixels + s] * scale);
      }
    }
  }
}

}  // namespace

extern const MiddleKernel middle_kernels[kElements] = {middle<float>, middle<double>, middle<Half>, middle<BFloat16>};
extern const FoldKernel fold_kernels[2] = {fold<float>, fold<double>};

}  // namespace amkd::attack::AMKD_SIMD
