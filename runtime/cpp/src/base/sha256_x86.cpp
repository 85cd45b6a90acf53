// SHA-256 by the instructions of x86. Compiled with -msha -msse4.1: CMake says so for this file alone, and
// nothing in it runs before the processor was asked.
#include <cpuid.h>
#include <immintrin.h>

#include "base/sha256.h"

namespace fopru {

namespace {

__m128i load(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }

void mix(std::uint32_t state[8], const unsigned char* data, std::size_t blocks) {
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    // The instructions want the state as (a, b, e, f) and (c, d, g, h), the first in the highest lane.
    __m128i dcba = _mm_shuffle_epi32(load(state), 0xb1), hgfe = _mm_shuffle_epi32(load(state + 4), 0x1b);
    __m128i abef = _mm_alignr_epi8(dcba, hgfe, 8), cdgh = _mm_blend_epi16(hgfe, dcba, 0xf0);
    for (; blocks > 0; --blocks, data += 64) {
        const __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i w[4];  // the last 16 words of the schedule
        for (int at = 0; at < 4; ++at) w[at] = _mm_shuffle_epi8(load(data + 16 * at), big_endian);
#pragma GCC unroll 16
        for (int group = 0; group < 16; ++group) {  // four rounds each
            __m128i& now = w[group & 3];
            __m128i sum = _mm_add_epi32(now, load(sha256_constants + 4 * group));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));
            const __m128i next = w[(group + 1) & 3], second = w[(group + 2) & 3], last = w[(group + 3) & 3];
            now = _mm_add_epi32(_mm_sha256msg1_epu32(now, next), _mm_alignr_epi8(last, second, 4));
            now = _mm_sha256msg2_epu32(now, last);
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

}  // namespace

Sha256Mixer accelerated_sha256() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    bool sha = __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b >> 29 & 1) != 0;
    bool sse41 = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c >> 19 & 1) != 0 && (c >> 9 & 1) != 0;  // and SSSE3
    return sha && sse41 ? mix : nullptr;
}

}  // namespace fopru
