// The selected pairs on a CPU: their exact distances, and the gradient of one row at a time from all pairs it is in.
#include "labelled_vectors.h"

namespace amkd::triplet::AMKD_SIMD {
namespace {

template <class T>
struct Row {
  const Rows<T>* rows;
  int64_t at;
};

template <class T>
Row<T> anchor_of(const Pairs<T>& p, int64_t i) {
  return {&p.anchor, i};
}
template <class T>
Row<T> positive_of(const Pairs<T>& p, int64_t i) {
  return p.positive_index == nullptr ? Row<T>{&p.positive, i} : Row<T>{&p.reference, p.positive_index[i]};
}
template <class T>
Row<T> negative_of(const Pairs<T>& p, int64_t i, int64_t slot) {
  return {&p.reference, p.negative_index[i * p.k + slot]};
}

template <class T>
double distance_between(const Pairs<T>& p, Row<T> u, Row<T> v) {
  return distance_of(p.distance, *u.rows, u.at, *v.rows, v.at);
}

template <class T>
void measure(const Pairs<T>& p, int64_t first, int64_t last) {
  const int64_t n = p.anchor.count, k = p.k;
  T* d_ap = p.stats;
  T* d_an = p.stats + n;
  T* d_pn = p.swap ? d_an + n * k : nullptr;
  for (int64_t i = first; i < last; ++i) {
    const bool left_out = (p.positive_index != nullptr && p.positive_index[i] < 0) || p.negative_index[i * k] < 0 ||
                          (p.weight != nullptr && p.weight[i] == 0);
    d_ap[i] = left_out ? T(0) : static_cast<T>(distance_between(p, anchor_of(p, i), positive_of(p, i)));
    for (int64_t s = 0; s < k; ++s) {
      const bool empty = left_out || p.negative_index[i * k + s] < 0;
      d_an[i * k + s] = empty ? T(0) : static_cast<T>(distance_between(p, anchor_of(p, i), negative_of(p, i, s)));
      if (d_pn == nullptr) continue;
      d_pn[i * k + s] = empty ? T(0) : static_cast<T>(distance_between(p, positive_of(p, i), negative_of(p, i, s)));
    }
  }
}

// What a distance with this coefficient does to row u.
template <class T>
void add(double coefficient, Row<T> u, Row<T> v, double* out) {
  if (coefficient == 0.0) return;  // a NaN coefficient is none
  const bool scaled = u.rows->scale != nullptr;
  add_difference(coefficient, row_of(*u.rows, u.at), scaled ? u.rows->scale[u.at] : 1.0, row_of(*v.rows, v.at),
                 scaled ? v.rows->scale[v.at] : 1.0, u.rows->depth, out);
}

template <class T>
void gradient(const Pairs<T>& p, const Coefficients& c, const Rows<T>& rows, int64_t row, int64_t anchor,
              Segment segment, double* scratch, T* out) {
  const int64_t depth = rows.depth, k = p.k;
  for (int64_t d = 0; d < depth; ++d) scratch[d] = 0.0;
  if (anchor >= 0) {
    const Row<T> a = anchor_of(p, anchor);
    add(c.ap[anchor], a, positive_of(p, anchor), scratch);
    for (int64_t s = 0; s < k; ++s) add(c.an[anchor * k + s], a, negative_of(p, anchor, s), scratch);
  }
  for (const int64_t* item = segment.begin; item < segment.end; ++item) {
    const int64_t i = *item / (k + 1), slot = *item % (k + 1) - 1;
    if (slot >= 0) {
      const Row<T> n = negative_of(p, i, slot);
      add(c.an[i * k + slot], n, anchor_of(p, i), scratch);
      if (c.pn != nullptr) add(c.pn[i * k + slot], n, positive_of(p, i), scratch);
      continue;
    }
    const Row<T> positive = positive_of(p, i);
    add(c.ap[i], positive, anchor_of(p, i), scratch);
    for (int64_t s = 0; c.pn != nullptr && s < k; ++s) {
      add(c.pn[i * k + s], positive, negative_of(p, i, s), scratch);
    }
  }
  if (rows.scale == nullptr) {
    for (int64_t d = 0; d < depth; ++d) out[d] = static_cast<T>(scratch[d]);
    return;
  }
  // From the unit vector to the row: without what points along it, and by its length. A row that is not finite gets
  // nothing where nothing came to it.
  bool moved = false;
  for (int64_t d = 0; d < depth; ++d) moved |= scratch[d] != 0.0;
  const T* x = row_of(rows, row);
  const double scale = moved ? rows.scale[row] : 0.0;
  double along = 0.0;
  for (int64_t d = 0; d < depth && moved; ++d) along += scratch[d] * (x[d] * scale);
  for (int64_t d = 0; d < depth; ++d) {
    out[d] = moved ? static_cast<T>((scratch[d] - along * (x[d] * scale)) * scale) : T(0);
  }
}

}  // namespace

extern const PairKernels<float> pair_floats = {measure, gradient};
extern const PairKernels<double> pair_doubles = {measure, gradient};

}  // namespace amkd::triplet::AMKD_SIMD
