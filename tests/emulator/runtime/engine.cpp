#include "emulator/engine.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulator/fiber.h"
#include "emulator/ptx.h"
#include "emulator/race.h"
#include "emulator/shared.h"

namespace emulator {

Launch current;
Counts together;

namespace {

constexpr int kInvalidValue = 1, kInvalidConfiguration = 9, kCooperativeTooLarge = 720;  // of cudaError_t
constexpr unsigned kMostCluster = 8;                                                     // the portable size

int number_from(const char* name, int otherwise) {
  const char* const text = std::getenv(name);
  return text == nullptr || *text == 0 ? otherwise : std::atoi(text);
}

// 0: threads and blocks take their turns as they are numbered. Else whoever may go on is drawn, also the next block.
unsigned seed = 0;
std::minstd_rand dice;
void take_seed() {
  const auto wanted = static_cast<unsigned>(number_from("AMKD_EMULATE_SEED", 0));
  if (wanted != seed) dice.seed(wanted);
  seed = wanted;
}

std::vector<std::unique_ptr<Block>> blocks;
std::vector<Thread*> ready;
size_t ready_head = 0;
size_t alive = 0;
std::string failure;
const std::function<void()>* kernel_body = nullptr;

struct Wide {
  std::vector<Thread*> waiting;
};
Wide cluster_barrier, grid_barrier;

void wake(Thread* thread) {
  thread->waits_in = nullptr;
  thread->record = 0;
  if (thread != self) ready.push_back(thread);
}

Thread* next_ready() {
  if (ready_head == ready.size()) return nullptr;
  if (seed != 0) std::swap(ready[ready_head], ready[ready_head + dice() % (ready.size() - ready_head)]);
  Thread* const next = ready[ready_head++];
  if (ready_head > 4096) {
    ready.erase(ready.begin(), ready.begin() + static_cast<ptrdiff_t>(ready_head));
    ready_head = 0;
  }
  return next;
}

// Another thread goes on; the host where there is none.
void yield() {
  Thread* const next = next_ready();
  if (next != self) switch_to(next);
}

void wait(const char* name, Place place) {
  self->waits_in = name;
  self->waits_at = place;
  yield();
}

std::string text_of(Place place) { return std::string(place.file_name()) + ":" + std::to_string(place.line()); }

// Opens a barrier of the block for all who wait at it.
void open(Barrier& barrier) {
  barrier.results[barrier.turn & 1] = barrier.votes;
  race::meet_block(barrier.waiting, barrier.count);
  for (unsigned i = 0; i < barrier.count; ++i) wake(barrier.waiting[i]);
  barrier.count = 0;
  barrier.votes = 0;
  ++barrier.turn;
}

void open(Wide& barrier, uint32_t& syncs) {
  ++syncs;
  for (Thread* const thread : barrier.waiting) wake(thread);
  barrier.waiting.clear();
}

// Programming guide, "Warp Shuffle Functions" and "Synchronization Functions": those named in the mask who have not
// ended meet in the same operation with the same mask.
void finish_warp(Warp& warp, const Thread& last, unsigned needed) {
  uint64_t ballot = 0;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if ((needed >> lane & 1) != 0 && warp.lanes[lane]->value != 0) ballot |= uint64_t{1} << lane;
  }
  if (last.together == Together::kSync) race::meet_warp(warp, needed);
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if ((needed >> lane & 1) == 0) continue;
    Thread& thread = *warp.lanes[lane];
    if (last.together == Together::kBallot) thread.result = ballot;
    if (last.together == Together::kShuffle) {
      if ((needed >> thread.source & 1) == 0) {
        fail("%s at %s: lane %u reads lane %u, which takes no part", thread.waits_in, text_of(thread.waits_at).c_str(),
             lane, thread.source);
      }
      thread.result = warp.lanes[thread.source]->value;
    }
    if (last.together == Together::kAligned && thread.value != last.value) {
      fail("%s at %s: the lanes of a warp give different operands", thread.waits_in, text_of(thread.waits_at).c_str());
    }
  }
  warp.waiting &= ~needed;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if ((needed >> lane & 1) != 0) wake(warp.lanes[lane]);
  }
}

// Whether all whom a waiting lane waits for are here; then they go on.
bool try_finish_warp(Warp& warp, const Thread& last) {
  // PTX ISA, ".aligned": all threads of the warp, those who have ended are missed.
  const unsigned needed = last.together == Together::kAligned ? last.mask : last.mask & warp.alive;
  if ((warp.waiting & needed) != needed) return false;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if ((needed >> lane & 1) == 0) continue;
    const Thread& other = *warp.lanes[lane];
    if (other.together != last.together || other.mask != last.mask) return false;
  }
  finish_warp(warp, last, needed);
  return true;
}

