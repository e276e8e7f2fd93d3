// CUDA's execution model on one thread of a CPU: every CUDA thread is a fiber, and runs until it has to wait for
// others. Blocks run one after the other; those of a cluster, or of a cooperative grid, run together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace emulator {

using Place = std::source_location;  // as a default argument: where the caller stands

constexpr unsigned kLanes = 32, kMostThreads = 1024, kMostWarps = kMostThreads / kLanes, kBarriers = 16;

struct Block;
struct Warp;

// What the lanes of a warp do together.
enum class Together { kNothing, kSync, kShuffle, kBallot, kAligned };

struct Thread {
  void* stack_pointer;
  uint3 index;
  unsigned rank;  // in its block
  unsigned lane;
  Warp* warp;
  Block* block;
  bool done;

  // What it waits for: the name is null while it runs.
  const char* waits_in;
  Place waits_at;
  Together together;
  unsigned mask, source;
  uint64_t value, result;

  // Of the race checker. `known[l]`: the step of lane l before which everything has happened before what comes here.
  uint32_t record;  // 0: the clocks have changed since the last one
  uint32_t step, known[kLanes];
  uint32_t proxy_fences;
};

struct Warp {
  unsigned alive, waiting;  // masks of lanes
  Thread* lanes[kLanes];
  uint32_t barriers, seen[kMostWarps];  // of the race checker: barriers passed, and what is known of the other warps
};

struct Barrier {
  unsigned count, expected, turn;
  int votes, results[2];
  Thread* waiting[kMostThreads];
};

struct Block {
  uint3 index;
  unsigned serial, cluster;  // its place in the launch, and its cluster's
  unsigned threads, alive;
  unsigned char* memory;  // its shared memory
  Barrier barriers[kBarriers];
  Warp warps[kMostWarps];
};

struct Launch {
  dim3 grid, block;
  size_t shared_bytes = 0;
  unsigned cluster = 1;
  bool cooperative = false;
};

// Plain globals: a launch holds a lock, and its fibers stay on one thread of the CPU.
extern Thread* self;  // null on the host
extern Launch current;

// Each waits until those who belong together are here. `threads` 0: all of the block that have not ended.
uint64_t meet_warp(Together what, const char* name, unsigned mask, uint64_t value, unsigned source, Place place);
int meet_block(unsigned barrier, unsigned threads, int vote, const char* name, Place place);
void meet_cluster(Place place);
void meet_grid(Place place);
// Lets another thread go on first, now and then, where a seed has been given.
void pause();

// Ends the launch: it throws on the host.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Runs a kernel to its end. Returns a cudaError_t where it cannot be launched; throws where it did what it must not.
int run(const Launch& launch, const void* kernel, const std::function<void()>& body);
void check_launch_bounds(unsigned most);
// What the device says of itself: of a part of one it may be that fewer blocks fit.
int multiprocessors();
unsigned blocks_together();

// Used by the engine's parts alone.
struct Counts {
  uint32_t cluster_syncs, grid_syncs;  // of those who run together
  unsigned blocks;
};
extern Counts together;
Block& block_at(unsigned place);  // of those who run together

}  // namespace emulator
