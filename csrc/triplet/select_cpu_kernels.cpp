// Selection on a CPU. A tile of inner products, a register block at a time, then a sweep over its rows that keeps for
// each anchor every reference row that rounding leaves in the race; those few are compared by their exact distances.
#include "register_block.h"

namespace amkd::triplet::AMKD_SIMD {
namespace {

constexpr double kInfinity = __builtin_huge_val();

#if defined(__AVX512F__)
constexpr int kUnroll = 2;  // vectors of a sweep: a block of anchors is a whole number of such steps
#else
constexpr int kUnroll = 4;
#endif

// A tile of products and the panels that it is made of share the second-level cache.
constexpr int64_t kProductRows = 96;
constexpr int64_t kProductBytes = 1024;  // of a row
template <class T>
constexpr int64_t kProductColumns = kProductBytes / sizeof(T);

constexpr int kMostExpected = kUnroll * kBytes / 4;  // keys that a race is told before it begins
constexpr int kGroups = 16;                          // of a tile's rows, the smallest key of each

// ---- preparation --------------------------------------------------------------------------------------------------

template <class T>
bool is_usable(const Rows<T>& rows, int64_t i) {
  if (rows.scale != nullptr) return rows.scale[i] > 0.0;
  return is_finite(rows, i);
}

template <class T>
int64_t add_rows(const Rows<T>& rows, int64_t first, int64_t last, int64_t step, double* sum) {
  int64_t usable = 0;
  for (int64_t i = first; i < last; i += step) {
    if (!is_usable(rows, i)) continue;
    ++usable;
    const double scale = scale_of(rows, i);
    const T* row = row_of(rows, i);
    for (int64_t k = 0; k < rows.depth; ++k) sum[k] += row[k] * scale;
  }
  return usable;
}

template <class T>
void scale_rows(const Rows<T>& rows, double* scale, int64_t first, int64_t last) {
  constexpr double kTiny = sizeof(T) == 4 ? 0x1p-63 : 0x1p-511;  // the root of the smallest normal number
  for (int64_t i = first; i < last; ++i) {
    const T* row = row_of(rows, i);
    double square = 0.0;
    for (int64_t k = 0; k < rows.depth; ++k) square += static_cast<double>(row[k]) * row[k];
    const double norm = root(square);
    scale[i] = norm <= kTiny ? 0.0 : norm < kInfinity ? 1.0 / norm : __builtin_nan("");
  }
}

template <class T>
void pack(const Rows<T>& rows, const double* common, T* data, T* square, int64_t first, int64_t last) {
  constexpr int kWide = kPanel<T>;
  for (int64_t panel = first; panel < last; ++panel) {
    T* out = data + panel * kWide * rows.depth;
    for (int c = 0; c < kWide; ++c) {
      const int64_t i = panel * kWide + c;
      const bool inside = i < rows.count;
      const double scale = inside ? scale_of(rows, i) : 0.0;
      bool usable = inside && (rows.scale == nullptr || scale > 0.0);
      double sum = 0.0;
      if (usable) {
        const T* row = row_of(rows, i);
        for (int64_t k = 0; k < rows.depth; ++k) {
          const T x = static_cast<T>(row[k] * scale - common[k]);
          out[k * kWide + c] = x;
          sum += static_cast<double>(x) * x;
        }
        usable = static_cast<T>(sum) < static_cast<T>(kInfinity);
      }
      if (!usable) {
        for (int64_t k = 0; k < rows.depth; ++k) out[k * kWide + c] = 0;
      }
      square[i] = usable ? static_cast<T>(sum) : static_cast<T>(__builtin_nan(""));
    }
  }
}

// ---- products -----------------------------------------------------------------------------------------------------

// Element k of anchor i of packed panels; kPanel apart for the next k.
template <class T>
AMKD_INLINE const T* packed_row(const T* panels, int64_t i, int64_t depth) {
  return panels + i / kPanel<T> * depth * kPanel<T> + i % kPanel<T>;
}

// Products of anchors i, i + 1, … with one panel of reference rows. Anchors behind `last` repeat the one before.
template <class T>
AMKD_INLINE void multiply(const T* anchors, int64_t i, int64_t last, const T* panel, int64_t depth, T* out,
                          int64_t out_stride) {
  const T* a[kBlockRows];
#pragma GCC unroll 12
  for (int r = 0; r < kBlockRows; ++r) a[r] = packed_row(anchors, i + r < last ? i + r : last - 1, depth);
  Block<T> sums = {};
  multiply_block(a, kPanel<T>, panel, kPanel<T>, depth, sums);
#pragma GCC unroll 12
  for (int r = 0; r < kBlockRows; ++r) {
    for (int v = 0; v < kBlockVectors; ++v) std::memcpy(out + r * out_stride + v * kWidth<T>, &sums.of[r][v], kBytes);
  }
}

// ---- the race -----------------------------------------------------------------------------------------------------

// The k smallest of what is pushed: by key within the rounding error, by exact distance in the end. Farthest rows race
// with their keys and distances negated.
template <class T>
class Race {
 public:
  Race() = default;
  Race(const Select<T>& problem, int64_t anchor, double sign, int64_t k, T margin, Candidate<T>* list)
      : problem_(&problem),
        anchor_(anchor),
        sign_(sign),
        k_(k),
        margin_(margin),
        list_(list),
        capacity_(candidates_a_row(k)) {}

