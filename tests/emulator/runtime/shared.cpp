#include "emulator/shared.h"

#include <sys/mman.h>

#include <cstring>
#include <map>
#include <stdexcept>
#include <vector>

#include "emulator/race.h"

#if defined(EMULATOR_ASAN)
#include <sanitizer/asan_interface.h>
#endif

namespace emulator {
namespace {

constexpr size_t kArena = 256 << 10;  // of a block; what a block may have, and the gaps between
constexpr size_t kGap = 16, kDynamicStart = 60 << 10;
// Programming guide, "Technical Specifications per Compute Capability": 9.0.
constexpr size_t kMostStatic = 48 << 10, kMostShared = 227 << 10;

unsigned char* arenas = nullptr;
unsigned arena_count = 0, live_blocks = 0;

struct Variable {
  uint32_t offset, generation;
};
std::vector<Variable> variables(1);
uint32_t generation = 0;  // of the blocks that run together
size_t next_offset = 0, static_bytes = 0, dynamic_offset = 0;
std::map<const void*, size_t> allowed;  // dynamic shared memory, by kernel

size_t placed(size_t offset, size_t alignment) {
  offset = (offset + alignment - 1) / alignment * alignment;
  return offset % (2 * alignment) == 0 ? offset + alignment : offset;
}

void open(size_t offset, size_t size) {
  for (unsigned b = 0; b < live_blocks; ++b) {
    unsigned char* const at = shared_arena(b) + offset;
#if defined(EMULATOR_ASAN)
    __asan_unpoison_memory_region(at, size);
#endif
    memset(at, 0xff, size);
    race::new_variable(at, size);
  }
}

}  // namespace

unsigned char* shared_arena(unsigned block) { return arenas + block * kArena; }

void new_shared(unsigned blocks) {
  if (blocks > arena_count) {
    if (arenas != nullptr) munmap(arenas, arena_count * kArena);
    void* const found =
        mmap(nullptr, blocks * kArena, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) throw std::runtime_error("emulator: no memory for shared memory");
    arenas = static_cast<unsigned char*>(found);
    arena_count = blocks;
  }
  live_blocks = blocks;
  ++generation;
  next_offset = static_bytes = dynamic_offset = 0;
  for (unsigned b = 0; b < blocks; ++b) {
    race::new_arena(shared_arena(b), kArena);
#if defined(EMULATOR_ASAN)
    __asan_poison_memory_region(shared_arena(b), kArena);
#endif
  }
}

void* shared_memory(Slot& slot, size_t size, size_t alignment) {
  if (slot.id == 0) {
    slot.id = static_cast<uint32_t>(variables.size());
    variables.push_back({0, 0});
  }
  Variable& variable = variables[slot.id];
  if (variable.generation != generation) {
    variable.generation = generation;
    const size_t offset = placed(next_offset + kGap, alignment);
    variable.offset = static_cast<uint32_t>(offset);
    next_offset = offset + size;
    static_bytes += size;
    if (static_bytes > kMostStatic || next_offset > kDynamicStart) fail("more than 48 KiB of static shared memory");
    if (static_bytes + current.shared_bytes > kMostShared) fail("more than 227 KiB of shared memory");
    open(offset, size);
  }
  return self->block->memory + variable.offset;
}

void* dynamic_shared(size_t alignment) {
  if (dynamic_offset == 0) {
    dynamic_offset = placed(kDynamicStart, alignment);
    open(dynamic_offset, current.shared_bytes);
  }
  return self->block->memory + dynamic_offset;
}

uint32_t shared_offset(const void* pointer) {
  const auto offset = static_cast<const unsigned char*>(pointer) - self->block->memory;
  if (offset < 0 || offset >= static_cast<ptrdiff_t>(kArena)) fail("an address outside of the block's shared memory");
  return static_cast<uint32_t>(offset);
}

unsigned char* shared_pointer(uint32_t offset) {
  if (offset >= kArena) fail("shared memory has no address %u", offset);
  return self->block->memory + offset;
}

// Programming guide, "Distributed Shared Memory": only while the other block is known to have started and not to have
// ended.
void* shared_of_rank(const void* pointer, unsigned rank) {
  if (rank >= current.cluster) fail("the cluster has no block %u", rank);
  const Block& other = block_at(rank);
  if (&other != self->block && together.cluster_syncs == 0) fail("block %u may not have started", rank);
  if (other.alive == 0) fail("block %u has ended", rank);
  return other.memory + shared_offset(pointer);
}

int allow_dynamic_shared(const void* kernel, size_t bytes) {
  constexpr int kInvalidValue = 1;
  if (bytes > kMostShared) return kInvalidValue;
  allowed[kernel] = bytes;
  return 0;
}

bool may_have_shared(const void* kernel, size_t bytes) {
  const auto found = allowed.find(kernel);
  return bytes <= (found == allowed.end() ? kMostStatic : found->second);
}

}  // namespace emulator
