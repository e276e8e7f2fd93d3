// Stacks, and the switch from one to another.
#pragma once

#include <cstddef>

#include "engine.h"

namespace emulator {

// Makes room for the threads of a launch, whose addresses change.
void reserve_threads(size_t count);
Thread& thread_at(size_t index);
// The thread begins with `entry` on an empty stack, which must not return.
void prepare(Thread& thread, void (*entry)());
void entered();  // the first thing that `entry` does
// Goes on where `to` left off; null is the host.
void switch_to(Thread* to);
bool on_a_stack(const void* pointer);

}  // namespace emulator
