// The element types that CPU kernels are tabulated by; known on both sides of the line that torch does not cross.
#pragma once

namespace amkd {

enum class Element : int { kFloat = 0, kDouble = 1, kHalf = 2, kBFloat16 = 3 };
constexpr int kElements = 4;

}  // namespace amkd
