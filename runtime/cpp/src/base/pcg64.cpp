#include "base/pcg64.h"

#include <array>
#include <limits>

namespace fopru {

namespace {

// Every compiler of a 64-bit target has it; C++17 itself has no such type.
__extension__ using Wide = unsigned __int128;

constexpr std::size_t pool_size = 4;
constexpr std::uint32_t shift = 16;

// SeedSequence's hash: its multiplier changes with every value that goes through it.
class SeedHash {
public:
    SeedHash(std::uint32_t start, std::uint32_t multiplier) : constant_(start), multiplier_(multiplier) {}
    std::uint32_t operator()(std::uint32_t value) {
        value ^= constant_;
        constant_ *= multiplier_;
        value *= constant_;
        return value ^ (value >> shift);
    }

private:
    std::uint32_t constant_, multiplier_;
};

std::uint32_t mixed(std::uint32_t into, std::uint32_t value) {
    const std::uint32_t result = 0xca01f9ddU * into - 0x4973f715U * value;
    return result ^ (result >> shift);
}

// SeedSequence(seed).generate_state(4, uint64)
std::array<std::uint64_t, 4> seed_words(std::uint64_t seed) {
    SeedHash in(0x43b0d7e5U, 0x931e8875U);
    std::array<std::uint32_t, pool_size> pool{};
    for (std::size_t i = 0; i < pool_size; ++i) {
        pool[i] = in(i < 2 ? static_cast<std::uint32_t>(seed >> (32 * i)) : 0U);
    }
    for (std::size_t source = 0; source < pool_size; ++source) {
        for (std::size_t target = 0; target < pool_size; ++target) {
            if (source != target) pool[target] = mixed(pool[target], in(pool[source]));
        }
    }
    SeedHash out(0x8b51f9ddU, 0x58f38dedU);
    std::array<std::uint64_t, 4> words{};
    for (std::size_t i = 0; i < 2 * words.size(); ++i) {
        words[i / 2] |= static_cast<std::uint64_t>(out(pool[i % pool_size])) << (32 * (i % 2));
    }
    return words;
}

Wide joined(const std::uint64_t* halves) { return (static_cast<Wide>(halves[0]) << 64) | halves[1]; }

void split(Wide value, std::uint64_t* halves) {
    halves[0] = static_cast<std::uint64_t>(value >> 64);
    halves[1] = static_cast<std::uint64_t>(value);
}

}  // namespace

Pcg64::Pcg64(std::uint64_t seed) {
    const auto words = seed_words(seed);
    split((joined(words.data() + 2) << 1) | 1U, increment_);
    step();
    split(joined(state_) + joined(words.data()), state_);
    step();
}

void Pcg64::step() {
    constexpr std::uint64_t multiplier[2] = {2549297995355413924ULL, 4865540595714422341ULL};
    split(joined(state_) * joined(multiplier) + joined(increment_), state_);
}

std::uint64_t Pcg64::next_uint64() {
    step();
    const std::uint64_t value = state_[0] ^ state_[1];
    const unsigned turn = static_cast<unsigned>(state_[0] >> 58);
    return (value >> turn) | (value << ((64 - turn) & 63U));
}

double Pcg64::next_double() { return static_cast<double>(next_uint64() >> 11) * (1.0 / 9007199254740992.0); }

std::uint32_t Pcg64::next_uint32() {
    if (has_half_) {
        has_half_ = false;
        return kept_half_;
    }
    const std::uint64_t both = next_uint64();
    has_half_ = true;
    kept_half_ = static_cast<std::uint32_t>(both >> 32);
    return static_cast<std::uint32_t>(both);
}

// Bits that are too many are thrown away and drawn again.
std::uint64_t Pcg64::bounded(std::uint64_t most) {
    if (most == 0) return 0;
    std::uint64_t mask = most;
    for (unsigned width = 1; width < 64; width *= 2) mask |= mask >> width;
    const bool narrow = most <= std::numeric_limits<std::uint32_t>::max();
    while (true) {
        const std::uint64_t value = (narrow ? next_uint32() : next_uint64()) & mask;
        if (value <= most) return value;
    }
}

}  // namespace fopru
