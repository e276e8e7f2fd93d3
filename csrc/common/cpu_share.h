// How a loop over rows is shared among torch's CPU threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace amkd {

constexpr int64_t kThreadElements = 16384;  // work that is worth a thread
constexpr int64_t kPieceElements = 8192;    // work that a thread takes at a time

// Calls body(first, last) until [0, count) is covered, where each index stands for `elements` elements. A thread takes
// the next piece when it is free, so that a slow or disturbed core holds up nobody.
template <class Body>
void share(int64_t count, int64_t elements, Body body) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t workers = std::min(threads, count * elements / kThreadElements);
  if (workers <= 1) return body(0, count);
  const int64_t piece = std::max<int64_t>(1, kPieceElements / elements);
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    for (int64_t first; (first = next.fetch_add(piece, std::memory_order_relaxed)) < count;) {
      body(first, std::min(first + piece, count));
    }
  });
}

}  // namespace amkd
