// float16 as its bits; the kernels only move them and hand them to wmma.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

struct __half {
  std::uint16_t bits;
};

inline float __half2float(__half value) {
  const int exponent = value.bits >> 10 & 0x1F;
  const int fraction = value.bits & 0x3FF;
  float magnitude =
      std::ldexp(static_cast<float>(exponent == 0 ? fraction : fraction + 1024), exponent == 0 ? -24 : exponent - 25);
  if (exponent == 0x1F) {
    magnitude = fraction == 0 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
  }
  return (value.bits & 0x8000) != 0 ? -magnitude : magnitude;
}

// Nearest, ties to even; what is too large becomes infinity.
inline __half __float2half(float value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (!(magnitude < 65520.0F)) {
    return {static_cast<std::uint16_t>(sign | (std::isnan(value) ? 0x7E00 : 0x7C00))};
  }
  const int exponent = magnitude < 6.103515625e-05F ? -14 : std::ilogb(magnitude);
  const int fraction = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));  // below 1024 if subnormal
  return {static_cast<std::uint16_t>(sign | (fraction + (exponent + 14) * 1024))};
}
