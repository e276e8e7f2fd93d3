// Shared memory. Every variable lies at a multiple of the alignment that it asks for and of no larger power of two,
// with a gap behind it, and holds NaNs until it is written.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine.h"

namespace emulator {

// A __shared__ declaration in one function: all blocks that run together have it at the same offset.
struct Slot {
  uint32_t id = 0;
};
void* shared_memory(Slot& slot, size_t size, size_t alignment);
template <class T>
T& shared(Slot& slot, size_t alignment = alignof(T)) {
  return *static_cast<T*>(shared_memory(slot, sizeof(T), alignment));
}
void* dynamic_shared(size_t alignment);

uint32_t shared_offset(const void* pointer);                 // its address in the block's shared memory
unsigned char* shared_pointer(uint32_t offset);              // and back
void* shared_of_rank(const void* pointer, unsigned rank);    // the same place in another block of the cluster
int allow_dynamic_shared(const void* kernel, size_t bytes);  // more than the 48 KiB that every kernel may have
bool may_have_shared(const void* kernel, size_t bytes);

// Used by the engine alone.
unsigned char* shared_arena(unsigned block);
void new_shared(unsigned blocks);  // for the blocks that run together next

}  // namespace emulator
