// The one entry of the library: runs a case by its name.
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>

#include "cases.h"

void check(cudaError_t error) {
  (void)cudaGetLastError();  // it has been told
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

uint64_t sum_of(const int* values, int count) {
  uint64_t sum = 0;
  for (int i = 0; i < count; ++i) sum = sum * 31 + static_cast<uint64_t>(values[i]);
  return sum;
}

// The case's number, in `message` what was thrown.
extern "C" __attribute__((visibility("default"))) uint64_t run_case(const char* name, char* message, size_t size) {
  *message = 0;
  try {
    for (const Case* cases : {kMemoryCases, kBarrierCases, kWarpCases, kWideCases, kProductCases, kHostCases}) {
      for (; cases->name != nullptr; ++cases) {
        if (strcmp(cases->name, name) == 0) return cases->run();
      }
    }
    throw std::invalid_argument("there is no such case");
  } catch (const std::exception& error) {
    strncpy(message, error.what(), size - 1);
  }
  return 0;
}