// Those who wait for a thread that has ended go on without it.
void leave() {
  Warp& warp = *self->warp;
  warp.alive &= ~(1u << self->lane);
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if ((warp.waiting >> lane & 1) != 0) try_finish_warp(warp, *warp.lanes[lane]);
  }
  Block& block = *self->block;
  --block.alive;
  --alive;
  Barrier& barrier = block.barriers[0];
  if (barrier.count > 0 && barrier.expected == 0 && barrier.count == block.alive) open(barrier);
  if (!cluster_barrier.waiting.empty() && cluster_barrier.waiting.size() == alive) {
    open(cluster_barrier, together.cluster_syncs);
  }
}

void run_thread() {
  entered();
  (*kernel_body)();
  ptx::end_of_thread();
  self->done = true;
  leave();
  yield();
  std::abort();  // nobody switches to a thread that has ended
}

void set_up(unsigned place, unsigned serial) {
  const unsigned threads = current.block.x * current.block.y * current.block.z;
  Block& block = *blocks[place];
  const dim3& grid = current.grid;
  block.index = {serial % grid.x, serial / grid.x % grid.y, serial / grid.x / grid.y};
  block.serial = serial;
  block.cluster = serial / current.cluster;
  block.threads = block.alive = threads;
  block.memory = shared_arena(place);
  for (Barrier& barrier : block.barriers) barrier.count = barrier.expected = barrier.turn = 0, barrier.votes = 0;
  for (unsigned w = 0; w * kLanes < threads; ++w) block.warps[w] = Warp{};
  for (unsigned rank = 0; rank < threads; ++rank) {
    Thread& thread = thread_at(size_t{place} * threads + rank);
    thread = Thread{};
    const dim3& size = current.block;
    thread.index = {rank % size.x, rank / size.x % size.y, rank / size.x / size.y};
    thread.rank = rank;
    thread.lane = rank % kLanes;
    thread.block = &block;
    thread.warp = &block.warps[rank / kLanes];
    thread.warp->alive |= 1u << thread.lane;
    thread.warp->lanes[thread.lane] = &thread;
    prepare(thread, run_thread);
    ready.push_back(&thread);
  }
}

// Who waits where, when nobody can go on.
std::string deadlock() {
  std::map<std::string, std::pair<unsigned, std::string>> waits;
  for (unsigned b = 0; b < together.blocks; ++b) {
    for (unsigned rank = 0; rank < blocks[b]->threads; ++rank) {
      const Thread& thread = thread_at(size_t{b} * blocks[b]->threads + rank);
      if (thread.done || thread.waits_in == nullptr) continue;
      auto& [count, first] = waits[std::string(thread.waits_in) + " at " + text_of(thread.waits_at)];
      if (count++ == 0) {
        first = " (thread " + std::to_string(rank) + " of block " + std::to_string(blocks[b]->serial) + ")";
      }
    }
  }
  std::string text = "deadlock:";
  for (const auto& [where, who] : waits) {
    text += (text.back() == ':' ? " " : "; ") + std::to_string(who.first) + " wait in " + where + who.second;
  }
  return text;
}

void run_together(unsigned first, unsigned count) {
  ready.clear();
  ready_head = 0;
  together = {0, 0, count};
  cluster_barrier.waiting.clear();
  grid_barrier.waiting.clear();
  new_shared(count);
  ptx::new_threads();
  for (unsigned b = 0; b < count; ++b) set_up(b, first + b);
  alive = ready.size();
  while (failure.empty()) {
    Thread* const next = next_ready();
    if (next == nullptr) break;
    switch_to(next);
  }
  if (failure.empty() && alive > 0) failure = deadlock();
}

}  // namespace

Block& block_at(unsigned place) { return *blocks[place]; }

void fail(const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  if (self == nullptr) throw std::runtime_error(text);
  failure = std::string(text) + " (thread " + std::to_string(self->rank) + " of block " +
            std::to_string(self->block->serial) + ")";
  self->done = true;
  switch_to(nullptr);
  std::abort();
}

