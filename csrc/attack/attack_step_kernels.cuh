// The attack step on a GPU. docs/methods.md (Attack steps) and amkd_fast/ops/attack/reference.py have the mathematics.
//
// A crew takes a sample: a warp a small one, a block a usual one, a cluster of blocks one that no block can hold in its
// registers. The crew looks at its gradient until it knows how far and whether to go, then at where that leads until it
// knows how the ball pulls back, and only then writes. Held samples are read once for all of that; of the others every
// look reads again.
#pragma once

#include <cfloat>

#include "../common/divider.cuh"
#include "../common/element.cuh"
#include "attack.h"
#include "block_collectives.cuh"

namespace amkd::attack::gpu {

// Threads of a block at most, by the registers that a thread needs.
template <bool kL1>
constexpr int kMostStepThreads = kL1 ? 640 : 768;
// 16-byte vectors of an image that a thread has in registers at a time, and their values.
template <class Scalar>
constexpr int kVectors = sizeof(Scalar) == 2 ? 1 : 2;
template <class Scalar>
constexpr int kValues = kVectors<Scalar> * Vector<Scalar>::kWidth;

template <class Scalar>
struct StepCall {
  using Stat = StatOf<Scalar>;
  Scalar* out;
  const Scalar *x, *x0;                  // no x0: no ball
  const void* grad;                      // Scalar, or Stat where wide_grad
  const Stat *step_sizes, *radii, *gap;  // [samples] or null
  Stat* velocity;                        // or null
  const Stat *lowers, *uppers;           // [channels] or null
  const bool* active;                    // [samples] or null
  Stat step_size, radius, lower, upper, decay;
  Rule rule;
  bool wide_grad, project;
  int64_t samples;
  int size, top;
  Divider run, channels;
  bool wide;  // every sample of every image starts at a multiple of 16 bytes
  int lanes, ranks, share;
};

template <class Stat>
using MagnitudeOf = std::conditional_t<std::is_same_v<Stat, double>, uint64_t, uint32_t>;

// |x| as bits, which have its order; those of NaN are above those of infinity.
__device__ inline uint32_t magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }
__device__ inline uint64_t magnitude(double x) {
  return static_cast<uint64_t>(__double_as_longlong(x)) & 0x7fffffffffffffffull;
}
__device__ inline float from_magnitude(uint32_t bits) { return __uint_as_float(bits); }
__device__ inline double from_magnitude(uint64_t bits) { return __longlong_as_double(static_cast<long long>(bits)); }
template <class Stat>
__device__ bool is_finite(Stat x) {
  return magnitude(x) < magnitude(static_cast<Stat>(INFINITY));
}

__device__ inline float largest_of(float) { return FLT_MAX; }
__device__ inline double largest_of(double) { return DBL_MAX; }
__device__ inline float largest_of(__half) { return 65504.0f; }
__device__ inline float largest_of(__nv_bfloat16) { return 0x1.fep127f; }
// A NaN stays, and a bound that is NaN bounds nothing.
template <class Stat>
__device__ Stat within(Stat x, Stat low, Stat high) {
  const Stat raised = x < low ? low : x;
  return raised > high ? high : raised;
}
template <class Stat>
__device__ Stat clamped(Stat x, Stat limit) {
  return within(x, -limit, limit);
}
__device__ inline float root_of(float x) { return sqrtf(x); }
__device__ inline double root_of(double x) { return sqrt(x); }

// Whether sums and squares of numbers up to `peak` neither overflow nor lose what counts.
__device__ inline bool is_moderate(float peak) { return peak >= 0x1p-50f && peak <= 0x1p45f; }
__device__ inline bool is_moderate(double peak) { return peak >= 0x1p-400 && peak <= 0x1p450; }
// A power of two that makes it moderate.
__device__ inline float leveller(float peak) {
  const int exponent = static_cast<int>(magnitude(peak) >> 23);
  return from_magnitude(static_cast<uint32_t>(min(max(254 - exponent, 1), 254)) << 23);
}
__device__ inline double leveller(double peak) {
  const int exponent = static_cast<int>(magnitude(peak) >> 52);
  return from_magnitude(static_cast<uint64_t>(min(max(2046 - exponent, 1), 2046)) << 52);
}

