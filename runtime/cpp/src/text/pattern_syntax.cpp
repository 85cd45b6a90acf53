// Oniguruma's pattern syntax (Ruby's) as PCRE2's: what means the same passes, what means something else is
// written out, and all else is refused.
#include <algorithm>
#include <array>
#include <cctype>
#include <cstdio>
#include <optional>

#include "text/fields.h"
#include "text/pattern.h"
#include "text/unicode_data.h"
#include "text/utf8.h"

namespace fopru {

namespace {

constexpr const char* class_space =
    "\\t-\\r\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";

constexpr const char* class_not_space =
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-"
    "\\x{2027}"
    "\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}";

// Letters in circles and the like: Alphabetic, and no letters by category.
constexpr const char* class_alphabetic_symbols =
    "\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}";

// The script of Unicode 16. PCRE2's \p{Han} is another set: it depends on the version.
constexpr const char* class_han =
    "\\x{2e80}-\\x{2e99}\\x{2e9b}-\\x{2ef3}\\x{2f00}-\\x{2fd5}\\x{3005}\\x{3007}\\x{3021}-\\x{3029}"
    "\\x{3038}-\\x{303b}\\x{3400}-\\x{4dbf}\\x{4e00}-\\x{9fff}\\x{f900}-\\x{fa6d}\\x{fa70}-\\x{fad9}"
    "\\x{16fe2}-\\x{16fe3}\\x{16ff0}-\\x{16ff1}\\x{20000}-\\x{2a6df}\\x{2a700}-\\x{2b739}"
    "\\x{2b740}-\\x{2b81d}\\x{2b820}-\\x{2cea1}\\x{2ceb0}-\\x{2ebe0}\\x{2ebf0}-\\x{2ee5d}"
    "\\x{2f800}-\\x{2fa1d}\\x{30000}-\\x{3134a}\\x{31350}-\\x{323af}";

std::string hex(std::uint32_t character) {
    char text[16];
    std::snprintf(text, sizeof text, "\\x{%x}", character);
    return text;
}

// The inside of a class for a general category of one or two letters; as of Unicode 16 with `additions`.
std::string class_category(const std::string& category, bool additions) {
    std::string text = "\\p{" + category + "}";
    // A mark that Unicode 15 made a spacing one.
    if (category == "Mc") text += hex(0x1171E);
    if (!additions) return text;
    std::uint32_t first = 0, last = 0;
    const auto flush = [&] {
        if (last != 0) text += hex(first) + (first == last ? "" : "-" + hex(last));
    };
    for (const Addition& addition : unicode_additions()) {
        if (category[0] != addition.category[0] ||
            (category.size() == 2 && category[1] != addition.category[1]))
            continue;
        if (last + 1 == addition.first) {
            last = addition.last;
            continue;
        }
        flush();
        first = addition.first;
        last = addition.last;
    }
    flush();
    return text;
}

std::string class_word(bool additions) {
    return class_category("L", additions) + class_category("M", additions) + class_category("Nd", additions) +
           "\\p{Nl}\\p{Pc}" + class_alphabetic_symbols;
}

// Some numbers of Latin-1 are word characters to Oniguruma.
std::string class_word_oniguruma(bool additions) {
    return class_word(additions) + "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}";
}

class Translator {
public:
    Translator(std::string_view regex, const std::string& path, bool additions)
        : regex_(regex), path_(path), additions_(additions) {}

    PcrePattern translate() {
        if (!is_utf8(regex_)) throw_damaged(path_, "is not UTF-8");
        while (place_ < regex_.size()) one();
        if (caseless_.size() != 1) throw_damaged(path_, "has brackets that do not match");
        return {std::move(out_), longest_run_};
    }

private:
    [[noreturn]] void refuse(const std::string& what) const {
        throw_unknown(path_, what, "the common part of Oniguruma's syntax");
    }
    char peek(std::size_t ahead = 0) const {
        return place_ + ahead < regex_.size() ? regex_[place_ + ahead] : '\0';
    }
    bool starts(std::string_view text) const { return regex_.substr(place_, text.size()) == text; }
    void copy(std::size_t bytes) {
        out_.append(regex_, place_, bytes);
        place_ += bytes;
    }

