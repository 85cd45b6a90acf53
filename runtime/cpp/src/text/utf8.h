// UTF-8 text as code points.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace fopru {

struct CodePoint {
    std::uint32_t value;
    std::size_t bytes;
};

// Bytes from the first that is not UTF-8 (surrogates and overlong forms are not); text.size() where all is.
std::size_t valid_utf8_prefix(std::string_view text);

inline bool is_utf8(std::string_view text) { return valid_utf8_prefix(text) == text.size(); }

// The code point at `place`; the text must be UTF-8 and `place` the first byte of a character of it.
inline CodePoint code_point_at(std::string_view text, std::size_t place) {
    const auto byte = [&](std::size_t i) {
        return static_cast<std::uint32_t>(static_cast<unsigned char>(text[place + i]));
    };
    const std::uint32_t lead = byte(0);
    if (lead < 0x80) return {lead, 1};
    if (lead < 0xE0) return {(lead & 0x1F) << 6 | (byte(1) & 0x3F), 2};
    if (lead < 0xF0) return {(lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
    return {(lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F), 4};
}

// The first byte of the last character; the text must be UTF-8 and not empty.
inline std::size_t last_character(std::string_view text) {
    std::size_t place = text.size() - 1;
    while (place > 0 && (static_cast<unsigned char>(text[place]) & 0xC0) == 0x80) --place;
    return place;
}

void append_utf8(std::string& text, std::uint32_t code_point);

// What Python's `str.isspace` takes.
bool is_space(std::uint32_t code_point);

// U+FFFD for each longest beginning of a character that is never completed, and for each byte that begins
// none: as Rust's `String::from_utf8_lossy` and Python's `errors="replace"`.
std::string utf8_lossy(std::string bytes);

}  // namespace fopru
