// The triplet family: what the CPU and the CUDA implementation share. docs/methods.md (Triplets) has the
// mathematics, amkd_fast/ops/triplet/mined.py the Python side of the same layout.
#pragma once

#include <cstdint>

namespace amkd::triplet {

enum class Distance : int64_t { kEuclidean = 0, kSquared = 1, kCosine = 2 };

enum class Reduction : int64_t { kMean = 0, kMeanNonzero = 1, kSum = 2, kNone = 3 };

// The statistics of triplet_terms: D_ap [N], D_an [N, k], with swap D_pn [N, k], then the tail. The distances of an
// anchor that is left out (no positive, no negative, or weight 0) and of an empty slot are 0.
enum Tail : int64_t {
  kSize = 0,      // what the sum of the terms was divided by: 1 where nothing is left, for a sum and unreduced
  kTerms = 1,     // number of terms: anchors that are not left out
  kActive = 2,    // terms above 0
  kPositive = 3,  // mean D_ap over the triplets
  kNegative = 4,  // mean D_an over the triplets
  kMissing = 5,   // anchors of a weight other than 0 without a triplet
  kTail = 6,
};

constexpr int64_t statistics_size(int64_t anchors, int64_t k, bool swap) {
  return anchors * (1 + k * (swap ? 2 : 1)) + kTail;
}

}  // namespace amkd::triplet
