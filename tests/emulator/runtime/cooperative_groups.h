// Programming guide, "Cooperative Groups": the groups that need a launch of their own.
#pragma once

#include "cuda_runtime.h"

#define _CG_HAS_CLUSTER_GROUP 1

namespace cooperative_groups {
struct cluster_group {
  void sync(::emulator::Place place = ::emulator::Place::current()) const { ::emulator::meet_cluster(place); }
  template <class T>
  T* map_shared_rank(T* at, int rank) const {
    return static_cast<T*>(::emulator::shared_of_rank(at, static_cast<unsigned>(rank)));
  }
};
struct grid_group {
  void sync(::emulator::Place place = ::emulator::Place::current()) const { ::emulator::meet_grid(place); }
};
inline cluster_group this_cluster() { return {}; }
inline grid_group this_grid() { return {}; }
}  // namespace cooperative_groups
