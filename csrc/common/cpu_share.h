// How a loop over rows is shared among torch's CPU threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>

namespace amkd {

constexpr int64_t kThreadElements = 16384;  // work that is worth a thread
constexpr int64_t kPieceElements = 8192;    // work that a thread takes at a time

// The pieces of one thread, on a cache line of their own.
struct alignas(64) Part {
  std::atomic<int64_t> next;
  int64_t end;
};

// Calls body(first, last) until [0, count) is covered, where each index stands for `elements` elements. A thread begins
// with the same part of them in every call, of which its core's caches may hold something, and then helps the others,
// so that a slow or disturbed core holds up nobody.
template <class Body>
void share(int64_t count, int64_t elements, Body body) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t workers = std::min(threads, count * elements / kThreadElements);
  const auto run = [&](int64_t first, int64_t last) {
    try {
      body(first, last);
    } catch (const std::bad_alloc&) {
      STD_TORCH_CHECK(false, "out of memory: a thread's scratch for rows of ", elements, " elements");
    }
  };
  if (workers <= 1) return run(0, count);
  const int64_t piece = std::max<int64_t>(1, kPieceElements / elements);
  const int64_t pieces = (count + piece - 1) / piece;
  const std::unique_ptr<Part[]> parts(new Part[workers]);
  for (int64_t w = 0; w < workers; ++w) {
    parts[w].next.store(w * pieces / workers, std::memory_order_relaxed);
    parts[w].end = (w + 1) * pieces / workers;
  }
  torch::stable::parallel_for(0, workers, 1, [&](int64_t own, int64_t) {
    for (int64_t w = 0; w < workers; ++w) {
      Part& part = parts[(own + w) % workers];
      for (int64_t i; (i = part.next.fetch_add(1, std::memory_order_relaxed)) < part.end;) {
        run(i * piece, std::min((i + 1) * piece, count));
      }
    }
  });
}

}  // namespace amkd
