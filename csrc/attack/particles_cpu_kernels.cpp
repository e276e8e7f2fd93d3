// The two passes of Stein variational ascent over the particles of an image on a CPU: distances, and steps.
#include "particles_cpu.h"
#include "sample_cpu.h"

namespace amkd::attack::AMKD_SIMD {
namespace {

constexpr int64_t kPiece = 1024;  // numbers of a particle between which the caches hold on; sums of them in fp64

// Particle `from`'s square distances to the kCount from `to` on, over the numbers from begin to end.
template <int kCount, class T>
AMKD_INLINE void add_squares(const T* x, int64_t size, int64_t from, int64_t to, int64_t begin, int64_t end,
                             double* square) {
  using V = Vector<typename WorkOf<T>::type>;
  const T* const one = x + from * size;
  const T* const others = x + to * size;
  V sums[kCount] = {};
  sweep<typename WorkOf<T>::type>(begin, end, [&](int64_t k, auto part) {
    const V here = get(one + k, part);
#pragma GCC unroll 4
    for (int j = 0; j < kCount; ++j) {
      const V apart = here - get(others + j * size + k, part);
      sums[j] += apart * apart;
    }
  });
  for (int j = 0; j < kCount; ++j) square[to + j] += sum_lanes(sums[j]);
}

// 0 for finite numbers, NaN where one is not.
template <class T>
AMKD_INLINE double fault_of(const T* values, int64_t begin, int64_t end) {
  using V = Vector<typename WorkOf<T>::type>;
  const V none{};
  V fault{};
  sweep<typename WorkOf<T>::type>(begin, end, [&](int64_t k, auto part) { fault += get(values + k, part) * none; });
  return sum_lanes(fault);
}

template <class T, class G>
void measure(const ParticleWork& p, int64_t image, double* square, bool* usable) {
  const int64_t n = p.count, size = p.size;
  const T* const x = static_cast<const T*>(p.x) + image * n * size;
  const G* const grad = static_cast<const G*>(p.grad) + image * n * size;
  for (int64_t i = 0; i < n * n; ++i) square[i] = 0.0;
  for (int64_t i = 0; i < n; ++i) usable[i] = true;
  for (int64_t begin = 0; begin < size; begin += kPiece) {
    const int64_t end = begin + kPiece < size ? begin + kPiece : size;
    for (int64_t i = 0; i < n; ++i) {
      const double fault = fault_of(grad + i * size, begin, end) + fault_of(x + i * size, begin, end);
      usable[i] = usable[i] && fault == 0.0;
    }
    for (int64_t i = 0; i < n; ++i) {
      int64_t j = i + 1;
      for (; j + 4 <= n; j += 4) add_squares<4>(x, size, i, j, begin, end, square + i * n);
      if (j + 2 <= n) {
        add_squares<2>(x, size, i, j, begin, end, square + i * n);
        j += 2;
      }
      if (j < n) add_squares<1>(x, size, i, j, begin, end, square + i * n);
    }
  }
}

// What a few of the particles' directions are summed up from, side by side: rows of strides that are a power of two
// would push each other out of the caches.
template <class W>
struct Panel {
  int64_t count;
  W *terms, *phi;  // [2 · count, kPanel]: gradients, then positions; [count, kPanel]

  // φ of the kRows members from `first` on: two vectors of each at a time, all in registers.
  template <int kRows>
  AMKD_INLINE void sum(const Ensemble& e, int64_t first, int64_t width) const {
    using V = Vector<W>;
    constexpr int64_t kStep = lanes<V>;
    for (int64_t k = 0; k < width; k += 2 * kStep) {
      V sums[kRows][2] = {};
      const auto add = [&](const W* term, const void* weights) {
        const W* weight = static_cast<const W*>(weights) + first;
        for (int64_t j = 0; j < count; ++j, term += kPanel, weight += count) {
          const V left = load(term + k), right = load(term + k + kStep);
#pragma GCC unroll 4
          for (int i = 0; i < kRows; ++i) {
            sums[i][0] += weight[i] * left;
            sums[i][1] += weight[i] * right;
          }
        }
      };
      add(terms, e.pull);
      add(terms + count * kPanel, e.push);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
        store(phi + (first + i) * kPanel + k, sums[i][0]);
        store(phi + (first + i) * kPanel + k + kStep, sums[i][1]);
      }
    }
  }