  // A key above this is out of the race.
  T limit() const { return limit_; }

  // As many rows with these keys, or with none below them (+inf), will be pushed.
  void expect(const T* keys, int count) {
    if (k_ < 1 || count < k_) return;
    T smallest[kMostExpected];
    int64_t size = 0;
    for (int i = 0; i < count; ++i) {
      if (size == k_ && !(keys[i] < smallest[size - 1])) continue;
      int64_t at = size < k_ ? size++ : size - 1;
      for (; at > 0 && keys[i] < smallest[at - 1]; --at) smallest[at] = smallest[at - 1];
      smallest[at] = keys[i];
    }
    lower(smallest[k_ - 1]);
  }

  void push(T key, int64_t index) {
    if (key > limit_) return;
    list_[count_++] = {key, static_cast<int32_t>(index), false, 0.0};
    if (k_ == 1) lower(key);
    if (count_ == capacity_) shorten();
  }

  // The winners' indices, nearest (or farthest) first, -1 behind the last one.
  void finish(int64_t* out) {
    drop();
    bool has_numbers = margin_ == margin_;
    for (int64_t i = 0; i < count_; ++i) has_numbers &= list_[i].key == list_[i].key;
    if (has_numbers) {
      rank_the_close();
    } else {
      rank(list_, count_);
    }
    for (int64_t i = 0; i < k_; ++i) out[i] = i < count_ ? list_[i].index : -1;
  }

 private:
  // There are k rows whose keys are not above this one.
  void lower(T key) {
    if (key + margin_ < limit_) limit_ = key + margin_;
  }

  // Leaves room for new candidates, however many are equal.
  void shorten() {
    drop();
    if (count_ > capacity_ / 2 + k_ / 2) {
      rank(list_, count_);
      if (count_ > k_) count_ = k_;
    }
  }

  void drop() {
    if (k_ > 1 && count_ > k_) lower(kth_key());
    int64_t kept = 0;
    for (int64_t i = 0; i < count_; ++i) {
      if (!(list_[i].key > limit_)) list_[kept++] = list_[i];
    }
    count_ = kept;
  }

  // The k-th smallest key that is a number, +inf where there are fewer. The others may turn out far away.
  T kth_key() {
    T* heap = reinterpret_cast<T*>(list_ + capacity_);
    int64_t size = 0;
    for (int64_t i = 0; i < count_; ++i) {
      const T key = list_[i].key;
      if (!(key == key)) continue;
      if (size < k_) {
        int64_t at = size++;
        for (; at > 0 && heap[(at - 1) / 2] < key; at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
        heap[at] = key;
      } else if (key < heap[0]) {
        int64_t at = 0;
        for (int64_t child; (child = 2 * at + 1) < k_; at = child) {
          if (child + 1 < k_ && heap[child + 1] > heap[child]) ++child;
          if (heap[child] <= key) break;
          heap[at] = heap[child];
        }
        heap[at] = key;
      }
    }
    return size < k_ ? static_cast<T>(kInfinity) : heap[0];
  }

  // Sorts by key, and by exact distance who follows one another more closely than keys can tell.
  void rank_the_close() {
    sort(list_, count_, [](const Candidate<T>& a, const Candidate<T>& b) { return a.key < b.key; });
    for (int64_t first = 0, last; first < count_ && first < k_; first = last) {
      for (last = first + 1; last < count_ && !(list_[last].key > list_[last - 1].key + margin_);) ++last;
      if (last - first > 1) rank(list_ + first, last - first);
    }
  }

  // Sorts by exact distance, NaN first, then by index.
  void rank(Candidate<T>* list, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      Candidate<T>& c = list[i];
      if (c.is_exact) continue;
      const double d = distance_of(problem_->distance, problem_->anchor, anchor_, problem_->reference, c.index);
      c.exact = d == d ? sign_ * d : -kInfinity;
      c.is_exact = true;
    }
    sort(list, count, [](const Candidate<T>& a, const Candidate<T>& b) {
      return a.exact < b.exact || (a.exact == b.exact && a.index < b.index);
    });
  }

