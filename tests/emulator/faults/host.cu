// What csrc/common/cuda_host.h does about errors.
#include "../csrc/common/cuda_host.h"  // beside this folder where both are translated
#include "cases.h"

namespace {

__global__ void idle() {}

// Whether a launch behind an error that has been reported is blamed for it.
uint64_t run_error_is_reported_once() {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(2048);
  bool reported = false;
  try {
    amkd::check(cudaLaunchKernelEx(&config, idle), "launching idle");
  } catch (const std::exception&) {
    reported = true;
  }
  idle<<<1, 32>>>();
  amkd::check_launch("idle");
  return reported;
}

// How often a question is asked whose answer is wanted three times: where it fails at first, and where it does not.
uint64_t run_failures_are_asked_again() {
  amkd::Answers answers;
  uint64_t asked = 0, yes = 0;
  for (int i = 0; i < 3; ++i) {
    yes +=
        answers.of(0, [&]() -> std::optional<bool> { return ++asked == 1 ? std::nullopt : std::optional<bool>(true); });
    yes += answers.of(1, [&]() -> std::optional<bool> {
      asked += 10;
      return false;
    });
  }
  return 100 * yes + asked;
}

}  // namespace

const Case kHostCases[] = {
    {"error_is_reported_once", run_error_is_reported_once},
    {"failures_are_asked_again", run_failures_are_asked_again},
    {},
};
