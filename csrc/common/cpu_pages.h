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

// Asks for huge pages under memory that is about to be written in full: of 4 KiB each, the faults of a large tensor
// take longer than computing it. It is advice, about the buffer's own pages: no content changes, and a system that has
// no huge pages to give goes on as without it.
inline void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes < kFreshBytes) return;
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace amkd
