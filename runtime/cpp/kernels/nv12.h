// NV12 to RGB in integers, the same on the host and in the kernels. Plain data, no CUDA.
#pragma once

#include <cstdint>

namespace fopru {

// Factors times 2^16, rounded. With y = luma - offset, u = U - 128, v = V - 128 a channel is
//   red = clip((luma * y + red_v * v + 2^15) >> 16), green = clip((luma * y + green_u * u + green_v * v + 2^15) >> 16),
//   blue = clip((luma * y + blue_u * u + 2^15) >> 16)
// which is within 1 level of rounding the exact value. The (U, V) of a 2 x 2 block is that of all its four pixels.
struct Nv12Factors {
  std::int32_t offset;
  std::int32_t luma;
  std::int32_t red_v;
  std::int32_t green_u;
  std::int32_t green_v;
  std::int32_t blue_u;
};

// In the order of ColourMatrix (src/image/image.h) and of FopruMatrix: BT.601 limited, full, BT.709 limited, full.
constexpr Nv12Factors kNv12Factors[4] = {
    {16, 76309, 104597, -25675, -53279, 132201},
    {0, 65536, 91881, -22553, -46802, 116130},
    {16, 76309, 117489, -13975, -34925, 138438},
    {0, 65536, 103206, -12276, -30679, 121609},
};

}  // namespace fopru
