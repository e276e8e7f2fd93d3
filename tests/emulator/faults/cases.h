// Small kernels, each with a name: some are right, the others have one fault that the emulator has to find.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

struct Case {
  const char* name;
  uint64_t (*run)();  // returns a number that does not depend on any order where the kernel is right
};

extern const Case kMemoryCases[], kBarrierCases[], kWarpCases[], kWideCases[], kProductCases[], kHostCases[];

// What a launch returned becomes what it throws.
void check(cudaError_t error);
uint64_t sum_of(const int* values, int count);