uint64_t meet_warp(Together what, const char* name, unsigned mask, uint64_t value, unsigned source, Place place) {
  Warp& warp = *self->warp;
  if ((mask >> self->lane & 1) == 0) {
    fail("%s at %s: lane %u is not in its own mask %08x", name, text_of(place).c_str(), self->lane, mask);
  }
  self->together = what;
  self->mask = mask;
  self->value = value;
  self->source = source;
  self->waits_in = name;
  self->waits_at = place;
  warp.waiting |= 1u << self->lane;
  if (!try_finish_warp(warp, *self)) yield();
  return self->result;
}

int meet_block(unsigned number, unsigned threads, int vote, const char* name, Place place) {
  Block& block = *self->block;
  if (number >= kBarriers) fail("%s at %s: there is no barrier %u", name, text_of(place).c_str(), number);
  if (threads % kLanes != 0) fail("%s at %s: %u threads are no warps", name, text_of(place).c_str(), threads);
  Barrier& barrier = block.barriers[number];
  if (barrier.count > 0) {
    const Thread& other = *barrier.waiting[0];
    const bool same_line = other.waits_at.line() == place.line() && text_of(other.waits_at) == text_of(place);
    if (!same_line || barrier.expected != threads) {
      fail("divergent barrier: %s at %s, where thread %u waits in %s at %s", name, text_of(place).c_str(), other.rank,
           other.waits_in, text_of(other.waits_at).c_str());
    }
  }
  barrier.expected = threads;
  barrier.waiting[barrier.count++] = self;
  barrier.votes |= vote;
  const unsigned turn = barrier.turn & 1;
  if (barrier.count == (threads == 0 ? block.alive : threads)) {
    open(barrier);
  } else {
    wait(name, place);
  }
  return barrier.results[turn];
}

// Clusters run one at a time: the threads that are alive are its own.
void meet_cluster(Place place) {
  cluster_barrier.waiting.push_back(self);
  if (cluster_barrier.waiting.size() == alive) return open(cluster_barrier, together.cluster_syncs);
  wait("cluster.sync()", place);
}

void meet_grid(Place place) {
  if (!current.cooperative) fail("grid.sync() at %s: the launch is not cooperative", text_of(place).c_str());
  grid_barrier.waiting.push_back(self);
  // Those who have ended are missed here.
  if (grid_barrier.waiting.size() == size_t{together.blocks} * self->block->threads)
    return open(grid_barrier, together.grid_syncs);
  wait("grid.sync()", place);
}

void pause() {
  if (seed == 0 || self == nullptr || dice() % 4 != 0) return;
  ready.push_back(self);
  yield();
}

int run(const Launch& launch, const void* kernel, const std::function<void()>& body) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  const uint64_t threads = uint64_t{launch.block.x} * launch.block.y * launch.block.z;
  const uint64_t count = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  // Programming guide, "Technical Specifications per Compute Capability".
  if (threads == 0 || threads > kMostThreads || launch.block.z > 64 || count == 0 || launch.grid.x > 0x7fffffffu ||
      launch.grid.y > 65535 || launch.grid.z > 65535 || launch.cluster > kMostCluster ||
      launch.grid.x % launch.cluster != 0) {
    return kInvalidConfiguration;
  }
  if (!may_have_shared(kernel, launch.shared_bytes)) return kInvalidValue;
  if (launch.cooperative && count > blocks_together()) return kCooperativeTooLarge;
  const auto size = static_cast<unsigned>(launch.cooperative ? count : launch.cluster);
  take_seed();
  current = launch;
  reserve_threads(size * threads);
  while (blocks.size() < size) blocks.push_back(std::make_unique<Block>());
  kernel_body = &body;
  failure.clear();
  race::new_launch();
  std::vector<unsigned> order(count / size);
  std::iota(order.begin(), order.end(), 0u);
  if (seed != 0) std::shuffle(order.begin(), order.end(), dice);
  for (size_t i = 0; i < order.size() && failure.empty(); ++i) run_together(order[i] * size, size);
  const std::string races = race::report();
  if (!failure.empty()) throw std::runtime_error("emulator: " + failure);
  if (!races.empty()) throw std::runtime_error("emulator: " + races);
  return 0;
}

void check_launch_bounds(unsigned most) {
  if (self->block->threads > most) fail("more threads than __launch_bounds__(%u)", most);
}

int multiprocessors() { return number_from("AMKD_EMULATE_MULTIPROCESSORS", 5); }

unsigned blocks_together() {
  return static_cast<unsigned>(number_from("AMKD_EMULATE_TOGETHER", 2 * multiprocessors()));
}

}  // namespace emulator