// The largest of some numbers, and a sum over them.
template <class Stat>
struct Extent {
  MagnitudeOf<Stat> peak = 0;
  Stat sum = 0;
};
struct Join {
  template <class Stat>
  __device__ Extent<Stat> operator()(const Extent<Stat>& a, const Extent<Stat>& b) const {
    return {max(a.peak, b.peak), a.sum + b.sum};
  }
};

// How many numbers reach three levels.
struct Counts {
  int at[3];
};
struct AddCounts {
  __device__ Counts operator()(const Counts& a, const Counts& b) const {
    return {{a.at[0] + b.at[0], a.at[1] + b.at[1], a.at[2] + b.at[2]}};
  }
};

// Of the coordinates that stick out of the l1 ball.
struct Surplus {
  double sum;
  int count;
};
struct AddSurplus {
  __device__ Surplus operator()(const Surplus& a, const Surplus& b) const { return {a.sum + b.sum, a.count + b.count}; }
};

template <class Scalar, bool kHeld, bool kL1>
class Mover {
  using Call = StepCall<Scalar>;
  using Stat = StatOf<Scalar>;
  using Magnitude = MagnitudeOf<Stat>;
  static constexpr int kWidth = Vector<Scalar>::kWidth;
  static constexpr int kCount = kValues<Scalar>;

  // What a thread looks at at a time; zeros where its share has ended, which change no result.
  struct Slice {
    Stat g[kCount];
    Scalar x[kCount], x0[kCount];
  };
  // What a look needs.
  enum class Need {
    kRaw,       // the gradient as it came
    kGradient,  // without its blocked coordinates
    kMoved,     // where they lead, in place of the gradient, and the clean image
  };

 public:
  __device__ Mover(const Call& call, Crew& crew, int64_t sample)
      : call_(call), crew_(crew), sample_(sample), begin_(crew.rank() * call.share) {
    home_ = sample * call.size + begin_;
    count_ = min(call.share, call.size - begin_);
  }

  __device__ void run() {
    const Stat step_size = call_.step_sizes == nullptr ? call_.step_size : call_.step_sizes[sample_];
    radius_ = call_.radii == nullptr ? call_.radius : call_.radii[sample_];
    reach_ = call_.gap == nullptr ? step_size : step_size * (call_.gap[sample_] + static_cast<Stat>(kGapMargin));
    const bool active = call_.active == nullptr || call_.active[sample_];
    if constexpr (kHeld) load(held_, 0, Need::kMoved);  // before the numbers are looked at: they all come together
    const bool moves = active && is_finite(reach_) && (call_.x0 == nullptr || radius_ >= 0);
    if (moves && (call_.velocity == nullptr || accelerate()) && aim()) {
      if constexpr (kHeld) advance(held_);
      if (call_.x0 != nullptr && radius_ > 0) find_pull();
      write();
    } else {
      stay();
    }
  }

 private:
  // Where value i of a slice that starts at `first` lies in the share.
  __device__ int place(int first, int i) const {
    const int lane = crew_.lane(), lanes = crew_.lanes();
    return call_.wide ? first + (lane + i / kWidth * lanes) * kWidth + i % kWidth : first + lane + i * lanes;
  }

  template <class T>
  __device__ void fetch(const T* image, int first, T (&values)[kCount]) const {
    constexpr int kPiece = Vector<T>::kWidth;
    const T* const data = image + home_;
    if (call_.wide) {
#pragma unroll
      for (int i = 0; i < kCount; i += kPiece) {
        const int at = place(first, i);
        Vector<T> piece{};
        if (at < count_) piece = load_vector(data + at);
#pragma unroll
        for (int k = 0; k < kPiece; ++k) values[i + k] = piece.at[k];
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int at = place(first, i);
        values[i] = at < count_ ? data[at] : T();
      }
    }
  }

  template <class T>
  __device__ void store(T* image, int first, const T (&values)[kCount]) const {
    constexpr int kPiece = Vector<T>::kWidth;
    T* const data = image + home_;
    if (call_.wide) {
#pragma unroll
      for (int i = 0; i < kCount; i += kPiece) {
        const int at = place(first, i);
        Vector<T> piece;
#pragma unroll
        for (int k = 0; k < kPiece; ++k) piece.at[k] = values[i + k];
        if (at < count_) store_vector(data + at, piece);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int at = place(first, i);
        if (at < count_) data[at] = values[i];
      }
    }
  }

