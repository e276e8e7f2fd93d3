// What a CUDA operator needs from torch and from the runtime on the host: device, stream, memory, launch checks.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>

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

inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "amkd_fast: launching ", kernel, " failed: ", cudaGetErrorString(error));
}

inline int multiprocessors(int32_t device) {
  int count = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  STD_TORCH_CHECK(error == cudaSuccess, "amkd_fast: no properties of CUDA device ", device, ": ",
                  cudaGetErrorString(error));
  return count;
}

// A contiguous tensor on the device of `like`, with unwritten elements. Cheaper than a call through the dispatcher.
inline torch::stable::Tensor empty_on(const torch::stable::Tensor& like, std::initializer_list<int64_t> sizes,
                                      int32_t dtype) {
  int64_t strides[8];
  int64_t stride = 1;
  for (int64_t i = static_cast<int64_t>(sizes.size()) - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= sizes.begin()[i] > 1 ? sizes.begin()[i] : 1;
  }
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), strides,
                                                         dtype, aoti_torch_device_type_cuda(), like.get_device_index(),
                                                         &handle));
  return torch::stable::Tensor(handle);
}

}  // namespace amkd
