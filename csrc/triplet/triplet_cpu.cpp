// The triplet operators of selected rows on CPU tensors: checks, outputs, scratch, threads, sums over the anchors.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <utility>
#include <vector>

#include "triplet_cpu_host.h"

namespace amkd::triplet {
namespace {

constexpr int64_t kSampleRows = 64;      // for the common vector: any vector near the rows will do
constexpr int64_t kSymmetricBlocks = 4;  // of anchors, from which on half of the products do
constexpr double kOutlier = 256.0;       // times the mean squared length: such rows must not coarsen the others' keys

// ---- selection ----------------------------------------------------------------------------------------------------

template <class T>
struct Packed {
  Buffer<T> data, square;
  Panels<T> panels;

  Packed() = default;
  Packed(const Rows<T>& rows, const double* common, int64_t padded) {
    const auto& kernels = select_kernels<T>();
    const int64_t count = (rows.count + kernels.panel_width - 1) / kernels.panel_width;
    data = Buffer<T>(std::max<int64_t>(count * kernels.panel_width * rows.depth, 1));
    square = Buffer<T>(padded);
    std::fill(square.get() + rows.count, square.get() + padded, std::numeric_limits<T>::quiet_NaN());
    share(count, 4 * kernels.panel_width * rows.depth,
          [&](int64_t first, int64_t last) { kernels.pack(rows, common, data.get(), square.get(), first, last); });
    panels = {data.get(), square.get()};
  }
};

// Of all anchors together, where each product serves two of them: some 24 bytes each.
constexpr int64_t kMostCandidates = int64_t{1} << 20;

// What `share` should think of products of rows with columns.
template <class T>
int64_t cost_of(const Select<T>& p, int64_t rows, int64_t columns) {
  return std::max<int64_t>(rows * columns * (p.anchor.depth + 16) / 16, 1);
}

// Marks reference rows far out as exact ones and returns the length of the longest other.
template <class T>
double largest_length(T* square, int64_t count) {
  double total = 0.0, largest = 0.0;
  int64_t finite = 0;
  for (int64_t j = 0; j < count; ++j) {
    if (square[j] == square[j]) total += square[j], ++finite;
  }
  const double bound = kOutlier * total / std::max<int64_t>(finite, 1);
  for (int64_t j = 0; j < count; ++j) {
    if (square[j] > bound) square[j] = std::numeric_limits<T>::quiet_NaN();
    if (square[j] > largest) largest = square[j];
  }
  return std::sqrt(largest);
}

template <class T>
void select_from_reference(const Select<T>& p) {
  const auto& kernels = select_kernels<T>();
  const int64_t n = p.anchor.count, references = p.reference.count, columns = kernels.product_columns;
  // Several pieces a thread, so that a slow one holds up nobody, of rows enough to use what they read.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t rows = std::clamp<int64_t>(n / (4 * threads), 12, kernels.product_rows) / 12 * 12;
  share((n + rows - 1) / rows, cost_of(p, rows, references), [&](int64_t first_piece, int64_t last_piece) {
    const Buffer<T> products(kernels.product_rows * columns);
    const Buffer<Candidate<T>> room(rows * (race_room(p.k) + race_room(1)));
    const Buffer<char> races(rows * kernels.race_bytes);
    for (int64_t piece = first_piece; piece < last_piece; ++piece) {
      const int64_t first = piece * rows, last = std::min(first + rows, n);
      kernels.start(p, races.get(), room.get(), first, last);
      for (int64_t begin = 0; begin < references; begin += columns) {
        const Tile tile{first, last, begin, std::min(begin + columns, references)};
        kernels.multiply(p, tile, products.get());
        kernels.scan_rows(p, tile, products.get(), races.get(), begin == 0);
      }
      kernels.finish(p, races.get(), first, last);
    }
  });
}

// Where the anchors are the reference set each product serves two rows: only the tiles on and above the diagonal are
// computed. The races of a block of anchors belong to whoever holds its lock; their outcome does not depend on the
// order in which they are run.
template <class T>
void select_among_themselves(const Select<T>& p) {
  const auto& kernels = select_kernels<T>();
  const int64_t n = p.anchor.count, rows = kernels.product_rows, blocks = (n + rows - 1) / rows;
  const Buffer<char> races(n * kernels.race_bytes);
  const Buffer<Candidate<T>> room(n * (race_room(p.k) + race_room(1)));
  const int64_t room_a_block = rows * (race_room(p.k) + race_room(1));
  const auto races_of = [&](int64_t block) { return races.get() + block * rows * kernels.race_bytes; };
  const auto each_block = [&](auto body) {
    share(blocks, 64 * rows, [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) body(b, b * rows, std::min((b + 1) * rows, n));
    });
  };
  each_block([&](int64_t b, int64_t first, int64_t last) {
    kernels.start(p, races_of(b), room.get() + b * room_a_block, first, last);
  });

