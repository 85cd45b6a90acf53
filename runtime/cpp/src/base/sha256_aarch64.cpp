// SHA-256 by the instructions of Armv8. Compiled with -march=armv8-a+crypto: CMake says so for this file
// alone, and nothing in it runs before the processor was asked.
#include <arm_neon.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>

#include "base/sha256.h"

namespace fopru {

namespace {

void mix(std::uint32_t state[8], const unsigned char* data, std::size_t blocks) {
    uint32x4_t abcd = vld1q_u32(state), efgh = vld1q_u32(state + 4);
    for (; blocks > 0; --blocks, data += 64) {
        const uint32x4_t abcd_before = abcd, efgh_before = efgh;
        uint32x4_t w[4];  // the last 16 words of the schedule
        for (int at = 0; at < 4; ++at) w[at] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(data + 16 * at)));
#pragma GCC unroll 16
        for (int group = 0; group < 16; ++group) {  // four rounds each
            uint32x4_t& now = w[group & 3];
            const uint32x4_t sum = vaddq_u32(now, vld1q_u32(sha256_constants + 4 * group)), before = abcd;
            abcd = vsha256hq_u32(abcd, efgh, sum);
            efgh = vsha256h2q_u32(efgh, before, sum);
            now = vsha256su0q_u32(now, w[(group + 1) & 3]);
            now = vsha256su1q_u32(now, w[(group + 2) & 3], w[(group + 3) & 3]);
        }
        abcd = vaddq_u32(abcd, abcd_before);
        efgh = vaddq_u32(efgh, efgh_before);
    }
    vst1q_u32(state, abcd);
    vst1q_u32(state + 4, efgh);
}

}  // namespace

Sha256Mixer accelerated_sha256() { return (getauxval(AT_HWCAP) & HWCAP_SHA2) != 0 ? mix : nullptr; }

}  // namespace fopru
