// 16-bit floats as bits.
#pragma once

#include <cstdint>

namespace fopru {

// Exact. NaNs stay NaNs.
float float_from_half(std::uint16_t bits);
float float_from_bfloat16(std::uint16_t bits);
// To the nearest, ties to even, as IEEE 754 and NumPy round; too large becomes infinite.
std::uint16_t half_from_float(float value);
std::uint16_t bfloat16_from_float(float value);

}  // namespace fopru