  // Shell's: in place, and good for hundreds.
  template <class Before>
  static void sort(Candidate<T>* list, int64_t count, Before before) {
    int64_t gap = 1;
    while (gap < count / 3) gap = 3 * gap + 1;
    for (; gap > 0; gap /= 3) {
      for (int64_t i = gap; i < count; ++i) {
        const Candidate<T> moving = list[i];
        int64_t at = i;
        for (; at >= gap && before(moving, list[at - gap]); at -= gap) list[at] = list[at - gap];
        list[at] = moving;
      }
    }
  }

  const Select<T>* problem_ = nullptr;
  int64_t anchor_ = 0;
  double sign_ = 1.0;
  int64_t k_ = 1;
  T margin_ = 0;  // twice the error of a key
  T limit_ = static_cast<T>(kInfinity);
  Candidate<T>* list_ = nullptr;
  int64_t count_ = 0;
  int64_t capacity_ = 0;
};

// What a comparison of keys of one anchor can be wrong by: rounding of the centred rows and of the sums of `depth`
// products. NaN for an anchor that only exact distances serve.
template <class T>
T margin_of(const Select<T>& p, int64_t anchor) {
  constexpr double kUnit = sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;
  const double a = root(p.anchor_panels.square[anchor]), r = p.largest;
  const double error = kUnit * (2.0 * (p.anchor.depth + 4) * a * r + 4.0 * r * r + 4.0 * (a + r) * (a + r));
  return static_cast<T>(2.0 * error);
}

// One anchor against a tile of reference rows, four vectors at a time: body(offset, key, is_other, is_same). A key is
// |r|² - 2 a·r; NaN where only the exact distance will do, behind the last row and for the anchor itself.
template <bool kExclusions, class T, class Body>
AMKD_INLINE void for_each_key(const Select<T>& p, int64_t anchor, const T* products, int64_t begin, int64_t end,
                              Body body) {
  using V = Values<T>;
  using L = Labels<T>;
  const T* square = p.reference_panels.square + begin;
  const Label<T>* labels = p.classes.reference + begin;
  const L own = L{} + p.classes.anchor[anchor];
  const Label<T>* excluded = p.classes.excluded + anchor * p.classes.excluded_count;
  const L first = kExclusions ? L{} + excluded[0] : L{};
  const L second = kExclusions ? L{} + excluded[p.classes.excluded_count - 1] : L{};
  for (int64_t j = 0; j < end - begin; j += kUnroll * kWidth<T>) {
    V key[kUnroll];
    L other[kUnroll], same[kUnroll];
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = j + u * kWidth<T>;
      key[u] = load_as<V>(square + at) - 2 * load_as<V>(products + at);
      const L label = load_as<L>(labels + at);
      same[u] = label == own;
      other[u] = kExclusions ? (label != own) & (label != first) & (label != second) : label != own;
    }
    body(j, key, other, same);
  }
}

// Tells the races how good a tile is before anything is pushed: else the first rows would all be candidates.
template <bool kExclusions, class T>
void look_ahead(const Select<T>& p, int64_t anchor, const T* products, int64_t begin, int64_t end, Race<T>& nearest,
                Race<T>& farthest) {
  using V = Values<T>;
  using L = Labels<T>;
  V near[kUnroll], far = V{} + static_cast<T>(kInfinity);
  for (V& smallest : near) smallest = far;
  for_each_key<kExclusions>(p, anchor, products, begin, end,
                            [&](int64_t, const V(&key)[kUnroll], const L(&other)[kUnroll], const L(&same)[kUnroll]) {
                              for (int u = 0; u < kUnroll; ++u) {
                                near[u] = (other[u] & (key[u] < near[u])) ? key[u] : near[u];
                                far = (same[u] & (-key[u] < far)) ? -key[u] : far;
                              }
                            });
  T keys[kUnroll * kWidth<T>];
  std::memcpy(keys, near, sizeof(near));
  nearest.expect(keys, kUnroll * kWidth<T>);
  std::memcpy(keys, &far, sizeof(far));
  farthest.expect(keys, kWidth<T>);
}

// What rounding does not rule out goes to one of the races; a key that is NaN it never does.
template <bool kExclusions, bool kFarthest, class T>
void sweep(const Select<T>& p, int64_t anchor, const T* products, int64_t begin, int64_t end, Race<T>& nearest,
           Race<T>& farthest) {
  using V = Values<T>;
  using L = Labels<T>;
  const int64_t itself = p.classes.self_offset < 0 ? -1 : p.classes.self_offset + anchor;
  V near_limit = V{} + nearest.limit(), far_limit = V{} - farthest.limit();
  for_each_key<kExclusions>(p, anchor, products, begin, end,
                            [&](int64_t j, const V(&key)[kUnroll], const L(&other)[kUnroll], const L(&same)[kUnroll]) {
                              L in_race[kUnroll], any = {};
                              for (int u = 0; u < kUnroll; ++u) {
                                in_race[u] = other[u] & ~(key[u] > near_limit);
                                if (kFarthest) in_race[u] |= same[u] & ~(key[u] < far_limit);
                                any |= in_race[u];
                              }
                              if (__builtin_expect(lanes_of(any) == 0, 1)) return;
                              for (int u = 0; u < kUnroll; ++u) {
                                for (unsigned lanes = lanes_of(in_race[u]); lanes != 0; lanes &= lanes - 1) {
                                  const int lane = __builtin_ctz(lanes);
                                  const int64_t row = begin + j + u * kWidth<T> + lane;
                                  if (row >= end || row == itself) continue;
                                  if (same[u][lane]) {
                                    farthest.push(-key[u][lane], row);
                                  } else {
                                    nearest.push(key[u][lane], row);
                                  }
                                }
                              }
                              near_limit = V{} + nearest.limit();
                              far_limit = V{} - farthest.limit();
                            });
}

// The races of anchor i: for the nearest negatives and the farthest positive.
template <class T>
struct Entry {
  Race<T> nearest, farthest;
};
template <class T>
Entry<T>* entries_of(void* races) {
  return static_cast<Entry<T>*>(races);
}

template <class T>
void start(const Select<T>& p, void* races, Candidate<T>* room, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    const T margin = margin_of(p, i);
    Candidate<T>* list = room + (i - first) * (race_room(p.k) + race_room(1));
    Entry<T>& entry = entries_of<T>(races)[i - first];
    entry.nearest = Race<T>(p, i, 1.0, p.k, margin, list);
    entry.farthest = Race<T>(p, i, -1.0, 1, margin, list + race_room(p.k));
  }
}

