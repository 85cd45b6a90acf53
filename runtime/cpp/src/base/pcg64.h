// NumPy's default generator: PCG64 (XSL-RR, 128 bits) seeded by SeedSequence, number for number what
// `np.random.default_rng(seed)` gives.
#pragma once

#include <cstdint>

namespace fopru {

// A value: a copy goes on from where the original stands. Allocates nothing. Not for two threads at once.
class Pcg64 {
public:
    explicit Pcg64(std::uint64_t seed);

    std::uint64_t next_uint64();
    double next_double();  // [0, 1), 53 bits: `Generator.random()`
    // 0..most, both included, without bias: what `Generator.permutation` draws from (`Generator.integers`
    // does it in another way). Half of a 64-bit number serves a `most` of 32 bits; the other half is kept for
    // the next one.
    std::uint64_t bounded(std::uint64_t most);

private:
    std::uint32_t next_uint32();
    void step();

    std::uint64_t state_[2] = {0, 0};      // high, low
    std::uint64_t increment_[2] = {0, 0};  // high, low
    std::uint32_t kept_half_ = 0;
    bool has_half_ = false;
};

}  // namespace fopru
