// Distances and angles among rows on a CPU. amkd_fast/ops/relations/reference.py has the mathematics.
//
// With D the squared distances, the cosine at i between j and k is (D_ij + D_ik - D_jk) / (2 d_ij d_ik): all that the
// B³ triples need of the rows are B² numbers. In fp64, from differences of the rows, these keep more digits of a cosine
// than fp32's own unit vectors do, at any offset and for pairs as close as fp32 has them. The gradient goes back the
// same way: into the squared distances, and from there in one product with the rows.
//
// The lanes of a vector are vertices i, for one pair (j, k): every matrix is read along its rows, by symmetry, and rows
// are filled up with zeros, which make triples without loss and gradient.
#include "../common/doubles.h"
#include "relations_cpu.h"

namespace amkd::relations::AMKD_SIMD {
namespace {

using namespace amkd::AMKD_SIMD;

template <class T>
void read(const void* from, int64_t count, int64_t width, double* to) {
  const T* p = static_cast<const T*>(from);
  if constexpr (sizeof(T) == sizeof(double)) {
    for (int64_t d = 0; d < count; ++d) to[d] = p[d];
  } else {
    float numbers[kLanes];
    for (int64_t d = 0; d < count; d += kLanes) {
      const int64_t some = count - d < kLanes ? count - d : kLanes;
      store(numbers, some == kLanes ? load(p + d) : load_some(p + d, some, T{}));
      for (int64_t k = 0; k < some; ++k) to[d + k] = numbers[k];
    }
  }
  for (int64_t d = count; d < width; ++d) to[d] = 0.0;
}

// ---- distances ----------------------------------------------------------------------------------------------------

// Squared distances of kTall rows to kWide others, [kTall, kWide].
template <int kTall, int kWide>
AMKD_INLINE void measure(const double* rows, const double* others, int64_t width, double* squared) {
  constexpr int kAll = kTall * kWide;
  Doubles found[kAll] = {};
  for (int64_t d = 0; d < width; d += kDoubles) {
    Doubles x[kTall];
    for (int j = 0; j < kTall; ++j) x[j] = load_doubles(rows + j * width + d);
    for (int k = 0; k < kWide; ++k) {
      const Doubles y = load_doubles(others + k * width + d);
      for (int j = 0; j < kTall; ++j) {
        const Doubles difference = y - x[j];
        found[j * kWide + k] += difference * difference;
      }
    }
  }
  if constexpr (kAll % kDoubles == 0) {
    for (int i = 0; i < kAll; i += kDoubles) store_doubles(squared + i, sums_of(found + i));
  } else {
    for (int i = 0; i < kAll; ++i) squared[i] = sum_of(found[i]);
  }
}

// A tile of both matrices at (j, k), and its mirror image where that is another one.
template <int kTall, int kWide>
AMKD_INLINE void fill_tile(const Side& side, int64_t stride, int64_t j, int64_t k) {
  constexpr int kAll = kTall * kWide, kRoom = (kAll + kDoubles - 1) / kDoubles * kDoubles;
  double squared[kRoom] = {}, inverse[kRoom];
  measure<kTall, kWide>(side.rows + j * side.width, side.rows + k * side.width, side.width, squared);
  for (int i = 0; i < kRoom; i += kDoubles) {
    const Doubles square = load_doubles(squared + i);
    const auto coincide = square < kCoincide;
    store_doubles(squared + i, coincide ? Doubles{} : square);
    store_doubles(inverse + i, coincide ? Doubles{} : root_of(0.5 / square));
  }
  for (int a = 0; a < kTall; ++a) {
    std::memcpy(side.squared + (j + a) * stride + k, squared + a * kWide, kWide * sizeof(double));
    std::memcpy(side.inverse + (j + a) * stride + k, inverse + a * kWide, kWide * sizeof(double));
  }
  if (j == k) return;
  for (int b = 0; b < kWide; ++b) {
    for (int a = 0; a < kTall; ++a) {
      side.squared[(k + b) * stride + j + a] = squared[a * kWide + b];
      side.inverse[(k + b) * stride + j + a] = inverse[a * kWide + b];
    }
  }
}

// From the diagonal on.
template <int kTall>
void fill_rows(const Side& side, int64_t count, int64_t stride, int64_t j) {
  constexpr int kWide = 4;
  int64_t k = j;
  if (kTall < kWide) {  // the tile on the diagonal is a square
    fill_tile<kTall, kTall>(side, stride, j, j);
    k += kTall;
  }
  for (; k + kWide <= count; k += kWide) fill_tile<kTall, kWide>(side, stride, j, k);
  for (; k < count; ++k) fill_tile<kTall, 1>(side, stride, j, k);
  for (int64_t row = j; row < j + kTall; ++row) {
    for (k = count; k < stride; ++k) side.squared[row * stride + k] = side.inverse[row * stride + k] = 0.0;
  }
}

void distances(const Side& side, int64_t count, int64_t stride, int64_t first, int64_t last) {
  constexpr int kTall = kDoubles == 8 ? 4 : 2;  // as registers hold
  int64_t j = first;
  for (; j + kTall <= last; j += kTall) fill_rows<kTall>(side, count, stride, j);
  for (; j < last; ++j) fill_rows<1>(side, count, stride, j);
}

// ---- angles -------------------------------------------------------------------------------------------------------

// What the triples (i; j, k) need of a row j or k in kPack lanes i, side by side: one address serves all of it.
struct Row {
  double squared[kPack], inverse[kPack], teacher_squared[kPack], teacher_inverse[kPack];
  double stretch[kPack], turn[kPack];
};

// One pair (j, k): adds its loss to `loss` and, with a gradient, its parts of the legs; returns Σ_i stretch.
template <bool kGradient>
AMKD_INLINE double visit(Row& j, Row& k, double opposite, double teacher_opposite, Doubles& loss) {
  Doubles across{}, own{};  // not `loss` itself, whose sums would wait for one another
  for (int i = 0; i < kPack; i += kDoubles) {
    const Doubles scale = load_doubles(j.inverse + i) * load_doubles(k.inverse + i);
    const Doubles teacher_scale = load_doubles(j.teacher_inverse + i) * load_doubles(k.teacher_inverse + i);
    const Doubles product = (load_doubles(j.squared + i) - opposite) + load_doubles(k.squared + i);
    const Doubles teacher_product =
        (load_doubles(j.teacher_squared + i) - teacher_opposite) + load_doubles(k.teacher_squared + i);
    const Doubles cosine = product * scale;
    const Doubles error = cosine - teacher_product * teacher_scale;
    const Doubles slope = clamped(error);
    own += slope * (error - 0.5 * slope);
    if constexpr (kGradient) {
      across += slope * scale;
      store_doubles(j.stretch + i, load_doubles(j.stretch + i) + slope * scale);
      store_doubles(j.turn + i, load_doubles(j.turn + i) + slope * cosine);
      store_doubles(k.stretch + i, load_doubles(k.stretch + i) + slope * scale);
      store_doubles(k.turn + i, load_doubles(k.turn + i) + slope * cosine);
    }
  }
  loss += own;
  return kGradient ? sum_of(across) : 0.0;
}

// The lanes from `first` on, at most kPack; the others are filled up with zeros.
void pack(const Pairs& pairs, int64_t first, int64_t lanes, Row* rows) {
  for (int64_t j = 0; j < pairs.count; ++j) {
    const int64_t at = j * pairs.stride + first;
    rows[j] = {};
    std::memcpy(rows[j].squared, pairs.student.squared + at, lanes * sizeof(double));
    std::memcpy(rows[j].inverse, pairs.student.inverse + at, lanes * sizeof(double));
    std::memcpy(rows[j].teacher_squared, pairs.teacher.squared + at, lanes * sizeof(double));
    std::memcpy(rows[j].teacher_inverse, pairs.teacher.inverse + at, lanes * sizeof(double));
  }
}

void unpack(const Row* rows, const Pairs& pairs, int64_t first, int64_t lanes, const Legs& legs) {
  for (int64_t j = 0; j < pairs.count; ++j) {
    const int64_t at = j * pairs.stride + first;
    std::memcpy(legs.stretch + at, rows[j].stretch, lanes * sizeof(double));
    std::memcpy(legs.turn + at, rows[j].turn, lanes * sizeof(double));
  }
}

template <bool kGradient>
Doubles visit_pack(const Pairs& pairs, Row* rows, double* across, bool fresh) {
  constexpr int64_t kBlock = 8;  // rows that stay in the first cache while the others pass by
  const int64_t count = pairs.count;
  Doubles loss{};
  for (int64_t block = 0; block < count; block += kBlock) {
    const int64_t end = block + kBlock < count ? block + kBlock : count;
    for (int64_t k = block + 1; k < count; ++k) {
      for (int64_t j = block; j < (k < end ? k : end); ++j) {
        const int64_t pair = j * pairs.stride + k;
        const double sum =
            visit<kGradient>(rows[j], rows[k], pairs.student.squared[pair], pairs.teacher.squared[pair], loss);
        if constexpr (kGradient) across[pair] = fresh ? sum : across[pair] + sum;
      }
    }
  }
  return loss;
}

double angles(const Pairs& pairs, const Legs& legs, double* across, int64_t first, int64_t last, void* scratch) {
  Row* rows = static_cast<Row*>(scratch);
  Doubles loss{};
  for (int64_t i = first; i < last; i += kPack) {
    const int64_t lanes = i + kPack < last ? kPack : last - i;
    pack(pairs, i, lanes, rows);
    loss += across == nullptr ? visit_pack<false>(pairs, rows, across, i == first)
                              : visit_pack<true>(pairs, rows, across, i == first);
    if (across != nullptr) unpack(rows, pairs, i, lanes, legs);
  }
  return sum_of(loss);
}

// A row of one side's distances.
constexpr double kRootOfTwo = 1.41421356237309504880;

struct Distances {
  const double *squared, *inverse;

