// What characters are to the tokenizers library.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace fopru {

bool is_white_space(std::uint32_t character);
bool is_numeric(std::uint32_t character);
bool is_punctuation(std::uint32_t character);
bool is_mark(std::uint32_t character);
// A character that `single_word` takes for a part of a word.
bool is_word(std::uint32_t character);

void append_lower(std::string& text, std::uint32_t character);

enum class NormalForm { nfc, nfd, nfkc, nfkd };
// The text must be UTF-8.
std::string normalized(std::string_view text, NormalForm form);

}  // namespace fopru
