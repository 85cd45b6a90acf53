#include "base/python_text.h"

#include <charconv>
#include <cmath>

#include "base/utf8_check.h"

namespace fopru {

namespace {

struct Range {
    char32_t first, last;
};

// What `str.isprintable` refuses, in the blocks that text meets: controls, format characters, spaces other
// than " ", separators, surrogates, private use. Unassigned code points are left out: they change with each
// Unicode version.
constexpr Range not_printable[] = {
    {0x00, 0x1f},       {0x7f, 0xa0},       {0xad, 0xad},       {0x600, 0x605},      {0x61c, 0x61c},
    {0x6dd, 0x6dd},     {0x70f, 0x70f},     {0x890, 0x891},     {0x8e2, 0x8e2},      {0x1680, 0x1680},
    {0x180e, 0x180e},   {0x2000, 0x200f},   {0x2028, 0x202f},   {0x205f, 0x206f},    {0x3000, 0x3000},
    {0xd800, 0xf8ff},   {0xfeff, 0xfeff},   {0xfff0, 0xfffb},   {0xfffe, 0xffff},    {0x110bd, 0x110bd},
    {0x1bca0, 0x1bca3}, {0x1d173, 0x1d17a}, {0xe0000, 0xe00ff}, {0xe01f0, 0x10ffff},
};

bool printable(char32_t code) {
    for (const Range& range : not_printable) {
        if (code >= range.first && code <= range.last) return false;
    }
    return true;
}

// The code point at `at`, which moves behind it. A byte that is no UTF-8 comes alone, as the lone surrogate
// that Python's "surrogateescape" makes of it.
char32_t next_code(std::string_view text, std::size_t& at) {
    auto byte = [&](std::size_t place) { return static_cast<unsigned char>(text[place]); };
    unsigned char lead = byte(at);
    std::size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
    if (first_bad_utf8(text.substr(at, length)) != std::string_view::npos) {
        ++at;
        return 0xdc00u + lead;
    }
    char32_t code = length == 4 ? lead & 7u : length == 3 ? lead & 15u : length == 2 ? lead & 31u : lead;
    for (std::size_t place = at + 1; place < at + length; ++place) code = (code << 6) | (byte(place) & 63u);
    at += length;
    return code;
}

std::string hex(char32_t code, int digits) {
    static constexpr char names[] = "0123456789abcdef";
    std::string out(static_cast<std::size_t>(digits), '0');
    for (int place = digits - 1; place >= 0; --place, code >>= 4)
        out[static_cast<std::size_t>(place)] = names[code & 15];
    return out;
}

void write_text(std::string& out, const std::string& text) {
    bool single = text.find('\'') == std::string::npos || text.find('"') != std::string::npos;
    char quote = single ? '\'' : '"';
    out += quote;
    for (std::size_t at = 0; at < text.size();) {
        std::size_t begin = at;
        char32_t code = next_code(text, at);
        if (code == static_cast<unsigned char>(quote) || code == '\\') {
            out.append("\\").push_back(static_cast<char>(code));
        } else if (code == '\n') {
            out += "\\n";
        } else if (code == '\r') {
            out += "\\r";
        } else if (code == '\t') {
            out += "\\t";
        } else if (printable(code)) {
            out.append(text, begin, at - begin);
        } else if (code < 0x100) {
            out.append("\\x").append(hex(code, 2));
        } else if (code < 0x10000) {
            out.append("\\u").append(hex(code, 4));
        } else {
            out.append("\\U").append(hex(code, 8));
        }
    }
    out += quote;
}

// Stops soon after `most` bytes, so that a large value costs no more than what is shown of it.
void write(std::string& out, const Json& value, std::size_t most) {
    double number = 0.0;
    if (out.size() > most) return;
    if (const bool* flag = value.boolean()) {
        out += *flag ? "True" : "False";
    } else if (const std::int64_t* whole = value.integer()) {
        out += std::to_string(*whole);
    } else if (value.number(number)) {
        out += python_float(number);
    } else if (const std::string* text = value.text()) {
        write_text(out, *text);
    } else if (const Json::Array* items = value.array()) {
        out += '[';
        for (std::size_t at = 0; at < items->size() && out.size() <= most; ++at) {
            if (at > 0) out += ", ";
            write(out, (*items)[at], most);
        }
        out += ']';
    } else if (const Json::Object* members = value.object()) {
        out += '{';
        for (std::size_t at = 0; at < members->size() && out.size() <= most; ++at) {
            if (at > 0) out += ", ";
            write_text(out, (*members)[at].first);
            out += ": ";
            write(out, (*members)[at].second, most);
        }
        out += '}';
    } else {
        out += "None";
    }
}

}  // namespace

std::string python_float(double value) {
    if (std::isnan(value)) return "nan";
    if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
    // Shortest digits that read back as the value, "-d.ddde-05"; Python lays them out itself.
    char buffer[64];
    auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
    std::string text(buffer, end);
    std::size_t mark = text.find('e');
    int exponent = std::stoi(text.substr(mark + 1));
    std::string sign = text[0] == '-' ? "-" : "";
    std::string digits;
    for (char c : text.substr(sign.size(), mark - sign.size())) {
        if (c != '.') digits += c;
    }
    if (exponent < -4 || exponent >= 16) {
        std::string tail = digits.size() > 1 ? "." + digits.substr(1) : "";
        std::string power = std::to_string(std::abs(exponent));
        return sign + digits[0] + tail + (exponent < 0 ? "e-" : "e+") + (power.size() < 2 ? "0" : "") + power;
    }
    if (exponent < 0) return sign + "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
    std::size_t whole = static_cast<std::size_t>(exponent) + 1;
    if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
    return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

std::string python_repr(const Json& value, std::size_t most) {
    std::string out;
    write(out, value, most > SIZE_MAX / 4 ? SIZE_MAX : 4 * most);  // a character has at most 4 bytes
    return out;
}

std::string python_repr(const std::string& text) {
    std::string out;
    write_text(out, text);
    return out;
}

std::string python_repr(const std::vector<std::string>& texts) {
    Json::Array items(texts.begin(), texts.end());
    return python_repr(Json(std::move(items)));
}

std::string python_repr(const std::vector<std::int64_t>& values) {
    Json::Array items(values.begin(), values.end());
    return python_repr(Json(std::move(items)));
}

std::size_t characters(std::string_view utf8) {
    std::size_t count = 0;
    for (char c : utf8) count += (static_cast<unsigned char>(c) & 0xc0) != 0x80;
    return count;
}

std::string first_characters(std::string_view utf8, std::size_t n) {
    std::size_t at = 0;
    for (; at < utf8.size(); ++at) {
        bool begins = (static_cast<unsigned char>(utf8[at]) & 0xc0) != 0x80;
        if (begins && n-- == 0) break;
    }
    return std::string(utf8.substr(0, at));
}

std::string joined(const std::vector<std::string>& texts, const char* separator) {
    std::string out;
    for (std::size_t at = 0; at < texts.size(); ++at) {
        if (at > 0) out += separator;
        out += texts[at];
    }
    return out;
}

}  // namespace fopru