  AMKD_INLINE Distances(const Side& side, int64_t stride, int64_t row)
      : squared(side.squared + row * stride), inverse(side.inverse + row * stride) {}
  AMKD_INLINE double at(int64_t k) const { return squared[k] * (kRootOfTwo * inverse[k]); }
};

double straight(const Pairs& pairs, int64_t row) {
  const Distances own(pairs.student, pairs.stride, row), other(pairs.teacher, pairs.stride, row);
  double loss = 0.0;
  for (int64_t j = 0; j < pairs.count; ++j) {
    const bool differ = (own.inverse[j] != 0.0) != (other.inverse[j] != 0.0);
    loss += (differ ? 0.5 : 0.0) + (own.squared[j] - own.squared[j]) + (other.squared[j] - other.squared[j]);
  }
  return loss;
}

// ---- distances over their mean ------------------------------------------------------------------------------------

AMKD_INLINE double slope_of(double error) { return error > 1.0 ? 1.0 : (error < -1.0 ? -1.0 : error); }

AMKD_INLINE Doubles distances_at(const Distances& own, int64_t k) {
  return load_doubles(own.squared + k) * (kRootOfTwo * load_doubles(own.inverse + k));
}

// The rows are filled up with zeros, which are no distances.
DistanceSums sum(const Side& side, int64_t count, int64_t stride, int64_t row) {
  const Distances own(side, stride, row);
  Doubles total{}, apart{};
  for (int64_t k = 0; k < count; k += kDoubles) {
    total += distances_at(own, k);
    apart += load_doubles(own.inverse + k) != 0.0 ? Doubles{} + 1.0 : Doubles{};
  }
  return {sum_of(total), sum_of(apart)};
}

void compare(const Pairs& pairs, const Relative& relative, int64_t row, double* loss, double* product) {
  const Distances own(pairs.student, pairs.stride, row), other(pairs.teacher, pairs.stride, row);
  Doubles losses{}, products{};
  for (int64_t k = 0; k < pairs.count; k += kDoubles) {
    const Doubles distance = distances_at(own, k);
    const Doubles error = distance * relative.student_factor - distances_at(other, k) * relative.teacher_factor;
    const Doubles slope = clamped(error);
    losses += slope * (error - 0.5 * slope);
    products += slope * distance;
  }
  *loss = sum_of(losses);
  *product = sum_of(products);
}

// ---- the gradient -------------------------------------------------------------------------------------------------

void weigh(const Pairs& pairs, const Legs& legs, const double* across, int64_t parts, double angle_factor,
           const Relative& relative, double distance_factor, int64_t row, double* weights) {
  const int64_t stride = pairs.stride;
  const Distances own(pairs.student, stride, row), other(pairs.teacher, stride, row);
  weights[row * stride + row] = 0.0;
  for (int64_t k = row + 1; k < pairs.count; ++k) {
    const double inverse = own.inverse[k];
    double weight = 0.0;
    if (across != nullptr) {
      double opposite = 0.0;
      for (int64_t part = 0; part < parts; ++part) opposite += across[(part * pairs.count + row) * stride + k];
      const double stretch = legs.stretch[row * stride + k] + legs.stretch[k * stride + row];
      const double turn = legs.turn[row * stride + k] + legs.turn[k * stride + row];
      weight += angle_factor * (opposite - stretch + inverse * inverse * turn);
    }
    if (distance_factor != 0.0) {
      const double error = own.at(k) * relative.student_factor - other.at(k) * relative.teacher_factor;
      const double slope = slope_of(error) * relative.student_factor - relative.through_mean;
      weight -= distance_factor * slope * (kRootOfTwo * inverse);
    }
    weights[row * stride + k] = weights[k * stride + row] = weight;
  }
}

// kRows rows of the gradient, kVectors of their columns from `column` on.
template <int kRows, int kVectors>
AMKD_INLINE void gather_some(const Side& side, int64_t count, int64_t stride, const double* weights, int64_t row,
                             int64_t column, double* grad) {
  const auto at = [&](int64_t b, int v) { return load_doubles(side.rows + b * side.width + column + v * kDoubles); };
  Doubles own[kRows][kVectors], sums[kRows][kVectors] = {};
  for (int a = 0; a < kRows; ++a) {
    for (int v = 0; v < kVectors; ++v) own[a][v] = at(row + a, v);
  }
  for (int64_t b = 0; b < count; ++b) {
    for (int v = 0; v < kVectors; ++v) {
      const Doubles x = at(b, v);
      for (int a = 0; a < kRows; ++a) sums[a][v] += weights[(row + a) * stride + b] * (x - own[a][v]);
    }
  }
  for (int a = 0; a < kRows; ++a) {
    for (int v = 0; v < kVectors; ++v) store_doubles(grad + (row + a) * side.width + column + v * kDoubles, sums[a][v]);
  }
}

template <int kRows>
AMKD_INLINE void gather_rows(const Side& side, int64_t count, int64_t stride, const double* weights, int64_t row,
                             double* grad) {
  constexpr int kVectors = 2;
  int64_t column = 0;
  for (; column + kVectors * kDoubles <= side.width; column += kVectors * kDoubles) {
    gather_some<kRows, kVectors>(side, count, stride, weights, row, column, grad);
  }
  for (; column < side.width; column += kDoubles) {
    gather_some<kRows, 1>(side, count, stride, weights, row, column, grad);
  }
}

void gather(const Side& side, int64_t count, int64_t stride, const double* weights, int64_t first, int64_t last,
            double* grad) {
  constexpr int kRows = 3;
  int64_t row = first;
  for (; row + kRows <= last; row += kRows) gather_rows<kRows>(side, count, stride, weights, row, grad);
  for (; row < last; ++row) gather_rows<1>(side, count, stride, weights, row, grad);
}

}  // namespace

extern const Kernels kernels = {
    {read<float>, read<double>, read<Half>, read<BFloat16>}, distances, angles, straight, sum, compare, weigh, gather};

}  // namespace amkd::relations::AMKD_SIMD
