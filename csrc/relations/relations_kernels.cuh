// Distances and angles among rows on a GPU, all in fp64. pairs_cpu_kernels.cpp has the mathematics.
//
// A block takes a tile of pairs (a, b), a thread a pair. With all third rows c it takes the three angles of each
// triangle, three times the least work, but so a pair's weight in the gradient is one thread's alone: nothing is added
// by two of them, and the bits are the same on every run.
#pragma once

#include "../common/element.cuh"
#include "../common/reduce.cuh"

namespace amkd::relations::gpu {

constexpr int kTile = 16;  // rows of either side of a tile
constexpr int kThreads = kTile * kTile;
constexpr double kCoincide = 1e-300;  // squared distances below it are taken for 0
constexpr double kRootOfTwo = 1.41421356237309504880;

// Matrices [count, count] of one side, symmetric.
struct Side {
  double *squared, *inverse;  // inverse: 1 / √(2 squared), 0 where rows coincide
};

// What one block adds to a loss, and to a second sum.
struct Part {
  double first, second;
};

// Of the distances' loss: what distances are multiplied by, and what goes through the student's mean.
struct Relative {
  double student_factor, teacher_factor, through_mean;
};

__device__ inline double slope_of(double error) { return error > 1.0 ? 1.0 : (error < -1.0 ? -1.0 : error); }

// Sums over the block, for its first thread. All threads call it together.
__device__ inline Part sum_block(Part part) {
  __shared__ double scratch[2][kWarp];
  double values[2] = {part.first, part.second};
  reduce_team<2>(Team{kThreads}, values, 0.0, scratch, Plus());
  __syncthreads();  // the scratch may be used again
  return {values[0], values[1]};
}

// Sums of parts [count], in the same order in every block. All threads of the block get them.
__device__ inline Part sum_parts(const Part* parts, int count) {
  Part own{0.0, 0.0};
  for (int i = threadIdx.x; i < count; i += kThreads) {
    own.first += parts[i].first;
    own.second += parts[i].second;
  }
  return sum_block(own);
}

__device__ inline double factor_of(const Part& sums) { return sums.second > 0.0 ? sums.second / sums.first : 1.0; }

// sums: of the distances, and the number of those that are not 0.
template <class Scalar>
__global__ void __launch_bounds__(kThreads)
    pairs_kernel(const Scalar* rows, int count, int width, int64_t stride, Side side, Part* sums) {
  __shared__ double left[kTile][kTile + 1], right[kTile][kTile + 1];
  const int x = threadIdx.x % kTile, y = threadIdx.x / kTile;
  const int a = blockIdx.y * kTile + y, b = blockIdx.x * kTile + x;
  const int other = blockIdx.x * kTile + y;  // the row that this thread loads for `right`
  double squared = 0.0;
  for (int first = 0; first < width; first += kTile) {
    const int d = first + x;
    left[y][x] = a < count && d < width ? static_cast<double>(widen(rows[a * stride + d])) : 0.0;
    right[y][x] = other < count && d < width ? static_cast<double>(widen(rows[other * stride + d])) : 0.0;
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kTile; ++k) {
      const double difference = left[y][k] - right[x][k];
      squared += difference * difference;
    }
    __syncthreads();
  }
  const double root = sqrt(0.5 / squared);
  const bool coincide = squared < kCoincide;  // a NaN does not
  const double inverse = coincide ? 0.0 : root;
  squared = coincide ? 0.0 : squared;
  const bool there = a < count && b < count;
  if (there) {
    side.squared[int64_t{a} * count + b] = squared;
    side.inverse[int64_t{a} * count + b] = inverse;
  }
  const Part own{there ? squared * (kRootOfTwo * inverse) : 0.0, there && inverse != 0.0 ? 1.0 : 0.0};
  const Part part = sum_block(own);
  if (threadIdx.x == 0) sums[blockIdx.y * gridDim.x + blockIdx.x] = part;
}

// The cosine's error and slope at the corner whose sides are r and s long (as inverses) and opposite which lies d.
struct Corner {
  double cosine, error, slope;

