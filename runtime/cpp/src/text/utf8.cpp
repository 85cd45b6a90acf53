#include "text/utf8.h"

#include <algorithm>
#include <iterator>

#include "base/utf8_check.h"

namespace fopru {
namespace {

constexpr std::string_view replacement = "\xEF\xBF\xBD";

struct Step {
    std::size_t bytes;
    bool valid;
};

// One character, or the longest beginning of one (at least one byte).
Step step(std::string_view text, std::size_t place) {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[place + i]); };
    const std::size_t left = text.size() - place;
    const unsigned char lead = byte(0);
    if (lead < 0x80) return {1, true};
    if (lead < 0xC2 || lead > 0xF4) return {1, false};
    const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    // The second byte excludes overlong forms, surrogates and what is beyond U+10FFFF.
    const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (left < 2 || byte(1) < low || byte(1) > high) return {1, false};
    for (std::size_t i = 2; i < length; ++i) {
        if (i >= left || (byte(i) & 0xC0) != 0x80) return {i, false};
    }
    return {length, true};
}

}  // namespace

std::size_t valid_utf8_prefix(std::string_view text) { return std::min(first_bad_utf8(text), text.size()); }

void append_utf8(std::string& text, std::uint32_t code_point) {
    const auto put = [&](std::uint32_t byte) { text.push_back(static_cast<char>(byte)); };
    if (code_point < 0x80) {
        put(code_point);
    } else if (code_point < 0x800) {
        put(0xC0 | code_point >> 6);
        put(0x80 | (code_point & 0x3F));
    } else if (code_point < 0x10000) {
        put(0xE0 | code_point >> 12);
        put(0x80 | (code_point >> 6 & 0x3F));
        put(0x80 | (code_point & 0x3F));
    } else {
        put(0xF0 | code_point >> 18);
        put(0x80 | (code_point >> 12 & 0x3F));
        put(0x80 | (code_point >> 6 & 0x3F));
        put(0x80 | (code_point & 0x3F));
    }
}

bool is_space(std::uint32_t code_point) {
    constexpr std::uint32_t others[] = {0x20, 0x85, 0xA0, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000};
    if ((code_point >= 0x09 && code_point <= 0x0D) || (code_point >= 0x1C && code_point <= 0x1F)) return true;
    if (code_point >= 0x2000 && code_point <= 0x200A) return true;
    return std::find(std::begin(others), std::end(others), code_point) != std::end(others);
}

std::string utf8_lossy(std::string bytes) {
    std::size_t place = valid_utf8_prefix(bytes);
    if (place == bytes.size()) return bytes;
    std::string text = bytes.substr(0, place);
    while (place < bytes.size()) {
        const Step next = step(bytes, place);
        if (next.valid) {
            text.append(bytes, place, next.bytes);
        } else {
            text.append(replacement);
        }
        place += next.bytes;
    }
    return text;
}

}  // namespace fopru
