#include "base/half.h"

#include <cstring>

namespace fopru {

namespace {

std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

float float_of(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Shifted right by 1..31, rounded to the nearest, ties to even.
std::uint32_t rounded_shift(std::uint32_t value, unsigned by) {
    std::uint32_t half = 1u << (by - 1), rest = value & ((1u << by) - 1), kept = value >> by;
    return kept + (rest > half || (rest == half && (kept & 1u)));
}

}  // namespace

float float_from_half(std::uint16_t bits) {
    std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
    std::uint32_t exponent = (bits >> 10) & 0x1fu, fraction = bits & 0x3ffu;
    if (exponent == 0x1f) return float_of(sign | 0x7f800000u | (fraction << 13));
    if (exponent > 0) return float_of(sign | ((exponent + 112) << 23) | (fraction << 13));
    float small = static_cast<float>(fraction) * 0x1p-24f;  // subnormal, or zero
    return float_of(sign | bits_of(small));
}

float float_from_bfloat16(std::uint16_t bits) { return float_of(static_cast<std::uint32_t>(bits) << 16); }

std::uint16_t half_from_float(float value) {
    std::uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffffu;
    std::uint32_t sign = (bits >> 16) & 0x8000u;
    std::uint32_t out = 0;
    if (magnitude > 0x7f800000u) {
        std::uint32_t fraction = (magnitude >> 13) & 0x3ffu;  // the payload's upper bits, as NumPy keeps them
        out = 0x7c00u | (fraction != 0 ? fraction : 1u);
    } else if (magnitude >= 0x47800000u) {  // 65536 and more
        out = 0x7c00u;
    } else if (magnitude >= 0x38800000u) {  // normal; rounding up may carry into the exponent, up to infinity
        out = rounded_shift(magnitude - (112u << 23), 13);
    } else if (magnitude >= 0x33000000u) {  // subnormal, from half of the smallest
        unsigned exponent = magnitude >> 23;
        out = rounded_shift((magnitude & 0x7fffffu) | 0x800000u, 126 - exponent);
    }
    return static_cast<std::uint16_t>(sign | out);
}

std::uint16_t bfloat16_from_float(float value) {
    std::uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
    return static_cast<std::uint16_t>(rounded_shift(bits, 16));
}

}  // namespace fopru
