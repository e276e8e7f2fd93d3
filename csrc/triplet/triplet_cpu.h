// Between triplet_cpu.cpp, which speaks with torch and shares the work among threads, and the *_cpu_kernels.cpp, which
// are compiled once per SIMD level and know nothing of torch.
#pragma once

#include <cstdint>

#include "triplet.h"

namespace amkd::triplet {

// Row labels as the kernels compare them: a vector of them has the lanes of a vector of T.
template <class T>
struct LabelOf {
  using type = int32_t;
};
template <>
struct LabelOf<double> {
  using type = int64_t;
};
template <class T>
using Label = typename LabelOf<T>::type;

constexpr int kMostExcluded = 2;

// Rows as they came.
template <class T>
struct Rows {
  const T* data;   // [count, depth], unit column stride
  int64_t stride;  // of a row, in elements
  int64_t count;
  int64_t depth;
  // cosine: 1 / length, or 0 for a row without direction; null for the other distances.
  const double* scale;
};

// Functions here are static: the linker must not replace a level's copy with another level's.
template <class T>
static inline const T* row_of(const Rows<T>& rows, int64_t i) {
  return rows.data + i * rows.stride;
}

// Rows about a common vector, for expanded distances: element k of row i stands at (i / width * depth + k) * width +
// i % width, where width is the kernel table's panel_width. The last panel is filled up with zeros.
template <class T>
struct Panels {
  const T* data;
  const T* square;  // [count, padded] squared lengths; NaN: only the exact distance will do, or padding
};

// Who is a candidate for whom. Without labels those of the anchors differ from all others.
template <class T>
struct Classes {
  const Label<T>* anchor;     // [N]
  const Label<T>* reference;  // [P, padded]
  const Label<T>* excluded;   // [N, excluded_count]
  int excluded_count;
  int64_t self_offset;  // anchor i is reference row self_offset + i; -1: none is
};

template <class T>
struct Candidate {
  T key;
  int32_t index;
  bool is_exact;  // `exact` is known
  double exact;   // orders as the distance does, ascending; the farthest come first where those are wanted
};

template <class T>
struct Select {
  Rows<T> anchor, reference;
  Panels<T> anchor_panels, reference_panels;
  Classes<T> classes;
  Distance distance;
  double largest;  // length of a reference row that `square` covers, at most
  int64_t k;
  int64_t* positive;  // [N] or null
  int64_t* negative;  // [N, k]
};

// Anchors [first, last) by reference rows [begin, end); begin is a multiple of the kernel table's panel_width.
struct Tile {
  int64_t first, last, begin, end;
};

static constexpr int64_t candidates_a_row(int64_t k) { return k == 1 ? 16 : 2 * k + 16; }
// The k smallest keys find their place behind the candidates.
static constexpr int64_t race_room(int64_t k) { return candidates_a_row(k) + (k == 1 ? 0 : k); }

// The selected rows of the anchors, their terms and the way back.
template <class T>
struct Pairs {
  Rows<T> anchor, positive, reference;  // positive.data null: positive_index tells
  const int64_t* positive_index;        // [N] or null
  const int64_t* negative_index;        // [N, k], -1: none
  int64_t k;
  const T* weight;  // [N] or null
  Distance distance;
  double margin;
  bool soft_margin, swap;
  Reduction reduction;
  T* stats;  // csrc/triplet/triplet.h
};

// Coefficients of the gradient of each distance, with the upstream gradient and 1/d in them: D(u, v) moves u by
// coefficient (u - v) and v by the opposite; cosine: the unit vectors.
struct Coefficients {
  double* ap;  // [N]
  double* an;  // [N, k]
  double* pn;  // [N, k] or null
};

// One anchor's triplets as a row of an output sees them: [begin, end) are numbers of anchor * (k + 1) + slot, where
// slot 0 is the anchor's positive and slot s its s-th negative, in ascending order.
struct Segment {
  const int64_t* begin;
  const int64_t* end;
};

// Every pair of anchors and reference rows: amkd_fast/ops/schemas.py, triplet_every_pair.
template <class T>
struct EveryPair {
  Rows<T> anchor, reference;
  const T* anchor_square;      // [N] squared lengths of the centred rows; NaN: only the exact distance will do
  const T* reference_square;   // [P, padded]
  const T* positive_distance;  // [N] or null
  const bool* used;            // [N] or null
  const T* upstream;           // [N]; null: all 1
  Classes<T> classes;
  Distance distance;
  double margin;
  bool semihard, fallback, soft_margin;

  // A block of anchors from `first` on.
  int64_t first, last;
  T* product;              // [last - first, P] of centred rows; with_gradient: becomes U
  int64_t product_stride;  // of a row, which is filled up with zeros

  // In rows of close_words: a bit for each pair whose distance was computed again, because the expanded one had lost
  // its digits. Its gradient would lose them in a product as well.
  bool with_gradient;
  uint64_t* close;    // [last - first, close_words]
  T* grad_anchor;     // [N, D], added to
  T* grad_reference;  // [P, D], added to
  T* grad_positive;   // [N] of positive_distance, or null
};

constexpr int64_t kCloseColumns = 64;  // of a word
static constexpr int64_t close_words(int64_t references) { return (references + kCloseColumns - 1) / kCloseColumns; }

template <class T>
struct RowTerms {
  T* total;         // [N]
  int64_t* counts;  // [N, 3]
  T* sums;          // [N, 2]
};

template <class T>
struct SelectKernels {
  int panel_width;
  int64_t product_rows, product_columns;  // of a tile, at most
  int64_t race_bytes;                     // that `races` has for each anchor