  struct Block {
    std::mutex lock;
    bool has_met = false;
  };
  std::vector<Block> state(blocks);
  std::vector<std::pair<int64_t, int64_t>> tiles;  // along the diagonals: neighbours in time share no block
  for (int64_t distance = 0; distance < blocks; ++distance) {
    for (int64_t b = 0; b + distance < blocks; ++b) tiles.emplace_back(b, b + distance);
  }
  share(static_cast<int64_t>(tiles.size()), cost_of(p, rows, rows), [&](int64_t first_tile, int64_t last_tile) {
    const Buffer<T> products(kernels.product_rows * kernels.product_columns);
    for (int64_t t = first_tile; t < last_tile; ++t) {
      const auto [a, b] = tiles[t];
      const Tile tile{a * rows, std::min((a + 1) * rows, n), b * rows, std::min((b + 1) * rows, n)};
      kernels.multiply(p, tile, products.get());
      {
        const std::lock_guard<std::mutex> guard(state[a].lock);
        kernels.scan_rows(p, tile, products.get(), races_of(a), !state[a].has_met);
        state[a].has_met = true;
      }
      if (a != b) {
        const std::lock_guard<std::mutex> guard(state[b].lock);
        kernels.scan_columns(p, tile, products.get(), races_of(b), !state[b].has_met);
        state[b].has_met = true;
      }
    }
  });
  each_block([&](int64_t b, int64_t first, int64_t last) { kernels.finish(p, races_of(b), first, last); });
}

std::tuple<Tensor, Tensor> select(const Tensor& anchor_in, const std::optional<Tensor>& reference_in,
                                  const std::optional<Tensor>& labels, const std::optional<Tensor>& reference_labels,
                                  const std::optional<Tensor>& exclude_labels, int64_t self_offset, int64_t distance,
                                  int64_t k, bool find_positive) {
  const Tensor anchor = rows_like(anchor_in, "anchor", anchor_in);
  const Tensor reference = reference_in.has_value() ? rows_like(*reference_in, "reference", anchor) : anchor;
  const int64_t n = anchor.size(0), references = reference.size(0);
  STD_TORCH_CHECK(k >= 1 && references >= 1 && references < (int64_t{1} << 31), "k, reference: must be at least 1");
  STD_TORCH_CHECK(self_offset < 0 || self_offset + n <= references,
                  "self_offset: not all anchors lie in the reference");
  const Tensor positive = new_empty(anchor, {find_positive ? n : 0}, ScalarType::Long);
  const Tensor negative = new_empty(anchor, {n, k}, ScalarType::Long);
  dispatch(anchor, [&](auto zero) {
    using T = decltype(zero);
    const auto& kernels = select_kernels<T>();
    Select<T> p{};
    p.anchor = rows_of<T>(anchor);
    p.reference = rows_of<T>(reference);
    p.distance = distance_from(distance);
    const Buffer<double> reference_scales = scales_of(p.reference, p.distance);
    const Buffer<double> anchor_scales = reference_in.has_value() ? scales_of(p.anchor, p.distance) : Buffer<double>();
    if (!reference_in.has_value()) p.anchor.scale = p.reference.scale;

    std::vector<double> common(p.anchor.depth, 0.0);
    const int64_t step = (references + kSampleRows - 1) / kSampleRows;
    const int64_t usable = kernels.add_rows(p.reference, 0, references, step, common.data());
    for (double& x : common) x /= std::max<int64_t>(usable, 1);

    // A sweep reads whole steps behind the last row.
    const int64_t padded = round_up(std::max(references, n), kernels.product_columns) + kernels.product_columns;
    const Packed<T> reference_panels(p.reference, common.data(), padded);
    const Packed<T> anchor_panels = reference_in.has_value() ? Packed<T>(p.anchor, common.data(), padded) : Packed<T>();
    p.largest = largest_length(reference_panels.square.get(), references);
    p.reference_panels = reference_panels.panels;
    p.anchor_panels = reference_in.has_value() ? anchor_panels.panels : reference_panels.panels;
    const Labels<T> ids(labels, reference_labels, exclude_labels, n, references, padded);
    p.classes = ids.classes(self_offset);
    p.k = k;
    p.positive = find_positive ? data_of<int64_t>(positive) : nullptr;
    p.negative = data_of<int64_t>(negative);

    const bool is_symmetric = !reference_in.has_value() && n >= kSymmetricBlocks * kernels.product_rows;
    if (is_symmetric && n * race_room(k) <= kMostCandidates) {
      select_among_themselves(p);
    } else {
      select_from_reference(p);
    }
    return 0;
  });
  return {positive, negative};
}

// ---- the selected pairs -------------------------------------------------------------------------------------------

// The arguments that triplet_terms and triplet_backward share, with everything that their pointers point to.
template <class T>
struct PairsCall {
  Tensor anchor, positive, reference, positive_index, negative_index, weight;
  Buffer<double> anchor_scales, positive_scales, reference_scales;
  Pairs<T> pairs{};
  int64_t n;

