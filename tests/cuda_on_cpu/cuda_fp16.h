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
  float magnitude = std::ldexp(static_cast<float>(exponent == 0 ? fraction : fraction + 1024), exponent == 0 ? -24 : exponent - 25);
  if (exponent == 0x1F) {
    magnitude = fraction == 0 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
  }
  return (value.bits & 0x8000) != 0 ? -magnitude : magnitude;
}
