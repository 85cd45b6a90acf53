// Loops that a compiler turns into vectors where 32-bit multiplication is one (NEON).
#include <algorithm>

#include "../kernels/resample_weights.h"
#include "image/resize_sums.h"

namespace fopru {
namespace {

std::int32_t whole(const WeightPair& pair, int which) {
    return pair.high[which] * (1 << 15) + pair.low[which];
}

std::uint8_t rounded(std::int32_t sum) {
    return static_cast<std::uint8_t>(std::clamp(sum >> kResampleBits, 0, 255));
}

template <std::size_t lanes>
void sum_lanes(const RowSource& source, const WeightPair* weights, std::uint8_t* out) {
    std::int32_t sums[lanes];
    std::fill_n(sums, lanes, 1 << (kResampleBits - 1));
    const std::uint8_t* in = source.in;
    for (int k = 0; k < source.count; ++k, in += source.stride) {
        const std::int32_t weight = whole(weights[k / 2], k % 2);
        for (std::size_t i = 0; i < lanes; ++i) {
            sums[i] += in[i] * weight;
        }
    }
    for (std::size_t i = 0; i < lanes; ++i) {
        out[i] = rounded(sums[i]);
    }
}

}  // namespace

void turn_rows(const std::uint8_t* const* rows, std::size_t columns, std::int16_t* turned) {
    for (std::size_t x = 0; x < columns; x += 2, turned += 2 * block_lanes) {
        const bool second = x + 1 < columns;
        for (std::size_t r = 0; r < block_rows; ++r) {
            const std::uint8_t* pixel = rows[r] + x * 3;
            for (std::size_t c = 0; c < 3; ++c) {
                turned[(r * 3 + c) * 2] = pixel[c];
                turned[(r * 3 + c) * 2 + 1] = second ? pixel[3 + c] : std::uint8_t{0};
            }
        }
    }
}

void sum_columns(const std::int16_t* turned, const WeightPair* weights, int pairs, std::uint8_t* out) {
    std::int32_t sums[block_lanes];
    std::fill_n(sums, block_lanes, 1 << (kResampleBits - 1));
    for (int k = 0; k < pairs; ++k, turned += 2 * block_lanes) {
        const std::int32_t first = whole(weights[k], 0);
        const std::int32_t second = whole(weights[k], 1);
        for (std::size_t i = 0; i < block_lanes; ++i) {
            sums[i] += turned[i * 2] * first + turned[i * 2 + 1] * second;
        }
    }
    for (std::size_t i = 0; i < block_lanes; ++i) {
        out[i] = rounded(sums[i]);
    }
}

void sum_rows(const RowSource& source, const WeightPair* weights, std::size_t samples, std::uint8_t* out) {
    constexpr std::size_t lanes = 32;
    std::size_t i = 0;
    for (; i + lanes <= samples; i += lanes) {
        sum_lanes<lanes>({source.in + i, source.stride, source.count}, weights, out + i);
    }
    for (; i < samples; ++i) {
        sum_lanes<1>({source.in + i, source.stride, source.count}, weights, out + i);
    }
}

}  // namespace fopru