  __device__ void load(Slice& slice, int first, Need need) const {
    if (accelerated_ || call_.wide_grad) {
      fetch(accelerated_ ? call_.velocity : static_cast<const Stat*>(call_.grad), first, slice.g);
    } else {
      Scalar g[kCount];
      fetch(static_cast<const Scalar*>(call_.grad), first, g);
#pragma unroll
      for (int i = 0; i < kCount; ++i) slice.g[i] = widen(g[i]);
    }
    if (need == Need::kMoved || call_.project) fetch(call_.x, first, slice.x);
    if (need == Need::kMoved && call_.x0 != nullptr) fetch(call_.x0, first, slice.x0);
  }

  template <class Body>
  __device__ void look(Need need, Body body) {
    if constexpr (kHeld) {
      body(held_, 0);
    } else {
      for (int first = 0; first < count_; first += crew_.lanes() * kCount) {
        Slice slice;
        load(slice, first, need);
        if (need != Need::kRaw && call_.project) unblock(slice, first);
        if (need == Need::kMoved) advance(slice);
        body(slice, first);
      }
    }
  }

  __device__ uint32_t channel(int first, int i) const {
    return call_.channels.remainder(call_.run.quotient(static_cast<uint32_t>(begin_ + place(first, i))));
  }
  __device__ Stat lower(int first, int i) const {
    // Places beyond the share have a channel, too.
    return call_.lowers == nullptr ? call_.lower : call_.lowers[channel(first, i)];
  }
  __device__ Stat upper(int first, int i) const {
    return call_.uppers == nullptr ? call_.upper : call_.uppers[channel(first, i)];
  }

  // Takes out the coordinates that stand at a bound and would leave through it. What is not finite stays to be seen.
  __device__ void unblock(Slice& slice, int first) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const Stat g = slice.g[i], x = widen(slice.x[i]);
      const bool falls = (reach_ > 0 && g < 0) || (reach_ < 0 && g > 0);
      const bool rises = (reach_ > 0 && g > 0) || (reach_ < 0 && g < 0);
      const bool blocked = (falls && x <= lower(first, i)) || (rises && x >= upper(first, i));
      if (blocked && is_finite(g)) slice.g[i] = 0;
    }
  }

  // Makes the velocity the gradient from here on. False where it would not be finite.
  __device__ bool accelerate() {
    Extent<Stat> raw;
    look(Need::kRaw, [&](const Slice& slice, int) {
      Extent<Stat> part;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        part.peak = max(part.peak, magnitude(slice.g[i]));
        part.sum += from_magnitude(magnitude(slice.g[i]));
      }
      raw = Join()(raw, part);
    });
    raw = crew_.agree(raw, Join());
    const Stat peak = from_magnitude(raw.peak);
    if (raw.peak == 0 || !is_finite(peak)) return false;
    Stat level = 1;
    if (!is_moderate(peak)) {
      level = leveller(peak);
      raw.sum = sum_of(Need::kRaw, [&](Stat g) { return from_magnitude(magnitude(g * level)); });
    }
    const Stat share = static_cast<Stat>(call_.size) / raw.sum;

    const auto add = [&](Slice& slice, int first) {
      Stat velocity[kCount];
      fetch(call_.velocity, first, velocity);
#pragma unroll
      for (int i = 0; i < kCount; ++i) slice.g[i] = call_.decay * velocity[i] + slice.g[i] * level * share;
    };
    Extent<Stat> fresh;
    look(Need::kRaw, [&](Slice& slice, int first) {
      add(slice, first);
#pragma unroll
      for (int i = 0; i < kCount; ++i) fresh.peak = max(fresh.peak, magnitude(slice.g[i]));
    });
    fresh = crew_.agree(fresh, Join());
    if (!is_finite(from_magnitude(fresh.peak))) return false;
    look(Need::kRaw, [&](Slice& slice, int first) {
      if (!kHeld) add(slice, first);
      store(call_.velocity, first, slice.g);
    });
    accelerated_ = true;
    return true;
  }

  // Finds direction and amount of the step. False where the sample has to stay.
  __device__ bool aim() {
    Extent<Stat> found;
    look(Need::kRaw, [&](Slice& slice, int first) {
      if (call_.project) unblock(slice, first);
      Extent<Stat> part;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        part.peak = max(part.peak, magnitude(slice.g[i]));
        part.sum += slice.g[i] * slice.g[i];
      }
      found = Join()(found, part);
    });
    found = crew_.agree(found, Join());
    const Stat peak = from_magnitude(found.peak);
    if (found.peak == 0 || !is_finite(peak)) return false;

    amount_ = reach_;
    if constexpr (kL1) {
      amount_ *= Stat(1) / static_cast<Stat>(find_top());
      return true;
    }
    if (call_.rule == Rule::kLinf) return true;
    by_sign_ = false;
    const bool newton = call_.rule == Rule::kNewton, moderate = is_moderate(peak);
    if (newton || !moderate) level_ = leveller(peak);
    found.sum = moderate ? found.sum * (level_ * level_)
                         : sum_of(Need::kGradient, [&](Stat g) { return g * level_ * (g * level_); });
    if (!newton) {
      inverse_ = Stat(1) / root_of(found.sum);
      return true;
    }
    // reach / |g|² · g with one rounding for the quotient. Two powers of two bring the peak into [1, 2), also one that
    // is subnormal: then no number here is larger than reach / peak but by rounding.
    inverse_ = leveller(peak * level_);
    amount_ = clamped(reach_ / (found.sum * (inverse_ * inverse_)) * level_ * inverse_, largest_of(Stat()));
    return is_finite(reach_ / peak);
  }

  template <class Term>
  __device__ Stat sum_of(Need need, Term term) {
    Stat sum = 0;
    look(need, [&](const Slice& slice, int) {
      Stat part = 0;
#pragma unroll
      for (int i = 0; i < kCount; ++i) part += term(slice.g[i]);
      sum += part;
    });
    return crew_.agree(sum, Plus());
  }

  // The top-th largest magnitude, two of its bits at a time, becomes the least that a step takes; returns how many
  // coordinates reach it.
  __device__ int find_top() {
    constexpr int kBits = 8 * sizeof(Magnitude);
    Magnitude level = 0;
    int reaching = 0, positive = 0;
    for (int shift = kBits - 2; shift >= 0; shift -= 2) {
      Counts counts{};
      look(Need::kGradient, [&](const Slice& slice, int) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
#pragma unroll
          for (int d = 0; d < 3; ++d) {
            counts.at[d] += magnitude(slice.g[i]) >= level + (static_cast<Magnitude>(d + 1) << shift);
          }
        }
      });
      counts = crew_.agree(counts, AddCounts());
      positive = counts.at[0];  // at last of all that are not 0, where the level is
