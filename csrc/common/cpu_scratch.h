// Memory for the numbers in between, kept by the thread that asked for it until its next call: fresh pages of a few
// megabytes cost as much as what is computed in them.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace amkd {

constexpr int64_t kKeptDoubles = int64_t{1} << 20;  // by a thread, at most: 8 MiB

class Scratch {
  struct Buffer {
    std::unique_ptr<double[]> data;
    int64_t size = 0;
  };

  // What no call uses now.
  struct Kept {
    std::vector<Buffer> buffers;
    int64_t size = 0;
  };
  static Kept& kept() {
    static thread_local Kept kept;
    return kept;
  }

  Buffer buffer;

 public:
  Scratch() = default;
  Scratch(Scratch&&) = default;
  Scratch& operator=(Scratch&& other) {
    std::swap(buffer, other.buffer);
    return *this;
  }

  // Numbers that have no value yet.
  explicit Scratch(int64_t count) {
    Kept& mine = kept();
    for (Buffer& old : mine.buffers) {
      if (old.size < count || old.size / 2 > count) continue;
      std::swap(buffer, old);
      std::swap(old, mine.buffers.back());
      mine.buffers.pop_back();
      mine.size -= buffer.size;
      return;
    }
    buffer = {std::unique_ptr<double[]>(new double[count]), count};
  }

  ~Scratch() {
    Kept& mine = kept();
    if (buffer.data == nullptr || mine.size + buffer.size > kKeptDoubles) return;
    mine.size += buffer.size;
    mine.buffers.push_back(std::move(buffer));
  }

  double* get() const { return buffer.data.get(); }
  double& operator[](int64_t i) const { return buffer.data[i]; }
};

}  // namespace amkd