  __device__ Corner(double product, double scale, double teacher_product, double teacher_scale)
      : cosine(product * scale), error(cosine - teacher_product * teacher_scale), slope(slope_of(error)) {}
};

// weights [count, count], for a gradient. Blocks below the diagonal have nothing to do.
template <bool kGradient>
__global__ void __launch_bounds__(kThreads)
    angles_kernel(Side student, Side teacher, int count, double factor, double* weights, Part* losses) {
  // Rows a and b of both sides in the columns c: squared and inverse.
  __shared__ double of_a[4][kTile][kTile + 1], of_b[4][kTile][kTile + 1];
  const int x = threadIdx.x % kTile, y = threadIdx.x / kTile;
  const int a = blockIdx.y * kTile + y, b = blockIdx.x * kTile + x, other = blockIdx.x * kTile + y;
  Part part{0.0, 0.0};
  if (blockIdx.y <= blockIdx.x) {
    const bool there = a < count && b < count;
    const int64_t pair = int64_t{a} * count + b;
    const double d_ab = there ? student.squared[pair] : 0.0, r_ab = there ? student.inverse[pair] : 0.0;
    const double e_ab = there ? teacher.squared[pair] : 0.0, s_ab = there ? teacher.inverse[pair] : 0.0;
    const double* matrices[4] = {student.squared, student.inverse, teacher.squared, teacher.inverse};
    double loss = 0.0, weight = 0.0;
    for (int first = 0; first < count; first += kTile) {
      const int c = first + x;
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        of_a[m][y][x] = a < count && c < count ? matrices[m][int64_t{a} * count + c] : 0.0;
        of_b[m][y][x] = other < count && c < count ? matrices[m][int64_t{other} * count + c] : 0.0;
      }
      __syncthreads();
      const int last = min(kTile, count - first);
      for (int k = 0; k < last; ++k) {
        const double d_ac = of_a[0][y][k], r_ac = of_a[1][y][k], e_ac = of_a[2][y][k], s_ac = of_a[3][y][k];
        const double d_bc = of_b[0][x][k], r_bc = of_b[1][x][k], e_bc = of_b[2][x][k], s_bc = of_b[3][x][k];
        const Corner at_c((d_ac - d_ab) + d_bc, r_ac * r_bc, (e_ac - e_ab) + e_bc, s_ac * s_bc);
        loss += at_c.slope * (at_c.error - 0.5 * at_c.slope);
        if constexpr (kGradient) {
          const Corner at_a((d_ab - d_bc) + d_ac, r_ab * r_ac, (e_ab - e_bc) + e_ac, s_ab * s_ac);
          const Corner at_b((d_ab - d_ac) + d_bc, r_ab * r_bc, (e_ab - e_ac) + e_bc, s_ab * s_bc);
          weight += at_c.slope * (r_ac * r_bc);
          weight -= at_a.slope * (r_ab * (r_ac - r_ab * at_a.cosine));
          weight -= at_b.slope * (r_ab * (r_bc - r_ab * at_b.cosine));
        }
      }
      __syncthreads();
    }
    // The angle between a row and itself: a cosine of 1, or 0 where rows coincide. Of a distance that is no number,
    // NaN.
    const double straight = (r_ab != 0.0) != (s_ab != 0.0) ? 1.0 : 0.0, nan = (d_ab - d_ab) + (e_ab - e_ab);
    if (there && a < b) part.first = factor * (2.0 * loss + straight + nan);
    if (there && a == b) part.first = nan;
    if constexpr (kGradient) {
      weight = a == b ? 0.0 : 4.0 * factor * weight;
      if (there) weights[pair] = weight;
      if (there && blockIdx.y < blockIdx.x) weights[int64_t{b} * count + a] = weight;
    }
  }
  part = sum_block(part);
  if (threadIdx.x == 0) losses[blockIdx.y * gridDim.x + blockIdx.x] = part;
}