  // Adds every step-th usable row of [first, last) to sum [depth]; returns how many there were.
  int64_t (*add_rows)(const Rows<T>&, int64_t first, int64_t last, int64_t step, double* sum);
  // Row scales for cosine, [first, last).
  void (*scale_rows)(const Rows<T>&, double* scale, int64_t first, int64_t last);
  // Panels [first, last) of rows about `common` [depth].
  void (*pack)(const Rows<T>&, const double* common, T* data, T* square, int64_t first, int64_t last);
  // For each of anchors [first, last) `races` and `room`, race_room(1) + race_room(k) candidates, begin with those of
  // `first`.
  void (*start)(const Select<T>&, void* races, Candidate<T>* room, int64_t first, int64_t last);
  // `products`: product_rows * product_columns.
  void (*multiply)(const Select<T>&, const Tile&, T* products);
  // The tile's anchors meet its reference rows; `races` begin with the first anchor's. is_first: they met none so far.
  void (*scan_rows)(const Select<T>&, const Tile&, T* products, void* races, bool is_first);
  // The tile's reference rows as anchors meet its anchors as reference rows, where both are one set and the tile is not
  // on the diagonal; `races` begin with those of row tile.begin.
  void (*scan_columns)(const Select<T>&, const Tile&, const T* products, void* races, bool is_first);
  void (*finish)(const Select<T>&, void* races, int64_t first, int64_t last);
};

template <class T>
struct PairKernels {
  // The distances of anchors [first, last) into the statistics.
  void (*measure)(const Pairs<T>&, int64_t first, int64_t last);
  // The gradient of row `row` of `rows`: what `segment` says of it, and with anchor >= 0 what that anchor's distances
  // do.
  void (*gradient)(const Pairs<T>&, const Coefficients&, const Rows<T>& rows, int64_t row, int64_t anchor,
                   Segment segment, double* scratch, T* out);
};

template <class T>
struct RowKernels {
  // The block's anchors: terms, and with_gradient the weights of their pairs. `scratch`: rows_scratch(P) bytes.
  void (*sweep)(const EveryPair<T>&, const RowTerms<T>&, void* scratch);
  // Then, for words [first, last) of all anchors: close pairs leave U for the gradient of their reference rows.
  // `scratch`: kCloseColumns * D.
  void (*settle)(const EveryPair<T>&, double* scratch, int64_t first, int64_t last);
};

// Rows about a common vector, 0 where they are not finite or have no direction; filled up with zeros to `stride`.
template <class T>
struct Centred {
  T* data;         // [count, stride]
  int64_t stride;  // a multiple of the panel width, and an odd number of cache lines: columns spread over the cache
  T* square;       // [count, padded] squared lengths; NaN: only the exact distance will do
};

// A factor of a product by its strides: element (i, k) is data[i * row + k * column].
template <class T>
struct Factor {
  const T* data;
  int64_t row, column;
};

template <class T>
struct ProductKernels {
  int panel_width;  // columns that a product is computed by

  void (*centre)(const Rows<T>&, const double* common, const Centred<T>&, int64_t first, int64_t last);
  // Panels [first, last) of centred rows as Panels has them.
  void (*pack)(const Centred<T>&, int64_t count, int64_t depth, T* panels, int64_t first, int64_t last);
  // out [rows, round up of columns] = the rows times panels. Writes whole blocks of kProductBlockRows.
  void (*multiply)(const T* rows, int64_t stride, int64_t count, const T* panels, int64_t columns, int64_t depth,
                   T* out, int64_t out_stride);
  // Tile [first, last) by [begin, end) on or above the diagonal of a square matrix is copied across it, or both become
  // their sum.
  void (*mirror)(T* data, int64_t stride, int64_t first, int64_t last, int64_t begin, int64_t end);
  void (*symmetrise)(T* data, int64_t stride, int64_t first, int64_t last, int64_t begin, int64_t end);
  // out [count, depth] += rowsum(weights) own - weights · others, with `terms` columns of weights.
  void (*pull)(const Factor<T>& weights, int64_t count, int64_t terms, const T* own, const T* others, int64_t stride,
               int64_t depth, T* out);
};
constexpr int64_t kProductBlockRows = 12;  // a multiple of every level's register block

// For RowKernels: distances and ranks of a row, its positives and their tables; a row of the gradient.
static constexpr int64_t rows_scratch(int64_t references, int64_t depth) { return (references + 64) * 64 + 8 * depth; }

#define AMKD_TRIPLET_LEVEL(level)                      \
  namespace level {                                    \
  extern const SelectKernels<float> select_floats;     \
  extern const SelectKernels<double> select_doubles;   \
  extern const PairKernels<float> pair_floats;         \
  extern const PairKernels<double> pair_doubles;       \
  extern const RowKernels<float> row_floats;           \
  extern const RowKernels<double> row_doubles;         \
  extern const ProductKernels<float> product_floats;   \
  extern const ProductKernels<double> product_doubles; \
  }
AMKD_TRIPLET_LEVEL(baseline)
AMKD_TRIPLET_LEVEL(avx2)
AMKD_TRIPLET_LEVEL(avx512)
#undef AMKD_TRIPLET_LEVEL

}  // namespace amkd::triplet
