// Between particles_cpu.cpp, which knows the particles' weights, and particles_cpu_kernels.cpp, which knows their
// numbers and is compiled once per SIMD level.
#pragma once

#include "attack_cpu.h"
#include "particles.h"

namespace amkd::attack {

constexpr int64_t kPanel = 256;  // numbers of each particle that a step works on at a time

// With the fields of ParticleProblem, and the bounds of a StepWork.
struct ParticleWork : StepWork {
  int64_t count;
};

// The particles of an image that see each other, and the weights of φ = W g + M x: [count, count], symmetric, in the
// dtype of the arithmetic. The rows of M sum to 0, so that any origin of x will do.
struct Ensemble {
  int64_t count;
  const int64_t* members;
  const void *pull, *push;
};

// d²_ij of an image for i < j at i · count + j, and which particles are finite and have a finite gradient; what belongs
// to others means nothing.
using DistanceKernel = void (*)(const ParticleWork&, bool wide_grad, int64_t image, double* square, bool* usable);
// The step of an image's members; the others stay. scratch: room for 3 · count · kPanel numbers of the arithmetic's.
using EnsembleKernel = void (*)(const ParticleWork&, bool wide_grad, int64_t image, const Ensemble&, void* scratch);

#define AMKD_PARTICLES_LEVEL(level)                        \
  namespace level {                                        \
  extern const DistanceKernel distance_kernels[kElements]; \
  extern const EnsembleKernel ensemble_kernels[kElements]; \
  }
AMKD_PARTICLES_LEVEL(baseline)
AMKD_PARTICLES_LEVEL(avx2)
AMKD_PARTICLES_LEVEL(avx512)
#undef AMKD_PARTICLES_LEVEL

}  // namespace amkd::attack
