// The products that mining over every pair takes on a CPU: centred rows with one another, and weights with rows.
#include "register_block.h"

namespace amkd::triplet::AMKD_SIMD {
namespace {

constexpr int64_t kTerms = 256;  // of a sum at a time: a panel of so many rows stays in the first-level cache

template <class T>
void centre(const Rows<T>& rows, const double* common, const Centred<T>& out, int64_t first, int64_t last) {
  constexpr int kStep = kWidth<double>;
  const int64_t depth = rows.depth;
  for (int64_t i = first; i < last; ++i) {
    const double scale = scale_of(rows, i);
    const T* row = row_of(rows, i);
    T* to = out.data + i * out.stride;
    Doubles squares = {};
    int64_t k = 0;
    for (; k + kStep <= depth; k += kStep) {
      store_doubles(to + k, load_doubles(row + k) * scale - load_doubles(common + k));
      const Doubles x = load_doubles(to + k);
      squares += x * x;
    }
    double square = sum_of(squares);
    for (; k < depth; ++k) {
      to[k] = static_cast<T>(row[k] * scale - common[k]);
      square += static_cast<double>(to[k]) * to[k];
    }
    const bool is_usable = scale > 0.0 && static_cast<T>(square) < static_cast<T>(__builtin_huge_val());
    for (k = is_usable ? depth : 0; k < out.stride; ++k) to[k] = T(0);
    out.square[i] = is_usable ? static_cast<T>(square) : static_cast<T>(__builtin_nan(""));
  }
}

template <class T>
void pack(const Centred<T>& rows, int64_t count, int64_t depth, T* panels, int64_t first, int64_t last) {
  constexpr int kWide = kPanel<T>;
  for (int64_t panel = first; panel < last; ++panel) {
    T* out = panels + panel * kWide * depth;
    for (int c = 0; c < kWide; ++c) {
      const int64_t i = panel * kWide + c;
      const T* row = rows.data + i * rows.stride;
      for (int64_t k = 0; k < depth; ++k) out[k * kWide + c] = i < count ? row[k] : T(0);
    }
  }
}

// The rows of a factor from i on; those behind the last one repeat it.
template <class T>
AMKD_INLINE void point(const T* (&a)[kBlockRows], const T* data, int64_t step, int64_t i, int64_t count) {
#pragma GCC unroll 12
  for (int r = 0; r < kBlockRows; ++r) a[r] = data + (i + r < count ? i + r : count - 1) * step;
}

template <class T>
void multiply(const T* rows, int64_t stride, int64_t count, const T* panels, int64_t columns, int64_t depth, T* out,
              int64_t out_stride) {
  for (int64_t j = 0; j < columns; j += kPanel<T>) {
    for (int64_t i = 0; i < count; i += kBlockRows) {
      const T* a[kBlockRows];
      point(a, rows, stride, i, count);
      Block<T> sums = {};
      multiply_block(a, 1, panels + j * depth, kPanel<T>, depth, sums);
      for (int r = 0; r < kBlockRows; ++r) std::memcpy(out + (i + r) * out_stride + j, sums.of[r], sizeof(sums.of[r]));
    }
  }
}

// Tile [first, last) by [begin, end) of a square matrix goes to the place across the diagonal; with kAdd the sum of
// both goes to both. A tile on the diagonal gives its upper part.
template <bool kAdd, class T>
void mirror(T* data, int64_t stride, int64_t first, int64_t last, int64_t begin, int64_t end) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = first; i < last; i += kLine) {
    for (int64_t j = begin > i ? begin : i + 1; j < end; ++j) {
      const int64_t stop = i + kLine < last ? i + kLine : last;
      for (int64_t k = i; k < (stop < j ? stop : j); ++k) {
        T& upper = data[k * stride + j];
        T& lower = data[j * stride + k];
        if (kAdd) upper += lower;
        lower = upper;
      }
    }
  }
}

// Σ of a row of weights in fp64: it multiplies the row that all the others are taken from.
template <class T>
double sum_row(const Factor<T>& weights, int64_t i, int64_t terms) {
  const T* w = weights.data + i * weights.row;
  Doubles sums[2] = {};
  int64_t k = 0;
  for (; weights.column == 1 && k + 2 * kWidth<double> <= terms; k += 2 * kWidth<double>) {
    sums[0] += load_doubles(w + k);
    sums[1] += load_doubles(w + k + kWidth<double>);
  }
  double total = sum_of(sums[0] + sums[1]);
  for (; k < terms; ++k) total += w[k * weights.column];
  return total;
}

// One panel of columns of `out`, of which `wide` are there.
template <class T>
AMKD_INLINE void subtract_products(const T* weights, int64_t row, int64_t column, int64_t count, int64_t terms,
                                   const T* others, int64_t stride, int64_t wide, T* out, int64_t depth) {
  for (int64_t i = 0; i < count; i += kBlockRows) {
    const T* a[kBlockRows];
    point(a, weights, row, i, count);
    Block<T> sums = {};
    multiply_block(a, column, others, stride, terms, sums);
    for (int64_t r = 0; r < kBlockRows && i + r < count; ++r) {
      T lane[kPanel<T>];
      std::memcpy(lane, sums.of[r], sizeof(lane));
      T* to = out + (i + r) * depth;
      for (int64_t c = 0; c < wide; ++c) to[c] -= lane[c];
    }
  }
}

template <class T>
void pull(const Factor<T>& weights, int64_t count, int64_t terms, const T* own, const T* others, int64_t stride,
          int64_t depth, T* out) {
  for (int64_t i = 0; i < count; ++i) {
    const T sum = static_cast<T>(sum_row(weights, i, terms));
    for (int64_t k = 0; k < depth; ++k) out[i * depth + k] += sum * own[i * stride + k];
  }
  for (int64_t first = 0; first < terms; first += kTerms) {
    const int64_t some = terms - first < kTerms ? terms - first : kTerms;
    const T* w = weights.data + first * weights.column;
    for (int64_t d = 0; d < depth; d += kPanel<T>) {
      const T* b = others + first * stride + d;
      const int64_t wide = depth - d < kPanel<T> ? depth - d : kPanel<T>;
      if (weights.column == 1) {
        subtract_products(w, weights.row, 1, count, some, b, stride, wide, out + d, depth);
      } else {
        subtract_products(w, 1, weights.column, count, some, b, stride, wide, out + d, depth);
      }
    }
  }
}

template <class T>
constexpr ProductKernels<T> kernels = {kPanel<T>,        centre<T>,       pack<T>, multiply<T>,
                                       mirror<false, T>, mirror<true, T>, pull<T>};

}  // namespace

extern const ProductKernels<float> product_floats = kernels<float>;
extern const ProductKernels<double> product_doubles = kernels<double>;

}  // namespace amkd::triplet::AMKD_SIMD
