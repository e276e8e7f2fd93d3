#include "emulator/fiber.h"

#include <sys/mman.h>

#include <stdexcept>
#include <vector>

#if defined(EMULATOR_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Saves the callee's registers on the stack, leaves its end in *from, and goes on where `to` was left.
extern "C" void emulator_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.hidden emulator_switch
.globl emulator_switch
.type emulator_switch,@function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch,.-emulator_switch
)");
#else
#error "the emulator switches stacks on x86-64 alone"
#endif

namespace emulator {

Thread* self = nullptr;

namespace {

constexpr size_t kStack = 256 << 10, kGuard = 4096;  // what runs over its stack hits the guard below it
constexpr int kSavedRegisters = 6;

std::vector<Thread> threads;
unsigned char* stacks = nullptr;
void* host_stack_pointer = nullptr;
#if defined(EMULATOR_ASAN)
const void* host_bottom = nullptr;
size_t host_size = 0;
#endif

unsigned char* stack_of(const Thread& thread) { return stacks + (&thread - threads.data()) * kStack; }

}  // namespace

void reserve_threads(size_t count) {
  if (count <= threads.size()) return;
  if (stacks != nullptr) munmap(stacks, threads.size() * kStack);
  void* const found = mmap(nullptr, count * kStack, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (found == MAP_FAILED) throw std::runtime_error("emulator: no memory for the stacks");
  stacks = static_cast<unsigned char*>(found);
  threads.assign(count, Thread{});
  for (const Thread& thread : threads) mprotect(stack_of(thread), kGuard, PROT_NONE);
}

Thread& thread_at(size_t index) { return threads[index]; }

void prepare(Thread& thread, void (*entry)()) {
#if defined(EMULATOR_ASAN)
  __asan_unpoison_memory_region(stack_of(thread) + kGuard, kStack - kGuard);  // of frames that never returned
#endif
  void** top = reinterpret_cast<void**>(stack_of(thread) + kStack);
  *--top = nullptr;  // aligns the stack as a call would
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  thread.stack_pointer = top;
}

void entered() {
#if defined(EMULATOR_ASAN)
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (host_bottom == nullptr) {  // the first fiber of all comes from the host
    host_bottom = bottom;
    host_size = size;
  }
#endif
}

void switch_to(Thread* to) {
  Thread* const from = self;
  void** const save = from == nullptr ? &host_stack_pointer : &from->stack_pointer;
#if defined(EMULATOR_ASAN)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(from != nullptr && from->done ? nullptr : &fake_stack,
                                 to == nullptr ? host_bottom : stack_of(*to), to == nullptr ? host_size : kStack);
#endif
  self = to;
  emulator_switch(save, to == nullptr ? host_stack_pointer : to->stack_pointer);
#if defined(EMULATOR_ASAN)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

bool on_a_stack(const void* pointer) {
  const auto at = static_cast<const unsigned char*>(pointer);
  return at >= stacks && at < stacks + threads.size() * kStack;
}

}  // namespace emulator
