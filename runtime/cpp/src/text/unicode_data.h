// Where the Unicode versions of the tokenizers library differ from those of PCRE2 and utf8proc.
//
// Its patterns (Oniguruma) know Unicode 16, its normal forms Unicode 9, its punctuation Unicode 8; PCRE2 and
// utf8proc of a distribution know 14 or later. With these tables both sides give the same tokens for every
// code point; a test compares all of them.
#pragma once

#include <cstdint>

namespace fopru {

// Assigned after Unicode 14 and up to 16, with the general category, such as "Lu".
struct Addition {
    std::uint32_t first, last;
    char category[3];
};

struct AdditionRange {
    const Addition* first;
    const Addition* last;
    const Addition* begin() const { return first; }
    const Addition* end() const { return last; }
};

AdditionRange unicode_additions();
// Null for a code point of Unicode 14 and for an unassigned one.
const Addition* find_addition(std::uint32_t character);

// Code points that the tokenizers library does not yet know as what they are.
bool is_late_normalized(std::uint32_t character);
bool is_late_mark(std::uint32_t character);
bool is_late_punctuation(std::uint32_t character);

}  // namespace fopru
