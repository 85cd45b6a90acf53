// Private to src/image: the inner loops of a resize. One of resize_sums_*.cpp is built, as the processor
// asks.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fopru {

// Two neighbouring weights, each as high * 2^15 + low with low in [0, 2^15): what the multiplications of 16
// bits take that every x86 has. Sums are modulo 2^32, so nothing is lost; an absent second weight is 0.
struct WeightPair {
    std::int16_t low[2];
    std::int16_t high[2];
};

constexpr std::size_t block_rows = 8;
constexpr std::size_t block_lanes = block_rows * 3;
constexpr std::size_t lane_slack = 2;  // samples behind a turned block that may be overwritten

// Eight rows of `columns` RGB pixels as int16 [ceil(columns / 2), block_lanes, 2]: the two samples of a pair
// of columns are neighbours, then the channels, then the rows. A column that is not there is 0.
void turn_rows(const std::uint8_t* const* rows, std::size_t columns, std::int16_t* turned);

// out[lane] = the sum over `pairs` pairs of turned samples, rounded to a byte.
void sum_columns(const std::int16_t* turned, const WeightPair* weights, int pairs, std::uint8_t* out);

// out[i] = the sum over `count` rows of in[k * stride + i], for i below `samples`, rounded to a byte.
struct RowSource {
    const std::uint8_t* in;
    std::size_t stride;
    int count;
};
void sum_rows(const RowSource& source, const WeightPair* weights, std::size_t samples, std::uint8_t* out);

}  // namespace fopru