    void one() {
        switch (peek()) {
            case '\\':
                if (caseless_.back() && std::isalnum(static_cast<unsigned char>(peek(1))))
                    refuse("a set inside (?i:");
                ++place_;
                out_ += escape(false);
                break;
            case '[': character_class(); break;
            case '(': group(); break;
            case ')':
                caseless_.pop_back();
                if (caseless_.empty()) throw_damaged(path_, "has brackets that do not match");
                copy(1);
                break;
            case '{': interval(); break;
            case '$':
                // Ruby: before a newline, or at the end of a text that does not end in one.
                out_ += "(?:(?=\\n)|(?<!\\n)\\z)";
                ++place_;
                break;
            default:
                if (caseless_.back()) check_caseless();
                copy(code_point_at(regex_, place_).bytes);
        }
    }

    // Without regard to case, Oniguruma takes some characters for two, such as ß for ss. What may be one of
    // these is refused.
    void check_caseless() const {
        if (static_cast<unsigned char>(peek()) >= 0x80) refuse("a character beyond ASCII inside (?i:");
        const std::string two{lower(peek()), lower(peek(1))};
        for (const char* const pair : {"ss", "ff", "fi", "fl", "st"}) {
            if (two == pair) refuse(two + " inside (?i:");
        }
    }
    static char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

    void group() {
        if (starts("(*")) refuse("(*");
        const bool option = starts("(?i:");
        caseless_.push_back(caseless_.back() || option);
        if (option) return copy(4);
        if (!starts("(?")) return copy(1);
        for (const std::string_view opening : {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!"}) {
            if (starts(opening)) return copy(opening.size());
        }
        refuse(std::string(regex_.substr(place_, 4)));
    }

    // {n}, {n,}, {,m}, {n,m}, or a brace.
    void interval() {
        std::size_t end = place_ + 1;
        const auto digits = [&] {
            const std::size_t begin = end;
            while (end < regex_.size() && regex_[end] >= '0' && regex_[end] <= '9') ++end;
            return std::string(regex_.substr(begin, end - begin));
        };
        const std::string least = digits();
        std::optional<std::string> most;
        if (end < regex_.size() && regex_[end] == ',') {
            ++end;
            most = digits();
        }
        const bool closed = end < regex_.size() && regex_[end] == '}';
        if (!closed || (least.empty() && (!most || most->empty()))) {
            out_ += "\\{";
            ++place_;
            return;
        }
        const char next = end + 1 < regex_.size() ? regex_[end + 1] : '\0';
        // PCRE2 looks at such a run in one step.
        if (least.size() > 3 || (least.size() == 3 && least > "255")) refuse("{" + least + "}");
        if (!least.empty()) longest_run_ = std::max<std::size_t>(longest_run_, std::stoul(least));
        // Ruby does not take {n}+ for possessive nor {n}? for lazy.
        if (next == '+' || (next == '?' && !most))
            refuse(std::string(regex_.substr(place_, end + 2 - place_)));
        out_ += "{" + (least.empty() ? "0" : least) + (most ? "," + *most : "") + "}";
        place_ = end + 1;
    }

    // After the backslash.
    std::string escape(bool in_class) {
        const char c = peek();
        if (c == '\0') throw_damaged(path_, "ends in a backslash");
        if (static_cast<unsigned char>(c) >= 0x80) {
            const CodePoint point = code_point_at(regex_, place_);
            place_ += point.bytes;
            return hex(point.value);
        }
        ++place_;
        if (!std::isalnum(static_cast<unsigned char>(c))) return {'\\', c};
        switch (c) {
            case 'n':
            case 't':
            case 'r':
            case 'f':
            case 'a':
            case 'e': return {'\\', c};
            case 'v': return "\\x{b}";
            case 's': return in_class ? class_space : std::string("[") + class_space + "]";
            case 'S': return in_class ? class_not_space : std::string("[^") + class_space + "]";
            case 'd':
            case 'D': return bracket(class_category("Nd", additions_), c == 'D', in_class);
            case 'w':
            case 'W': return bracket(class_word_oniguruma(additions_), c == 'W', in_class);
            case 'p':
            case 'P': return property(c == 'P', in_class);
            case 'u':
            case 'x': return code_point(c);
            default: break;
        }
        if (!in_class && (c == 'A' || c == 'z' || c == 'Z')) return {'\\', c};
        if (!in_class && (c == 'b' || c == 'B')) {
            const std::string word = "[" + class_word_oniguruma(additions_) + "]";
            return c == 'b' ? "(?:(?<=" + word + ")(?!" + word + ")|(?<!" + word + ")(?=" + word + "))"
                            : "(?:(?<=" + word + ")(?=" + word + ")|(?<!" + word + ")(?!" + word + "))";
        }
        refuse(std::string("\\") + c);
    }

    std::string bracket(const std::string& inside, bool negated, bool in_class) const {
        if (!in_class) return (negated ? "[^" : "[") + inside + "]";
        if (negated) refuse("a negated class inside a class");
        return inside;
    }

    // \p{L}, \p{^L}, \P{Lu}, \p{Han}: categories, and the scripts that tokenizers split by.
    std::string property(bool negated, bool in_class) {
        const std::size_t end = regex_.find('}', place_);
        if (peek() != '{' || end == std::string_view::npos || end - place_ > 24) refuse("\\p without braces");
        std::string name(regex_.substr(place_ + 1, end - place_ - 1));
        place_ = end + 1;
        if (!name.empty() && name[0] == '^') {
            negated = !negated;
            name.erase(0, 1);
        }
        if (name == "Han") return bracket(class_han, negated, in_class);
        static constexpr std::array categories = {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc",
                                                  "Me", "N",  "Nd", "Nl", "No", "P",  "Pc", "Pd", "Ps",
                                                  "Pe", "Pi", "Pf", "Po", "S",  "Sm", "Sc", "Sk", "So",
                                                  "Z",  "Zs", "Zl", "Zp", "Cc", "Cf", "Co"};
        for (const char* const category : categories) {
            if (name == category) return bracket(class_category(name, additions_), negated, in_class);
        }
        refuse("\\p{" + name + "}");
    }

    // \uHHHH, \x{H...}, \xHH.
    std::string code_point(char kind) {
        std::string digits;
        if (kind == 'u') {
            digits = std::string(regex_.substr(place_, 4));
            if (digits.size() != 4) refuse("\\u without four digits");
            place_ += 4;
        } else if (peek() == '{') {
            const std::size_t end = regex_.find('}', place_);
            if (end == std::string_view::npos || end - place_ > 9) refuse("\\x{ without }");
            digits = std::string(regex_.substr(place_ + 1, end - place_ - 1));
            place_ = end + 1;
        } else {
            // More would be a byte of UTF-8 to Oniguruma.
            digits = std::string(regex_.substr(place_, 2));
            if (digits.size() != 2 || digits[0] > '7') refuse("\\x" + digits);
            place_ += 2;
        }
        std::uint32_t value = 0;
        if (digits.empty()) refuse("\\x{}");
        for (const char c : digits) {
            if (!std::isxdigit(static_cast<unsigned char>(c))) refuse("\\" + std::string(1, kind) + digits);
            const char lower = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
            value = value * 16 + static_cast<std::uint32_t>(lower <= '9' ? lower - '0' : lower - 'a' + 10);
        }
        if (value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF))
            refuse("\\" + std::string(1, kind) + digits);
        return hex(value);
    }

