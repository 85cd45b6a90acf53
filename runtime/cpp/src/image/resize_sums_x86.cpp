// SSE2, which every 64-bit x86 has: no 32-bit multiplication, but one that adds two products of 16 bits.
#include <emmintrin.h>

#include <algorithm>
#include <cstring>

#include "../kernels/resample_weights.h"
#include "image/resize_sums.h"

namespace fopru {
namespace {

__m128i both(const std::int16_t* weights) {
    std::int32_t bits = 0;
    std::memcpy(&bits, weights, sizeof(bits));
    return _mm_set1_epi32(bits);
}

// Four lanes of a sum.
struct Sum {
    __m128i low = _mm_set1_epi32(1 << (kResampleBits - 1));
    __m128i high = _mm_setzero_si128();

    void add(__m128i samples, __m128i weight_low, __m128i weight_high) {
        low = _mm_add_epi32(low, _mm_madd_epi16(samples, weight_low));
        high = _mm_add_epi32(high, _mm_madd_epi16(samples, weight_high));
    }
    __m128i shifted() const {
        return _mm_srai_epi32(_mm_add_epi32(low, _mm_slli_epi32(high, 15)), kResampleBits);
    }
};

// Sums of 16 lanes as bytes.
__m128i rounded(const Sum* sums) {
    const __m128i lower = _mm_packs_epi32(sums[0].shifted(), sums[1].shifted());
    const __m128i upper = _mm_packs_epi32(sums[2].shifted(), sums[3].shifted());
    return _mm_packus_epi16(lower, upper);
}

__m128i pixel_of(const std::uint8_t* pixel, std::size_t bytes) {
    std::int32_t bits = 0;
    std::memcpy(&bits, pixel, bytes);
    return _mm_cvtsi32_si128(bits);
}

}  // namespace

void turn_rows(const std::uint8_t* const* rows, std::size_t columns, std::int16_t* turned) {
    const __m128i zero = _mm_setzero_si128();
    for (std::size_t x = 0; x < columns; x += 2, turned += 2 * block_lanes) {
        // Four bytes of a pixel where one follows in the row; the fourth is overwritten by the next row.
        const bool inside = x + 2 < columns;
        for (std::size_t r = 0; r < block_rows; ++r) {
            const std::uint8_t* pixel = rows[r] + x * 3;
            const __m128i first = inside ? pixel_of(pixel, 4) : pixel_of(pixel, 3);
            const __m128i second = inside            ? pixel_of(pixel + 3, 4)
                                   : x + 1 < columns ? pixel_of(pixel + 3, 3)
                                                     : zero;
            const __m128i pairs = _mm_unpacklo_epi8(_mm_unpacklo_epi8(first, second), zero);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(turned + r * 6), pairs);
        }
    }
}

void sum_columns(const std::int16_t* turned, const WeightPair* weights, int pairs, std::uint8_t* out) {
    Sum sums[block_lanes / 4];
    for (int k = 0; k < pairs; ++k, turned += 2 * block_lanes) {
        const __m128i low = both(weights[k].low);
        const __m128i high = both(weights[k].high);
        for (std::size_t i = 0; i < block_lanes / 4; ++i) {
            sums[i].add(_mm_loadu_si128(reinterpret_cast<const __m128i*>(turned + i * 8)), low, high);
        }
    }
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), rounded(sums));
    const Sum rest[4] = {sums[4], sums[5], sums[4], sums[5]};
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out + 16), rounded(rest));
}

void sum_rows(const RowSource& source, const WeightPair* weights, std::size_t samples, std::uint8_t* out) {
    const __m128i zero = _mm_setzero_si128();
    std::size_t i = 0;
    for (; i + 16 <= samples; i += 16) {
        Sum sums[4];
        const std::uint8_t* in = source.in + i;
        for (int k = 0; k < source.count; k += 2) {
            const std::uint8_t* next =
                k + 1 < source.count ? in + source.stride : in;  // its weight is 0 then
            const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in));
            const __m128i second = _mm_loadu_si128(reinterpret_cast<const __m128i*>(next));
            const __m128i lower = _mm_unpacklo_epi8(first, second);
            const __m128i upper = _mm_unpackhi_epi8(first, second);
            const __m128i low = both(weights[k / 2].low);
            const __m128i high = both(weights[k / 2].high);
            sums[0].add(_mm_unpacklo_epi8(lower, zero), low, high);
            sums[1].add(_mm_unpackhi_epi8(lower, zero), low, high);
            sums[2].add(_mm_unpacklo_epi8(upper, zero), low, high);
            sums[3].add(_mm_unpackhi_epi8(upper, zero), low, high);
            in = next + source.stride;
        }
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), rounded(sums));
    }
    for (; i < samples; ++i) {
        std::int32_t sum = 1 << (kResampleBits - 1);
        for (int k = 0; k < source.count; ++k) {
            const WeightPair& pair = weights[k / 2];
            const std::int32_t weight = pair.high[k % 2] * (1 << 15) + pair.low[k % 2];
            sum += source.in[static_cast<std::size_t>(k) * source.stride + i] * weight;
        }
        out[i] = static_cast<std::uint8_t>(std::clamp(sum >> kResampleBits, 0, 255));
    }
}

}  // namespace fopru
