#include "text/characters.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>

#include "text/unicode_data.h"
#include "text/utf8.h"

namespace fopru {
namespace {

// The category of Unicode 16, whatever the library's version.
std::string_view category_of(std::uint32_t character) {
    const Addition* const addition = find_addition(character);
    return addition != nullptr ? addition->category
                               : utf8proc_category_string(static_cast<utf8proc_int32_t>(character));
}

bool between(std::uint32_t character, std::uint32_t first, std::uint32_t last) {
    return character >= first && character <= last;
}

struct Free {
    void operator()(utf8proc_uint8_t* text) const { std::free(text); }
};

void append_normalized(std::string& out, std::string_view run, NormalForm form) {
    const auto ascii = [](char c) { return static_cast<unsigned char>(c) < 0x80; };
    if (std::all_of(run.begin(), run.end(), ascii)) {
        out.append(run);
        return;
    }
    int options = UTF8PROC_STABLE;
    options |= form == NormalForm::nfc || form == NormalForm::nfkc ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
    if (form == NormalForm::nfkc || form == NormalForm::nfkd) options |= UTF8PROC_COMPAT;
    utf8proc_uint8_t* raw = nullptr;
    const utf8proc_ssize_t size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(run.data()),
                                               static_cast<utf8proc_ssize_t>(run.size()), &raw,
                                               static_cast<utf8proc_option_t>(options));
    const std::unique_ptr<utf8proc_uint8_t, Free> text(raw);
    if (size == UTF8PROC_ERROR_NOMEM) throw std::bad_alloc();
    if (size < 0) throw std::runtime_error(std::string("normalizing failed: ") + utf8proc_errmsg(size));
    out.append(reinterpret_cast<const char*>(text.get()), static_cast<std::size_t>(size));
}

}  // namespace

bool is_white_space(std::uint32_t c) {
    return between(c, 0x9, 0xD) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           between(c, 0x2000, 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
           c == 0x3000;
}

bool is_numeric(std::uint32_t c) {
    if (c < 0x80) return between(c, '0', '9');
    // Unicode 17.
    if (between(c, 0x11DE0, 0x11DE9) || between(c, 0x16FF4, 0x16FF6)) return true;
    return category_of(c)[0] == 'N';
}

bool is_punctuation(std::uint32_t c) {
    if (c < 0x80)
        return between(c, '!', '/') || between(c, ':', '@') || between(c, '[', '`') || between(c, '{', '~');
    // Punctuation before Unicode 12, and 11.
    if (c == 0x166D || c == 0x111C9) return true;
    return category_of(c)[0] == 'P' && !is_late_punctuation(c);
}

bool is_mark(std::uint32_t c) {
    if (c < 0x300) return false;
    // Marks before Unicode 12.
    if (c == 0x1CF2 || c == 0x1CF3) return true;
    return category_of(c)[0] == 'M' && !is_late_mark(c);
}

bool is_word(std::uint32_t c) {
    if (c < 0x80) return between(c, '0', '9') || between(c, 'A', 'Z') || c == '_' || between(c, 'a', 'z');
    // Joiners, and letters in circles.
    if (c == 0x200C || c == 0x200D || between(c, 0x24B6, 0x24E9) || between(c, 0x1F130, 0x1F149) ||
        between(c, 0x1F150, 0x1F169) || between(c, 0x1F170, 0x1F189)) {
        return true;
    }
    const std::string_view category = category_of(c);
    return category[0] == 'L' || category[0] == 'M' || category == "Nd" || category == "Nl" ||
           category == "Pc";
}

void append_lower(std::string& text, std::uint32_t c) {
    // One character that becomes two, and those that the library's Unicode version may not have.
    if (c == 0x130) {
        text += "i\xCC\x87";
        return;
    }
    struct Late {
        std::uint32_t first, last, lower;
    };
    static constexpr Late late[] = {{0x1C89, 0x1C89, 0x1C8A},    {0xA7CB, 0xA7CB, 0x264},
                                    {0xA7CC, 0xA7CC, 0xA7CD},    {0xA7CE, 0xA7CE, 0xA7CF},
                                    {0xA7D2, 0xA7D2, 0xA7D3},    {0xA7D4, 0xA7D4, 0xA7D5},
                                    {0xA7DA, 0xA7DA, 0xA7DB},    {0xA7DC, 0xA7DC, 0x19B},
                                    {0x10D50, 0x10D65, 0x10D70}, {0x16EA0, 0x16EB8, 0x16EBB}};
    for (const Late& range : late) {
        if (between(c, range.first, range.last)) return append_utf8(text, range.lower + (c - range.first));
    }
    append_utf8(text, static_cast<std::uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
}

std::string normalized(std::string_view text, NormalForm form) {
    std::string out;
    std::size_t begin = 0;
    for (std::size_t place = 0; place < text.size();) {
        const CodePoint point = code_point_at(text, place);
        // What the tokenizers library does not know stays, and parts what is before from what is after.
        if (is_late_normalized(point.value)) {
            append_normalized(out, text.substr(begin, place - begin), form);
            out.append(text, place, point.bytes);
            begin = place + point.bytes;
        }
        place += point.bytes;
    }
    append_normalized(out, text.substr(begin), form);
    return out;
}

}  // namespace fopru
