// SHA-256 of FIPS 180-4.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace fopru {

// Takes bytes in any number of pieces. Not for two threads at once.
class Sha256 {
public:
    Sha256();
    void update(std::string_view bytes);
    std::string hex();  // 64 lower-case digits; nothing may be added afterwards

private:
    std::array<std::uint32_t, 8> state_;
    std::array<unsigned char, 64> block_;  // bytes that fill no block yet
    std::size_t filled_ = 0;
    std::uint64_t bytes_ = 0;
};

std::string sha256(std::string_view bytes);
std::string sha256_of_file(const std::string& path);  // FileError

// Mixes whole 64-byte blocks into the state. The fastest that this processor has; all give the same.
using Sha256Mixer = void (*)(std::uint32_t state[8], const unsigned char* data, std::size_t blocks);
void mix_sha256_portable(std::uint32_t state[8], const unsigned char* data, std::size_t blocks);
Sha256Mixer accelerated_sha256();  // null where the processor has no instructions for it

extern const std::uint32_t sha256_constants[64];

}  // namespace fopru