  PairsCall(const Tensor& anchor_in, const std::optional<Tensor>& positive_in,
            const std::optional<Tensor>& reference_in, const std::optional<Tensor>& positive_index_in,
            const Tensor& negative_index_in, const std::optional<Tensor>& weight_in, int64_t distance, double margin,
            bool soft_margin, bool swap, int64_t reduction)
      : anchor(rows_like(anchor_in, "anchor", anchor_in)), n(anchor_in.size(0)) {
    check_index(negative_index_in, "negative_index", anchor);
    STD_TORCH_CHECK(negative_index_in.dim() == 2, "negative_index: must be [N, k]");
    STD_TORCH_CHECK(positive_in.has_value() != positive_index_in.has_value(), "positive: or positive_index, not both");
    negative_index = contiguous_of(negative_index_in);
    pairs.distance = distance_from(distance);
    pairs.margin = margin;
    pairs.soft_margin = soft_margin;
    pairs.swap = swap;
    pairs.reduction = static_cast<Reduction>(reduction);
    pairs.k = negative_index.size(1);
    pairs.negative_index = data_of<int64_t>(negative_index);
    pairs.anchor = rows_of<T>(anchor);
    anchor_scales = scales_of(pairs.anchor, pairs.distance);
    pairs.reference = pairs.anchor;
    if (reference_in.has_value()) {
      reference = rows_like(*reference_in, "reference", anchor);
      pairs.reference = rows_of<T>(reference);
      reference_scales = scales_of(pairs.reference, pairs.distance);
    }
    if (positive_in.has_value()) {
      positive = rows_like(*positive_in, "positive", anchor);
      STD_TORCH_CHECK(positive.size(0) == n, "positive: must be [N, D]");
      pairs.positive = rows_of<T>(positive);
      positive_scales = scales_of(pairs.positive, pairs.distance);
    } else {
      check_index(*positive_index_in, "positive_index", anchor);
      positive_index = contiguous_of(*positive_index_in);
      pairs.positive_index = data_of<int64_t>(positive_index);
    }
    if (weight_in.has_value()) {
      STD_TORCH_CHECK(weight_in->scalar_type() == anchor.scalar_type() && weight_in->numel() == n,
                      "weight: must be [N] in the dtype of anchor");
      weight = contiguous_of(*weight_in);
      pairs.weight = data_of<T>(weight);
    }
    check(pairs.negative_index, n * pairs.k, "negative_index");
    if (pairs.positive_index != nullptr) check(pairs.positive_index, n, "positive_index");
  }