    void character_class() {
        copy(1);
        if (peek() == '^') {
            if (caseless_.back()) refuse("a negated class inside (?i:");
            copy(1);
        }
        if (peek() == ']') refuse("an empty class");
        while (peek() != ']') {
            if (place_ >= regex_.size()) throw_damaged(path_, "has a class without an end");
            if (peek() == '[') refuse("a class inside a class");
            if (starts("&&")) refuse("&&");
            if (peek() == '\\') {
                if (caseless_.back()) refuse("an escape in a class inside (?i:");
                ++place_;
                out_ += escape(true);
            } else {
                if (caseless_.back() && static_cast<unsigned char>(peek()) >= 0x80) check_caseless();
                copy(code_point_at(regex_, place_).bytes);
            }
        }
        copy(1);
    }

    std::string_view regex_;
    const std::string& path_;
    bool additions_;
    std::string out_;
    std::size_t place_ = 0, longest_run_ = 1;
    std::vector<bool> caseless_{false};  // for each open group, the pattern itself first
};

}  // namespace

PcrePattern pcre_from_oniguruma(std::string_view regex, const std::string& path, bool additions) {
    return Translator(regex, path, additions).translate();
}

std::string pcre_of_words_and_symbols(bool additions) {
    const std::string word = class_word(additions) + "\\x{200c}\\x{200d}";
    return "[" + word + "]+|[^" + word + class_space + "]+";
}

}  // namespace fopru
