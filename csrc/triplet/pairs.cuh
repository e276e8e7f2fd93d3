// What the triplet kernels share: rows, labels, who is a candidate for whom, exact distances, orders.
#pragma once

#include <cfloat>

#include "../common/element.cuh"
#include "../common/reduce.cuh"
#include "triplet.h"
#include "triplet_plan.h"

namespace amkd::triplet::gpu {

constexpr int kMostExcluded = 2;

// Rows with unit column stride.
template <class Scalar>
struct Matrix {
  const Scalar* data;
  int64_t stride;  // of a row
  bool aligned;    // every row starts at a multiple of 16 bytes

  __device__ const Scalar* row(int64_t i) const { return data + i * stride; }
};

struct Labels {
  const void* data;
  bool is_int64;  // else int32

  __device__ int64_t at(int64_t i) const {
    return is_int64 ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
};

// One anchor's view of the reference rows.
struct Viewer {
  int64_t label;
  int64_t excluded[kMostExcluded];
  int64_t self;  // its own place among the reference rows, or -1
  bool labelled;

  __device__ bool is_positive(int64_t j, int64_t label_j) const { return labelled && j != self && label_j == label; }
  __device__ bool is_negative(int64_t j, int64_t label_j) const {
    return j != self && !(labelled && (label_j == label || label_j == excluded[0] || label_j == excluded[1]));
  }
};

// labels [N], reference_labels [P] and exclude_labels [N, excluded]; labels.data null: no two rows share one.
struct Candidates {
  Labels labels, reference_labels, exclude_labels;
  int excluded;
  int64_t self_offset;  // -1: the anchors are not among the reference rows

  __device__ int64_t reference_label(int64_t j) const { return labels.data == nullptr ? 0 : reference_labels.at(j); }
  __device__ Viewer viewer(int64_t i) const {
    Viewer v;
    v.labelled = labels.data != nullptr;
    v.label = v.labelled ? labels.at(i) : 0;
#pragma unroll
    for (int e = 0; e < kMostExcluded; ++e) {
      v.excluded[e] = e < excluded ? exclude_labels.at(i * excluded + e) : v.label;
    }
    v.self = self_offset < 0 ? -1 : self_offset + i;
    return v;
  }
};

__device__ inline float largest_of(float) { return FLT_MAX; }
__device__ inline double largest_of(double) { return DBL_MAX; }
// Rows of at most this length have no direction: their sum of squares would be no normal number.
__device__ inline double short_length(float) { return 1.0842021724855044e-19; }
__device__ inline double short_length(double) { return 1.4916681462400413e-154; }

__device__ inline float root_of(float x) { return sqrtf(x); }
__device__ inline double root_of(double x) { return sqrt(x); }

template <class T>
__device__ bool is_nan(T x) {
  return x != x;
}

// Distances are held at the largest finite number: +inf means that there is no candidate. NaN stays.
template <class T>
__device__ T held(T d) {
  return d > largest_of(T()) ? largest_of(T()) : d;
}

// Keys of the two selections, in which NaN wins: distances are not negative, and held.
template <class T>
__device__ T near_key(T d) {
  return is_nan(d) ? T(-1) : held(d);
}
template <class T>
__device__ T far_key(T d) {
  return is_nan(d) ? static_cast<T>(INFINITY) : held(d);
}
template <class T>
__device__ bool nearer(T a, int at_a, T b, int at_b) {
  return a < b || (a == b && at_a < at_b);
}
template <class T>
__device__ bool farther(T a, int at_a, T b, int at_b) {
  return a > b || (a == b && at_a < at_b);
}

// body(x_k, y_k) for the lane's share of two rows.
template <class Scalar, class Body>
__device__ void each_pair(const Scalar* x, const Scalar* y, int width, bool aligned, int lane, int lanes, Body body) {
  constexpr int kWidth = Vector<Scalar>::kWidth;
  const int vectors = aligned ? width / kWidth : 0;
#pragma unroll 2
  for (int v = lane; v < vectors; v += lanes) {
    const Vector<Scalar> a = load_vector(x + v * kWidth), b = load_vector(y + v * kWidth);
#pragma unroll
    for (int e = 0; e < kWidth; ++e) body(widen(a.at[e]), widen(b.at[e]));
  }
  for (int i = vectors * kWidth + lane; i < width; i += lanes) body(widen(x[i]), widen(y[i]));
}

template <class T>
__device__ T sum_of_lanes(T value, int lanes) {
  T values[1] = {value};
  reduce_lanes(values, lanes, Plus());
  return values[0];
}

// 1 / |x|, or -1 where x is too short to have a direction. All lanes of the warp call it together.
template <class Scalar>
__device__ double scale_of(const Scalar* x, int width, bool aligned, int lane, int lanes) {
  double square = 0;
  each_pair(x, x, width, aligned, lane, lanes,
            [&](StatOf<Scalar> a, StatOf<Scalar>) { square += static_cast<double>(a) * static_cast<double>(a); });
  const double length = sqrt(sum_of_lanes(square, lanes));
  return length <= short_length(StatOf<Scalar>()) ? -1.0 : 1.0 / length;
}

// x, and NaN in place of an infinity: a row that is not finite has no distance.
template <class T>
__device__ T finite_or_nan(T x) {
  return x + x * 0;
}

// Σ (x - y)², for cosine of the unit vectors (then in fp64); NaN where a row is not finite. All lanes of the warp call
// it together; `width` may differ between the teams of a warp.
template <class Result, class Scalar>
__device__ Result square_between(const Scalar* x, const Scalar* y, int width, bool aligned, bool cosine, int lane,
                                 int lanes) {
  using Stat = StatOf<Scalar>;
  if (!cosine) {
    Stat square = 0, zero = 0;
    each_pair(x, y, width, aligned, lane, lanes, [&](Stat a, Stat b) {
      square += (a - b) * (a - b);
      zero += (a - b) * 0;
    });
    return static_cast<Result>(sum_of_lanes(square + zero, lanes));
  }
  const double x_scale = scale_of(x, width, aligned, lane, lanes), y_scale = scale_of(y, width, aligned, lane, lanes);
  double square = 0;
  each_pair(x, y, width, aligned, lane, lanes, [&](Stat a, Stat b) {
    const double step = static_cast<double>(a) * x_scale - static_cast<double>(b) * y_scale;
    square += step * step;
  });
  square = sum_of_lanes(square, lanes);
  return x_scale < 0 || y_scale < 0 ? Result(2) : static_cast<Result>(square);
}

template <class T>
__device__ T distance_from_square(T square, Distance distance) {
  return distance == Distance::kEuclidean ? root_of(square) : distance == Distance::kSquared ? square : square / 2;
}

// What a triplet costs, and the derivative of that; x = D_ap - D_an. A NaN stays one.
template <class T>
__device__ T cost_of(T x, T margin, bool soft_margin) {
  if (soft_margin) return x > T(50) ? x : static_cast<T>(log1p(exp(x)));
  return x + margin <= 0 ? T(0) : x + margin;
}
template <class T>
__device__ T slope_of(T x, T margin, bool soft_margin) {
  if (soft_margin) return T(1) / (T(1) + static_cast<T>(exp(-x)));
  return x + margin <= 0 ? T(0) : x * 0 + 1;
}

}  // namespace amkd::triplet::gpu
