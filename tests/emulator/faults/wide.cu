// Clusters and cooperative grids.
#include <cooperative_groups.h>

#include <vector>

#include "cases.h"

namespace cg = cooperative_groups;

namespace {

constexpr int kThreads = 64, kRanks = 4;

enum class Fault { kNone, kUnstarted, kUnsynced, kNoRank };

// Every block writes its number into the shared memory of all.
template <Fault kFault>
__global__ void tell_all(int* out) {
  __shared__ int from[kRanks];
  const cg::cluster_group cluster = cg::this_cluster();
  if (kFault != Fault::kUnstarted) cluster.sync();
  const int ranks = kRanks + (kFault == Fault::kNoRank), rank = blockIdx.x % kRanks, to = threadIdx.x;
  if (to < ranks) *cluster.map_shared_rank(&from[rank], to) = blockIdx.x;
  if (kFault == Fault::kUnsynced) {
    __syncthreads();
  } else {
    cluster.sync();
  }
  if (to == 0) {
    for (int i = 0; i < kRanks; ++i) out[blockIdx.x * kRanks + i] = from[i];
  }
}
template <Fault kFault>
uint64_t run_tell_all() {
  constexpr int kBlocks = 2 * kRanks;
  std::vector<int> out(kBlocks * kRanks);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = kRanks;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kBlocks);
  config.blockDim = dim3(kThreads);
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, tell_all<kFault>, out.data()));
  return sum_of(out.data(), kBlocks * kRanks);
}

// Every block adds up what all blocks have written.
struct Call {
  int* parts;
  int* out;
};
template <bool kGrid>
__global__ void add_parts(const Call call) {
  if (threadIdx.x == 0) call.parts[blockIdx.x] = blockIdx.x + 1;
  if (kGrid) {
    cg::this_grid().sync();
  } else {
    __syncthreads();
  }
  int sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += call.parts[i];
  if (threadIdx.x == 0) call.out[blockIdx.x] = sum;
}
template <bool kGrid, int kBlocks>
uint64_t run_add_parts() {
  std::vector<int> parts(kBlocks), out(kBlocks);
  Call call{parts.data(), out.data()};
  void* arguments[] = {&call};
  check(cudaLaunchCooperativeKernel(add_parts<kGrid>, dim3(kBlocks), dim3(kThreads), arguments, 0, nullptr));
  return sum_of(out.data(), kBlocks);
}
uint64_t run_not_cooperative() {
  int parts[2], out[2];
  add_parts<true><<<2, kThreads>>>(Call{parts, out});
  return 0;
}

}  // namespace

const Case kWideCases[] = {
    {"cluster", run_tell_all<Fault::kNone>},
    {"cluster_not_started", run_tell_all<Fault::kUnstarted>},
    {"cluster_not_met", run_tell_all<Fault::kUnsynced>},
    {"cluster_without_rank", run_tell_all<Fault::kNoRank>},
    {"grid", run_add_parts<true, 8>},
    {"grid_not_met", run_add_parts<false, 8>},
    {"grid_too_large", run_add_parts<true, 1000>},
    {"grid_not_cooperative", run_not_cooperative},
    {},
};
