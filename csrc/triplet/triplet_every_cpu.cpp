// triplet_every_pair on CPU tensors: a block of anchors at a time becomes products, distances, terms, weights of the
// pairs and the gradient, while it is in the caches. No memory of the size of all pairs beyond a block.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "triplet_cpu_host.h"

namespace amkd::triplet {
namespace {

constexpr int64_t kSampleRows = 256;      // for the common vector: any vector near the rows will do
constexpr int64_t kExactWidth = 16;       // up to it all distances come from differences: rows on a grid tie exactly
constexpr int64_t kBlockPairs = 1 << 20;  // of a block of anchors
constexpr int64_t kPiece = 2 * kProductBlockRows;  // anchors that a thread takes at a time
constexpr int64_t kTile = 8 * kProductBlockRows;   // of the symmetric products; whole panels of every level
constexpr int64_t kLine = 64;                      // bytes

// Elements of a row of at least `columns` that fills whole panels and an odd number of cache lines.
template <class T>
int64_t stride_of(int64_t columns) {
  constexpr int64_t line = kLine / sizeof(T);
  const int64_t wide = round_up(round_up(columns, product_kernels<T>().panel_width), line) + line;
  return wide / line % 2 == 1 ? wide : wide + line;
}

template <class T>
struct CentredRows {
  Buffer<T> data, square;
  Centred<T> view{};

  CentredRows() = default;
  CentredRows(const Rows<T>& rows, const std::vector<double>& common)
      : data(rows.count * stride_of<T>(rows.depth)), square(rows.count + kLine) {
    view = {data.get(), stride_of<T>(rows.depth), square.get()};
    share(rows.count, 2 * rows.depth,
          [&](int64_t first, int64_t last) { product_kernels<T>().centre(rows, common.data(), view, first, last); });
    if (rows.depth <= kExactWidth) {
      std::fill(view.square, view.square + rows.count, std::numeric_limits<T>::quiet_NaN());
    }
    std::fill(view.square + rows.count, view.square + rows.count + kLine, T(1));
  }
};

// The arguments of triplet_every_pair with everything that their pointers point to, and its outputs.
template <class T>
class EveryPairCall {
 public:
  EveryPairCall(const Tensor& anchor, const std::optional<Tensor>& reference,
                const std::optional<Tensor>& positive_distance, const std::optional<Tensor>& used,
                const std::optional<Tensor>& upstream, const std::optional<Tensor>& labels,
                const std::optional<Tensor>& reference_labels, const std::optional<Tensor>& exclude_labels,
                int64_t self_offset, int64_t distance)
      : anchor_(rows_like(anchor, "anchor", anchor)),
        reference_(reference.has_value() ? rows_like(*reference, "reference", anchor) : anchor_),
        labels_(labels, reference_labels, exclude_labels, anchor_.size(0), reference_.size(0), reference_.size(0)),
        is_batch_(!reference.has_value()) {
    EveryPair<T>& p = problem;
    p.anchor = rows_of<T>(anchor_);
    p.reference = rows_of<T>(reference_);
    STD_TORCH_CHECK(p.reference.count >= 1 && p.reference.count < (int64_t{1} << 31), "reference: must have a row");
    STD_TORCH_CHECK(self_offset < 0 || self_offset + p.anchor.count <= p.reference.count,
                    "self_offset: not all anchors lie in the reference");
    p.distance = distance_from(distance);
    reference_scales_ = scales_of(p.reference, p.distance);
    if (is_batch_) {
      p.anchor = p.reference;
    } else {
      anchor_scales_ = scales_of(p.anchor, p.distance);
    }
    p.positive_distance = vector_of<T>(positive_distance, "positive_distance", anchor_.scalar_type());
    p.used = vector_of<bool>(used, "used", ScalarType::Bool);
    p.upstream = vector_of<T>(upstream, "upstream", anchor_.scalar_type());
    p.classes = labels_.classes(self_offset);

    std::vector<double> common(p.anchor.depth, 0.0);
    const int64_t step = (p.reference.count + kSampleRows - 1) / kSampleRows;
    const int64_t usable = select_kernels<T>().add_rows(p.reference, 0, p.reference.count, step, common.data());
    for (double& x : common) x /= std::max<int64_t>(usable, 1);
    centred_reference_ = CentredRows<T>(p.reference, common);
    if (!is_batch_) centred_anchor_ = CentredRows<T>(p.anchor, common);
    p.anchor_square = anchors().square;
    p.reference_square = references().square;
    pack();
  }

