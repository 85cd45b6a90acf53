#include "base/sha256.h"

#include <algorithm>
#include <cstring>

#include "base/file.h"

namespace fopru {

const std::uint32_t sha256_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

namespace {

std::uint32_t rotated(std::uint32_t x, int by) { return (x >> by) | (x << (32 - by)); }

std::uint32_t big_endian(const unsigned char* bytes) {
    return static_cast<std::uint32_t>(bytes[0]) << 24 | static_cast<std::uint32_t>(bytes[1]) << 16 |
           static_cast<std::uint32_t>(bytes[2]) << 8 | bytes[3];
}

void mix(std::uint32_t state[8], const unsigned char* data, std::size_t blocks) {
    static const Sha256Mixer fast = accelerated_sha256();
    (fast != nullptr ? fast : mix_sha256_portable)(state, data, blocks);
}

}  // namespace

void mix_sha256_portable(std::uint32_t state[8], const unsigned char* data, std::size_t blocks) {
    for (; blocks > 0; --blocks, data += 64) {
        std::uint32_t w[64];
        for (int t = 0; t < 16; ++t) w[t] = big_endian(data + 4 * t);
        for (int t = 16; t < 64; ++t) {
            std::uint32_t early = rotated(w[t - 15], 7) ^ rotated(w[t - 15], 18) ^ (w[t - 15] >> 3);
            std::uint32_t late = rotated(w[t - 2], 17) ^ rotated(w[t - 2], 19) ^ (w[t - 2] >> 10);
            w[t] = w[t - 16] + early + w[t - 7] + late;
        }
        std::uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
        std::uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
        for (int t = 0; t < 64; ++t) {
            std::uint32_t sum = rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25);
            std::uint32_t one = h + sum + ((e & f) ^ (~e & g)) + sha256_constants[t] + w[t];
            std::uint32_t other = rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22);
            std::uint32_t two = other + ((a & b) ^ (a & c) ^ (b & c));
            h = g, g = f, f = e, e = d + one, d = c, c = b, b = a, a = one + two;
        }
        const std::uint32_t mixed[8] = {a, b, c, d, e, f, g, h};
        for (int at = 0; at < 8; ++at) state[at] += mixed[at];
    }
}

Sha256::Sha256()
    : state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19} {
}

void Sha256::update(std::string_view bytes) {
    if (bytes.empty()) return;
    bytes_ += bytes.size();
    auto data = reinterpret_cast<const unsigned char*>(bytes.data());
    std::size_t left = bytes.size();
    if (filled_ > 0) {
        std::size_t taken = std::min(left, block_.size() - filled_);
        std::memcpy(block_.data() + filled_, data, taken);
        filled_ += taken, data += taken, left -= taken;
        if (filled_ < block_.size()) return;
        mix(state_.data(), block_.data(), 1);
        filled_ = 0;
    }
    mix(state_.data(), data, left / 64);
    filled_ = left % 64;
    if (filled_ > 0) std::memcpy(block_.data(), data + (left - filled_), filled_);
}

std::string Sha256::hex() {
    std::uint64_t bits = 8 * bytes_;
    std::string tail("\x80", 1);
    tail.append((119 - filled_) % 64, '\0');  // up to 8 bytes before the end of a block
    for (int shift = 56; shift >= 0; shift -= 8) tail += static_cast<char>(bits >> shift & 0xff);
    update(tail);
    static constexpr char digits[] = "0123456789abcdef";
    std::string out;
    for (std::uint32_t word : state_) {
        for (int shift = 28; shift >= 0; shift -= 4) out += digits[word >> shift & 15];
    }
    return out;
}

std::string sha256(std::string_view bytes) {
    Sha256 hash;
    hash.update(bytes);
    return hash.hex();
}

std::string sha256_of_file(const std::string& path) {
    MappedFile file(path);
    return sha256(file.bytes());
}

}  // namespace fopru
