// Steps of Stein variational ascent: what the CPU and the CUDA implementation share.
// amkd_fast/ops/attack/particles_reference.py is the specification.
#pragma once

#include "attack.h"

namespace amkd::attack {

constexpr int kMostParticles = 64;  // ops/attack/particles.py refuses more

// x, grad and out are [samples, count, size], x0 is [samples, size]; of the scalars the sizes and the bounds count.
struct ParticleProblem : StepProblem {
  int64_t count;
  double bandwidth;  // 0: of the median
};

}  // namespace amkd::attack