template <class T>
void finish(const Select<T>& p, void* races, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    Entry<T>& entry = entries_of<T>(races)[i - first];
    entry.nearest.finish(p.negative + i * p.k);
    if (p.positive != nullptr) entry.farthest.finish(p.positive + i);
  }
}

template <class T>
void multiply_tile(const Select<T>& p, const Tile& tile, T* products) {
  const int64_t depth = p.anchor.depth;
  for (int64_t panel = tile.begin / kPanel<T>; panel * kPanel<T> < tile.end; ++panel) {
    for (int64_t i = tile.first; i < tile.last; i += kBlockRows) {
      multiply(p.anchor_panels.data, i, tile.last, p.reference_panels.data + panel * kPanel<T> * depth, depth,
               products + (i - tile.first) * kProductColumns<T> + panel * kPanel<T> - tile.begin, kProductColumns<T>);
    }
  }
}

template <bool kExclusions, class T>
void scan_rows_as(const Select<T>& p, const Tile& tile, T* products, Entry<T>* races, bool is_first) {
  for (int64_t i = tile.first; i < tile.last; ++i, products += kProductColumns<T>, ++races) {
    const int64_t itself = p.classes.self_offset < 0 ? -1 : p.classes.self_offset + i;
    if (itself >= tile.begin && itself < tile.end) products[itself - tile.begin] = static_cast<T>(__builtin_nan(""));
    if (is_first) look_ahead<kExclusions>(p, i, products, tile.begin, tile.end, races->nearest, races->farthest);
    if (p.positive != nullptr) {
      sweep<kExclusions, true>(p, i, products, tile.begin, tile.end, races->nearest, races->farthest);
    } else {
      sweep<kExclusions, false>(p, i, products, tile.begin, tile.end, races->nearest, races->farthest);
    }
  }
}

template <class T>
void scan_rows(const Select<T>& p, const Tile& tile, T* products, void* races, bool is_first) {
  if (p.classes.excluded_count > 0) {
    scan_rows_as<true>(p, tile, products, entries_of<T>(races), is_first);
  } else {
    scan_rows_as<false>(p, tile, products, entries_of<T>(races), is_first);
  }
}