  void sum(const Ensemble& e, int64_t width) const {
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) sum<4>(e, i, width);
    if (i + 2 <= count) {
      sum<2>(e, i, width);
      i += 2;
    }
    if (i < count) sum<1>(e, i, width);
  }
};

template <class T, class G>
void move(const ParticleWork& p, int64_t image, const Ensemble& e, void* scratch) {
  using W = typename WorkOf<T>::type;
  using V = Vector<W>;
  const auto number = [&](const void* tensor, double scalar) {
    return tensor == nullptr ? static_cast<W>(scalar) : static_cast<const W*>(tensor)[image];
  };
  const int64_t size = p.size, start = image * p.count * size;
  const T* const x = static_cast<const T*>(p.x) + start;
  const G* const grad = static_cast<const G*>(p.grad) + start;
  const T* const x0 = static_cast<const T*>(p.x0) + image * size;
  T* const out = static_cast<T*>(p.out) + start;
  const W reach = number(p.step_sizes, p.scalars.step_size), radius = number(p.radii, p.scalars.radius);
  const AlongSign<W> heading{reach};
  const InBox<T, W> box{x0, radius};
  typename LargestOf<W>::type largest[kMostParticles];  // of every member's φ

  W* const terms = static_cast<W*>(scratch);
  const Panel<W> panel{e.count, terms, terms + 2 * e.count * kPanel};
  const int64_t end = is_finite(reach) && radius >= 0 && e.count > 0 ? size : 0;
  for (int64_t begin = 0; begin < end; begin += kPanel) {
    const int64_t to = begin + kPanel < size ? begin + kPanel : size;
    const T* const origin = x + e.members[0] * size;
    for (int64_t i = 0; i < e.count; ++i) {
      const int64_t at = e.members[i] * size;
      W* const gradients = terms + i * kPanel - begin;
      W* const positions = gradients + e.count * kPanel;
      sweep<W>(begin, to, [=](int64_t k, auto part) {
        put(gradients + k, part, V(get(grad + at + k, part)));
        put(positions + k, part, get(x + at + k, part) - get(origin + k, part));
      });
    }
    panel.sum(e, to - begin);
    for (int64_t i = 0; i < e.count; ++i) {
      const int64_t at = e.members[i] * size;
      const W* const phi = panel.phi + i * kPanel - begin;
      auto most = largest[i];  // in a register
      sweep_bounded<T>(p, begin, to, [=, &most](int64_t k, auto part, auto bounds) {
        const V direction = get(phi + k, part);
        most.see(direction);
        const V moved = box(get(x + at + k, part) + heading(direction), k, part);
        put(out + at + k, part, smaller(bounds.upper(k, part), larger(bounds.lower(k, part), moved)));
      });
      largest[i] = most;
    }
  }
  for (int64_t i = 0, member = 0; i < p.count; ++i) {
    const bool present = member < e.count && e.members[member] == i;
    const bool moves = present && largest[member].usable();
    member += present;
    if (!moves || radius == 0) std::memcpy(out + i * size, moves ? x0 : x + i * size, size * sizeof(T));
  }
}

template <class T>
void distances(const ParticleWork& p, bool wide_grad, int64_t image, double* square, bool* usable) {
  using W = typename WorkOf<T>::type;
  wide_grad ? measure<T, W>(p, image, square, usable) : measure<T, T>(p, image, square, usable);
}

template <class T>
void ensemble(const ParticleWork& p, bool wide_grad, int64_t image, const Ensemble& e, void* scratch) {
  using W = typename WorkOf<T>::type;
  wide_grad ? move<T, W>(p, image, e, scratch) : move<T, T>(p, image, e, scratch);
}

}  // namespace

extern const DistanceKernel distance_kernels[kElements] = {distances<float>, distances<double>, distances<Half>,
                                                           distances<BFloat16>};
extern const EnsembleKernel ensemble_kernels[kElements] = {ensemble<float>, ensemble<double>, ensemble<Half>,
                                                           ensemble<BFloat16>};

}  // namespace amkd::attack::AMKD_SIMD