// A tile's loss of the distances, and its sum of slope · distance.
__global__ void __launch_bounds__(kThreads)
    distances_kernel(Side student, Side teacher, int count, double factor, const Part* student_sums,
                     const Part* teacher_sums, Part* losses) {
  const int a = blockIdx.y * kTile + threadIdx.x / kTile, b = blockIdx.x * kTile + threadIdx.x % kTile;
  const int parts = gridDim.x * gridDim.y;
  __shared__ double factors[2];
  const Part own_sums = sum_parts(student_sums, parts), other_sums = sum_parts(teacher_sums, parts);
  if (threadIdx.x == 0) {
    factors[0] = factor_of(own_sums);
    factors[1] = factor_of(other_sums);
  }
  __syncthreads();
  Part part{0.0, 0.0};
  if (a < count && b < count) {
    const int64_t pair = int64_t{a} * count + b;
    const double own = student.squared[pair] * (kRootOfTwo * student.inverse[pair]);
    const double other = teacher.squared[pair] * (kRootOfTwo * teacher.inverse[pair]);
    const double error = own * factors[0] - other * factors[1], slope = slope_of(error);
    part = {factor * (slope * (error - 0.5 * slope)), slope * own};
  }
  part = sum_block(part);
  if (threadIdx.x == 0) losses[blockIdx.y * gridDim.x + blockIdx.x] = part;
}

// One block. A part of the loss that is not asked for is null.
template <class Stat>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const Part* student_sums, const Part* teacher_sums, const Part* angle_losses,
                  const Part* distance_losses, int parts, Stat* loss, Relative* relative) {
  double total = 0.0;
  if (angle_losses != nullptr) total += sum_parts(angle_losses, parts).first;
  if (distance_losses != nullptr) {
    const Part terms = sum_parts(distance_losses, parts);
    const Part own = sum_parts(student_sums, parts), other = sum_parts(teacher_sums, parts);
    total += terms.first;
    if (threadIdx.x == 0) {
      const double factor = factor_of(own);
      const double through = own.second > 0.0 ? terms.second * factor * factor / own.second : 0.0;
      *relative = {factor, factor_of(other), through};
    }
  }
  if (threadIdx.x == 0) *loss = static_cast<Stat>(total);
}

// Row a, column d of Σ_b weight_ab (x_b - x_a): a block kTile rows and as many columns. weights: null without angles;
// relative: null without distances.
template <class Scalar>
__global__ void __launch_bounds__(kThreads)
    gradient_kernel(const Scalar* rows, int count, int width, int64_t stride, Side student, Side teacher,
                    const double* weights, const Relative* relative, double factor, StatOf<Scalar>* grad) {
  __shared__ double tile[kTile][kTile + 1], others[kTile][kTile + 1];
  const int x = threadIdx.x % kTile, y = threadIdx.x / kTile;
  const int a = blockIdx.y * kTile + y, d = blockIdx.x * kTile + x;
  const bool there = a < count && d < width;
  const double own = there ? static_cast<double>(widen(rows[a * stride + d])) : 0.0;
  double total = 0.0;
  for (int first = 0; first < count; first += kTile) {
    const int column = first + x, row = first + y;
    double weight = 0.0;
    if (a < count && column < count) {
      const int64_t pair = int64_t{a} * count + column;
      if (weights != nullptr) weight += weights[pair];
      if (relative != nullptr) {
        const double inverse = kRootOfTwo * student.inverse[pair];
        const double other = teacher.squared[pair] * (kRootOfTwo * teacher.inverse[pair]);
        const double error =
            student.squared[pair] * inverse * relative->student_factor - other * relative->teacher_factor;
        const double slope = slope_of(error) * relative->student_factor - relative->through_mean;
        weight -= 2.0 * factor * slope * inverse;
      }
    }
    tile[y][x] = weight;
    others[y][x] = row < count && d < width ? static_cast<double>(widen(rows[row * stride + d])) : 0.0;
    __syncthreads();
    const int last = min(kTile, count - first);
    for (int k = 0; k < last; ++k) total += tile[y][k] * (others[k][x] - own);
    __syncthreads();
  }
  if (there) grad[int64_t{a} * width + d] = static_cast<StatOf<Scalar>>(total);
}

}  // namespace amkd::relations::gpu