  double weight_of(int64_t i) const { return pairs.weight == nullptr ? 1.0 : pairs.weight[i]; }
  bool is_left_out(int64_t i) const {
    return (pairs.positive_index != nullptr && pairs.positive_index[i] < 0) || pairs.negative_index[i * pairs.k] < 0 ||
           weight_of(i) == 0.0;
  }
  int64_t slots(int64_t i) const {
    int64_t filled = 0;
    while (filled < pairs.k && pairs.negative_index[i * pairs.k + filled] >= 0) ++filled;
    return filled;
  }

  // Of one triplet: its cost, the cost's slope in D_ap - D_an, and whether D_pn takes the place of D_an.
  struct Cost {
    double value, slope;
    bool swapped;
  };
  Cost cost(int64_t i, int64_t slot) const {
    const int64_t at = i * pairs.k + slot;
    const T* d_an = pairs.stats + n;
    const T* d_pn = d_an + n * pairs.k;
    const bool swapped = pairs.swap && d_pn[at] < d_an[at];
    const double gap = static_cast<double>(pairs.stats[i]) - (swapped ? d_pn[at] : d_an[at]);
    if (pairs.soft_margin) {
      const double e = std::exp(-std::fabs(gap));
      return {(gap < 0.0 ? 0.0 : gap) + std::log1p(e), (gap < 0.0 ? e : 1.0) / (1.0 + e), swapped};
    }
    const double value = gap + pairs.margin;
    return value <= 0.0 ? Cost{0.0, 0.0, swapped} : Cost{value, 1.0 + 0.0 * value, swapped};  // a NaN stays one
  }