#pragma unroll
      for (int d = 2; d >= 0; --d) {
        if (counts.at[d] < call_.top) continue;
        level += static_cast<Magnitude>(d + 1) << shift;
        reaching = counts.at[d];
        break;
      }
    }
    least_ = max(level, Magnitude(1));
    return level == 0 ? positive : reaching;
  }

  // The step alone, which replaces the gradient.
  __device__ void advance(Slice& slice) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const Stat g = slice.g[i];
      const Stat sign = magnitude(g) < least_ ? Stat(0) : g > 0 ? Stat(1) : Stat(-1);
      const Stat direction = kL1 || by_sign_ ? sign : g * level_ * inverse_;
      slice.g[i] = clamped(widen(slice.x[i]) + amount_ * direction, largest_of(Stat()));
    }
  }
  __device__ static Stat strayed(const Slice& slice, int i) { return slice.g[i] - widen(slice.x0[i]); }

  __device__ void find_pull() {
    if (!kL1 && call_.rule == Rule::kLinf) {
      interval_ = radius_;
      return;
    }
    Extent<Stat> found;
    double total = 0;  // a sum of floats that cannot overflow
    look(Need::kMoved, [&](const Slice& slice, int) {
      Extent<Stat> part;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const Stat d = strayed(slice, i);
        part.peak = max(part.peak, magnitude(d));
        if constexpr (kL1) {
          total += static_cast<double>(from_magnitude(magnitude(d)));
        } else {
          part.sum += d * d;
        }
      }
      found = Join()(found, part);
    });
    found = crew_.agree(found, Join());
    const Stat peak = from_magnitude(found.peak);
    if (!is_finite(peak)) return;
    if constexpr (kL1) {
      if (crew_.agree(total, Plus()) > static_cast<double>(radius_)) find_shrinkage(peak);
      return;
    }
    Stat level = 1;
    if (found.peak != 0 && !is_moderate(peak)) {
      level = leveller(peak);
      Stat sum = 0;
      look(Need::kMoved, [&](const Slice& slice, int) {
        Stat part = 0;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const Stat d = strayed(slice, i) * level;
          part += d * d;
        }
        sum += part;
      });
      found.sum = crew_.agree(sum, Plus());
    }
    const Stat length = root_of(found.sum) / level;
    if (!(length > radius_)) return;
    outside_ = true;
    factor_ = radius_ / length;
  }

  // The projection on the l1 ball leaves max(rest - (peak - |d|), 0) of every coordinate. Newton's method on the sum of
  // these comes down to the radius from above, where fewer and fewer coordinates are left, and ends where no more go.
  // Measured from the peak, small remainders of large differences keep their digits.
  __device__ void find_shrinkage(Stat peak) {
    outside_ = true;
    peak_ = peak;
    rest_ = radius_ < peak ? radius_ : peak;
    double rest = rest_;
    int left = 0x7fffffff;
    for (;;) {
      Surplus surplus{};
      look(Need::kMoved, [&](const Slice& slice, int) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const double below = static_cast<double>(peak - from_magnitude(magnitude(strayed(slice, i))));
          surplus.sum += below < rest ? rest - below : 0.0;
          surplus.count += below < rest ? 1 : 0;
        }
      });
      surplus = crew_.agree(surplus, AddSurplus());
      if (surplus.count == 0 || surplus.count >= left) break;
      left = surplus.count;
      rest -= (surplus.sum - static_cast<double>(radius_)) / surplus.count;
    }
    rest_ = static_cast<Stat>(rest);
  }

  __device__ Stat pulled(const Slice& slice, int i) const {
    const Stat moved = slice.g[i];
    if (!outside_) {
      // Without a ball the interval is NaN and binds nothing.
      const Stat center = call_.x0 == nullptr ? Stat(0) : widen(slice.x0[i]);
      return within(moved, center - interval_, center + interval_);
    }
    const Stat center = widen(slice.x0[i]), d = moved - center;
    if (!kL1) return center + d * factor_;
    const Stat size = Larger()(rest_ - (peak_ - from_magnitude(magnitude(d))), Stat(0));
    return center + (d < 0 ? -size : size);
  }

  __device__ void write() {
    look(Need::kMoved, [&](const Slice& slice, int first) {
      if (call_.x0 != nullptr && radius_ == 0) {
        store(call_.out, first, slice.x0);
        return;
      }
      Scalar result[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const Stat bound = within(pulled(slice, i), lower(first, i), upper(first, i));
        result[i] = narrow<Scalar>(clamped(bound, static_cast<Stat>(largest_of(Scalar()))));
      }
      store(call_.out, first, result);
    });
  }

  __device__ void stay() {
    if (call_.out == call_.x) return;
    if constexpr (kHeld) {
      store(call_.out, 0, held_.x);
    } else {
      for (int first = 0; first < count_; first += crew_.lanes() * kCount) {
        Scalar x[kCount];
        fetch(call_.x, first, x);
        store(call_.out, first, x);
      }
    }
  }

  const Call& call_;
  Crew& crew_;
  int64_t sample_, home_;
  int begin_, count_;
  Slice held_;
  bool accelerated_ = false;
  Stat reach_, radius_;
  // The step: `amount_` times the sign of what is not below `least_`, or times g · level_ · inverse_: of length 1, but
  // for a Newton step.
  bool by_sign_ = true;
  Magnitude least_ = 1;
  Stat amount_ = 0, level_ = 1, inverse_ = 1;
  // The ball: an interval of every coordinate, or where the sample is outside a factor, or what the l1 ball leaves.
  bool outside_ = false;
  Stat interval_ = static_cast<Stat>(NAN), factor_ = 1, rest_ = 0, peak_ = 0;
};

template <class Scalar, bool kHeld, bool kL1>
__global__ void __launch_bounds__(kMostStepThreads<kL1>) step_kernel(const __grid_constant__ StepCall<Scalar> call) {
  __shared__ Desk desk;
  Crew crew(call.lanes, call.ranks, desk);
  const int64_t sample = crew.index();
  if (sample >= call.samples) return;  // the whole warp, where a warp is the crew
  Mover<Scalar, kHeld, kL1>(call, crew, sample).run();
}

}  // namespace amkd::attack::gpu
