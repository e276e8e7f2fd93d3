// What a CUDA operator needs from torch and from the runtime on the host: device, stream, memory, launch checks.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <map>
#include <mutex>
#include <optional>

namespace amkd {

// The stream of torch on a device. The symbol lives in a library that a CPU build of torch does not have, so it is
// looked up in the library that is already loaded; linking to it would tie this binary to CUDA builds.
inline cudaStream_t current_stream(int32_t device) {
  using Lookup = AOTITorchError (*)(int32_t, void**);
  static const Lookup lookup = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library == nullptr ? nullptr
                              : reinterpret_cast<Lookup>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  STD_TORCH_CHECK(lookup != nullptr, "amkd_fast: this torch has no aoti_torch_get_current_cuda_stream in a loaded ",
                  "libtorch_cuda.so; a CUDA build of torch >= 2.11 is needed");
  void* stream = nullptr;
  STD_TORCH_CHECK(lookup(device, &stream) == 0, "amkd_fast: torch gave no current stream for CUDA device ", device);
  return static_cast<cudaStream_t>(stream);
}

// The runtime keeps an error that it has returned as its last one: left there, the next launch would be blamed for it.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();
  STD_TORCH_CHECK(false, "amkd_fast: ", what, " failed: ", cudaGetErrorString(error));
}

// Makes a device current in torch's runtime and in this binary's own, which need not be the same.
class DeviceGuard {
 public:
  explicit DeviceGuard(int32_t device) : guard_(device) { check(cudaSetDevice(device), "choosing a device"); }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "amkd_fast: launching ", kernel, " failed: ", cudaGetErrorString(error));
}

// What a device answers once and for all, each of its answers in a variable of its own.
class Answers {
 public:
  // ask() returns whether it is so, or nothing where that could not be found out: then it counts as no, this time.
  template <class Ask>
  bool of(int32_t device, Ask ask) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = known_.find(device);
    if (found != known_.end()) return found->second;
    const std::optional<bool> answer = ask();
    (void)cudaGetLastError();  // a device without it is no error
    if (answer.has_value()) known_[device] = *answer;
    return answer.value_or(false);
  }

 private:
  std::mutex mutex_;
  std::map<int32_t, bool> known_;
};

inline int multiprocessors(int32_t device) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "asking for the multiprocessors");
  return count;
}

}  // namespace amkd