  // The terms of all anchors and, with_gradient, the gradients; those are 0 before.
  void run(const RowTerms<T>& out) {
    EveryPair<T>& p = problem;
    const int64_t n = p.anchor.count, references = p.reference.count;
    const bool in_one = n * references <= kBlockPairs, is_symmetric = is_batch_ && in_one;
    const int64_t block =
        in_one ? round_up(n, kPiece) : std::max<int64_t>(kBlockPairs / references / kPiece, 1) * kPiece;
    const int64_t words = close_words(references);
    p.product_stride = stride_of<T>(references);
    const Buffer<T> products(block * p.product_stride);
    const Buffer<uint64_t> close(p.with_gradient ? block * words : 0);
    p.product = products.get();
    p.close = close.get();
    if (is_symmetric) multiply_half();
    for (p.first = 0; p.first < n; p.first += block) {
      p.last = std::min(p.first + block, n);
      share((p.last - p.first + kPiece - 1) / kPiece,
            kPiece * references * (is_symmetric ? 2 : p.anchor.depth / 16 + 3), [&](int64_t begin, int64_t end) {
              const Buffer<char> scratch(rows_scratch(references, p.reference.depth));
              for (int64_t first = begin * kPiece; first < std::min(end * kPiece, p.last - p.first); first += kPiece) {
                EveryPair<T> piece = p;
                piece.first = p.first + first;
                piece.last = std::min(piece.first + kPiece, p.last);
                piece.product += first * p.product_stride;
                piece.close += p.with_gradient ? first * words : 0;
                if (!is_symmetric) multiply(piece.first, piece.last, 0, references, piece.product);
                row_kernels<T>().sweep(piece, out, scratch.get());
              }
            });
      if (!p.with_gradient) continue;
      settle();
      if (is_symmetric) {
        each_tile([&](int64_t first, int64_t last, int64_t begin, int64_t end) {
          product_kernels<T>().symmetrise(p.product, p.product_stride, first, last, begin, end);
        });
      } else {
        pull_references();
      }
      pull_anchors();
    }
  }

  EveryPair<T> problem{};

 private:
  const Centred<T>& references() const { return centred_reference_.view; }
  const Centred<T>& anchors() const { return is_batch_ ? centred_reference_.view : centred_anchor_.view; }

  template <class V>
  const V* vector_of(const std::optional<Tensor>& tensor, const char* name, ScalarType type) {
    if (!tensor.has_value()) return nullptr;
    STD_TORCH_CHECK(tensor->scalar_type() == type && tensor->numel() == anchor_.size(0), name,
                    ": must have one element an anchor, of its dtype");
    held_.push_back(contiguous_of(*tensor));
    return data_of<V>(held_.back());
  }

  void pack() {
    const auto& kernels = product_kernels<T>();
    const int64_t depth = problem.reference.depth, wide = kernels.panel_width;
    const int64_t count = (problem.reference.count + wide - 1) / wide;
    panels_ = Buffer<T>(count * wide * depth);
    share(count, 2 * wide * depth, [&](int64_t first, int64_t last) {
      kernels.pack(references(), problem.reference.count, depth, panels_.get(), first, last);
    });
  }

  // Products of anchors [first, last) with reference rows [begin, end), which begin with a panel.
  void multiply(int64_t first, int64_t last, int64_t begin, int64_t end, T* out) const {
    const Centred<T>& rows = anchors();
    const int64_t depth = problem.reference.depth;
    product_kernels<T>().multiply(rows.data + first * rows.stride, rows.stride, last - first,
                                  panels_.get() + begin * depth, end - begin, depth, out, problem.product_stride);
  }

  // Where the anchors are the reference set each product serves two rows.
  void multiply_half() const {
    const EveryPair<T>& p = problem;
    each_tile([&](int64_t first, int64_t last, int64_t begin, int64_t end) {
      multiply(first, last, begin, end, p.product + first * p.product_stride + begin);
      if (first != begin) product_kernels<T>().mirror(p.product, p.product_stride, first, last, begin, end);
    });
  }

  // Calls body(first, last, begin, end) for the tiles on and above the diagonal.
  template <class Body>
  void each_tile(Body body) const {
    const int64_t n = problem.anchor.count, tiles = (n + kTile - 1) / kTile;
    share(tiles * tiles, kTile * kTile * (problem.anchor.depth + 16) / 32, [&](int64_t from, int64_t to) {
      for (int64_t tile = from; tile < to; ++tile) {
        const int64_t first = tile / tiles * kTile, begin = tile % tiles * kTile;
        if (first <= begin) body(first, std::min(first + kTile, n), begin, std::min(begin + kTile, n));
      }
    });
  }