 private:
  void check(const int64_t* index, int64_t count, const char* name) const {
    for (int64_t i = 0; i < count; ++i) {
      STD_TORCH_CHECK(index[i] < pairs.reference.count, name, ": must be below ", pairs.reference.count);
    }
  }
};

std::tuple<Tensor, Tensor> terms(const Tensor& anchor, const std::optional<Tensor>& positive,
                                 const std::optional<Tensor>& reference, const std::optional<Tensor>& positive_index,
                                 const Tensor& negative_index, const std::optional<Tensor>& weight, int64_t distance,
                                 double margin, bool soft_margin, bool swap, int64_t reduction) {
  return dispatch(anchor, [&](auto zero) -> std::tuple<Tensor, Tensor> {
    using T = decltype(zero);
    PairsCall<T> call(anchor, positive, reference, positive_index, negative_index, weight, distance, margin,
                      soft_margin, swap, reduction);
    Pairs<T>& p = call.pairs;
    const int64_t n = call.n;
    const bool per_anchor = p.reduction == Reduction::kNone;
    const Tensor loss =
        per_anchor ? new_empty(anchor, {n}, anchor.scalar_type()) : new_empty(anchor, {}, anchor.scalar_type());
    const Tensor stats = new_empty(anchor, {statistics_size(n, p.k, swap)}, anchor.scalar_type());
    p.stats = data_of<T>(stats);
    share(n, (p.k + 1) * p.anchor.depth,
          [&](int64_t first, int64_t last) { pair_kernels<T>().measure(p, first, last); });

    T* out = data_of<T>(loss);
    double total = 0.0, size = 0.0, d_ap = 0.0, d_an = 0.0;
    int64_t terms = 0, active = 0, triplets = 0, missing = 0;
    for (int64_t i = 0; i < n; ++i) {  // in their order, so that the result does not depend on the threads
      if (per_anchor) out[i] = T(0);
      const double w = call.weight_of(i);
      if (call.is_left_out(i)) {
        missing += w != 0.0;
        continue;
      }
      const int64_t slots = call.slots(i);
      double term = 0.0;
      for (int64_t s = 0; s < slots; ++s) {
        term += call.cost(i, s).value;
        d_an += p.stats[n + i * p.k + s];
      }
      term /= slots;
      d_ap += slots * static_cast<double>(p.stats[i]);
      triplets += slots;
      ++terms;
      active += term > 0.0;
      if (per_anchor) out[i] = static_cast<T>(w * term);
      total += w * term;
      if (p.reduction == Reduction::kMean || (p.reduction == Reduction::kMeanNonzero && term > 0.0)) size += w;
    }
    if (size == 0.0) size = 1.0;
    if (!per_anchor) *out = static_cast<T>(total / size);
    T* tail = p.stats + statistics_size(n, p.k, swap) - kTail;
    tail[kSize] = static_cast<T>(size);
    tail[kTerms] = static_cast<T>(terms);
    tail[kActive] = static_cast<T>(active);
    tail[kPositive] = static_cast<T>(d_ap / std::max<int64_t>(triplets, 1));
    tail[kNegative] = static_cast<T>(d_an / std::max<int64_t>(triplets, 1));
    tail[kMissing] = static_cast<T>(missing);
    return {loss, stats};
  });
}

// What each distance's gradient is multiplied with; see Coefficients.
template <class T>
void fill_coefficients(const PairsCall<T>& call, const T* upstream, const Coefficients& c) {
  const Pairs<T>& p = call.pairs;
  const int64_t n = call.n, k = p.k;
  const T* d_an = p.stats + n;
  const double size = p.stats[statistics_size(n, k, p.swap) - kTail + kSize];
  const auto per_distance = [&](const Rows<T>& u, int64_t i, const Rows<T>& v, int64_t j, T d) {
    switch (p.distance) {
      case Distance::kEuclidean:
        return d == 0 ? 0.0 : 1.0 / d;
      case Distance::kSquared:
        return 2.0;
      case Distance::kCosine:
        break;
    }
    return u.scale[i] == 0.0 || v.scale[j] == 0.0 ? 0.0 : 1.0;  // a row without direction has no gradient
  };
  for (int64_t i = 0; i < n; ++i) {
    c.ap[i] = 0.0;
    std::fill(c.an + i * k, c.an + (i + 1) * k, 0.0);
    if (c.pn != nullptr) std::fill(c.pn + i * k, c.pn + (i + 1) * k, 0.0);
    if (call.is_left_out(i)) continue;
    const int64_t slots = call.slots(i);
    const double g = (p.reduction == Reduction::kNone ? upstream[i] : *upstream) * call.weight_of(i) / (size * slots);
    const Rows<T>& positives = p.positive_index == nullptr ? p.positive : p.reference;
    const int64_t positive = p.positive_index == nullptr ? i : p.positive_index[i];
    double pull = 0.0;
    for (int64_t s = 0; s < slots; ++s) {
      const auto cost = call.cost(i, s);
      if (cost.slope == 0.0) continue;
      pull += g * cost.slope;
      const int64_t at = i * k + s, negative = p.negative_index[at];
      if (cost.swapped) {
        c.pn[at] = -g * cost.slope * per_distance(positives, positive, p.reference, negative, d_an[n * k + at]);
      } else {
        c.an[at] = -g * cost.slope * per_distance(p.anchor, i, p.reference, negative, d_an[at]);
      }
    }
    if (pull != 0.0) c.ap[i] = pull * per_distance(p.anchor, i, positives, positive, p.stats[i]);
  }
}

// The triplets that each reference row is in, as Segments, in the order of the anchors.
template <class T>
struct Segments {
  std::vector<int64_t> begin, items;

  explicit Segments(const PairsCall<T>& call) : begin(call.pairs.reference.count + 1, 0) {
    const Pairs<T>& p = call.pairs;
    const auto for_each = [&](auto body) {
      for (int64_t i = 0; i < call.n; ++i) {
        if (call.is_left_out(i)) continue;
        if (p.positive_index != nullptr) body(p.positive_index[i], i * (p.k + 1));
        for (int64_t s = 0; s < p.k && p.negative_index[i * p.k + s] >= 0; ++s) {
          body(p.negative_index[i * p.k + s], i * (p.k + 1) + s + 1);
        }
      }
    };
    for_each([&](int64_t row, int64_t) { ++begin[row + 1]; });
    for (size_t row = 1; row < begin.size(); ++row) begin[row] += begin[row - 1];
    items.resize(begin.back());
    std::vector<int64_t> next(begin.begin(), begin.end() - 1);
    for_each([&](int64_t row, int64_t item) { items[next[row]++] = item; });
  }