// The columns of a tile as anchors of their own, a vector of them at a time.
template <bool kExclusions, class T>
void scan_columns_as(const Select<T>& p, const Tile& tile, const T* products, Entry<T>* races, bool is_first) {
  using V = Values<T>;
  using L = Labels<T>;
  const int64_t rows = tile.last - tile.first, columns = tile.end - tile.begin;
  const T* square = p.reference_panels.square + tile.first;
  const Label<T>* label = p.classes.reference + tile.first;
  const int exclusions = p.classes.excluded_count;
  const L counts_positives = p.positive == nullptr ? L{} : ~L{};
  for (int64_t j = 0; j < columns; j += kWidth<T>) {
    const int64_t lanes = columns - j < kWidth<T> ? columns - j : kWidth<T>;
    const L own = load_as<L>(p.classes.anchor + tile.begin + j);
    L first = own, second = own;
    for (int64_t lane = 0; kExclusions && lane < lanes; ++lane) {
      const Label<T>* excluded = p.classes.excluded + (tile.begin + j + lane) * exclusions;
      first[lane] = excluded[0];
      second[lane] = excluded[exclusions - 1];
    }
    const auto key_of = [&](int64_t i) __attribute__((always_inline)) {
      return square[i] - 2 * load_as<V>(products + i * kProductColumns<T> + j);
    };
    const auto is_other = [&](int64_t i) __attribute__((always_inline)) {
      const L other = own != label[i];
      return kExclusions ? other & (first != label[i]) & (second != label[i]) : other;
    };
    if (is_first) {
      const int groups = p.k == 1 ? 1 : kGroups;
      T smallest[kGroups][kWidth<T>];
      V far = V{} + static_cast<T>(kInfinity);
      for (int g = 0; g < groups; ++g) {
        V near = V{} + static_cast<T>(kInfinity);
        for (int64_t i = g; i < rows; i += groups) {
          const V key = key_of(i);
          near = (is_other(i) & (key < near)) ? key : near;
          far = ((own == label[i]) & (-key < far)) ? -key : far;
        }
        std::memcpy(smallest[g], &near, sizeof(near));
      }
      for (int64_t lane = 0; lane < lanes; ++lane) {
        T keys[kGroups];
        for (int g = 0; g < groups; ++g) keys[g] = smallest[g][lane];
        races[j + lane].nearest.expect(keys, groups);
        keys[0] = far[lane];
        races[j + lane].farthest.expect(keys, 1);
      }
    }
    V near_limit = V{} - static_cast<T>(kInfinity), far_limit = -near_limit;  // no lane behind the last one races
    for (int64_t lane = 0; lane < lanes; ++lane) {
      near_limit[lane] = races[j + lane].nearest.limit();
      far_limit[lane] = -races[j + lane].farthest.limit();
    }
    for (int64_t i = 0; i < rows; ++i) {
      const V key = key_of(i);
      const L same = own == label[i];
      const L in_race = (is_other(i) & ~(key > near_limit)) | (same & counts_positives & ~(key < far_limit));
      unsigned found = lanes_of(in_race);
      if (__builtin_expect(found == 0, 1)) continue;
      for (; found != 0; found &= found - 1) {
        const int lane = __builtin_ctz(found);
        if (lane >= lanes) continue;
        Entry<T>& entry = races[j + lane];
        if (same[lane]) {
          entry.farthest.push(-key[lane], tile.first + i);
          far_limit[lane] = -entry.farthest.limit();
        } else {
          entry.nearest.push(key[lane], tile.first + i);
          near_limit[lane] = entry.nearest.limit();
        }
      }
    }
  }
}

template <class T>
void scan_columns(const Select<T>& p, const Tile& tile, const T* products, void* races, bool is_first) {
  if (p.classes.excluded_count > 0) {
    scan_columns_as<true>(p, tile, products, entries_of<T>(races), is_first);
  } else {
    scan_columns_as<false>(p, tile, products, entries_of<T>(races), is_first);
  }
}

template <class T>
constexpr SelectKernels<T> kernels = {kPanel<T>,       kProductRows, kProductColumns<T>, sizeof(Entry<T>), add_rows<T>,
                                      scale_rows<T>,   pack<T>,      start<T>,           multiply_tile<T>, scan_rows<T>,
                                      scan_columns<T>, finish<T>};

}  // namespace

extern const SelectKernels<float> select_floats = kernels<float>;
extern const SelectKernels<double> select_doubles = kernels<double>;

}  // namespace amkd::triplet::AMKD_SIMD