  void settle() const {
    const EveryPair<T>& p = problem;
    const int64_t words = close_words(p.reference.count), rows = p.last - p.first;
    if (std::all_of(p.close, p.close + rows * words, [](uint64_t word) { return word == 0; })) return;
    share(words, rows, [&](int64_t first, int64_t last) {
      const Buffer<double> scratch(kCloseColumns * p.reference.depth);
      row_kernels<T>().settle(p, scratch.get(), first, last);
    });
  }

  // Calls body(first, count) for kPiece rows at a time that so many others pull at.
  template <class Body>
  void each_piece(int64_t count, int64_t others, Body body) const {
    share((count + kPiece - 1) / kPiece, kPiece * others * (problem.anchor.depth + 16) / 16,
          [&](int64_t begin, int64_t end) {
            for (int64_t i = begin * kPiece; i < std::min(end * kPiece, count); i += kPiece) {
              body(i, std::min(kPiece, count - i));
            }
          });
  }

  // What the block's weights do to its anchors and to all reference rows.
  void pull_anchors() const {
    const EveryPair<T>& p = problem;
    const Centred<T>&a = anchors(), &r = references();
    each_piece(p.last - p.first, p.reference.count, [&](int64_t i, int64_t count) {
      const int64_t at = p.first + i, stride = p.product_stride;
      product_kernels<T>().pull({p.product + i * stride, stride, 1}, count, p.reference.count, a.data + at * a.stride,
                                r.data, r.stride, p.anchor.depth, p.grad_anchor + at * p.anchor.depth);
    });
  }

  void pull_references() const {
    const EveryPair<T>& p = problem;
    const Centred<T>&a = anchors(), &r = references();
    each_piece(p.reference.count, p.last - p.first, [&](int64_t j, int64_t count) {
      product_kernels<T>().pull({p.product + j, 1, p.product_stride}, count, p.last - p.first, r.data + j * r.stride,
                                a.data + p.first * a.stride, a.stride, p.anchor.depth,
                                p.grad_reference + j * p.anchor.depth);
    });
  }

  Tensor anchor_, reference_;
  Labels<T> labels_;
  bool is_batch_;
  Buffer<double> anchor_scales_, reference_scales_;
  std::vector<Tensor> held_;
  CentredRows<T> centred_anchor_, centred_reference_;
  Buffer<T> panels_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> every_pair(
    const Tensor& anchor, const std::optional<Tensor>& reference, const std::optional<Tensor>& positive_distance,
    const std::optional<Tensor>& used, const std::optional<Tensor>& upstream, const std::optional<Tensor>& labels,
    const std::optional<Tensor>& reference_labels, const std::optional<Tensor>& exclude_labels, int64_t self_offset,
    int64_t distance, double margin, bool semihard, bool fallback, bool soft_margin, bool with_gradient) {
  return dispatch(anchor, [&](auto zero) -> std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> {
    using T = decltype(zero);
    const ScalarType type = anchor.scalar_type();
    EveryPairCall<T> call(anchor, reference, positive_distance, used, upstream, labels, reference_labels,
                          exclude_labels, self_offset, distance);
    EveryPair<T>& p = call.problem;
    p.margin = margin;
    p.semihard = semihard;
    p.fallback = fallback;
    p.soft_margin = soft_margin;
    p.with_gradient = with_gradient;

    const int64_t n = p.anchor.count, depth = p.anchor.depth;
    const Tensor total = new_empty(anchor, {n}, type), sums = new_empty(anchor, {n, 2}, type);
    const Tensor counts = new_empty(anchor, {n, 3}, ScalarType::Long);
    const auto zeros = [&](bool wanted, int64_t rows) {
      const Tensor grad = new_empty(anchor, {wanted ? rows : 0, depth}, type);
      std::fill_n(data_of<T>(grad), grad.numel(), T(0));
      return grad;
    };
    const Tensor grad_anchor = zeros(with_gradient, n);
    const Tensor grad_reference = zeros(with_gradient && reference.has_value(), p.reference.count);
    const bool has_positive = with_gradient && positive_distance.has_value();
    const Tensor grad_positive = new_empty(anchor, {has_positive ? n : 0}, type);
    p.grad_anchor = data_of<T>(grad_anchor);
    p.grad_reference = reference.has_value() ? data_of<T>(grad_reference) : p.grad_anchor;
    p.grad_positive = has_positive ? data_of<T>(grad_positive) : nullptr;
    call.run({data_of<T>(total), data_of<int64_t>(counts), data_of<T>(sums)});
    return {total, counts, sums, grad_anchor, grad_reference, grad_positive};
  });
}

}  // namespace
}  // namespace amkd::triplet

STABLE_TORCH_LIBRARY_IMPL(amkd_fast, CPU, m) { m.impl("triplet_every_pair", TORCH_BOX(&amkd::triplet::every_pair)); }
