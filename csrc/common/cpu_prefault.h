// What large new tensors ask of the operating system.
#pragma once

#include <cstdint>
#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace amkd {

// From here on the C library maps fresh pages for every allocation, and the first write to each page is a fault.
constexpr int64_t kFreshBytes = int64_t{32} << 20;

// Has the system fill in the pages of memory that is about to be written, all at once: one fault each would take longer
// than computing what is written. No content changes, and a system that cannot do it goes on as without it. (Huge pages
// would be fewer, but where a virtual machine gives free ones back to its host, the first touch of one can take longer
// than all the others together.)
inline void prefault([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_POPULATE_WRITE)
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_POPULATE_WRITE);
#endif
}

}  // namespace amkd