  Segment of(int64_t row) const { return {items.data() + begin[row], items.data() + begin[row + 1]}; }
};

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_loss, const Tensor& anchor,
                                            const std::optional<Tensor>& positive,
                                            const std::optional<Tensor>& reference,
                                            const std::optional<Tensor>& positive_index, const Tensor& negative_index,
                                            const std::optional<Tensor>& weight, const Tensor& stats, int64_t distance,
                                            double margin, bool soft_margin, bool swap, int64_t reduction,
                                            bool /*deterministic: always*/) {
  return dispatch(anchor, [&](auto zero) -> std::tuple<Tensor, Tensor, Tensor> {
    using T = decltype(zero);
    PairsCall<T> call(anchor, positive, reference, positive_index, negative_index, weight, distance, margin,
                      soft_margin, swap, reduction);
    Pairs<T>& p = call.pairs;
    const int64_t n = call.n, depth = p.anchor.depth;
    STD_TORCH_CHECK(grad_loss.scalar_type() == anchor.scalar_type() && stats.scalar_type() == anchor.scalar_type(),
                    "grad_loss, stats: wrong dtype");
    STD_TORCH_CHECK(grad_loss.numel() == (p.reduction == Reduction::kNone ? n : 1), "grad_loss: wrong size");
    STD_TORCH_CHECK(stats.numel() == statistics_size(n, p.k, swap), "stats: wrong size");
    const Tensor upstream = contiguous_of(grad_loss);
    p.stats = data_of<T>(stats);
    const Tensor grad_anchor = new_empty(anchor, {n, depth}, anchor.scalar_type());
    const Tensor grad_positive = new_empty(anchor, {positive.has_value() ? n : 0, depth}, anchor.scalar_type());
    const Tensor grad_reference =
        new_empty(anchor, {reference.has_value() ? p.reference.count : 0, depth}, anchor.scalar_type());

    const Buffer<double> memory(n * (1 + p.k * (swap ? 2 : 1)));
    Coefficients c{memory.get(), memory.get() + n, swap ? memory.get() + n + n * p.k : nullptr};
    fill_coefficients(call, data_of<T>(upstream), c);
    const Segments<T> segments(call);
    const auto write = [&](const Tensor& grad, const Rows<T>& rows, bool anchors, auto segment_of) {
      share(rows.count, 4 * depth, [&](int64_t first, int64_t last) {
        const Buffer<double> scratch(std::max<int64_t>(depth, 1));
        for (int64_t row = first; row < last; ++row) {
          pair_kernels<T>().gradient(p, c, rows, row, anchors ? row : -1, segment_of(row), scratch.get(),
                                     data_of<T>(grad) + row * depth);
        }
      });
    };
    const auto of_reference = [&](int64_t row) { return segments.of(row); };
    if (reference.has_value()) {
      write(grad_anchor, p.anchor, true, [](int64_t) { return Segment{nullptr, nullptr}; });
      write(grad_reference, p.reference, false, of_reference);
    } else {
      write(grad_anchor, p.anchor, true, of_reference);
    }
    if (positive.has_value()) {
      std::vector<int64_t> own(n);
      for (int64_t i = 0; i < n; ++i) own[i] = i * (p.k + 1);
      write(grad_positive, p.positive, false, [&](int64_t i) { return Segment{&own[i], &own[i] + 1}; });
    }
    return {grad_anchor, grad_positive, grad_reference};
  });
}

}  // namespace
}  // namespace amkd::triplet

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CPU, m) {
  m.impl("triplet_select", TORCH_BOX(&amkd::triplet::select));
  m.impl("triplet_terms", TORCH_BOX(&amkd::triplet::terms));
  m.impl("triplet_backward", TORCH_BOX(&amkd::triplet::backward));
}
