// Distances among rows of fp32, over their mean, on a CPU. amkd_fast/ops/relations/reference.py has the mathematics.
//
// Distances are those of the rows' differences, which lose no digits of close pairs; a chip that multiplies and adds in
// one unit and subtracts in another computes them as fast as products. The lanes of a vector are pairs of rows, so that
// nothing has to be summed across lanes, and only what is right of the diagonal is computed and kept.
#include "../common/doubles.h"
#include "distances_cpu.h"

namespace amkd::relations::AMKD_SIMD {
namespace {

using namespace amkd::AMKD_SIMD;

template <class T>
void read(const void* from, int64_t count, float* to) {
  const T* p = static_cast<const T*>(from);
  int64_t d = 0;
  for (; d + kLanes <= count; d += kLanes) store(to + d, load(p + d));
  if (d < count) store_some(to + d, count - d, load_some(p + d, count - d, T{}));
}

void pack(const Points& points, int64_t block) {
  const int64_t size = kBlock * packed_width(points.width), first = block * kBlock;
  float* to = points.packed + block * size;
  const int64_t some = points.count - first < kBlock ? points.count - first : kBlock;
  if (some < kBlock) std::memset(to, 0, size * sizeof(float));
  std::memset(to + kBlock * points.width, 0, (size - kBlock * points.width) * sizeof(float));
  constexpr int64_t kRun = 16;  // columns that share a row's cache line
  for (int64_t d = 0; d < points.width; d += kRun) {
    const int64_t end = d + kRun < points.width ? d + kRun : points.width;
    for (int64_t i = 0; i < some; ++i) {
      const float* row = points.rows + (first + i) * points.width;
      for (int64_t column = d; column < end; ++column) to[column * kBlock + i] = row[column];
    }
  }
}

// ---- distances ----------------------------------------------------------------------------------------------------

// A tile of kTall rows and kWide vectors of others: as many sums as registers hold.
constexpr int kTall = kBytes == 64 ? 8 : 4, kWide = 2, kOthers = kWide * kLanes;
static_assert(kTileRows % kTall == 0 && kBlock % kOthers == 0);

// The squared distances of a tile, in fp64: the sum of a few columns at a time is in fp32.
struct Tile {
  double at[kTall][kOthers];
};

AMKD_INLINE void add(double* to, Floats sums) {
  store_doubles(to, load_doubles(to) + widened(half_of<0>(sums)));
  store_doubles(to + kDoubles, load_doubles(to + kDoubles) + widened(half_of<1>(sums)));
}

// Columns whose squares are added up in fp32: as each addition rounds, few, and a quarter of a row at most.
int64_t run_of(int64_t width) {
  const int64_t quarter = width / 4 / kGroup * kGroup;
  return quarter < kGroup ? kGroup : (quarter < 32 ? quarter : 32);
}

AMKD_INLINE void measure_tile(const float* own, const float* others, int64_t width, int64_t run, Tile& squared) {
  std::memset(&squared, 0, sizeof(squared));
  for (int64_t d = 0; d < width; d += run) {
    const int64_t end = d + run < width ? d + run : width;
    Floats sums[kWide * kTall] = {};
    for (int64_t column = d; column < end; column += kGroup) {
      const float *x = own + column * kBlock, *y = others + column * kBlock;
      for (int v = 0; v < kWide; ++v) {
        Floats lanes[kGroup];
        for (int c = 0; c < kGroup; ++c) lanes[c] = load(y + c * kBlock + v * kLanes);
        for (int a = 0; a < kTall; ++a) {
          Floats square{};
          for (int c = 0; c < kGroup; ++c) {
            const Floats difference = lanes[c] - x[c * kBlock + a];
            square = c == 0 ? difference * difference : square + difference * difference;
          }
          sums[v * kTall + a] += square;
        }
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWide * kTall; ++i) add(squared.at[i % kTall] + i / kTall * kLanes, sums[i]);
  }
}

// Between these the squares of fp32 neither overflow nor lose digits.
constexpr double kLeast = 1e-30, kGreatest = 1e30;

bool in_range(const Tile& squared) {
  Longs fine = ~Longs{};
  for (int i = 0; i < kTall * kOthers; i += kDoubles) {
    const Doubles square = load_doubles(squared.at[0] + i);
    fine &= (square >= kLeast) & (square <= kGreatest);
  }
  int64_t all = -1;
  for (int lane = 0; lane < kDoubles; ++lane) all &= fine[lane];
  return all != 0;
}

bool coincide(const Points& points, int64_t j, int64_t k) {
  const float *a = points.rows + j * points.width, *b = points.rows + k * points.width;
  bool same = true;
  for (int64_t d = 0; d < points.width; ++d) same &= a[d] == b[d];
  return same;
}

// Whether every pair right of the diagonal is in the range, or of rows that are the same.
bool served(const Points& points, const Tile& squared, int64_t j, int64_t k) {
  if (in_range(squared)) return true;
  for (int a = 0; a < kTall; ++a) {
    for (int lane = 0; lane < kOthers; ++lane) {
      const int64_t row = j + a, other = k + lane;
      if (row >= other || other >= points.count) continue;
      const double square = squared.at[a][lane];
      if (!(square >= kLeast && square <= kGreatest) && !coincide(points, row, other)) return false;
    }
  }
  return true;
}

DistanceSums sum(const double* distances, int64_t first, int64_t last) {
  Doubles total{};
  Longs apart{};
  for (int64_t k = first; k < last; k += kDoubles) {
    const Doubles distance = load_doubles(distances + k);
    total += distance;
    apart -= distance != 0.0;
  }
  int64_t number = 0;
  for (int lane = 0; lane < kDoubles; ++lane) number += apart[lane];
  return {sum_of(total), static_cast<double>(number)};
}

AMKD_INLINE const float* packed_at(const Points& points, int64_t row) {
  return points.packed + row / kBlock * kBlock * packed_width(points.width) + row % kBlock;
}

bool measure(const Points& points, int64_t first, int64_t last, DistanceSums* sums) {
  const int64_t run = run_of(points.width);
  bool all = true;
  for (int64_t j = first; j < last; j += kTall) {
    const float* own = packed_at(points, j);
    const int64_t some = last - j < kTall ? last - j : kTall;
    for (int64_t k = j / kOthers * kOthers; k < points.count; k += kOthers) {
      Tile squared;
      measure_tile(own, packed_at(points, k), points.width, run, squared);
      all &= served(points, squared, j, k);
      for (int a = 0; a < some; ++a) {
        double* to = points.distances + (j + a) * points.stride + k;
        for (int i = 0; i < kOthers; i += kDoubles) store_doubles(to + i, root_of(load_doubles(squared.at[a] + i)));
      }
    }
    for (int64_t row = j; row < j + some; ++row) {
      double* own_distances = points.distances + row * points.stride;
      for (int64_t k = points.count; k < points.stride; ++k) own_distances[k] = 0.0;
      sums[row] = sum(own_distances, row + 1, points.count);
    }
  }
  return all;
}

// ---- distances over their mean ------------------------------------------------------------------------------------

AMKD_INLINE Doubles error_of(Doubles distance, Doubles teacher_distance, const Relative& relative) {
  return distance * relative.student_factor - teacher_distance * relative.teacher_factor;
}

void compare(const Points& student, const Points& teacher, const Relative& relative, int64_t row, double* loss,
             double* product) {
  const double *own = student.distances + row * student.stride, *other = teacher.distances + row * teacher.stride;
  Doubles losses{}, products{};
  for (int64_t k = row + 1; k < student.count; k += kDoubles) {
    const Doubles distance = load_doubles(own + k);
    const Doubles error = error_of(distance, load_doubles(other + k), relative), slope = clamped(error);
    losses += slope * (error - 0.5 * slope);
    products += slope * distance;
  }
  *loss = sum_of(losses);
  *product = sum_of(products);
}

// ---- the gradient -------------------------------------------------------------------------------------------------

void weigh(const Points& student, const Points& teacher, const Relative& relative, double factor, int64_t row,
           float* weights) {
  const int64_t stride = student.stride;
  const double *own = student.distances + row * stride, *other = teacher.distances + row * stride;
  weights[row * stride + row] = 0.0f;
  for (int64_t k = row + 1; k < student.count; k += kDoubles) {
    const Doubles distance = load_doubles(own + k);
    const Doubles slope = clamped(error_of(distance, load_doubles(other + k), relative));
    const Doubles along = -factor * (slope * relative.student_factor - relative.through_mean);
    float* right = weights + row * stride + k;
    store_doubles(right, distance != 0.0 ? along / distance : Doubles{});
    const int64_t some = student.count - k < kDoubles ? student.count - k : kDoubles;
    for (int64_t i = 0; i < some; ++i) weights[(k + i) * stride + row] = right[i];
  }
}

// kRows rows of the gradient, kVectors of their columns from `column` on, of the last vector `some`.
template <int kRows, int kVectors>
AMKD_INLINE void gather_some(const Points& points, const float* weights, int64_t row, int64_t column, int64_t some,
                             float* grad) {
  const auto at = [&](int64_t b, int v) {
    const float* p = points.rows + b * points.width + column + v * kLanes;
    return some == kLanes ? load(p) : load_some(p, some, 0.0f);
  };
  Floats own[kRows][kVectors], sums[kRows][kVectors] = {};
  for (int a = 0; a < kRows; ++a) {
    for (int v = 0; v < kVectors; ++v) own[a][v] = at(row + a, v);
  }
  for (int64_t b = 0; b < points.count; ++b) {
    for (int v = 0; v < kVectors; ++v) {
      const Floats x = at(b, v);
      for (int a = 0; a < kRows; ++a) sums[a][v] += weights[(row + a) * points.stride + b] * (x - own[a][v]);
    }
  }
  for (int a = 0; a < kRows; ++a) {
    for (int v = 0; v < kVectors; ++v) {
      float* to = grad + (row + a) * points.width + column + v * kLanes;
      some == kLanes ? store(to, sums[a][v]) : store_some(to, some, sums[a][v]);
    }
  }
}

template <int kRows>
AMKD_INLINE void gather_rows(const Points& points, const float* weights, int64_t row, float* grad) {
  constexpr int kVectors = 2;
  int64_t column = 0;
  for (; column + kVectors * kLanes <= points.width; column += kVectors * kLanes) {
    gather_some<kRows, kVectors>(points, weights, row, column, kLanes, grad);
  }
  for (; column < points.width; column += kLanes) {
    const int64_t rest = points.width - column;
    gather_some<kRows, 1>(points, weights, row, column, rest < kLanes ? rest : kLanes, grad);
  }
}

void gather(const Points& points, const float* weights, int64_t first, int64_t last, float* grad) {
  constexpr int kRows = kBytes == 64 ? 6 : 3;
  static_assert(kGatherRows % kRows == 0);
  int64_t row = first;
  for (; row + kRows <= last; row += kRows) gather_rows<kRows>(points, weights, row, grad);
  for (; row < last; ++row) gather_rows<1>(points, weights, row, grad);
}

}  // namespace

extern const DistanceKernels distance_kernels = {
    {read<float>, nullptr, read<Half>, read<BFloat16>}, pack, measure, compare, weigh, gather};

}  // namespace amkd::relations::AMKD_SIMD
