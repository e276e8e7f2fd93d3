// What the kernels of the losses over whole rows share on a GPU, besides kl_kernels.cuh: their last sum, and the loop
// that writes a row's gradient.
#pragma once

#include "kl_kernels.cuh"

namespace amkd::kl {

// Sums `kCount` numbers over the blocks of a forward kernel, sums[i * blocks + block], and hands them to `finish`.
template <int kCount, class Stat, class Finish>
__device__ void add_up_blocks(const Stat* sums, int blocks, Finish finish) {
  __shared__ Stat scratch[kCount][kWarp];
  Stat totals[kCount] = {};
  for (int block = threadIdx.x; block < blocks; block += blockDim.x) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) totals[i] += sums[static_cast<int64_t>(i) * blocks + block];
  }
  reduce_team(Team{static_cast<int>(blockDim.x)}, totals, Stat(0), scratch, Plus());
  if (threadIdx.x == 0) finish(totals);
}

// Writes gradient(student, teacher) into the split'th range of a row's vectors and of its edges.
template <class Scalar, class Gradient>
__device__ void write_gradient(const Scalar* student, const Scalar* teacher, Scalar* grad, int classes,
                               bool use_vectors, const Team& team, int split, int splits, const Gradient& gradient) {
  constexpr int kWidth = Vector<Scalar>::kWidth;
  const Columns<Scalar> columns(classes, use_vectors, student, teacher, grad);
  const int edges = (columns.edges + splits - 1) / splits;
  const int last_edge = min((split + 1) * edges, columns.edges);
  for (int i = split * edges + team.lane(); i < last_edge; i += team.lanes) {
    const int column = columns.of_edge(i);
    grad[column] = narrow<Scalar>(gradient(widen(student[column]), widen(teacher[column])));
  }
  const int vectors = (columns.vectors + splits - 1) / splits;
  const int last_vector = min((split + 1) * vectors, columns.vectors);
  for (int i = split * vectors + team.lane(); i < last_vector; i += team.lanes) {
    const int column = columns.of_vector(i);
    const Vector<Scalar> s = load_vector(student + column), t = load_vector(teacher + column);
    Vector<Scalar> out;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) out.at[k] = narrow<Scalar>(gradient(widen(s.at[k]), widen(t.at[k])));
    store_vector(grad + column, out);
  }
}

// σ of a logit, from the row's statistics; `exponent` has log2(e)/T in it.
template <class Stat>
struct Probability {
  Stat max, inverse_sum, exponent;
  __device__ Stat operator()(Stat logit) const {
    return rounded_product(exp2_of((logit - max) * exponent), inverse_sum);
  }
};

}  // namespace amkd::kl
